"""Scores of a whole split, on the host, from the rows that tasks measure."""

import numpy as np


def labelled_boxes(rows, classes):
    """Scores of one label and one box a photo.

    `rows` have `label`, `predicted` (indices into `classes`), `iou` and `distance`, [N] each.
    Shares and means are in [0, 1]; `iou50` and `iou70` are shares of photos above .5 and .7.
    `labels` has the same for the photos of each label, with their counts, and `confusion [K, K]`
    counts photos by true label (rows) and predicted label (columns).
    """
    count = len(classes)
    pairs = np.asarray(rows["label"]) * count + np.asarray(rows["predicted"])
    confusion = np.bincount(pairs, minlength=count * count).reshape(count, count)
    labels = {}
    for i, name in enumerate(classes):
        of_label = {key: column[rows["label"] == i] for key, column in rows.items()}
        labels[name] = _scores(of_label) if confusion[i].any() else {"count": 0, "correct": 0}
    return {**_scores(rows), "labels": labels, "confusion": confusion.tolist()}


def _scores(rows):
    right, iou = rows["label"] == rows["predicted"], rows["iou"].astype(np.float64)
    return {
        "count": len(right),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "iou": float(iou.mean()),
        "iou_median": float(np.median(iou)),
        "iou50": float((iou > 0.5).mean()),
        "iou70": float((iou > 0.7).mean()),
        "distance": float(rows["distance"].mean(dtype=np.float64)),
    }
