import json

import numpy as np
import pytest

from benchmarks import suppression
from tests.reference import detection as reference

SMALL = ["--boxes", "60", "--size", "20", "--batch", "3", "--seconds", "0"]


def test_the_command_compares_all_ways(tmp_path, capsys):
    file = tmp_path / "a.json"
    assert suppression.main([*SMALL, "--json", str(file)]) == 0
    rows = {row["way"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["jaxdet"]["ratio"] == 1 and "median" in rows["jaxdet, fused"]
    assert rows["NumPy"]["ratio"] == rows["NumPy"]["median"] / rows["jaxdet"]["median"]
    assert ("median" in rows["torchvision"]) != (rows["torchvision"].get("note") is not None)
    assert "median" in rows["jaxdet, 3 images in one call"]
    assert "| NumPy | 60 | 20 |" in capsys.readouterr().out


def test_numpy_keeps_what_the_loop_keeps():
    boxes, scores, _ = suppression.drawn(80)
    wanted = reference.nms(boxes, scores, np.zeros(80), 0.5)
    np.testing.assert_array_equal(suppression.greedy(boxes, scores, 80), wanted)


def test_boxes_that_differ_end_the_run(monkeypatch):
    monkeypatch.setattr(suppression, "greedy", lambda *_: np.zeros(3, int))
    with pytest.raises(AssertionError):
        suppression.compare(suppression.Options(boxes=30, size=5, seconds=0))


def test_no_boxes_are_refused(capsys):
    assert suppression.main(["--boxes", "0"]) == 2
    assert "start at 1" in capsys.readouterr().err
