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
from matplotlib.ticker import MaxNLocator

from jaxdet.plots import figures

PANEL = (5.5, 4.0)  # inches
LINE_STYLES = cycler(ls=["-", "--", ":"]) * rcParams["axes.prop_cycle"]
SPLIT_COLORS = {"train": "C0", "val": "C1", "test": "C2"}
VALIDATION_SCORES = ("iou", "map", "map50")  # not measured in training
SPLIT_TITLES = {True: "validation", False: "test (no selection)"}  # by: has validation scores
COMPARED = ("loss", "accuracy", "iou")

Metrics = Sequence[dict[str, Any]]  # the lines of a `metrics.jsonl`


def learning_curves(
    metrics: Metrics, path: Path, *, marked: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Loss terms and scores of a run against the epoch, in one panel each.

    Panels have the values of training, validation and a monitored test split, as far as a run has
    them.  marked: {term: values at which its panel has horizontal lines}.
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
        for value in (marked or {}).get(term, ()):
            axes.axhline(value, color="red", ls="--", lw=1)
    figures.save(figure, path)


def compare_runs(metrics_by_run: Mapping[str, Metrics], path: Path) -> None:
    """Validation loss, accuracy and IoU of several runs against the epoch, in one panel each.

    Runs without validation are shown by their test scores, and the title says so.  A term that any
    run lacks is left out.  If all runs have logged their times, a further panel has the accuracy
    against the seconds of training and evaluation.
    """
    lines = [line for metrics in metrics_by_run.values() for line in metrics]
    panels = [(term, "epoch") for term in COMPARED if all(term in _scores(line) for line in lines)]
    validated = {bool(line.get("val")) for line in lines}
    title = " or ".join(name for has, name in SPLIT_TITLES.items() if has in validated)
    if lines and ("accuracy", "epoch") in panels and all("time" in line for line in lines):
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
            seconds = accumulate(sum(line["time"].values()) for line in metrics)
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
    """A line per {label: points [(x, value)]}; a loss above 0 is drawn on a logarithmic scale."""
    for label, points in curves.items():
        x, values = np.array(points).reshape(-1, 2).T
        axes.plot(x, values, marker=".", label=label, color=(colors or {}).get(label))
    axes.set(xlabel=against, ylabel=term)
    axes.grid(alpha=0.3)
    if against == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest = min((value for points in curves.values() for _, value in points), default=0)
    if term == "loss" and lowest > 0:
        axes.set_yscale("log")
