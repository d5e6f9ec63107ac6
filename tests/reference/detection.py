"""Assignment, suppression and box offsets in plain loops."""

import numpy as np

from benchmarks.lib.reference import iou


def max_iou(anchors, true_boxes, valid, positive_iou, allow_low_quality):
    """(positive [A], index [A]) of anchors by their IoU with true boxes."""
    count = len(anchors)
    positive, index = np.zeros(count, bool), np.zeros(count, int)
    true = [g for g in range(len(valid)) if valid[g]]
    ious = {(g, a): iou(true_boxes[g], anchors[a]) for g in true for a in range(count)}
    for a in range(count):
        if true:
            g = max(true, key=lambda g: ious[g, a])
            if ious[g, a] >= positive_iou:
                positive[a], index[a] = True, g
    for g in true if allow_low_quality else ():
        best = max(ious[g, a] for a in range(count))
        for a in range(count):
            if ious[g, a] == best > 0:
                positive[a], index[a] = True, g
    return positive, index


def nms(boxes, scores, labels, iou_threshold):
    """Indices of the boxes that are kept, best first."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= iou_threshold for j in kept):
            kept.append(i)
    return kept


def soft_nms(boxes, scores, labels, method, iou_threshold, sigma, score_threshold):
    """(indices, decayed scores) of the boxes that are kept, in the order of selection."""
    remaining = {i: float(score) for i, score in enumerate(scores) if score > score_threshold}
    order, values = [], []
    while remaining:
        best = max(remaining, key=remaining.get)
        order.append(best)
        values.append(remaining.pop(best))
        for i in list(remaining):
            if labels[i] == labels[best]:
                overlap = iou(boxes[i], boxes[best])
                if method == "gaussian":
                    remaining[i] *= np.exp(-(overlap**2) / sigma)
                elif overlap > iou_threshold:
                    remaining[i] *= 1 - overlap
            if remaining[i] <= score_threshold:
                del remaining[i]
    return order, values


def weighted_nms(boxes, scores, labels, iou_threshold):
    """[(box, score)], best first: clusters around the best boxes, weighted by score and IoU."""
    clusters = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        found = _best_match([(boxes[c[0]], labels[c[0]]) for c in clusters], boxes[i], labels[i])
        if found and found[1] > iou_threshold:
            clusters[found[0]].append(i)
        else:
            clusters.append([i])
    merged = []
    for cluster in clusters:
        weights = [scores[i] * iou(boxes[i], boxes[cluster[0]]) for i in cluster]
        merged.append((np.average(boxes[cluster], 0, weights), scores[cluster[0]]))
    return merged


def weighted_boxes_fusion(
    boxes, scores, labels, iou_threshold, num_models=1, score_reduction="mean"
):
    """[(box, score)], best first: clusters around their own running mean, weighted by score."""
    clusters = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        means = [(np.average(boxes[c], 0, scores[c]), labels[c[0]]) for c in clusters]
        found = _best_match(means, boxes[i], labels[i])
        if found and found[1] > iou_threshold:
            clusters[found[0]].append(i)
        else:
            clusters.append([i])
    merged = []
    for c in clusters:
        value = scores[c].max() if score_reduction == "max" else scores[c].mean()
        value *= min(len(c), num_models) / num_models
        merged.append((np.average(boxes[c], 0, scores[c]), value))
    return sorted(merged, key=lambda pair: -pair[1])


def _best_match(others, box, label):
    """(index, IoU) of the box of this label in [(box, label)] that overlaps most, or None."""
    same_label = [(k, iou(b, box)) for k, (b, other) in enumerate(others) if other == label]
    return max(same_label, key=lambda pair: pair[1]) if same_label else None


def encode_offsets(box, anchor):
    """Center offsets in sides of the anchor, and logarithms of the ratios of the sides."""
    centers, sides = [], []
    for axis in (0, 1):
        side, box_side = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
        box_center, anchor_center = ((b[axis] + b[axis + 2]) / 2 for b in (box, anchor))
        centers.append((box_center - anchor_center) / side)
        sides.append(np.log(box_side / side))
    return np.array(centers + sides)


def decode_offsets(offsets, anchor):
    """The box at these offsets from an anchor; the inverse of `encode_offsets`."""
    low, high = [], []
    for axis in (0, 1):
        side, center = anchor[axis + 2] - anchor[axis], (anchor[axis] + anchor[axis + 2]) / 2
        center, half = center + offsets[axis] * side, np.exp(offsets[axis + 2]) * side / 2
        low.append(center - half)
        high.append(center + half)
    return np.array(low + high)
