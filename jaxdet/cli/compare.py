"""`jaxdet compare RUN...`: a table of runs, a plot of their curves, and their worst predictions."""

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jaxdet import api, baselines, runs, tables
from jaxdet.cli import common, report, sweep_table
from jaxdet.cli.evaluated_run import EvaluatedRun, evaluate
from jaxdet.cli.options import Compare
from jaxdet.config import reuse_data
from jaxdet.errors import InputError
from jaxdet.metrics.bootstrap import LEVEL, interval
from jaxdet.plots import detection as detection_plots
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, run_dir
from jaxdet.training.experiment import Experiment

Row = dict[str, Any]

FAILURE_COLUMNS = 3  # columns of images in the picture of failures
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
    **{"map": "mAP", "map50": "AP50", "map75": "AP75"},
    "error_rate": "error rate",
}
DIFFERENCE_COLUMNS = {
    **{name: name for name in ("run", "score", "difference")},
    "interval": f"{100 * LEVEL:g}% interval",
    "differs": "differs",
}
CLASS_COLUMNS = ("accuracy", "iou")
CLASSICAL_NOTE = (
    "Classical baselines are fitted to the training split of the first run, use its loss, and run "
    "on the CPU, one image at a time.  The probabilities of the SVM are the softmax of its "
    "decision values.  The cascade detects faces only: every other image gets the most frequent "
    "other label and its mean box."
)


class Table(NamedTuple):
    """A table: rows, and the columns to print."""

    rows: list[Row]
    columns: dict[str, str]  # key -> heading
    title: str = ""

    def parts(self, to_text: Callable[[list[Row], dict[str, str]], str]) -> list[str]:
        """The title, unless it is empty, and the text of the table."""
        return [part for part in (self.title, to_text(self.rows, self.columns)) if part]


def run(options: Compare) -> int:
    """Print one row per run, and write the files that the options name; returns the exit code."""
    curves, failures = _picture_paths(options)
    _check(options, curves, failures)
    verified = report.read_verified(options.verified)
    evaluated, classical = evaluate_all(options, failures=bool(failures))
    verified_scores = report.match_verified(verified, evaluated)
    notes = list(comparability_notes(evaluated, classical))
    for note in notes:
        common.warn(note)
    rows = [one.row for one in evaluated] + classical
    over_seeds = sweep_table.seed_rows(evaluated)
    shown = [_with_class_columns(rows)]
    differences = difference_rows(evaluated)
    if differences:
        title = f"Differences from {evaluated[0].row['run']}:"
        shown.append(Table(differences, DIFFERENCE_COLUMNS, title))
    if over_seeds:
        columns = sweep_table.seed_columns(over_seeds, COLUMNS)
        shown.append(Table(over_seeds, columns, "Mean and spread (+-) over seeds:"))
    if options.json:
        print("\n".join(map(json.dumps, rows + differences + over_seeds)))
    else:
        print("\n\n".join(part for table in shown for part in table.parts(tables.aligned)))
    written = list(_draw(evaluated, curves, failures))
    if options.report:
        parts = [part for table in shown for part in table.parts(tables.to_markdown)] + notes
        parts += [CLASSICAL_NOTE] if options.classic else []
        report.write(options, evaluated, parts, written, verified_scores)
        written.append(options.report)
    if written and not options.json:
        print(f"\nwrote {', '.join(map(str, written))}")
    return 0


def evaluate_all(options: Compare, *, failures: bool) -> tuple[list[EvaluatedRun], list[Row]]:
    """Evaluate each run on its own data; return (evaluated runs, rows of classical baselines).

    There are no rows of classical baselines without `--classic`.
    """
    evaluated: list[EvaluatedRun] = []
    classical: list[Row] = []
    with reuse_data():
        for name, folder in runs.unique_names(options.runs).items():
            changes = common.given_changes(options)
            run = api.load(folder, options.checkpoint, warn=common.warn, **changes)
            experiment = run.with_data()
            split = common.choose_split(options.split, [*experiment.splits])
            if lost := checkpoint.count_lost_metrics(folder):
                path = folder / run_dir.METRICS
                common.warn(
                    f"{path} has lost {lost} lines: epochs, times and curves of the run are "
                    f"incomplete"
                )
            found = evaluate(
                name, run, experiment, split, failures=failures, resamples=options.bootstrap
            )
            evaluated.append(found)
            if options.classic and not classical:
                classical = classical_rows(split, experiment)
    return evaluated, classical


