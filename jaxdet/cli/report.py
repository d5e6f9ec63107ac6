"""The Markdown report of `jaxdet compare --report`: tables, pictures, and sections of a system.

For runs of one system, the report has their settings, their losses, the best network, confusions,
and a discussion.  If the configuration has `LIMITS`, the best network is the best within these
limits.  If it has `CUTOFFS`, the report shows the level (high, medium or low) that each run
reaches.
"""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax

from jaxdet import configs, tables
from jaxdet.cli import discussion, sweep_table, thresholds
from jaxdet.cli.evaluated_run import EvaluatedRun
from jaxdet.cli.options import Compare
from jaxdet.config import TrainConfig, to_words
from jaxdet.errors import InputError
from jaxdet.metrics import classification as classification_metrics
from jaxdet.profiling import summary
from jaxdet.training import run_dir

VerifiedScores = dict[str, list[dict[str, Any]]]  # run -> scores of `jaxdet verify`

PICTURE_TITLES = (
    "Validation scores against the epoch",
    "The worst predictions of each run: true boxes green, predicted boxes red, wrong labels in red",
)
UNITS = {"parameters": "trainable parameters", "total_seconds": "seconds in all"}
SHARED_TIME_NOTE = (
    "`{run}` was trained in one program with other runs, up to {count} runs in all.  Its seconds "
    "are the elapsed time divided by the number of runs; trained alone, it may take longer."
)
MONITORED = (
    "Columns that end in `test` are scores on the test images, which `--monitor test` recorded "
    "during training.  They selected no checkpoint and ended no run."
)
BIASED_CHOICE = (
    "its accuracy on the test images for lack of validation images (a choice that biases its "
    "test scores upwards)"
)
LAYER_HEADINGS = summary.HEADINGS | {
    "type": "F: type, hyper-parameters",
    "output": "X: output",
    "inputs": "input: X of",
    "weights": "W: weights",
}
# On a plateau, accuracy rises by less than `PLATEAU_RISE` until the end of the run, at least
# `PLATEAU_EPOCHS` epochs later.
PLATEAU_RISE, PLATEAU_EPOCHS = 0.002, 5
LEVELS = ("high", "medium", "low")  # names of the three limits in `CUTOFFS`
HELD_OUT_NOTE = (
    "No threshold is evaluated on the images that it was found with: on dev, each tenth of the "
    "images is evaluated at the threshold that is best for the other images."
)
VERIFICATION = "verification"  # entry of `CUTOFFS` for the accuracy of `jaxdet verify`


def write(
    options: Compare,
    evaluated: Sequence[EvaluatedRun],
    parts: Sequence[str],
    pictures: Sequence[Path],
    verified: VerifiedScores,
) -> None:
    """Write the report of the evaluated runs to `options.report`.

    `parts` are paragraphs and tables in Markdown about all runs.  `pictures` are the files to link
    to: the curves, then the failures.
    """
    systems = {one.row["system"] for one in evaluated}
    system = next(iter(systems)) if len(systems) == 1 else None
    kind = configs.config(system) if system else TrainConfig
    limits, count = resolve_limits(kind, evaluated), len(evaluated)
    splits = ", ".join(dict.fromkeys(f"`{one.row['split']}`" for one in evaluated))
    text = [
        f"# {count} run{'s' * (count > 1)} compared",
        *_limits_part(limits),
        f"Scores of checkpoint `{options.checkpoint}` on split {splits}.",
        *parts,
        *(_single_system_part(evaluated, limits) if system else []),
        *_cutoffs_part(kind.CUTOFFS, evaluated, verified),
        *(_system_part(system, evaluated) if system else []),
    ]
    for title, picture in zip(PICTURE_TITLES, pictures, strict=False):
        link = quote(os.path.relpath(picture, options.report.parent).replace(os.sep, "/"))
        text.append(f"![{title}]({link})")
    run_dir.write_text(options.report.parent, options.report.name, "\n\n".join(text) + "\n")


def _single_system_part(
    evaluated: Sequence[EvaluatedRun], limits: Mapping[str, float]
) -> Iterator[str]:
    yield from discussion.settings(evaluated)
    yield from differences(evaluated)
    yield from discussion.losses(evaluated)
    if all("accuracy" in one.row for one in evaluated):
        yield from _best_part(evaluated, limits)
    yield from discussion.discussion(evaluated)


