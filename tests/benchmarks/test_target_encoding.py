import json

import numpy as np
import pytest

from benchmarks import target_encoding
from jaxdet.configs.digits import Config


def test_the_command_compares_both_ways(tmp_path, capsys):
    file = tmp_path / "a.json"
    assert target_encoding.main(["--batch", "256", "--seconds", "0", "--json", str(file)]) == 0
    loops, encode = json.loads(file.read_text())["rows"]
    assert encode["ratio"] == loops["median"] / encode["median"] > 1
    assert "times faster" in capsys.readouterr().out


def test_windows_are_those_of_the_digits_configuration():
    grid = target_encoding.grid_of(Config(stages="c5,p2,c5,p2", window=28, canvas=64))
    assert grid[:4] == (28, 4, 10, 10)


def test_boxes_lie_on_the_canvas():
    boxes, labels = target_encoding.objects(100, canvas=64)
    assert boxes.min() >= 0 and boxes.max() <= 64
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 7.9
    assert set(labels) == set(range(10))


def test_values_that_differ_end_the_run(monkeypatch):
    monkeypatch.setattr(target_encoding.slow, "encode_targets", lambda *_: np.zeros(1))
    with pytest.raises(AssertionError):
        target_encoding.compare(4, seconds=0.0)


def test_an_empty_batch_is_refused(capsys):
    assert target_encoding.main(["--batch", "0"]) == 2
    assert "--batch starts at 1" in capsys.readouterr().err
