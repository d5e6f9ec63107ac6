"""Precision, recall and F1 at a score threshold, and the threshold that a rule chooses.

    matches = average_precision.match(rows, num_classes)
    thresholds = choose(matches, "f1")  # one per class
    (threshold,) = choose(pooled(matches), "f1")  # one for all classes
    scores = rates(matches, thresholds)

A box is right if it matches an object at the first IoU threshold of `matches`, .5.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdet.errors import InputError
from jaxdet.metrics import calibration
from jaxdet.metrics.average_precision import Matches, match
from jaxdet.metrics.detection import Rows

RULE = re.compile(r"(f1)|(recall|precision)=(0?\.\d+|1(?:\.0*)?)")


def check_rule(rule: str) -> None:
    """Raise InputError unless a rule is f1, recall=R or precision=P with a fraction R or P."""
    if not RULE.fullmatch(rule):
        raise InputError(
            f"--choose-threshold must be f1, recall=R or precision=P with a fraction such as .95, "
            f"got {rule}"
        )


def pooled(matches: Matches) -> Matches:
    """The boxes of all classes, as if they were of a single class."""
    order = np.argsort(-matches.score.ravel(), kind="stable")
    levels = len(matches.hit)
    return Matches(
        image=matches.image.ravel()[order][None],
        score=matches.score.ravel()[order][None],
        hit=matches.hit.reshape(levels, -1)[:, order][:, None],
        counted=matches.counted.reshape(levels, -1)[:, order][:, None],
        objects=matches.objects.sum(1, keepdims=True),
    )


def rates(matches: Matches, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """`precision`, `recall` and `f1` [K] of the boxes with a score of at least `thresholds [K]`.

    The values are NaN for classes without objects and for a NaN threshold; a class without boxes
    has a precision of 0.
    """
    kept = matches.counted[0] & (matches.score >= thresholds[:, None])
    found = _rates((matches.hit[0] & kept).sum(1), kept.sum(1), matches.objects.sum(0))
    unknown = (matches.objects.sum(0) == 0) | np.isnan(thresholds)
    return {name: np.where(unknown, np.nan, values) for name, values in found.items()}


def choose(matches: Matches, rule: str) -> np.ndarray:
    """The score threshold [K] of each class.

    rule: "f1", the highest F1; "recall=R", the highest threshold with a recall of at least R;
      "precision=P", the lowest threshold with a precision of at least P.

    NaN for classes without objects, and where no threshold has the recall or precision.
    """
    check_rule(rule)
    objects = matches.objects.sum(0)
    return np.array([_choose_one(matches, k, objects[k], rule) for k in range(len(objects))])


def per_image(matches: Matches, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of boxes that are right (`tp`) or wrong (`fp`) and of objects missed (`fn`), [N]."""
    count = len(matches.objects)
    kept = matches.counted[0] & (matches.score >= thresholds[:, None])
    right = np.bincount(matches.image[kept & matches.hit[0]], minlength=count)
    wrong = np.bincount(matches.image[kept & ~matches.hit[0]], minlength=count)
    return {"tp": right, "fp": wrong, "fn": matches.objects.sum(1) - right}


def details(rows: Rows, classes: Sequence[str], threshold: float) -> dict[str, Any]:
    """Scores of the boxes with a score of at least `threshold`.

    `ece` is the expected calibration error of these boxes; `labels` has the `precision`, `recall`
    and `f1` of each class.  Values are None without boxes, or for a class without objects.
    """
    matches = match(rows, len(classes))
    found = rates(matches, np.full(len(classes), threshold))
    labels = {
        name: {key: _known(values[k]) for key, values in found.items()}
        for k, name in enumerate(classes)
    }
    error = calibration.expected_calibration_error(*scored_boxes(matches, threshold))
    return {"ece": _known(error), "labels": labels}


def scored_boxes(matches: Matches, threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(scores [M], whether each box is right [M]) of the M boxes with a score >= `threshold`."""
    kept = matches.counted[0] & (matches.score >= threshold)
    return matches.score[kept], matches.hit[0][kept]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _choose_one(matches: Matches, k: int, objects: int, rule: str) -> float:
    score, counted = matches.score[k], matches.counted[0, k]
    ends = np.isfinite(score) & (score > np.append(score[1:], -np.inf))  # the last of equal scores
    if not objects or not ends.any():
        return np.nan
    right = np.cumsum(matches.hit[0, k] & counted)
    found = _rates(right, np.cumsum(counted), np.full(len(score), objects))
    name, _, target = rule.partition("=")
    values = np.where(ends, found[name], -1.0)
    if name == "f1":
        return float(score[values.argmax()])
    (reached,) = np.nonzero(values >= float(target))
    if not reached.size:
        return np.nan
    return float(score[reached[0 if name == "recall" else -1]])


def _rates(right: np.ndarray, kept: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    counts = {"precision": (right, kept), "recall": (right, objects)}
    counts["f1"] = 2 * right, kept + objects
    return {
        name: np.divide(top, bottom, out=np.zeros(len(top)), where=bottom > 0)
        for name, (top, bottom) in counts.items()
    }
