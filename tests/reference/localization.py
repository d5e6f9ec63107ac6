"""Losses and metrics of localisation in plain loops."""

import numpy as np

from benchmarks.lib import reference
from tests.reference import boxes as reference_boxes
from tests.reference import classification as reference_classification


def localization_losses(logits, label, box, true, kind, smoothing=0.0):
    """(cross entropy, box loss) of one photo: logits [K], boxes [4] in shares of the photo."""
    entropy = reference_classification.classification_loss(
        "cross_entropy",
        logits,
        reference_classification.smoothed_label(label, len(logits), smoothing),
    )
    apart = [abs(float(a) - float(b)) for a, b in zip(box, true, strict=True)]
    if kind == "mse":
        return entropy, sum(d**2 for d in apart) / 4
    if kind == "smooth_l1":
        return entropy, sum(d**2 / 2 if d < 1 else d - 0.5 for d in apart) / 4
    overlap = {
        "iou": reference.iou,
        "giou": reference_boxes.giou,
        "diou": reference_boxes.diou,
        "ciou": reference_boxes.ciou,
    }[kind]
    return entropy, 1 - overlap(np.asarray(box, float), np.asarray(true, float), eps=1e-7)


def localization_metrics(photos):
    """Scores of a list of photos {"label", "predicted", "iou", "distance"}, one after the other."""
    right = good = better = 0
    for photo in photos:
        right += photo["label"] == photo["predicted"]
        good += photo["iou"] > 0.5
        better += photo["iou"] > 0.7
    count, ious = len(photos), sorted(float(photo["iou"]) for photo in photos)
    return {
        "count": count,
        "correct": right,
        "accuracy": right / count,
        "iou": sum(ious) / count,
        "iou_median": (ious[(count - 1) // 2] + ious[count // 2]) / 2,
        "right_iou": sum(p["iou"] for p in photos if p["label"] == p["predicted"]) / count,
        "iou50": good / count,
        "iou70": better / count,
        "distance": sum(float(photo["distance"]) for photo in photos) / count,
    }
