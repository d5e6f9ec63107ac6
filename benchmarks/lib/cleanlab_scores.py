"""Box scores of cleanlab's object detection, computed in the environment that has cleanlab.

    PYTHON cleanlab_scores.py FOLDER THRESHOLD...

Every FOLDER/NAME.npz has the columns of `jaxdet.metrics.label_errors`. For each threshold, which is
cleanlab's high_probability_threshold, FOLDER/NAME-THRESHOLD.scores is written, an NPZ file with the
arrays `missing` [N, P], `misplaced` and `mislabeled` [N, T]: 1 minus the scores of cleanlab, with 0
for boxes that it does not score. Imports nothing of jaxdet.
"""

import sys
from pathlib import Path

import numpy as np
from cleanlab.internal.constants import ALPHA
from cleanlab.object_detection import rank


def main(folder: str, *thresholds: str) -> None:
    for path in sorted(Path(folder).glob("*.npz")):
        columns = dict(np.load(path))
        labels, predictions, order = convert(columns)
        auxiliary = rank._get_valid_inputs_for_compute_scores(ALPHA, labels, predictions)
        for threshold in thresholds:
            scores = score(columns, auxiliary, order, float(threshold))
            with path.with_name(f"{path.stem}-{threshold}.scores").open("wb") as file:
                np.savez(file, **scores)


def convert(columns: dict) -> tuple[list, list, list]:
    """Convert columns for cleanlab: (labels, predictions, places of the boxes in the columns)."""
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
    return labels, predictions, order


def score(columns: dict, auxiliary: list, order: list, threshold: float) -> dict[str, np.ndarray]:
    """The scores for each kind of error: [N, P] of predictions, or [N, T] of true boxes."""
    high = {"auxiliary_inputs": auxiliary, "high_probability_threshold": threshold}
    found = {
        "missing": (rank.compute_overlooked_box_scores(**high), 0, columns["valid"].shape),
        "misplaced": (
            rank.compute_badloc_box_scores(auxiliary_inputs=auxiliary),
            1,
            columns["true_valid"].shape,
        ),
        "mislabeled": (rank.compute_swap_box_scores(**high), 1, columns["true_valid"].shape),
    }
    results = {}
    for kind, (of_images, part, shape) in found.items():
        results[kind] = np.zeros(shape)
        for i, scores in enumerate(of_images):
            results[kind][i, order[i][part]] = np.nan_to_num(1 - scores)
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
