"""Slow twins of the detector's operations: the obvious loops, in NumPy."""

import numpy as np

from tests import slow


def task_aligned(
    scores, predicted, points, true_boxes, true_labels, valid, topk, alpha, beta, overlap="iou"
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
                u = max(0.0, getattr(slow, overlap)(true_boxes[g], predicted[a]))
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


def largest_overlap(anchors, true_boxes, valid, positive, at_least_one):
    """(positive [A], index [A]) of anchors by their IoU with true boxes."""
    on, index = np.zeros(len(anchors), bool), np.zeros(len(anchors), int)
    slots = [g for g in range(len(valid)) if valid[g]]
    shared = {(g, a): slow.iou(true_boxes[g], anchors[a]) for g in slots for a in range(len(on))}
    for a in range(len(on)):
        if slots:
            g = max(slots, key=lambda g: shared[g, a])
            if shared[g, a] >= positive:
                on[a], index[a] = True, g
    for g in slots if at_least_one else ():
        best = max(shared[g, a] for a in range(len(on)))
        for a in range(len(on)):
            if shared[g, a] == best > 0:
                on[a], index[a] = True, g
    return on, index


def hard_nms(boxes, scores, labels, threshold):
    """Indices of the boxes that stay, best first."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(labels[i] != labels[j] or slow.iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def soft_nms(boxes, scores, labels, kind, threshold, sigma, least):
    """(indices, decayed scores) of the boxes that stay, in the order in which they were chosen."""
    left = {i: float(score) for i, score in enumerate(scores) if score > least}
    order, values = [], []
    while left:
        best = max(left, key=left.get)
        order.append(best)
        values.append(left.pop(best))
        for i in list(left):
            if labels[i] == labels[best]:
                overlap = slow.iou(boxes[i], boxes[best])
                if kind == "gaussian":
                    left[i] *= np.exp(-(overlap**2) / sigma)
                elif overlap > threshold:
                    left[i] *= 1 - overlap
            if left[i] <= least:
                del left[i]
    return order, values


def weighted_nms(boxes, scores, labels, threshold):
    """[(box, score)], best first: clusters about the best boxes, weighed by score and overlap."""
    clusters = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        found = _nearest([(boxes[c[0]], labels[c[0]]) for c in clusters], boxes[i], labels[i])
        if found and found[1] > threshold:
            clusters[found[0]].append(i)
        else:
            clusters.append([i])
    merged = []
    for cluster in clusters:
        weights = [scores[i] * slow.iou(boxes[i], boxes[cluster[0]]) for i in cluster]
        merged.append((np.average(boxes[cluster], 0, weights), scores[cluster[0]]))
    return merged


def fused_boxes(boxes, scores, labels, threshold, models=1, score="mean"):
    """[(box, score)], best first: clusters about their own running mean, weighed by score."""
    clusters = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        means = [(np.average(boxes[c], 0, scores[c]), labels[c[0]]) for c in clusters]
        found = _nearest(means, boxes[i], labels[i])
        if found and found[1] > threshold:
            clusters[found[0]].append(i)
        else:
            clusters.append([i])
    merged = []
    for c in clusters:
        value = scores[c].max() if score == "max" else scores[c].mean()
        value *= min(len(c), models) / models
        merged.append((np.average(boxes[c], 0, scores[c]), value))
    return sorted(merged, key=lambda pair: -pair[1])


def _nearest(others, box, label):
    """(index, IoU) of the one of [(box, label)] of this label that overlaps most, if any."""
    alike = [(k, slow.iou(b, box)) for k, (b, other) in enumerate(others) if other == label]
    return max(alike, key=lambda pair: pair[1]) if alike else None


def turned_photo(image, angle):
    """A photo [H, W, C] turned counter-clockwise by `angle` radians about its middle."""
    height, width = image.shape[:2]
    out = np.full_like(image, 0.5)
    for r in range(height):
        for c in range(width):
            x, y = c + 0.5 - width / 2, r + 0.5 - height / 2
            column = np.cos(angle) * x - np.sin(angle) * y + width / 2 - 0.5
            row = np.sin(angle) * x + np.cos(angle) * y + height / 2 - 0.5
            out[r, c] = _between(image, row, column)
    return out


def mapped_photo(image, factor, moved):
    """A photo [H, W, C] whose pixel (r, c) goes to (r, c) * factor + moved."""
    height, width = image.shape[:2]
    out = np.full_like(image, 0.5)
    for r in range(height):
        for c in range(width):
            row = (r + 0.5 - moved[0]) / factor[0]
            column = (c + 0.5 - moved[1]) / factor[1]
            if 0 <= row <= height and 0 <= column <= width:
                row, column = np.clip(row - 0.5, 0, height - 1), np.clip(column - 0.5, 0, width - 1)
                out[r, c] = _between(image, row, column)
    return out


def _between(image, row, column):
    """The four pixels around a place, by nearness; those beyond the edge are grey."""
    top, left = int(np.floor(row)), int(np.floor(column))
    value = np.zeros(image.shape[2])
    for r in (top, top + 1):
        for c in (left, left + 1):
            inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
            near = (1 - abs(row - r)) * (1 - abs(column - c))
            value += near * (image[r, c] if inside else 0.5)
    return value


def offsets(box, anchor):
    """Centre in sides of the anchor from its own, and logarithms of how much larger the box is."""
    places, sizes = [], []
    for axis in (0, 1):
        side, own = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
        middle, from_middle = (b[axis] + b[axis + 2] for b in (box, anchor))
        places.append((middle - from_middle) / 2 / side)
        sizes.append(np.log(own / side))
    return np.array(places + sizes)


def of_offsets(offsets, anchor):
    """The box whose `offsets` these are."""
    low, high = [], []
    for axis in (0, 1):
        side, middle = anchor[axis + 2] - anchor[axis], (anchor[axis] + anchor[axis + 2]) / 2
        middle, half = middle + offsets[axis] * side, np.exp(offsets[axis + 2]) * side / 2
        low.append(middle - half)
        high.append(middle + half)
    return np.array(low + high)
