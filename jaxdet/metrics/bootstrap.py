"""Bootstrap intervals of scores: how much they vary with the images of the split.

    samples = resample(task.report, rows, resamples=1000, seed=0)  # {score: [resamples]}
    low, high = interval(samples["accuracy"])

Efron and Tibshirani 1993, An Introduction to the Bootstrap (percentile intervals).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEVEL = 0.95


def resample(
    report: Callable[[dict[str, np.ndarray]], dict[str, Any]],
    rows: Mapping[str, np.ndarray],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Scores of images drawn with replacement: {name of a score: [resamples]}.

    report: function from the rows of a split to its scores; scores that are not floats are ignored.
    rows: columns [N, ...], one row per image.
    A score is NaN where the report of a resample lacks it.
    """
    count = len(next(iter(rows.values())))
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        images = draw.integers(0, count, count)
        scores = report({name: column[images] for name, column in rows.items()})
        found.append({name: value for name, value in scores.items() if isinstance(value, float)})
    names = dict.fromkeys(name for scores in found for name in scores)
    return {name: np.array([scores.get(name, np.nan) for scores in found]) for name in names}


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """(low, high): the central interval that holds a fraction `level` of the samples [N].

    NaN are left out; without any other sample, both ends are NaN.
    """
    known = samples[np.isfinite(samples)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
