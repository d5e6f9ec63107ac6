"""Losses and metrics of localization in plain loops."""

import numpy as np

from benchmarks.lib.reference import iou
from tests.reference.boxes import ciou, diou, giou
from tests.reference.classification import classification_loss, smoothed_label


def localization_losses(logits, label, box, true, name, label_smoothing=0.0):
    """(cross entropy, box loss) of one image: logits [K], boxes [4] as fractions of the image."""
    target = smoothed_label(label, len(logits), label_smoothing)
    entropy = classification_loss("cross_entropy", logits, target)
    errors = [abs(float(a) - float(b)) for a, b in zip(box, true, strict=True)]
    if name == "mse":
        return entropy, sum(e**2 for e in errors) / 4
    if name == "smooth_l1":
        return entropy, sum(e**2 / 2 if e < 1 else e - 0.5 for e in errors) / 4
    overlap = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}[name]
    return entropy, 1 - overlap(np.asarray(box, float), np.asarray(true, float), eps=1e-7)


def localization_metrics(images):
    """Metrics of a list of images {"label", "predicted", "iou", "distance"}."""
    correct = above50 = above70 = 0
    for image in images:
        correct += image["label"] == image["predicted"]
        above50 += image["iou"] > 0.5
        above70 += image["iou"] > 0.7
    count, ious = len(images), sorted(float(image["iou"]) for image in images)
    return {
        "count": count,
        "correct": correct,
        "accuracy": correct / count,
        "iou": sum(ious) / count,
        "iou_median": (ious[(count - 1) // 2] + ious[count // 2]) / 2,
        "right_iou": sum(i["iou"] for i in images if i["label"] == i["predicted"]) / count,
        "iou50": above50 / count,
        "iou70": above70 / count,
        "distance": sum(float(image["distance"]) for image in images) / count,
    }
