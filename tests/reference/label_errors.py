"""Scores of likely label errors, box by box."""

import numpy as np

from benchmarks.lib.reference import intersection_and_union, iou


def inside(a, b):
    """The fraction of box a that lies in box b."""
    return intersection_and_union(a, b)[0] / np.prod(a[2:] - a[:2])


def label_errors(image):
    """{kind: scores} of the boxes of one image, {column: values} as in a row of measurements."""
    found = [p for p in range(len(image["valid"])) if image["valid"][p]]
    true = [t for t in range(len(image["true_valid"])) if image["true_valid"][t]]
    objects = [t for t in true if not image["true_crowd"][t]]
    crowds = [t for t in true if image["true_crowd"][t]]

    def overlap(p, t):
        return iou(image["boxes"][p], image["true_boxes"][t])

    def fit(p, t):
        return image["scores"][p] * overlap(p, t)

    def same(p, t):
        return image["labels"][p] == image["true_labels"][t]

    support = {t: max([0.0, *(fit(p, t) for p in found if same(p, t))]) for t in objects}
    scores = {"missing": np.zeros(len(image["valid"]))}
    for kind in ("misplaced", "mislabeled", "duplicate"):
        scores[kind] = np.zeros(len(image["true_valid"]))
    for p in found:
        in_crowd = any(inside(image["boxes"][p], image["true_boxes"][t]) >= 0.5 for t in crowds)
        best = max([0.0, *(overlap(p, t) for t in objects)])
        scores["missing"][p] = 0 if in_crowd or best >= 0.5 else image["scores"][p] * (1 - best)
    for t in objects:
        near = [
            p
            for p in found
            if same(p, t) and overlap(p, t) >= max([0.1, *(overlap(p, u) for u in objects)])
        ]
        if near:
            q = max(near, key=lambda p: fit(p, t))
            scores["misplaced"][t] = image["scores"][q] * (1 - overlap(q, t)) * (1 - support[t])
        others = [fit(p, t) for p in found if not same(p, t)]
        scores["mislabeled"][t] = max([0.0, *(other - support[t] for other in others)])
        twins = [
            iou(image["true_boxes"][t], image["true_boxes"][u])
            for u in objects
            if image["true_labels"][u] == image["true_labels"][t]
            and (support[u] > support[t] or (support[u] == support[t] and u < t))
        ]
        scores["duplicate"][t] = max([0.0, *(twin for twin in twins if twin >= 0.5)])
    return scores
