"""Curves of runs, and the roofline of a network."""

from itertools import accumulate

import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.figure import Figure

from jaxdet.metrics.detection import THRESHOLDS
from jaxdet.plots import figures

STYLES = cycler(ls=["-", "--", ":"]) * rcParams["axes.prop_cycle"]  # of several runs
SCORES = ("iou", "map", "map50")  # of validation alone
CURVES = ("loss", "accuracy", "iou")  # of several runs


def learning_curves(metrics, path):
    """Each term of the loss and what else both splits have, and the scores of validation.

    Against the epoch, from `metrics.jsonl` lines.
    """
    trained = [name for line in metrics if line["train"] for name in line["train"]]
    both = {*trained} or {"loss", "accuracy"} & {*metrics[0]["val"]}
    scores = [name for name in SCORES if name in metrics[-1]["val"] and name not in both]
    terms = sorted(both, key=lambda name: (name != "loss", name)) + scores
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes in every[len(terms) :]:
        axes.axis("off")
    for axes, term in zip(every, terms, strict=False):
        points = {
            s: [(m["epoch"], m[s][term]) for m in metrics if term in (m[s] or ())]
            for s in ("train", "val")
        }
        _curve(axes, term, {s: p for s, p in points.items() if p or term in both})
        axes.legend()
        for least in THRESHOLDS if term == "map" else ():
            axes.axhline(least, color="red", ls="--", lw=1)
    figures.save(figure, path)


def compare_runs(metrics_by_name, path):
    """Validation loss, accuracy and IoU of several runs against the epoch: terms that all have.

    `metrics_by_name` has the `metrics.jsonl` lines of each run.  Where all have their times and an
    accuracy, that is drawn against the seconds of the run as well.
    """
    lines = [line for of_run in metrics_by_name.values() for line in of_run]
    terms = [name for name in CURVES if all(name in line["val"] for line in lines)]
    places = [(term, "epoch") for term in terms]
    if lines and "accuracy" in terms and all("time" in line for line in lines):
        places.append(("accuracy", "seconds"))
    size = (5.5 * len(places), 4 + 0.2 * len(metrics_by_name))
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(1, len(places), squeeze=False).flat
    for axes, (term, against) in zip(every, places, strict=True):
        points = {}
        for name, of_run in metrics_by_name.items():
            seconds = accumulate(sum(line["time"].values()) for line in of_run)
            at = seconds if against == "seconds" else (line["epoch"] for line in of_run)
            points[name] = [(x, line["val"][term]) for x, line in zip(at, of_run, strict=True)]
        axes.set_prop_cycle(STYLES)
        _curve(axes, term, points, against)
        axes.set_title("validation")
    if places:
        named = figure.axes[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower left", fontsize=8)  # as long as names may be
    figures.save(figure, path)


def roofline(rows, ceilings, path, named=10):
    """Operations a second of layers against their operations a byte, under the device's ceilings.

    `rows` have `layer`, `total`, `bytes` and `operations_per_s`; the `named` slowest are named.
    """
    shown = [row for row in rows if row.get("operations_per_s") and row["total"]]
    shown.sort(key=lambda row: row["total"] / row["operations_per_s"], reverse=True)
    dense = np.array([row["total"] / row["bytes"] for row in shown])
    rate = np.array([row["operations_per_s"] for row in shown])
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    ridge = ceilings.operations_per_s / ceilings.bytes_per_s
    reach = np.geomspace(min(dense.min(), ridge) / 3, max(dense.max(), ridge) * 3, 100)
    roof = np.minimum(ceilings.operations_per_s, ceilings.bytes_per_s * reach)
    axes.plot(reach, roof, color="black", label="measured: matrix product, copy")
    axes.scatter(dense, rate, s=20, label="layers")
    for row, x, y in zip(shown[:named], dense, rate, strict=False):
        axes.annotate(row["layer"], (x, y), fontsize=8, xytext=(4, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="operations / byte", ylabel="operations / s")
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(figure, path)


def _curve(axes, term, points, against="epoch"):
    """Lines through points [(x, value)], one a label; a loss that allows it on a log scale."""
    for label, of_label in points.items():
        axes.plot(*np.array(of_label).reshape(-1, 2).T, marker=".", label=label)
    axes.set(xlabel=against, ylabel=term)
    axes.grid(alpha=0.3)
    low = min((value for of_label in points.values() for _, value in of_label), default=0)
    if term == "loss" and low > 0:
        axes.set_yscale("log")
