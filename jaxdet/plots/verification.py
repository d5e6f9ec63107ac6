"""Pictures of verification: accuracy against the threshold, ROC curve, histogram of scores."""

import numpy as np
from matplotlib.figure import Figure

from jaxdet.plots import figures

BINS = 60


def threshold_sweep(rows, chosen, path):
    """Both accuracies of rows (threshold, accuracy, known_accuracy), and the chosen threshold."""
    figure, axes = _one("threshold", "share")
    at = [row["threshold"] for row in rows]
    for name in ("accuracy", "known_accuracy"):
        axes.plot(at, [row[name] for row in rows], label=name.replace("_", " "))
    axes.axvline(chosen, color="black", linestyle=":", label=f"chosen: {chosen:.3f}")
    axes.legend()
    figures.save(figure, path)


def roc(points, path):
    """True against false acceptances of a `verification.Roc`, the latter on a log scale."""
    figure, axes = _one("FAR", "TAR")
    seen = points.far > 0
    axes.plot(points.far[seen], points.tar[seen])
    axes.set(xscale="log", ylim=(0, 1.02))
    figures.save(figure, path)


def score_histogram(scores, same, path):
    """Scores of pairs of one person and of two, each as a density."""
    figure, axes = _one("score", "density")
    bins = np.histogram_bin_edges(scores, BINS)
    for name, of_kind in (("one person", scores[same]), ("two", scores[~same])):
        if of_kind.size:
            axes.hist(of_kind, bins, density=True, alpha=0.6, label=name)
    axes.legend()
    figures.save(figure, path)


def _one(across, up):
    """A figure with one plot."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    return figure, axes