def resolve_limits(
    kind: type[TrainConfig], evaluated: Sequence[EvaluatedRun]
) -> Mapping[str, float]:
    """The `LIMITS` of a configuration, adapted to the options of the runs.

    A limit on parameters is replaced by the lowest `--max-params` of the runs, if any is given.
    """
    given = [one.config.max_params for one in evaluated if one.config.max_params]
    limits = kind.LIMITS
    return limits | {"parameters": min(given)} if given and "parameters" in limits else limits


def differences(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield paragraphs on options that differ, runs that ended early, and runs trained together.

    Runs that one vmapped program has trained together share their time.
    """
    names = [
        field
        for field in vars(evaluated[0].config)
        if len({getattr(one.config, field, None) for one in evaluated}) > 1
    ]
    if names:
        yield "The runs differ in these options of `jaxdet train`:"
        rows = [
            {"run": one.row["run"], **{name: getattr(one.config, name, None) for name in names}}
            for one in evaluated
        ]
        yield tables.to_markdown(rows, ["run", *names])
    for one in evaluated:
        done, planned, budget = one.row["epochs"], one.config.epochs, one.config.time_budget
        if done is not None and budget:
            yield f"`{one.row['run']}` has {done} epochs, as many as fit into {budget:g} s."
        elif done is not None and done < planned and not one.config.patience:
            why = "it was stopped, or its loss was not finite"
            yield f"`{one.row['run']}` has {done} of its {planned} epochs: {why}."
        together = max((line.get("together", 1) for line in one.metrics), default=1)
        if together > 1:
            yield SHARED_TIME_NOTE.format(run=one.row["run"], count=together)


def read_verified(paths: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Read the files of `--verified`; return [(path, content with checkpoint and scores)].

    Raises InputError for files that `jaxdet verify` did not write.
    """
    return [(path, thresholds.read_scores(path)) for path in paths]


def match_verified(
    files: Sequence[tuple[Path, dict[str, Any]]], evaluated: Sequence[EvaluatedRun]
) -> VerifiedScores:
    """Group the result of `read_verified` by run: {name of the run: its scores}.

    Raises InputError for scores of a checkpoint that is not compared.
    """
    runs = {
        thresholds.identify_checkpoint(one.folder, one.row["step"])["manifest"]: one.row["run"]
        for one in evaluated
    }
    scores: VerifiedScores = {}
    for path, content in files:
        run = runs.get(content["checkpoint"]["manifest"])
        if run is None:
            of = "checkpoint {step} of run {run!r}".format(**content["checkpoint"])
            raise InputError(
                f"{path}: has scores of {of}, which is not compared; leave it out of --verified"
            )
        scores.setdefault(run, []).append(content["scores"])
    return scores


def level(value: float, cutoffs: Sequence[float]) -> str:
    """The highest of the levels high, medium and low that a value reaches, or "none"."""
    return next((name for name, cut in zip(LEVELS, cutoffs, strict=True) if value >= cut), "none")


def _limits_part(limits: Mapping[str, float]) -> list[str]:
    if not limits:
        return []
    text = " and ".join(f"{limit:,} {UNITS[name]}" for name, limit in limits.items())
    return [f"Goal: the lowest error rate with at most {text}."]


def _best_part(evaluated: Sequence[EvaluatedRun], limits: Mapping[str, float]) -> list[str]:
    """A section on the best run within the limits; on the best of all runs if none is within."""
    within = [one for one in evaluated if all(one.row[k] <= v for k, v in limits.items())]
    best = max(within or evaluated, key=_selection_scores)
    row, devices = best.row, run_dir.read_environment(best.folder).get("devices", ["?"])
    which = "No run is within both limits; the best of all"
    if within:
        which = "Within both limits" if limits else "The best run"
    iou = f"mean IoU {row['iou']:.4f}, " if "iou" in row else ""
    named = configs.network_of_run(best.folder, best.config)
    network = summary.summarize(named.net, jax.ShapeDtypeStruct(named.input, "float32"))
    *layers, total = summary.table_rows(network)
    layers = [{"layer": "input", "output": named.input}, *layers]
    layers = [{"n": n, **layer} for n, layer in enumerate(layers)] + [total]
    chosen = "its validation accuracy" if _is_validated(evaluated) else BIASED_CHOICE
    return [
        "## The best network",
        f"{which}: `{row['run']}`, chosen by {chosen}, has accuracy "
        f"{row['accuracy']:.4f}, error rate {row['error_rate']:.4f}, {iou}{row['parameters']:,} "
        f"parameters, {row['total_seconds']:.0f} s on {len(devices)} {devices[0]}.",
        f"    jaxdet train {row['system']} {shlex.join(to_words(best.config))}",
        "From the image to the prediction: X n is the output of the function F n, which has the "
        "trainable weights W n; where W is empty, nothing is trained:",
        summary.to_markdown(layers, summary.notes(network), LAYER_HEADINGS),
        *discussion.labels(evaluated),
        *_accuracy_part(evaluated),
        f"The first epoch after which accuracy rises by less than {PLATEAU_RISE} until the end of "
        f"the run, at least {PLATEAU_EPOCHS} epochs later:",
        tables.to_markdown([_plateau(one) for one in evaluated], ["run", "plateau from epoch"]),
    ]


def _accuracy_part(evaluated: Sequence[EvaluatedRun]) -> Iterator[str]:
    """Yield a section with the accuracy after each epoch, on validation or test images."""
    epochs: dict[int, dict[str, Any]] = {}
    columns = {"epoch": "epoch"}
    for one in evaluated:
        for line in one.metrics:
            epoch = epochs.setdefault(line["epoch"], {"epoch": line["epoch"]})
            for split in run_dir.scored_splits(line):
                column = one.row["run"] if split == "val" else f"{one.row['run']}, {split}"
                columns[column] = column
                epoch[column] = line[split]["accuracy"]
    monitored = any(len({*line} & {"test"}) for one in evaluated for line in one.metrics)
    title = "Accuracy" if monitored else "Validation accuracy"
    yield f"## {title} after each epoch (epoch 0: before training)"
    if monitored:
        yield MONITORED
    yield tables.to_markdown([epochs[epoch] for epoch in sorted(epochs)], columns)


def _is_validated(evaluated: Sequence[EvaluatedRun]) -> bool:
    return all(line["val"] for one in evaluated for line in one.metrics)


def _selection_scores(one: EvaluatedRun) -> tuple[float, float]:
    """(accuracy, negative loss) of the best evaluation; (0, 0) without evaluations."""
    line = run_dir.best_line(one.metrics, "accuracy")
    if not line:
        return 0.0, 0.0
    scores = line[run_dir.scored_splits(line)[0]]
    return scores["accuracy"], -scores["loss"]


def _accuracies(one: EvaluatedRun) -> list[float]:
    return [line[run_dir.scored_splits(line)[0]]["accuracy"] for line in one.metrics]


def _plateau(one: EvaluatedRun) -> dict[str, Any]:
    start = classification_metrics.plateau_start(
        _accuracies(one), rise=PLATEAU_RISE, over=PLATEAU_EPOCHS
    )
    epoch = "not reached" if start is None else one.metrics[start]["epoch"]
    return {"run": one.row["run"], "plateau from epoch": epoch}


def _cutoffs_part(
    cutoffs: Mapping[str, tuple[float, float, float]],
    evaluated: Sequence[EvaluatedRun],
    verified: VerifiedScores,
) -> list[str]:
    """A section with the level that each run reaches by each score; [] without cut-offs."""
    if not cutoffs:
        return []
    rows = []
    for one in evaluated:
        scores = {name: (one.row[name], cuts) for name, cuts in cutoffs.items() if name in one.row}
        for of in verified.get(one.row["run"], ()):
            scores[f"{VERIFICATION}, {of['part']}"] = of["held_out_accuracy"], cutoffs[VERIFICATION]
        row = {"run": one.row["run"]}
        for name, (value, cuts) in scores.items():
            row |= {name: value, f"{name} level": level(value, cuts)}
        rows.append(row)
    goals = [
        f"{name}: " + ", ".join(f"{of} from {cut:g}" for of, cut in zip(LEVELS, cuts, strict=True))
        for name, cuts in cutoffs.items()
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    notes = [HELD_OUT_NOTE] if any(verified.values()) else []
    notes += [
        f"The accuracy of `{one.row['run']}` is on the split `{one.row['split']}`, whose "
        f"images are not held out."
        for one in evaluated
        if one.row["split"] in ("train", "val")
    ]
    return ["## Cut-offs", f"{'; '.join(goals)}.", *notes, tables.to_markdown(rows, columns)]


def _system_part(system: str, evaluated: Sequence[EvaluatedRun]) -> list[str]:
    """A section with a table of the columns that the system adds; [] if it adds none."""
    summaries = [
        sweep_table.run_summary(one.row["run"], one.config, one.folder) for one in evaluated
    ]
    rows = sweep_table.system_rows(system, summaries)
    return ["## The runs", tables.to_markdown(rows, list(rows[0]))] if rows else []
