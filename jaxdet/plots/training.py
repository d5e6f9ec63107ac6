"""Learning curves."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jaxdet.plots import figures

PANEL = (5.5, 4.0)  # inches
LINE_STYLES = cycler(ls=["-", "--", ":"]) * rcParams["axes.prop_cycle"]
SPLIT_COLORS = {"train": "C0", "val": "C1", "test": "C2"}
VALIDATION_SCORES = ("iou", "map", "map50")  # not measured on training images
SPLIT_TITLES = {True: "validation", False: "test (no selection)"}  # key: with validation scores?
COMPARED = ("loss", "accuracy", "iou", "map", "map50")
LOG_RANGE = 4  # a loss that changes by less than this factor is drawn on a linear scale

Metrics = Sequence[dict[str, Any]]  # the lines of a `metrics.jsonl`


def learning_curves(metrics: Metrics, path: Path) -> None:
    """Plot the loss terms and scores of a run against the epoch, each in a panel of its own.

    A panel has a curve for each split of which the run has values: training, validation and, with
    --monitor test, test.
    """
    trained = {name for line in metrics for name in line["train"] or ()}
    shared = trained or {"loss", "accuracy"} & {*_scores(metrics[0])}
    scores = [
        name for name in VALIDATION_SCORES if name in _scores(metrics[-1]) and name not in shared
    ]
    terms = sorted(shared, key=lambda name: (name != "loss", name)) + scores
    figure, panels = figures.grid(len(terms), 3, cell=PANEL)
    for axes, term in zip(panels, terms, strict=True):
        curves = {
            split: [(m["epoch"], m[split][term]) for m in metrics if term in (m.get(split) or ())]
            for split in SPLIT_COLORS
            if any(m.get(split) for m in metrics) or split == "train"
        }
        curves = {split: points for split, points in curves.items() if points or term in shared}
        axes.axis("on")
        _draw_curves(axes, term, curves, colors=SPLIT_COLORS)
        axes.legend()
    figures.save(figure, path)


def compare_runs(metrics_by_run: Mapping[str, Metrics], path: Path) -> None:
    """Plot validation loss, accuracy, IoU and mAP of several runs against the epoch, a panel each.

    For runs without validation, test scores are plotted instead, under a title that says so.  A
    term that is missing in any run is left out.  If all runs have an accuracy and times, a further
    panel has the accuracy against the seconds of training and evaluation.
    """
    lines = [line for metrics in metrics_by_run.values() for line in metrics]
    known = set.intersection(*({*_scores(line)} for line in lines)) if lines else set()
    panels = [(term, "epoch") for term in COMPARED if term in known]
    validated = {bool(line.get("val")) for line in lines}
    title = " or ".join(name for has, name in SPLIT_TITLES.items() if has in validated)
    if ("accuracy", "epoch") in panels and all("time" in line for line in lines):
        panels.append(("accuracy", "seconds"))
    longest = max(map(len, metrics_by_run), default=0)
    legend = 0.6 + 0.07 * longest  # inches
    height = max(PANEL[1], 0.6 + 0.2 * len(metrics_by_run))
    count = max(len(panels), 1)
    figure = Figure(figsize=(PANEL[0] * count + legend, height), layout="constrained")
    every = figure.subplots(1, count, squeeze=False).flat
    for axes, (term, against) in zip(every, panels, strict=False):
        curves = {}
        for name, metrics in metrics_by_run.items():
            seconds = accumulate(line["time"]["train"] + line["time"]["eval"] for line in metrics)
            x = seconds if against == "seconds" else (line["epoch"] for line in metrics)
            curves[name] = [(at, _scores(line)[term]) for at, line in zip(x, metrics, strict=True)]
        axes.set_prop_cycle(LINE_STYLES)
        _draw_curves(axes, term, curves, against)
        axes.set_title(title)
    if panels:
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper", fontsize=8)
    figures.save(figure, path)


def _scores(line: Mapping[str, Any]) -> Mapping[str, float]:
    """Validation scores of a line of metrics, or the test scores of a run without validation."""
    return line.get("val") or line["test"]


def _draw_curves(
    axes: Axes,
    term: str,
    curves: Mapping[str, Sequence[tuple]],
    against: str = "epoch",
    colors: Mapping[str, str] | None = None,
) -> None:
    """Draw a line for each of {label: points [(x, value)]}."""
    for label, points in curves.items():
        x, values = np.array(points).reshape(-1, 2).T
        axes.plot(x, values, marker=".", label=label, color=(colors or {}).get(label))
    axes.set(xlabel=against, ylabel=term)
    axes.grid(alpha=0.3)
    if against == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [value for points in curves.values() for _, value in points]
    if term == "loss" and values and 0 < min(values) * LOG_RANGE < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
