"""`jaxdet compare RUN...`: runs side by side, in a table, in curves and by their failures."""

import json
import os
import statistics
import sys
from collections import Counter
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import numpy as np

from jaxdet import checkpoint, classic, evaluate, parallel, plots, runs, tables, timing
from jaxdet.commands import common
from jaxdet.errors import InputError
from jaxdet.ops import boxes
from jaxdet.options import Restored

COLUMNS = {
    "run": "run",
    "model": "model",
    "size": "size",
    "parameters": "parameters",
    "operations": "operations of an image",
    "seconds": "s of an image",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "epoch_seconds": "s of an epoch",
    **{name: name for name in ("loss", "accuracy", "iou", "iou50", "iou70")},
    "error_rate": "error rate",
}
OF_LABEL = ("accuracy", "iou")
LOSS = ("box_loss", "class_weight", "box_weight", "gate", "reduction")  # what changes its scale
MOST = 6  # failures of a run
PICTURES = (
    "Validation scores against the epoch",
    "The worst answers of each run: true boxes green, predicted boxes red",
)
CLASSIC = (
    "Classic approaches learn from the training split of the first run, have its loss, and run on "
    "the CPU, a photo at a time.  The SVM's chances are the softmax of its decision values.  The "
    "cascade knows faces only: all else gets the most frequent other label and its mean box."
)


class Judged(NamedTuple):
    """A run, judged."""

    row: dict  # of the table, and all other scores
    metrics: list  # lines of `metrics.jsonl`
    worst: list  # [Failure]
    data: dict  # part -> what tells its samples from others
    loss: dict  # the fields of `LOSS` that the run has


class Failure(NamedTuple):
    """A sample whose answer is among the worst."""

    title: str
    picture: Any  # [H, W, C]
    true: Any  # [4] in pixels of the picture
    predicted: Any


def run(options):
    """Print a row a run, and draw and write what was asked for."""
    figure, failures = _pictures(options)
    _check(options, figure, failures)
    found, rows = [], []
    for name, folder in _named(options.runs).items():
        asked = Restored(run=folder, checkpoint=options.checkpoint, split=options.split)
        restored = common.restored(asked)
        found.append(_judged(name, asked, bool(failures), *restored))
        if options.classic and not rows:
            rows = _classic(options.split, *restored[:2])
    notes = _notes(found, rows)
    rows = [one.row for one in found] + rows
    for note in notes:
        print(f"jaxdet: warning: {note}", file=sys.stderr)
    print("\n".join(map(json.dumps, rows)) if options.json else _table(rows))
    written = list(_drawn(found, figure, failures))
    if options.report:
        _report(options, rows, notes, written)
        written.append(options.report)
    if written and not options.json:
        print(f"wrote {', '.join(map(str, written))}")
    return 0


def _pictures(options):
    """Where curves and failures go, or None; a report has both."""
    report = options.report
    beside = [report and report.with_name(f"{report.stem}_{w}.png") for w in ("curves", "failures")]
    return options.figure or beside[0], options.failures or beside[1]


def _check(options, *pictures):
    """Refuse, before anything is computed, what cannot be compared or written."""
    if not options.runs:
        raise InputError("no run is given: jaxdet compare RUN..., each the --out of a training")
    for path in pictures:
        common.check_picture(path)
    taken = [path for path in (options.report, *pictures) if path and path.exists()]
    if options.report and taken and not options.overwrite:
        raise InputError(f"{taken[0]} exists; give another name, or --overwrite")
    for folder in options.runs:
        system, _ = runs.read_config(folder)
        if not checkpoint.steps(folder):
            raise InputError(f"{folder} has no checkpoints; train it, or leave it out")
        if options.classic and system != "objects":
            raise InputError(f"--classic is for runs of objects; {folder} is one of {system}")
    if options.classic:
        classic.opencv()


def _named(folders):
    """The folders by what tells them apart: their own name, or else their path."""
    folders = dict.fromkeys(folders)
    count = Counter(folder.resolve().name for folder in folders)
    own = {folder: folder.resolve().name for folder in folders}
    return {name if count[name] == 1 else str(folder): folder for folder, name in own.items()}


def _judged(name, asked, draws, config, system, step, state):
    """Scores and history of a restored run, and its failures if they will be drawn."""
    kept, metrics = evaluate.variables(state), runs.read_metrics(asked.run)
    telling = system._replace(task=_telling(system.task))
    among = parallel.devices(config.devices)
    scorer = evaluate.Evaluator(telling, asked.split, config.eval_batch, among)
    scorer.prepare(kept)
    scores, seconds = timing.clock(lambda: scorer(kept))
    seen = scores.pop("seen")
    operations = scorer.operations(kept) // scorer.count
    kind, _ = runs.read_config(asked.run)
    row = {
        "run": name,
        "system": kind,
        "model": getattr(config, "model", kind),
        "size": system.about["input"][:2],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(kept["params"])),
        **_history(asked.run, metrics),
        "split": asked.split,
        "step": step,
        **scores,
        **evaluate.summary(scores, operations, seconds / scorer.count),
    }
    return Judged(
        row=row,
        metrics=metrics,
        worst=_worst(name, system, asked.split, seen) if draws and seen else [],
        data=_data(system),
        loss={field: getattr(config, field) for field in LOSS if hasattr(config, field)},
    )


