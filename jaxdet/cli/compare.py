"""`jaxdet compare RUN...`: runs side by side, in a table, in curves and by their failures."""

import json
import sys
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jaxdet import api, baselines, tables
from jaxdet.cli import common, report, sweep_table
from jaxdet.cli.evaluated_run import MAX_FAILURES, EvaluatedRun, evaluate
from jaxdet.cli.options import Compare
from jaxdet.config import reuse_data
from jaxdet.errors import InputError
from jaxdet.plots import detection as detection_plots
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, run_dir
from jaxdet.training.experiment import Experiment

Row = dict[str, Any]

COLUMNS = {
    "run": "run",
    "model": "model",
    "size": "size",
    "parameters": "parameters",
    "operations": "operations per image",
    "seconds": "s per image",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "epoch_seconds": "s per epoch",
    "total_seconds": "total s",
    **{name: name for name in ("loss", "accuracy", "iou", "iou50", "iou70")},
    "error_rate": "error rate",
}
CLASS_COLUMNS = ("accuracy", "iou")
CLASSICAL_NOTE = (
    "Classical baselines are fitted to the training split of the first run, use its loss, and run "
    "on the CPU, one image at a time.  The probabilities of the SVM are the softmax of its "
    "decision values.  The cascade detects faces only: every other image gets the most frequent "
    "other label and its mean box."
)


def run(options: Compare) -> int:
    """Print a row per run, and draw and write what the options ask for; the exit code."""
    beside = [
        options.report and options.report.with_name(f"{options.report.stem}_{what}.png")
        for what in ("curves", "failures")
    ]
    curves, failures = options.figure or beside[0], options.failures or beside[1]
    _check(options, curves, failures)
    verified = report.read_verified(options.verified)
    evaluated, classical = [], []
    with reuse_data():
        for name, folder in unique_names(options.runs).items():
            restored = api.load(folder, options.checkpoint, warn=common.warn)
            experiment = restored.with_data()
            evaluated.append(
                evaluate(name, restored, experiment, options.split, failures=bool(failures))
            )
            if options.classic and not classical:
                classical = classical_rows(options.split, experiment)
    scores = report.match_verified(verified, evaluated)
    notes = list(comparability_notes(evaluated, classical))
    for note in notes:
        print(f"jaxdet: warning: {note}", file=sys.stderr)
    rows = [one.row for one in evaluated] + classical
    over_seeds = sweep_table.seed_rows(evaluated)
    shown = [(*_with_classes(rows), "")]
    if over_seeds:
        heading = "Mean and spread (+-) over seeds:"
        shown.append((over_seeds, sweep_table.seed_columns(over_seeds, COLUMNS), heading))
    if options.json:
        print("\n".join(map(json.dumps, rows + over_seeds)))
    else:
        print("\n\n".join(_parts(shown, tables.aligned)))
    written = list(_draw(evaluated, curves, failures))
    if options.report:
        parts = [*_parts(shown, tables.to_markdown), *notes]
        parts += [CLASSICAL_NOTE] * options.classic
        report.write(options, evaluated, parts, written, scores)
        written.append(options.report)
    if written and not options.json:
        print(f"\nwrote {', '.join(map(str, written))}")
    return 0


def unique_names(folders: Iterable[Path]) -> dict[str, Path]:
    """{name: folder}: the last part of each path, or the whole path where that is not unique."""
    own = {folder: folder.resolve().name for folder in folders}
    count = Counter(own.values())
    return {name if count[name] == 1 else str(folder): folder for folder, name in own.items()}


def classical_rows(split: str, experiment: Experiment) -> list[Row]:
    """Rows of the classical baselines on the data of a run of `objects`, with its loss."""
    config: Any = experiment.config
    found = baselines.evaluate(
        experiment.splits,
        split,
        experiment.metadata["classes"],
        config.root,
        box_loss=config.box_loss,
        hparams=experiment.hparams,
    )
    return [
        {"run": name, "split": split, **scores, "error_rate": 1 - scores["accuracy"]}
        for name, scores in found.items()
    ]


def comparability_notes(
    evaluated: Sequence[EvaluatedRun], classical: Sequence[Row]
) -> Iterator[str]:
    """One line for each reason why rows do not compare, and for a baseline that is left out."""
    if len({one.row["system"] for one in evaluated}) > 1:
        yield "the runs are of different systems, each with its own data and loss"
        return
    data = _differing_keys([one.data for one in evaluated])
    if data:
        yield f"the runs do not have the same data: {', '.join(data)}"
    loss = _differing_keys([one.loss_options for one in evaluated])
    if loss:
        names = ", ".join(loss)
        yield f"the runs do not have the same loss, only their other scores compare: {names}"
    if classical and baselines.HAAR not in [row["run"] for row in classical]:
        yield f"the {baselines.HAAR} is left out: there is no label {baselines.FACE}"


def _check(options: Compare, *pictures: Path | None) -> None:
    """Refuse, before anything is computed, what cannot be compared or written."""
    if not options.runs:
        raise InputError("no runs to compare; give run folders: jaxdet compare RUN...")
    for path in pictures:
        common.check_picture(path)
    taken = [path for path in (options.report, *pictures) if path and path.exists()]
    if options.report and taken and not options.overwrite:
        raise InputError(f"{taken[0]} exists; choose another name, or replace it with --overwrite")
    if options.verified and not options.report:
        raise InputError("--verified needs --report, which has its scores")
    for folder in options.runs:
        system = run_dir.read_config(folder).system
        if not checkpoint.steps(folder):
            raise InputError(f"{folder} has no checkpoints; train it, or leave it out")
        if options.classic and system != "objects":
            raise InputError(f"--classic needs runs of objects, but {folder} is a run of {system}")
    if options.classic:
        baselines.require_opencv()


def _differing_keys(dicts: Sequence[Mapping[str, Hashable]]) -> list[str]:
    """Keys whose values are not the same in all dictionaries."""
    keys = dict.fromkeys(chain(*dicts))
    return [key for key in keys if len({one.get(key) for one in dicts}) > 1]


def _with_classes(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """(rows, columns that any row has), the scores of each class as columns of their own."""
    classes = dict.fromkeys(chain.from_iterable(row.get("labels", ()) for row in rows))
    columns = COLUMNS | {
        f"{name} {key}": f"{name} {key}" for name in classes for key in CLASS_COLUMNS
    }
    wide = [
        row
        | {
            f"{name} {key}": value
            for name, scores in row.get("labels", {}).items()
            for key, value in scores.items()
        }
        for row in rows
    ]
    known = {key for row in wide for key, value in row.items() if value is not None}
    return wide, {key: name for key, name in columns.items() if key in known}


def _parts(shown: Collection[tuple], to_text: Any) -> list[str]:
    """The text of each table, after its heading if it has one."""
    return [
        part
        for rows, columns, heading in shown
        for part in (heading, to_text(rows, columns))
        if part
    ]


def _draw(
    evaluated: Sequence[EvaluatedRun], curves: Path | None, gallery: Path | None
) -> Iterator[Path]:
    """Draw curves and failures where a path is given; the paths of what there was to draw."""
    if curves:
        training_plots.compare_runs({one.row["run"]: one.metrics for one in evaluated}, curves)
        yield curves
    failures = [failure for one in evaluated for failure in one.failures]
    if gallery and failures:
        titles, images, true, predicted, wrong = zip(*failures, strict=True)
        detection_plots.gallery(
            images,
            gallery,
            titles=titles,
            true=true,
            predicted=predicted,
            wrong=wrong,
            columns=MAX_FAILURES,
        )
        yield gallery
