"""Scores of a whole split, on the host, from the rows that tasks measure."""

import numpy as np


def localization_scores(rows, classes):
    """Scores of one label and one box a photo.

    `rows` have `label`, `predicted` (indices into `classes`), `iou` and `distance`, [N] each.
    Shares and means are in [0, 1]; `right_iou` takes the IoU beside a wrong label for 0; `iou50`
    and `iou70` are shares of photos above .5 and .7.
    `labels` has the same for the photos of each label, with their counts, and `confusion [K, K]`
    counts photos by true label (rows) and predicted label (columns).
    """
    return _by_label(rows, classes, _of_boxes)


def scores(rows, classes):
    """Scores of one label an image: `label` and `predicted` of `labelled_boxes` alone."""
    return _by_label(rows, classes, _of_labels)


def _by_label(rows, classes, scores):
    """`scores(rows)` of all rows and, under `labels`, of those of each label; and `confusion`."""
    count = len(classes)
    pairs = np.asarray(rows["label"]) * count + np.asarray(rows["predicted"])
    confusion = np.bincount(pairs, minlength=count * count).reshape(count, count)
    labels = {}
    for i, name in enumerate(classes):
        of_label = {key: column[rows["label"] == i] for key, column in rows.items()}
        labels[name] = scores(of_label) if confusion[i].any() else {"count": 0, "correct": 0}
    return {**scores(rows), "labels": labels, "confusion": confusion.tolist()}


def _of_labels(rows):
    right = rows["label"] == rows["predicted"]
    return {
        "count": len(right),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
    }


def _of_boxes(rows):
    right, iou = rows["label"] == rows["predicted"], rows["iou"].astype(np.float64)
    return _of_labels(rows) | {
        "iou": float(iou.mean()),
        "iou_median": float(np.median(iou)),
        "right_iou": float((right * iou).mean()),
        "iou50": float((iou > 0.5).mean()),
        "iou70": float((iou > 0.7).mean()),
        "distance": float(rows["distance"].mean(dtype=np.float64)),
    }


def plateau_start(scores, *, rise, over):
    """The first place from which the next `over` scores are all less than `rise` above its own.

    None where there is none with so many after it.
    """
    for place in range(len(scores) - over):
        if max(scores[place + 1 : place + 1 + over]) - scores[place] < rise:
            return place
    return None
