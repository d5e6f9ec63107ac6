"""Calibration: whether boxes or labels with a score of .7 are correct in 7 of 10 cases.

    error = expected_calibration_error(scores, correct)
    calibrated = apply_temperature(scores, fit_temperature(val_scores, val_correct))

Guo et al. 2017, arXiv:1706.04599; for detection Küppers et al. 2020, arXiv:2004.13546.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported on first use, which `predict` does without

BINS = 15
SMALLEST = 1e-6  # scores are clipped to [SMALLEST, 1 - SMALLEST] before their logits are taken
LOG_TEMPERATURES = (-3.0, 3.0)  # range of the search


class Reliability(NamedTuple):
    """Means of B bins of equal width, over scores from 0 to 1; NaN in empty bins."""

    score: np.ndarray  # [B]
    accuracy: np.ndarray  # [B] fraction of boxes or labels that are correct
    count: np.ndarray  # [B]


def reliability(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Mean score and accuracy in each bin of `scores` [N].

    correct [N]: whether the box or label with each score is correct.
    """
    places = np.minimum((np.asarray(scores) * bins).astype(int), bins - 1)
    count = np.bincount(places, minlength=bins)
    sums = (np.bincount(places, weights, bins) for weights in (scores, correct))
    score, accuracy = (
        np.divide(each, count, out=np.full(bins, np.nan), where=count > 0) for each in sums
    )
    return Reliability(score, accuracy, count)


def expected_calibration_error(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (ECE) of N scores, in [0, 1]; NaN without scores.

    It is the mean, over all scores, of the absolute difference between the mean score and the
    accuracy of the score's bin.  Arguments are as in `reliability`.
    """
    found = reliability(scores, correct, bins)
    if not found.count.sum():
        return float("nan")
    distance = np.nan_to_num(np.abs(found.score - found.accuracy))
    return float(np.average(distance, weights=found.count))


def fit_temperature(scores: np.ndarray, correct: np.ndarray) -> float:
    """The temperature that minimizes the cross-entropy of the scores; 1 without scores.

    It is searched between exp(-3) and exp(3).  Arguments are as in `reliability`.
    """
    if not len(scores):
        return 1.0
    logits, right = _logits(scores), np.asarray(correct, float)

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - right * scaled))

    found = scipy.optimize.minimize_scalar(cross_entropy, bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """The scores [N] after their logits are divided by a temperature.

    A temperature above 1 moves scores towards .5.
    """
    return scipy.special.expit(_logits(scores) / temperature)


def _logits(scores: np.ndarray) -> np.ndarray:
    return scipy.special.logit(np.clip(np.asarray(scores, float), SMALLEST, 1 - SMALLEST))
