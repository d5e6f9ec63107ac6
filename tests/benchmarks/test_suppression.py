import json

import numpy as np
import pytest

from benchmarks import suppression
from tests.reference import detection as reference

SMALL = ["--boxes", "60", "--max-detections", "20", "--batch", "3", "--seconds", "0"]


def test_command_compares_all_implementations(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert suppression.main([*SMALL, "--json", str(path)]) == 0
    rows = {row["implementation"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["jaxdet"]["ratio"] == 1 and "median" in rows["jaxdet, weighted boxes fusion"]
    assert rows["NumPy"]["ratio"] == rows["NumPy"]["median"] / rows["jaxdet"]["median"]
    assert ("median" in rows["torchvision"]) != (rows["torchvision"].get("note") is not None)
    assert "median" in rows["jaxdet, 3 images in one call"]
    assert "| NumPy | 60 | 20 |" in capsys.readouterr().out


def test_numpy_keeps_the_same_boxes_as_the_reference():
    boxes, scores, _ = suppression.random_boxes(80)
    expected = reference.nms(boxes, scores, np.zeros(80), 0.5)
    np.testing.assert_array_equal(suppression.greedy_nms(boxes, scores, 80), expected)


def test_difference_ends_the_run(monkeypatch):
    monkeypatch.setattr(suppression, "greedy_nms", lambda *_: np.zeros(3, int))
    with pytest.raises(AssertionError):
        suppression.compare(suppression.Options(boxes=30, max_detections=5, seconds=0))


def test_zero_boxes_are_refused(capsys):
    assert suppression.main(["--boxes", "0"]) == 2
    assert "--boxes must be at least 1, got 0" in capsys.readouterr().err
