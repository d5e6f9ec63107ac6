"""Slow reference implementations in plain loops, for the benchmarks and the tests.

Further implementations, which only the tests need, are in `tests/reference`.
"""

from collections.abc import Callable, Sequence

import numpy as np

Box = Sequence[float] | np.ndarray  # x0, y0, x1, y1


def iou(a: Box, b: Box, eps: float = 0.0) -> float:
    """Intersection over union of two boxes [4]; 0 if the union is empty."""
    intersection, union = intersection_and_union(a, b)
    return intersection / (union + eps) if union > 0 else 0.0


def intersection_and_union(a: Box, b: Box) -> tuple[float, float]:
    """Areas of the intersection and of the union of two boxes [4]."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)]
    return width * height, sum(areas) - width * height


def encode_targets(
    boxes: np.ndarray, labels: np.ndarray, window: int, stride: int, rows: int, columns: int
) -> np.ndarray:
    """`windows.encode_targets` in loops: targets [N, rows, columns, 6] of N images.

    boxes [N, 4] and labels [N] of the one object in each image; window and stride in pixels.
    """
    targets = np.zeros((len(boxes), rows, columns, 6))
    for n in range(len(boxes)):
        x0, y0, x1, y1 = boxes[n]
        for h in range(rows):
            for w in range(columns):
                top, left = h * stride, w * stride
                overlaps_x = max(x0, left) < min(x1, left + window)
                overlaps_y = max(y0, top) < min(y1, top + window)
                if overlaps_x and overlaps_y:
                    corners = np.array([x0 - left, y0 - top, x1 - left, y1 - top])
                    targets[n, h, w] = [1, labels[n], *corners / window]
    return targets


def task_aligned(
    scores: np.ndarray,
    predicted: np.ndarray,
    points: np.ndarray,
    true_boxes: np.ndarray,
    true_labels: np.ndarray,
    valid: np.ndarray,
    *,
    topk: int,
    alpha: float,
    beta: float,
    iou_fn: Callable[[Box, Box], float] = iou,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`assign.task_aligned` in loops: (positive [A], index [A], scores [A, K], boxes [A, 4]).

    Inputs of one image: scores [A, K], predicted boxes [A, 4], points [A, 2], true boxes [G, 4],
    true labels and valid [G].
    """
    cells, classes = scores.shape
    overlap, metric = {}, {}
    candidates = {a: [] for a in range(cells)}  # true boxes that chose a cell
    for g in range(len(valid)):
        if not valid[g]:
            continue
        for a in range(cells):
            x, y = points[a]
            x0, y0, x1, y1 = true_boxes[g]
            if min(x - x0, y - y0, x1 - x, y1 - y) > 1e-9:
                overlap[g, a] = max(0.0, iou_fn(true_boxes[g], predicted[a]))
                metric[g, a] = scores[a, true_labels[g]] ** alpha * overlap[g, a] ** beta
        best = sorted((a for a in range(cells) if (g, a) in metric), key=lambda a: -metric[g, a])
        for a in best[:topk]:
            if metric[g, a] > 0:
                candidates[a].append(g)
    index, positive = np.zeros(cells, int), np.zeros(cells, bool)
    target_scores = np.zeros((cells, classes))
    for a in range(cells):
        if candidates[a]:
            positive[a], index[a] = True, max(candidates[a], key=lambda g: overlap[g, a])
    for a in range(cells):
        if positive[a]:
            g = index[a]
            own = [b for b in range(cells) if positive[b] and index[b] == g]
            best, top = max(overlap[g, b] for b in own), max(metric[g, b] for b in own)
            target_scores[a, true_labels[g]] = metric[g, a] * best / (top + 1e-9)
    return positive, index, target_scores, true_boxes[index]
