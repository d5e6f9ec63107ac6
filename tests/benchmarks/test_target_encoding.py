import json

import numpy as np
import pytest

from benchmarks import target_encoding
from jaxdet.configs.digits import Config


def test_command_compares_loops_and_vectorized(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert target_encoding.main(["--batch", "256", "--seconds", "0", "--json", str(path)]) == 0
    loops, encode = json.loads(path.read_text())["rows"]
    assert encode["ratio"] == loops["median"] / encode["median"] > 1
    assert "times faster" in capsys.readouterr().out


def test_grid_is_that_of_the_digits_config():
    grid = target_encoding.config_grid(Config(layout="c5,p2,c5,p2", window=28, canvas=64))
    assert grid[:4] == (28, 4, 10, 10)


def test_random_boxes_lie_on_the_canvas():
    boxes, labels = target_encoding.random_objects(100, canvas=64)
    assert boxes.min() >= 0 and boxes.max() <= 64
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 7.9
    assert set(labels) == set(range(10))


def test_difference_ends_the_run(monkeypatch):
    monkeypatch.setattr(target_encoding.reference, "encode_targets", lambda *_: np.zeros(1))
    with pytest.raises(AssertionError):
        target_encoding.compare(4, seconds=0.0)


def test_empty_batch_is_refused(capsys):
    assert target_encoding.main(["--batch", "0"]) == 2
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err
