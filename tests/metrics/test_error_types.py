"""Kinds of errors equal those that a loop over boxes finds."""

import numpy as np
import pytest

from jaxdet.metrics import average_precision, error_types, operating_point
from jaxdet.ops import boxes
from tests.metrics.test_average_precision import CLASSES, scene
from tests.metrics.test_detection import BOX, OTHER, rows

THRESHOLD = 0.25


def reference(one):
    """{box: kind} and the missed objects of one image, in NumPy."""
    objects = [t for t in np.flatnonzero(one["true_valid"]) if not one["true_crowd"][t]]
    crowds = [t for t in np.flatnonzero(one["true_valid"]) if one["true_crowd"][t]]
    iou = np.asarray(boxes.iou(one["boxes"][:, None], one["true_boxes"][None]))
    taken, kinds = set(), {}
    for p in np.argsort(-one["scores"], kind="stable"):
        if not one["valid"][p] or one["scores"][p] < THRESHOLD:
            continue
        same = [t for t in objects if one["true_labels"][t] == one["labels"][p]]
        other = [t for t in objects if t not in same]
        free = [t for t in same if t not in taken and iou[p, t] >= 0.5]
        if free:
            taken.add(max(free, key=lambda t: (iou[p, t], t)))
            kinds[p] = "correct"
            continue
        x0, y0, x1, y1 = one["boxes"][p]
        if any(
            one["true_labels"][t] == one["labels"][p]
            and boxes.intersection(one["boxes"][p], one["true_boxes"][t])
            >= 0.5 * (x1 - x0) * (y1 - y0)
            for t in crowds
        ):
            continue
        if any(iou[p, t] >= 0.5 for t in same):
            kinds[p] = "duplicate"
        elif any(iou[p, t] >= 0.5 for t in other):
            kinds[p] = "mislabeled"
        elif any(iou[p, t] >= 0.1 for t in same):
            kinds[p] = "misplaced"
        else:
            kinds[p] = "invented"
    return kinds, set(objects) - taken


@pytest.mark.parametrize("seed", range(3))
def test_kinds_equal_those_of_a_loop(seed):
    measured = scene(seed)
    found = error_types.find(measured, THRESHOLD)
    for i in range(len(measured["size"])):
        kinds, missed = reference({name: column[i] for name, column in measured.items()})
        got = {
            p: kind
            for kind in ("correct", *error_types.KINDS)
            for p in np.flatnonzero(getattr(found, kind)[i])
        }
        assert got == kinds
        assert set(np.flatnonzero(found.missed[i])) == missed
    matches = average_precision.match(measured, len(CLASSES))
    counts = operating_point.per_image(matches, np.full(len(CLASSES), THRESHOLD))
    wrong = sum(getattr(found, kind).sum(1) for kind in error_types.KINDS)
    np.testing.assert_array_equal(found.correct.sum(1), counts["tp"])
    np.testing.assert_array_equal(wrong, counts["fp"])
    np.testing.assert_array_equal(found.missed.sum(1), counts["fn"])


def test_each_kind_has_an_example():
    x0, y0, x1, y1 = BOX
    moved = (x0 + 0.6 * (x1 - x0), y0, x1 + 0.6 * (x1 - x0), y1)  # IoU .25
    predicted = [BOX, BOX, BOX, moved, (0, 90, 5, 95)]
    labels, scores = [0, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5]
    found = error_types.find(rows([([BOX, OTHER], [0, 0], predicted, labels, scores)]), THRESHOLD)
    order = ("correct", "duplicate", "mislabeled", "misplaced", "invented")
    for place, kind in enumerate(order):
        assert list(np.flatnonzero(getattr(found, kind)[0])) == [place]
    assert list(np.flatnonzero(found.missed[0])) == [1]
    severity = error_types.severity(found, np.array([scores + [0] * (found.correct.shape[1] - 5)]))
    expected = {"missed": 1, "duplicate": 0.8, "mislabeled": 0.7, "misplaced": 0.6, "invented": 0.5}
    assert severity == {kind: pytest.approx([value]) for kind, value in expected.items()}