def _telling(task):
    """The task, with the answers to each image, where they are a label and a box, as `seen`."""

    def measure(answers, batch):
        rows, seen = task.measure(answers, batch), {}
        if {"label", "box"} <= answers.keys() and {"label", "boxes"} <= batch.keys():
            seen = {"label": batch["label"], "box": batch["boxes"][:, 0]}
            seen |= {"given": answers["label"], "found": answers["box"]}
            seen["iou"] = boxes.iou(seen["found"], seen["box"])
        return {"scored": rows, "seen": seen}

    def report(rows):
        return {**task.report(rows["scored"]), "seen": rows["seen"]}

    return task._replace(measure=measure, report=report)


def _history(folder, metrics):
    """Epochs of a run, which of them was the best, and the median of the seconds of one."""
    epochs = {line["step"]: line["epoch"] for line in metrics}
    taken = [line["time"]["train"] for line in metrics if line["train"]]
    return {
        "epochs": max(epochs.values(), default=None),
        "best_epoch": epochs.get(checkpoint.best(folder, warn=lambda line: None)),
        "epoch_seconds": statistics.median(taken) if taken else None,
    }


def _data(system):
    """What tells the samples of each part: the rows of the kept tables, or ids and labels."""
    if system.files:
        return {path: frozenset(text.splitlines()) for path, text in system.files}
    parts = {part: source.arrays for part, source in system.splits.items()}
    return {part: (of["id"].tobytes(), of["label"].tobytes()) for part, of in parts.items()}


def _worst(name, system, split, seen):
    """The `MOST` worst answers of those `seen`: wrong labels first, then by IoU."""
    classes = system.about["classes"]
    chosen = np.lexsort((seen["iou"], seen["given"] == seen["label"]))[:MOST]
    source = system.splits[split].take(chosen)
    rows = evaluate.samples(system._replace(splits={split: source}), split, MOST)
    names = source.names or [f"{split}:{number}" for number in rows["id"]]
    found = []
    for i, photo, picture in zip(chosen, names, rows["image"], strict=True):
        words = f"true {classes[seen['label'][i]]}, predicted {classes[seen['given'][i]]}"
        title = f"{name}: {photo}\n{words}, IoU {seen['iou'][i]:.2f}"
        found.append(Failure(title, picture, seen["box"][i], seen["found"][i]))
    return found


def _classic(split, config, system):
    """Rows of classic approaches to the data of a run, with its loss."""
    found = classic.scores(
        system.splits,
        split,
        system.about["classes"],
        config.root,
        box_loss=config.box_loss,
        hyper=system.hyper,
    )
    return [
        {"run": name, "split": split, **scores, "error_rate": 1 - scores["accuracy"]}
        for name, scores in found.items()
    ]


def _notes(found, classics):
    """What makes rows hard to compare, or is not among them, a line each."""
    if len({one.row["system"] for one in found}) > 1:
        return ["the runs are of different systems, each with its own data and loss"]
    data, loss = (_apart([getattr(one, of) for one in found]) for of in ("data", "loss"))
    notes = {
        "the runs do not have the same data": data,
        "the runs do not have the same loss, only their other scores compare": loss,
    }
    if classics and classic.HAAR not in [row["run"] for row in classics]:
        notes[f"the {classic.HAAR} is left out, no label is"] = [classic.FACE]
    return [f"{note}: {', '.join(words)}" for note, words in notes.items() if words]


def _apart(each):
    """Keys under which dictionaries do not all have the same."""
    return [key for key in dict.fromkeys(chain(*each)) if len({one.get(key) for one in each}) > 1]


def _table(rows):
    """Markdown: a row a run, with the scores of every label that any of them has."""
    labels = dict.fromkeys(chain.from_iterable(row.get("labels", ()) for row in rows))
    columns = COLUMNS | {f"{name} {key}": f"{name} {key}" for name in labels for key in OF_LABEL}
    return tables.markdown([row | _of_labels(row) for row in rows], columns)


def _of_labels(row):
    """The scores of the labels of a row, as columns of their own."""
    labels = row.get("labels", {})
    return {f"{name} {key}": value for name in labels for key, value in labels[name].items()}


def _drawn(found, figure, failures):
    """Draw what is asked for and can be; the paths."""
    if figure:
        plots.curves({one.row["run"]: one.metrics for one in found}, figure)
        yield figure
    worst = [failure for one in found for failure in one.worst]
    if failures and worst:
        titles, images, true, answers = zip(*worst, strict=True)
        seen = {"titles": titles, "true": true, "predicted": answers}
        plots.gallery(images, failures, **seen, columns=MOST)
        yield failures


def _report(options, rows, notes, pictures):
    """One Markdown file: the table, what to mind, and links to the pictures."""
    path, many = options.report, len(set(options.runs))
    parts = [
        f"# {many} run{'s' * (many > 1)} compared",
        f"Scores of checkpoint `{options.checkpoint}` on split `{options.split}`.",
        _table(rows),
        *notes,
        *([CLASSIC] if options.classic else []),
    ]
    for title, picture in zip(PICTURES, pictures, strict=False):
        link = quote(os.path.relpath(picture, path.parent).replace(os.sep, "/"))
        parts += [f"![{title}]({link})"]
    runs.keep(path.parent, path.name, "\n\n".join(parts) + "\n")
