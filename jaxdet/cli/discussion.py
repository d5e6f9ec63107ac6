"""Sections of a report on compared runs: settings, losses, confusions, and a discussion."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdet import tables
from jaxdet.cli.eval import MAX_CLASSES
from jaxdet.cli.evaluated_run import EvaluatedRun
from jaxdet.config import to_words
from jaxdet.training import run_dir

Row = dict[str, Any]

OVERFIT = 1.1  # a run overfits if its last validation loss exceeds the lowest one by this factor
GOOD_IOU = "iou50"  # the fraction of images with an IoU above 0.5; the others are failures


def settings(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield a section with the command that trains each run."""
    yield "## Settings"
    yield "\n".join(
        f"- `{one.row['run']}`: `jaxdet train {one.row['system']} "
        f"{shlex.join(to_words(one.config))}`"
        for one in evaluated
    )


def losses(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield a section on losses: all terms at the best and last checkpoint, totals per epoch."""
    rows = [
        {"run": one.row["run"], "checkpoint": name, "epoch": line["epoch"], **_terms(line)}
        for one in evaluated
        for name, line in (("best", _best(one)), ("last", one.metrics[-1] if one.metrics else {}))
        if line
    ]
    if not rows:
        return
    yield "## Losses of training and validation"
    yield (
        "Training losses are means over an epoch, in which the network changes, on augmented "
        "images and with dropout; validation losses come from the network after the epoch."
    )
    yield tables.to_markdown(rows, list(dict.fromkeys(key for row in rows for key in row)))
    epochs: dict[int, Row] = {}
    for one in evaluated:
        for line in one.metrics:
            epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"]})
            for split, name in _named_splits(line):
                epoch[f"{one.row['run']}, {name}"] = line[split].get("loss")
    columns = list(dict.fromkeys(key for epoch in epochs.values() for key in epoch))
    yield "Loss after each epoch (epoch 0: before training):"
    yield tables.to_markdown([epochs[number] for number in sorted(epochs)], columns)


def labels(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield a section with each run's scores per label and confusions, in a table and in words."""
    known = [one for one in evaluated if 0 < len(one.row.get("labels", ())) <= MAX_CLASSES]
    if known:
        yield "## Accuracy of each label, and confusions"
    for one in known:
        yield f"`{one.row['run']}`:"
        yield tables.to_markdown(*tables.label_table(one.row))
        yield summarize_labels(one.row)


def summarize_labels(row: Mapping[str, Any]) -> str:
    """The labels with the highest and lowest accuracy, and the most frequent confusion."""
    accuracy = {name: of["accuracy"] for name, of in row["labels"].items() if of["count"]}
    best, worst = max(accuracy, key=accuracy.get), min(accuracy, key=accuracy.get)
    text = (
        f"Highest accuracy: {best}, {accuracy[best]:.3f}; lowest: {worst}, {accuracy[worst]:.3f}."
    )
    wrong = np.array(row["confusion"])
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return text
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    names = list(row["labels"])
    pair = f"{names[true]} predicted as {names[predicted]}"
    return f"{text}  Most frequent mistake: {pair}, {wrong.max()} of {wrong.sum()} mistakes."


def discussion(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield a section with sentences on scores, losses, times and failures."""
    rows = [one.row for one in evaluated]
    sentences = [
        *_ranking(rows, "accuracy", "accuracy"),
        *_ranking(rows, "iou", "mean IoU"),
        *(sentence for one in evaluated for sentence in _fit(one)),
        *_ranking(rows, "epoch_seconds", "median time per epoch in seconds", lowest=True),
        *(sentence for row in rows for sentence in _failures(row)),
    ]
    if sentences:
        yield "## Discussion"
        yield "\n".join(f"- {sentence}" for sentence in sentences)


def _ranking(rows: Sequence[Row], name: str, text: str, *, lowest: bool = False) -> Iterator[str]:
    """Yield a sentence that orders the runs by a column, if all runs have the column."""
    if len(rows) < 2 or any(row.get(name) is None for row in rows):
        return
    ordered = sorted(rows, key=lambda row: row[name], reverse=not lowest)
    values = [f"`{row['run']}` {row[name]:.4g}" for row in ordered]
    if ordered[0][name] == ordered[-1][name]:
        yield f"All runs have the same {text}, {ordered[0][name]:.4g}."
        return
    which = "Lowest" if lowest else "Highest"
    yield f"{which} {text}: {values[0]}, then {', '.join(values[1:])}."


def _fit(one: EvaluatedRun) -> Iterator[str]:
    """Yield a sentence on the losses of a run: whether it overfits, or has not converged."""
    known = [line for line in one.metrics if (line["val"] or {}).get("loss") is not None]
    trained = [line for line in known if line["train"]]
    if len(trained) < 2:
        return
    low = min(known, key=lambda line: line["val"]["loss"])
    first, last, run = trained[0], trained[-1], one.row["run"]
    before, after = (line["train"]["loss"] for line in (first, last))
    text = (
        f"`{run}`: the training loss {'falls' if after < before else 'rises'} from {before:.4g} to "
        f"{after:.4g}; the lowest validation loss is {low['val']['loss']:.4g}, after epoch "
        f"{low['epoch']}"
    )
    if last is low:
        yield f"{text}, the last one: more epochs may help."
    elif last["val"]["loss"] > OVERFIT * low["val"]["loss"]:
        yield f"{text}; at the end it is {last['val']['loss']:.4g}: the run overfits."
    else:
        yield f"{text}; at the end it is {last['val']['loss']:.4g}: the run does not overfit."


def _failures(row: Row) -> Iterator[str]:
    """Yield a sentence on the numbers of wrong labels, and of boxes with a low IoU."""
    if "correct" not in row or "count" not in row:
        return
    wrong = row["count"] - row["correct"]
    text = f"`{row['run']}` gives {wrong} of {row['count']} images a wrong label"
    if GOOD_IOU in row:
        low = round(row["count"] * (1 - row[GOOD_IOU]))
        text = f"{text}, and {low} images a box with an IoU of at most 0.5"
    yield f"{text}."


def _best(one: EvaluatedRun) -> Mapping[str, Any]:
    return run_dir.best_line(one.metrics, one.config.best)


def _terms(line: Mapping[str, Any]) -> Row:
    """The loss terms in a line of metrics, as {"SPLIT TERM": value}, training before validation."""
    terms = [*(line["train"] or {})]
    terms = [name for name in ("loss", *sorted(terms)) if name in terms and name != "accuracy"]
    return {
        f"{name} {term}": line[split][term]
        for split, name in _named_splits(line)
        for term in dict.fromkeys(terms)
        if term in line[split]
    }


def _named_splits(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"train": "training", "val": "validation"}
    return [(split, name) for split, name in names.items() if line.get(split)]
