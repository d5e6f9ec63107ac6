"""Reference implementations in plain loops, in NumPy: what the vectorised operations are timed against."""

import numpy as np


def iou(a, b, eps=0.0):
    """Intersection over union of two boxes [4]; 0 where the union is empty."""
    shared, union = intersection_and_union(a, b)
    return shared / (union + eps) if union > 0 else 0.0


def intersection_and_union(a, b):
    """Areas of the intersection and of the union of two boxes [4]."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)]
    return width * height, sum(areas) - width * height


def encode_targets(boxes, labels, window, stride, rows, columns):
    """Targets [N, rows, columns, 6] of one box [N, 4] and label [N] an image, by three loops."""
    targets = np.zeros((len(boxes), rows, columns, 6))
    for n in range(len(boxes)):
        x0, y0, x1, y1 = boxes[n]
        for h in range(rows):
            for w in range(columns):
                top, left = h * stride, w * stride
                across = max(x0, left) < min(x1, left + window)
                down = max(y0, top) < min(y1, top + window)
                if across and down:
                    corners = np.array([x0 - left, y0 - top, x1 - left, y1 - top])
                    targets[n, h, w] = [1, labels[n], *corners / window]
    return targets


def task_aligned(
    scores, predicted, points, true_boxes, true_labels, valid, *, topk, alpha, beta, iou_fn=iou
):
    """(positive [A], index [A], scores [A, K], boxes [A, 4]) by loops over boxes and cells."""
    cells, classes = scores.shape
    slots = [g for g in range(len(valid)) if valid[g]]
    shared, metric = {}, {}
    took = {a: [] for a in range(cells)}
    for g in slots:
        for a in range(cells):
            x, y = points[a]
            x0, y0, x1, y1 = true_boxes[g]
            if min(x - x0, y - y0, x1 - x, y1 - y) > 1e-9:
                u = max(0.0, iou_fn(true_boxes[g], predicted[a]))
                shared[g, a] = u
                metric[g, a] = scores[a, true_labels[g]] ** alpha * u**beta
        best = sorted((a for a in range(cells) if (g, a) in metric), key=lambda a: -metric[g, a])
        for a in best[:topk]:
            if metric[g, a] > 0:
                took[a].append(g)
    index, positive = np.zeros(cells, int), np.zeros(cells, bool)
    wanted = np.zeros((cells, classes))
    for a in range(cells):
        if took[a]:
            positive[a], index[a] = True, max(took[a], key=lambda g: shared[g, a])
    for a in range(cells):
        if positive[a]:
            g = index[a]
            mine = [b for b in range(cells) if positive[b] and index[b] == g]
            best, top = max(shared[g, b] for b in mine), max(metric[g, b] for b in mine)
            wanted[a, true_labels[g]] = metric[g, a] * best / (top + 1e-9)
    return positive, index, wanted, true_boxes[index]
