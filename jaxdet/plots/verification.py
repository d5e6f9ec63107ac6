"""Plots of verification: accuracy against the threshold, ROC curve, score histogram."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdet.metrics.verification import Roc
from jaxdet.plots import figures
from jaxdet.types import Array

SIZE = (6, 4.5)  # inches
BINS = 60


def threshold_sweep(rows: Sequence[Mapping[str, float]], chosen: float, path: Path) -> None:
    """Plot accuracies against the threshold, and mark the chosen threshold.

    rows: `threshold`, `accuracy`, and `known_accuracy` (fraction of the gallery's identities that
      are identified at least once) of each point.
    """
    figure, axes = figures.single("threshold", "accuracy", size=SIZE)
    thresholds = [row["threshold"] for row in rows]
    for name in ("accuracy", "known_accuracy"):
        axes.plot(thresholds, [row[name] for row in rows], label=name.replace("_", " "))
    axes.axvline(chosen, color="black", linestyle=":", label=f"chosen: {chosen:.3f}")
    axes.legend()
    figures.save(figure, path)


def roc(curve: Roc, path: Path) -> None:
    """Plot the true accept rate against the false accept rate, on a logarithmic scale.

    Points with a false accept rate of 0 are left out.
    """
    figure, axes = figures.single("false accept rate", "true accept rate", size=SIZE)
    positive = curve.far > 0
    axes.plot(curve.far[positive], curve.tar[positive])
    axes.set(xscale="log", ylim=(0, 1.02))
    figures.save(figure, path)


def score_histogram(scores: Array, same: Array, path: Path) -> None:
    """Plot the densities of the scores [N] of pairs of the same identity and of other pairs.

    same [N]: bool, whether a pair is of the same identity.
    """
    figure, axes = figures.single("score", "density", size=SIZE)
    bins = np.histogram_bin_edges(scores, BINS).tolist()
    for name, values in (("same identity", scores[same]), ("different", scores[~same])):
        if values.size:
            axes.hist(values, bins, density=True, alpha=0.6, label=name)
    axes.legend()
    figures.save(figure, path)
