"""`jaxdet eval RUN`: compute the scores of a checkpoint."""

import json
from collections.abc import Callable, Mapping, Sized
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from jaxdet import runs, tables
from jaxdet.cli import common, operating_point, worst_images
from jaxdet.cli.options import Eval
from jaxdet.data import detection
from jaxdet.errors import InputError, first_problem
from jaxdet.metrics import average_precision, calibration, error_types
from jaxdet.metrics import detection as detection_metrics
from jaxdet.metrics import operating_point as operating_points
from jaxdet.metrics.bootstrap import LEVEL, interval
from jaxdet.profiling import timing
from jaxdet.training.evaluator import bootstrap, cost_summary, details
from jaxdet.training.experiment import Experiment

ALL = ("train", "val", "test")  # the splits that `--split all` evaluates
MAX_CLASSES = 20  # with more classes, the confusion is not printed
# Score thresholds that are marked on precision-recall curves.
MARKED_SCORES = (detection_metrics.SCORE_THRESHOLD, 0.5, 0.75)


def run(options: Eval) -> int:
    """Print the scores of one split, or of train, val and test; returns the exit code."""
    if options.report and options.json:
        raise InputError("--report and --json exclude each other; give one of them")
    runs.check_bootstrap(options.bootstrap)
    if options.choose_threshold:
        return operating_point.run(options)
    run = common.load(options)
    if options.per_image and run.system != "detect":
        raise InputError(f"--per-image needs a run of detect, got a run of {run.system}")
    report = _find_report(run.system) if options.report else None
    experiment = run.with_data(root=options.root)
    common.report_tiles(run, experiment)
    chosen = common.choose_split(options.split, [*experiment.splits, "all"])
    unusable = [n for n in detection.faults(experiment.notes) if detection.TRAINED_ON not in n]
    if unusable:
        common.warn(
            f"{len(unusable)} images or rows of the data cannot be used and are not evaluated"
            f"{first_problem(unusable)}"
        )
    if options.root:
        remarks = (note for note in experiment.notes if isinstance(note, detection.Remark))
        for remark in islice(remarks, runs.MAX_NOTES):
            common.warn(remark)
        _report_others(options.root, experiment.splits, chosen)
    present = [split for split in ALL if split in experiment.splits]
    images: list[dict[str, Any]] = []  # a row per image, for --per-image
    by_class: list[dict[str, Any]] = []  # a row per class, for --per-class
    for split in present if chosen == "all" else (chosen,):
        evaluator = run.evaluator(experiment, split)
        evaluator.compile(run.variables)
        (losses, rows), seconds = timing.timed(partial(common.measure, run, evaluator))
        scores = {**losses, **details(experiment.task, rows, options.score_threshold)}
        if run.system == "detect" and (options.per_image or options.plots):
            images += _inspect_boxes(options, experiment, split, rows)
        if options.bootstrap:
            samples = bootstrap(experiment.task, rows, options.bootstrap)
            scores["intervals"] = {name: interval(values) for name, values in samples.items()}
        if options.plots and not {"confusion", "map"} & scores.keys():
            common.warn(f"--plots draws nothing for a run of {run.system}")
        elif options.plots:
            _draw(rows, scores, run.classes, options.plots / split)
        if options.per_class:
            if not scores.get("labels"):
                raise InputError(f"--per-class: a run of {run.system} has no scores per class")
            rows_of_split, _ = tables.label_table(scores)
            by_class += [{"split": split, **row} for row in rows_of_split]
        scores |= cost_summary(
            scores, evaluator.operations(run.variables) * evaluator.count, seconds
        )
        if options.json:
            print(json.dumps({"step": run.step, "split": split, **scores}))
        elif report:
            print(report(scores, split))
        else:
            source = run.folder if options.model else f"checkpoint of step {run.step}"
            print(f"{split} split, {source}:\n\n{to_text(scores)}\n")
    for path, table in ((options.per_image, images), (options.per_class, by_class)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = dict.fromkeys(key for row in table for key in row)
            path.write_text(tables.to_csv(table, columns) + "\n")
    return 0


def _report_others(root: str, splits: Mapping[str, Sized], chosen: str) -> None:
    """Warn that the images of other splits, if there are any, are not evaluated."""
    others = {name: len(source) for name, source in splits.items() if name != chosen}
    if others and chosen != "all":
        counts = ", ".join(f"{name} {count}" for name, count in others.items())
        common.warn(
            f"{root}: only the {len(splits[chosen])} images of the split {chosen} are evaluated, "
            f"not the images of other splits ({counts}); evaluate every image with --split all"
        )


def to_text(scores: dict[str, Any]) -> str:
    """Format scores, overall and per class, in aligned columns with rounded numbers."""
    intervals, heading = scores.get("intervals", {}), f"{100 * LEVEL:g}% interval"
    numbers = [
        {"score": name, "value": value, heading: tables.range_text(*intervals.get(name, ()))}
        for name, value in scores.items()
        if isinstance(value, int | float)
    ]
    columns = ("score", "value", heading) if intervals else ("score", "value")
    parts = [tables.aligned(numbers, columns)]
    if scores.get("labels"):
        shown = scores if len(scores["labels"]) <= MAX_CLASSES else {"labels": scores["labels"]}
        parts.append(tables.aligned(*tables.label_table(shown)))
    return "\n\n".join(parts)


def _find_report(system: str) -> Callable[[dict[str, Any], str], str]:
    """Find the function `report(scores, split) -> text` of a system; InputError if it has none."""
    report = getattr(import_module(f"jaxdet.configs.{system}"), "report", None)
    if report is None:
        raise InputError(f"--report needs a run of objects or detect, got a run of {system}")
    return report


def _inspect_boxes(
    options: Eval, experiment: Experiment, split: str, rows: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one table row per image; with --plots, draw a reliability diagram of the boxes."""
    given, classes = options.score_threshold, experiment.metadata["classes"]
    threshold = detection_metrics.SCORE_THRESHOLD if given is None else given
    matches = average_precision.match(rows, len(classes))
    errors = error_types.find(rows, threshold)
    if options.plots:
        from jaxdet.plots import detection as detection_plots

        boxes = operating_points.scored_boxes(matches, threshold)
        error = calibration.expected_calibration_error(*boxes)
        title = f"boxes with scores from {threshold:g}, ECE {error:.3f}"
        folder = options.plots / split
        found = calibration.reliability(*boxes)
        detection_plots.reliability(found, folder / "reliability.png", title=title)
        worst_images.draw(experiment, split, rows, errors, folder)
    names = experiment.splits[split].names
    return operating_point.image_rows(split, names, matches, errors, threshold)


def _draw(rows: dict[str, Any], scores: dict[str, Any], classes: tuple[str, ...], folder: Path):
    """Draw the confusion matrix and, for detection, precision-recall curves and mAP per class."""
    from jaxdet.plots import detection as detection_plots

    if "confusion" in scores:
        path = folder / "confusion.png"
        detection_plots.confusion_matrix(scores["confusion"], classes, path)
    if "map" not in scores:
        return
    title = (
        f"scores from {detection_metrics.SCORE_THRESHOLD:g}, "
        f"IoU over {detection_metrics.IOU_THRESHOLD:g}"
    )
    counts = detection_metrics.confusion_matrix(rows, classes)
    names = [*classes, "background"]
    detection_plots.confusion_matrix(counts, names, folder / "confusion.png", title)
    detection_plots.precision_recall(
        detection_metrics.precision_recall(rows, classes),
        detection_metrics.RECALL_LEVELS,
        folder / "precision_recall.png",
        MARKED_SCORES,
    )
    maps = {"all": scores["map"]}
    maps |= {size: scores[f"map_{size}"] for size in ("small", "medium", "large")}
    maps |= {name: of_label["map"] for name, of_label in scores["labels"].items()}
    known = {name: value for name, value in maps.items() if value >= 0}
    detection_plots.bar_chart(known, folder / "map.png", label="mAP, IoU .5 to .95")
