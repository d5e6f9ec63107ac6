"""Boxes in plain loops."""

import numpy as np

from benchmarks.lib.reference import intersection_and_union, iou


def giou(a, b, eps=0.0):
    """IoU of two boxes [4], less the fraction of their enclosing box that neither covers."""
    _, union = intersection_and_union(a, b)
    x0, y0, x1, y1 = enclosing_box(a, b)
    area = (x1 - x0) * (y1 - y0)
    return iou(a, b, eps) - ((area - union) / (area + eps) if area > 0 else 0.0)


def diou(a, b, eps=0.0):
    """IoU of two boxes [4], less (distance of centers / diagonal of the enclosing box)^2."""
    x0, y0, x1, y1 = enclosing_box(a, b)
    diagonal = (x1 - x0) ** 2 + (y1 - y0) ** 2
    x = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    y = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    distance = (x**2 + y**2) / (diagonal + eps) if diagonal > 0 else 0.0
    return iou(a, b, eps) - distance


def ciou(a, b, eps=0.0):
    """DIoU of two boxes [4], less alpha times v, the difference of their aspect ratios."""
    angles = [np.arctan2(max(0, box[2] - box[0]), max(0, box[3] - box[1])) for box in (a, b)]
    v = 4 / np.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou(a, b, eps) + v + eps) if v > 0 else 0.0
    return diou(a, b, eps) - alpha * v


def iom(a, b):
    """Intersection of two boxes [4] over the area of the smaller one; 0 if either is empty."""
    intersection, _ = intersection_and_union(a, b)
    smaller = min(intersection_and_union(box, box)[0] for box in (a, b))
    return intersection / smaller if smaller > 0 else 0.0


def enclosing_box(a, b):
    """Smallest box [4] that contains two boxes [4]."""
    x, y = [*a[::2], *b[::2]], [*a[1::2], *b[1::2]]
    return min(x), min(y), max(x), max(y)


def distance_box_iou_loss(predicted, true, eps=1e-7):
    """DIoU losses [N] of boxes [N, 4], with torchvision's eps in both denominators."""
    pairs = zip(predicted.tolist(), true.tolist(), strict=True)
    return np.array([1 - diou(a, b, eps) for a, b in pairs])


def mask_to_box(image):
    """Smallest box [4] around the positive pixels of an image [H, W]; zeros if there are none."""
    height, width = image.shape
    foreground = [(x, y) for y in range(height) for x in range(width) if image[y, x] > 0]
    if not foreground:
        return np.zeros(4)
    columns, rows = zip(*foreground, strict=True)
    return np.array([min(columns), min(rows), max(columns) + 1, max(rows) + 1])
