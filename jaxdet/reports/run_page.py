"""An HTML page on one run, or on several side by side, that needs no server and no network."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxdet import configs, tables
from jaxdet.config import option, to_words
from jaxdet.data.detection import faults
from jaxdet.metrics import average_precision, operating_point
from jaxdet.metrics import detection as detection_metrics
from jaxdet.metrics.bootstrap import LEVEL, interval
from jaxdet.plots import page
from jaxdet.plots.page import BoxMark
from jaxdet.profiling import summary, timing
from jaxdet.reports.examples import (
    RecordingTask,
    best_predictions,
    read_images,
    worst_predictions,
)
from jaxdet.training import evaluator, run_dir
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Counting, uncounted

if TYPE_CHECKING:
    from jaxdet.api import Run

MAX_PICTURES = 6  # worst and best images of a run
SPLITS = ("train", "val", "test")


class ReportedRun(NamedTuple):
    """A run with everything that its report shows."""

    name: str
    run: "Run"
    split: str
    scores: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    confusion: tuple[np.ndarray, list[str]] | None  # counts, names
    pictures: dict[str, list[str]]  # "worst" and "best": pictures as HTML
    metrics: list[dict[str, Any]]  # lines of `metrics.jsonl`


def evaluate(
    name: str,
    run: "Run",
    experiment: Experiment,
    split: str,
    *,
    resamples: int = 0,
    progress: Counting = uncounted,
) -> ReportedRun:
    """Evaluate a run on a split of `experiment`, its experiment with data.

    name: of the run on the page; resamples: of the images, for intervals of the scores.
    """
    recording = replace(experiment, task=RecordingTask(experiment.task))
    scorer = run.evaluator(recording, split)
    scorer.compile(run.variables)
    (losses, rows), seconds = timing.timed(
        lambda: scorer.measure_counted(run.variables, run.epoch, progress)
    )
    rows, predictions = rows["measured"], rows["predictions"]
    scores = {**losses, **evaluator.details(experiment.task, rows)}
    counts = scorer.operations(run.variables) * scorer.count
    scores |= evaluator.cost_summary(scores, counts, seconds)
    samples = evaluator.bootstrap(experiment.task, rows, resamples) if resamples else {}
    confusion = None
    if "map" in scores:
        counts = detection_metrics.confusion_matrix(rows, run.classes)
        confusion = counts, [*run.classes, "background"]
    elif "confusion" in scores:
        confusion = np.array(scores["confusion"]), [*run.classes]
    pictures = (
        _detection_pictures(experiment, split, rows, run.classes)
        if "map" in scores
        else _predicted_pictures(name, experiment, split, predictions)
    )
    return ReportedRun(
        name=name,
        run=run,
        split=split,
        scores=scores,
        intervals={key: interval(values) for key, values in samples.items()},
        confusion=confusion,
        pictures=pictures,
        metrics=run_dir.read_metrics(run.folder),
    )


def to_html(found: Sequence[ReportedRun]) -> str:
    """The page on these runs."""
    *others, last = (one.name for one in found)
    title = f"Runs {', '.join(others)} and {last}" if others else f"Run {last}"
    return page.document(title, sections(found))


def sections(found: Sequence[ReportedRun]) -> Iterator[tuple[str, str]]:
    """Yield (heading, HTML) of each section that has content."""
    parts = {
        "Configuration": _configuration,
        "Scores": _scores,
        "Curves": _curves,
        "Classes": _classes,
        "Confusion": _confusions,
        "Images": _images,
        "Operations": _operations,
        "Environment": _environment,
    }
    for heading, part in parts.items():
        if html := "".join(part(found)):
            yield heading, html


def _configuration(found: Sequence[ReportedRun]) -> Iterator[str]:
    values = {one.name: vars(one.run.config) for one in found}
    defaults = [vars(configs.config(one.run.system)()) for one in found]
    names = dict.fromkeys(name for own in values.values() for name in own)
    missing = object()
    shown = [
        {"option": option(name), **{run: own.get(name) for run, own in values.items()}}
        for name in names
        if any(
            own.get(name, missing) != default.get(name, missing)
            for own, default in zip(values.values(), defaults, strict=True)
        )
    ]
    facts = {
        "system": [one.run.system for one in found],
        "checkpoint": [f"step {one.run.step}" for one in found],
        "input": [list(one.run.metadata["input"]) for one in found],
        "classes": [len(one.run.classes) for one in found],
    }
    runs_of = [one.name for one in found]
    rows = [
        {"option": name, **dict(zip(runs_of, of, strict=True))} for name, of in facts.items()
    ] + shown
    yield page.table(rows, ["option", *runs_of], caption="Options that are not at their defaults")
    for one in found:
        words = shlex.join(to_words(one.run.config))
        text = f"jaxdet train {one.run.system} {words}"
        yield page.folded(f"The command of {one.name}", page.code(text))


def _scores(found: Sequence[ReportedRun]) -> Iterator[str]:
    names = dict.fromkeys(
        key for one in found for key, value in one.scores.items() if isinstance(value, int | float)
    )
    heading = f"{100 * LEVEL:g}% interval"
    rows, columns = [], {"score": "score"}
    for one in found:
        columns |= {one.name: f"{one.name}, {one.split}"}
        if one.intervals:
            columns |= {f"{one.name} interval": heading}
    for name in names:
        row: dict[str, Any] = {"score": name}
        for one in found:
            row[one.name] = one.scores.get(name)
            row[f"{one.name} interval"] = tables.range_text(*one.intervals.get(name, ()))
        rows.append(row)
    yield page.table(rows, columns)
    for one in found:
        unusable = faults(one.run.experiment.notes)
        if unusable:
            yield page.paragraph(f"{one.name}: {len(unusable)} images or rows are not evaluated.")


def _curves(found: Sequence[ReportedRun]) -> Iterator[str]:
    """Yield a chart per loss term and score, with a curve for each run and split."""
    terms: dict[str, dict[str, list[page.Point]]] = {}
    for one in found:
        for split in SPLITS:
            name = split if len(found) == 1 else f"{one.name} {split}"
            for line in one.metrics:
                for term, value in (line.get(split) or {}).items():
                    if isinstance(value, int | float):
                        series = terms.setdefault(term, {}).setdefault(name, [])
                        series.append((line["epoch"], value))
    moving = {
        term: series
        for term, series in sorted(terms.items(), key=lambda item: (item[0] != "loss", item[0]))
        if any(len({y for _, y in points}) > 1 for points in series.values())
    }
    if moving:
        names = [*dict.fromkeys(name for series in moving.values() for name in series)]
        yield page.grid(page.chart(term, own, names=names) for term, own in moving.items())


def _classes(found: Sequence[ReportedRun]) -> Iterator[str]:
    for one in found:
        if one.scores.get("labels"):
            rows, _ = tables.label_table({"labels": one.scores["labels"]})
            columns = [*dict.fromkeys(key for row in rows for key in row)]
            yield page.table(rows, columns, caption=f"{one.name}, {one.split}")


def _confusions(found: Sequence[ReportedRun]) -> Iterator[str]:
    for one in found:
        if one.confusion:
            yield page.matrix(*one.confusion, caption=f"{one.name}, {one.split}")


def _images(found: Sequence[ReportedRun]) -> Iterator[str]:
    for one in found:
        for which, pictures in one.pictures.items():
            if pictures:
                heading = page.heading(f"{one.name}, {one.split}: the {which} images")
                yield heading + page.grid(pictures)


def _operations(found: Sequence[ReportedRun]) -> Iterator[str]:
    for one in found:
        shape = (1, *one.run.metadata["input"])
        network = summary.summarize(one.run.network, jax.ShapeDtypeStruct(shape, "float32"))
        rows = summary.table_rows(network)
        columns = {key: summary.HEADINGS[key] for key in summary.HEADINGS if key in rows[-1]}
        columns = {"layer": "layer", "output": "output"} | columns
        total = f"{one.name}: {rows[-1]['total']:,} operations per image"
        notes = "".join(page.paragraph(note) for note in summary.notes(network))
        yield page.folded(total, page.table(rows, columns) + notes)


def _environment(found: Sequence[ReportedRun]) -> Iterator[str]:
    known = {one.name: run_dir.read_environment(one.run.folder) for one in found}
    flat = {name: _flat(environment) for name, environment in known.items()}
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    if keys:
        rows = [{"": key, **{name: own.get(key) for name, own in flat.items()}} for key in keys]
        yield page.table(rows, {"": "trained with", **{name: name for name in flat}})


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    packages = environment.get("packages", {})
    return {**packages, **{k: v for k, v in environment.items() if k != "packages"}}


def _detection_pictures(
    experiment: Experiment, split: str, rows: dict[str, Any], classes: Sequence[str]
) -> dict[str, list[str]]:
    """{"worst": images with the most errors, "best": without errors, with the most boxes}, HTML."""
    threshold = detection_metrics.SCORE_THRESHOLD
    matches = average_precision.match(rows, len(classes))
    counts = operating_point.per_image(matches, np.full(len(classes), threshold))
    wrong = counts["fp"] + counts["fn"]
    worst = np.argsort(-wrong, kind="stable")[:MAX_PICTURES]
    best = np.argsort(np.where(wrong, 1, -counts["tp"]), kind="stable")[:MAX_PICTURES]
    found: dict[str, list[str]] = {}
    for which, order in (("worst", worst[wrong[worst] > 0]), ("best", best[wrong[best] == 0])):
        found[which] = []
        if not order.size:
            continue
        images = read_images(experiment, split, order)
        for place, i in enumerate(order):
            true = np.flatnonzero(rows["true_valid"][i])
            kept = np.flatnonzero(rows["valid"][i] & (rows["scores"][i] >= threshold))
            marks = _marks(
                images.to_input(place, rows["true_boxes"][i, true]),
                [classes[label] for label in rows["true_labels"][i, true]],
                predicted=False,
            )
            pairs = zip(rows["labels"][i, kept], rows["scores"][i, kept], strict=True)
            marks += _marks(
                images.to_input(place, rows["boxes"][i, kept]),
                [f"{classes[label]} {score:.2f}" for label, score in pairs],
                predicted=True,
            )
            fp, fn, tp = (int(counts[name][i]) for name in ("fp", "fn", "tp"))
            title = f"{images.names[place]}: {tp} correct, {fp} wrong, {fn} missed"
            found[which].append(page.picture(images.images[place], title, marks))
    return found


def _marks(corners: np.ndarray, texts: Sequence[str], *, predicted: bool) -> list[BoxMark]:
    return [BoxMark(*pair, predicted) for pair in zip(corners, texts, strict=True)]


def _predicted_pictures(
    name: str, experiment: Experiment, split: str, predictions: dict[str, np.ndarray]
) -> dict[str, list[str]]:
    """The worst and best predictions of a system with one prediction per image."""
    if not predictions:
        return {}
    found = {}
    for which, select in (("worst", worst_predictions), ("best", best_predictions)):
        found[which] = []
        for one in select(name, experiment, split, predictions):
            boxes = ((one.true_box, "true box", False), (one.predicted_box, "predicted box", True))
            marks = [BoxMark(box, text, red) for box, text, red in boxes if box is not None]
            found[which].append(page.picture(one.image, " ".join(one.title.split()), marks))
    return found
