"""Box scores of cleanlab's object detection, computed in the environment that has cleanlab.

    PYTHON cleanlab_scores.py INPUT.npz OUTPUT.npz THRESHOLD

INPUT has the columns of `jaxdet.metrics.label_errors`; OUTPUT has `missing` [N, P], `misplaced` and
`mislabeled` [N, T], which are 1 minus the scores of cleanlab, with 0 for boxes that it does not
score. THRESHOLD is cleanlab's high_probability_threshold. Imports nothing of jaxdet.
"""

import sys
from functools import partial

import numpy as np
from cleanlab.object_detection import rank


def main(source: str, target: str, threshold: str) -> None:
    columns = dict(np.load(source))
    count = int(max(columns["labels"].max(), columns["true_labels"].max())) + 1
    kept = columns["true_valid"] & ~columns["true_crowd"]
    labels, predictions, order = [], [], []
    for i in range(len(kept)):
        true, valid = np.flatnonzero(kept[i]), np.flatnonzero(columns["valid"][i])
        of_class = [valid[columns["labels"][i, valid] == k] for k in range(count)]
        scored = np.column_stack([columns["boxes"][i], columns["scores"][i]])
        image = np.empty(count, object)
        for k, own in enumerate(of_class):
            image[k] = scored[own]
        predictions.append(image)
        order.append((np.concatenate(of_class), true))
        boxes = columns["true_boxes"][i, true]
        labels.append({"bboxes": boxes, "labels": columns["true_labels"][i, true]})
    high = {"high_probability_threshold": float(threshold)}
    found = {
        "missing": (partial(rank.compute_overlooked_box_scores, **high), 0, columns["valid"].shape),
        "misplaced": (rank.compute_badloc_box_scores, 1, kept.shape),
        "mislabeled": (partial(rank.compute_swap_box_scores, **high), 1, kept.shape),
    }
    results = {}
    for kind, (function, part, shape) in found.items():
        results[kind] = np.zeros(shape)
        for i, scores in enumerate(function(labels=labels, predictions=predictions)):
            results[kind][i, order[i][part]] = np.nan_to_num(1 - scores)
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