def difference_rows(evaluated: Sequence[EvaluatedRun]) -> list[Row]:
    """Differences from the first run: one row for each score of each later run.

    A row has the bootstrap interval of the difference, computed on the same resamples of the images
    for both runs; if it does not contain 0, the runs differ.  A run without resamples, or evaluated
    on other images than the first run, has no rows.
    """
    first, rows = evaluated[0], []
    for name in first.samples:
        for other in evaluated[1:]:
            split = first.row["split"]
            same = other.row["split"] == split and other.data.get(split) == first.data.get(split)
            if not same or name not in other.samples:
                continue
            low, high = interval(other.samples[name] - first.samples[name])
            rows.append(
                {
                    "run": other.row["run"],
                    "score": name,
                    "difference": other.row[name] - first.row[name],
                    "interval": tables.range_text(low, high),
                    "differs": not low <= 0 <= high,
                }
            )
    return rows


def classical_rows(split: str, experiment: Experiment) -> list[Row]:
    """Table rows of the classical baselines, with the data and the loss of a run of `objects`."""
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
    """Yield a line for each reason why rows cannot be compared, and for a baseline left out."""
    if len({one.row["system"] for one in evaluated}) > 1:
        yield "the runs are of different systems, each with its own data and loss"
        return
    data = _differing_keys([one.data for one in evaluated])
    if data:
        yield f"the data of the runs differ in {', '.join(data)}"
    loss = _differing_keys([one.loss_options for one in evaluated])
    if loss:
        names = ", ".join(loss)
        yield f"the losses of the runs differ in {names}; compare only the other scores"
    if classical and baselines.HAAR not in [row["run"] for row in classical]:
        yield f"the {baselines.HAAR} is left out: there is no label {baselines.FACE}"


def _picture_paths(options: Compare) -> tuple[Path | None, Path | None]:
    """(path of the curves, path of the failures); None for a picture that is not drawn."""
    curves, failures = options.figure, options.failures
    if options.report:
        stem = options.report.stem
        curves = curves or options.report.with_name(f"{stem}_curves.png")
        failures = failures or options.report.with_name(f"{stem}_failures.png")
    return curves, failures


def _check(options: Compare, *pictures: Path | None) -> None:
    runs.check_bootstrap(options.bootstrap)
    if not options.runs:
        raise InputError("no runs to compare; give run folders: jaxdet compare RUN...")
    for path in pictures:
        common.check_picture(path)
    taken = [path for path in (options.report, *pictures) if path and path.exists()]
    if options.report and taken and not options.overwrite:
        raise InputError(f"{taken[0]} exists; choose another name, or replace it with --overwrite")
    if options.verified and not options.report:
        raise InputError("--verified needs --report, the file that shows its scores")
    for folder in options.runs:
        system = run_dir.read_config(folder).system
        if not checkpoint.steps(folder):
            raise InputError(f"{folder} has no checkpoints; train it, or leave it out")
        if options.classic and system != "objects":
            raise InputError(f"--classic needs runs of objects, got {folder}, a run of {system}")
    if options.classic:
        baselines.require_opencv()


def _differing_keys(dicts: Sequence[Mapping[str, Hashable]]) -> list[str]:
    keys = dict.fromkeys(chain(*dicts))
    return [key for key in keys if len({one.get(key) for one in dicts}) > 1]


def _with_class_columns(rows: Sequence[Row]) -> Table:
    """The table of the runs, with the columns in which at least one row has a value."""
    classes = dict.fromkeys(chain.from_iterable(row.get("labels", ()) for row in rows))
    columns = COLUMNS | {
        f"{name} {key}": f"{name} {key}" for name in classes for key in CLASS_COLUMNS
    }
    wide = [row | _class_columns(row) for row in rows]
    known = {key for row in wide for key, value in row.items() if value is not None}
    return Table(wide, {key: name for key, name in columns.items() if key in known})


def _class_columns(row: Row) -> Row:
    """The scores of each class as columns called `CLASS SCORE`, such as `face iou`."""
    classes = row.get("labels", {})
    return {f"{name} {key}": value for name in classes for key, value in classes[name].items()}


def _draw(
    evaluated: Sequence[EvaluatedRun], curves: Path | None, gallery: Path | None
) -> Iterator[Path]:
    """Draw the pictures whose paths are given; yield the paths of the files written."""
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
            columns=FAILURE_COLUMNS,
        )
        yield gallery
