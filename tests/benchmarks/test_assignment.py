import json

import numpy as np
import pytest

from benchmarks import assignment

SMALL = ["--batch", "2", "--boxes", "5", "--classes", "4", "--side", "64", "--seconds", "0"]


@pytest.mark.long  # it runs and times whole programs
def test_command_compares_all_implementations(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert assignment.main([*SMALL, "--json", str(path)]) == 0
    loops, torch, jaxdet = json.loads(path.read_text())["rows"]
    assert loops["ratio"] == loops["median"] / jaxdet["median"] > 1
    assert jaxdet["ratio"] == 1 and jaxdet["cells"] == 84
    assert ("median" in torch) != (torch.get("note") == "not installed")
    assert "extrapolated from 1 of 2 images" in capsys.readouterr().out


def test_difference_ends_the_run(monkeypatch):
    options = assignment.Options(batch=1, boxes=2, classes=2, side=64, seconds=0)
    blank = np.zeros(84, bool), np.zeros(84, int), np.zeros((84, 2)), None
    monkeypatch.setattr(assignment.reference, "task_aligned", lambda *_, **__: blank)
    with pytest.raises(AssertionError):
        assignment.compare(options)


def test_empty_batch_is_refused(capsys):
    assert assignment.main(["--batch", "0"]) == 2
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err
