"""Scores of classification and of localization, on the host, from the measurements of tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdet.types import Array

Rows = Mapping[str, Array]


def scores(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of predictions of one label per image.

    rows: `label` and `predicted`, indices into `classes`, [N] each; N is at least 1.

    Returns `count`, `correct` and `accuracy`; `labels`, a dictionary from each class to the same
    three scores (a class without images has no `accuracy`); and `confusion`, the counts [K, K] of
    images by true class (rows) and predicted class (columns).
    """
    return _with_classes(rows, classes, _label_scores)


def localization_scores(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of predictions of one label and one box per image.

    rows: as in `scores`, with `iou` and `distance` [N] of the boxes (see
      `LocalizationTask.measure`).  If `rows` has a mask `boxed` [N], scores of boxes are computed
      from the images where the mask is true, and left out if there are none.
    Returns all of `scores` and, in total and for each class, the mean `iou`; `iou_median`;
    `right_iou`, the mean IoU with 0 for wrong labels; `iou50` and `iou70`, the fractions of images
    with an IoU above .5 and .7; and the mean `distance`.
    """
    return _with_classes(rows, classes, _box_scores)


def plateau_start(scores: Sequence[float], *, rise: float, over: int) -> int | None:
    """The first index i after which all scores stay below `scores[i] + rise`.

    At least `over` scores must come after it; None if there is no such index.
    """
    for start in range(len(scores) - over):
        if max(scores[start + 1 :]) - scores[start] < rise:
            return start
    return None


def _with_classes(
    rows: Rows, classes: Sequence[str], score: Callable[[Rows], dict[str, Any]]
) -> dict[str, Any]:
    """`score` of all rows and of the rows of each class, and the confusion matrix."""
    count = len(classes)
    pairs = np.asarray(rows["label"]) * count + np.asarray(rows["predicted"])
    confusion = np.bincount(pairs, minlength=count * count).reshape(count, count)
    labels = {}
    for i, name in enumerate(classes):
        of_class = {key: column[rows["label"] == i] for key, column in rows.items()}
        labels[name] = score(of_class) if confusion[i].any() else {"count": 0, "correct": 0}
    return {**score(rows), "labels": labels, "confusion": confusion.tolist()}


def _label_scores(rows: Rows) -> dict[str, Any]:
    correct = rows["label"] == rows["predicted"]
    return {
        "count": len(correct),
        "correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
    }


def _box_scores(rows: Rows) -> dict[str, Any]:
    known = rows.get("boxed", np.ones(len(rows["label"]), bool))
    if not known.any():
        return _label_scores(rows)
    correct = (rows["label"] == rows["predicted"])[known]
    iou, distance = rows["iou"][known].astype(np.float64), rows["distance"][known]
    return _label_scores(rows) | {
        "iou": float(iou.mean()),
        "iou_median": float(np.median(iou)),
        "right_iou": float((correct * iou).mean()),
        "iou50": float((iou > 0.5).mean()),
        "iou70": float((iou > 0.7).mean()),
        "distance": float(distance.mean(dtype=np.float64)),
    }
