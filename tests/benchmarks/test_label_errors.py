"""The errors that the benchmark injects, and its figures for predictions without faults."""

import numpy as np
import pytest

from benchmarks import label_errors as benchmark
from benchmarks.lib.reference import iou
from jaxdet.metrics import label_errors


def perfect_rows(images=6, objects=10):
    """Objects on a grid that are all found; a class for each parity of the column."""
    low = 40 * np.stack(np.divmod(np.arange(objects), 5)[::-1], -1)
    boxes = np.tile(np.concatenate([low, low + 20], -1).astype(np.float32), (images, 1, 1))
    labels, on = np.tile(np.arange(objects) % 2, (images, 1)), np.ones((images, objects), bool)
    found = {"boxes": boxes, "labels": labels, "scores": on * np.float32(0.9), "valid": on}
    true = {"true_boxes": boxes, "true_labels": labels, "true_valid": on, "true_crowd": ~on}
    return found | true


def test_errors_are_injected_once_each_and_are_what_they_are_called():
    rows = perfect_rows()
    injected = benchmark.inject(rows, 0.05, 0)
    parts = {"missing": injected.removed, **injected.changed}
    assert {kind: len(of) for kind, of in parts.items()} == {
        **dict.fromkeys(label_errors.KINDS, 3),
        "duplicate": 6,
    }
    first = [place for of in parts.values() for place in of if place[1] < 10]
    assert len({*first}) == len(first) == 12
    after = injected.rows
    for place in injected.changed["misplaced"]:
        assert 0.1 <= iou(rows["true_boxes"][place], after["true_boxes"][place]) <= 0.5
    for place in injected.changed["mislabeled"]:
        assert after["true_labels"][place] != rows["true_labels"][place]
    for place, number in injected.changed["duplicate"].items():
        (other,) = [
            p for p, n in injected.changed["duplicate"].items() if n == number and p != place
        ]
        assert iou(after["true_boxes"][place], after["true_boxes"][other]) >= 0.7
    assert after["true_valid"].sum() == 60 - 3 + 3


def test_errors_are_all_found_where_predictions_have_no_faults():
    table = benchmark.compare(perfect_rows(), 0.05, 2, "")
    assert [row["kind"] for row in table] == [*label_errors.KINDS]
    for row in table:
        assert row["injected"] == 3 and row["precision_n"] == row["recall_n"] == "1.00 (0.00)"


def test_a_useless_ranking_has_low_figures():
    injected = benchmark.inject(perfect_rows(), 0.05, 0)
    scores = np.ones(injected.rows["true_valid"].shape)
    found = benchmark.evaluate(injected, "mislabeled", scores)
    assert found["injected"] == 3 and found["recall_2n"] < 1


@pytest.mark.parametrize("words, said", [(["--fraction", ".5"], "--fraction must be above 0")])
def test_invalid_options_are_one_line(words, said, capsys):
    assert benchmark.main(words) == 2
    assert said in capsys.readouterr().err
