"""Chosen thresholds are stored and read again; classes without a threshold have no boxes."""

import json
import math

import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.reports import thresholds
from jaxdet.training import run_dir

CLASSES = ("a", "b")


@pytest.fixture
def stored(tmp_path):
    chosen = np.array([0.25, np.nan, 0.5])
    return tmp_path, thresholds.store(tmp_path, chosen, "recall=.9", 7, CLASSES)


def test_a_file_holds_what_was_chosen(stored):
    folder, content = stored
    assert content == {
        "rule": "recall=.9",
        "step": 7,
        "all": 0.5,
        "classes": {"a": 0.25, "b": None},
    }
    assert run_dir.read_thresholds(folder) == content


@pytest.mark.parametrize("step", [7, 8])
def test_thresholds_are_read_with_a_warning_for_another_step(stored, step):
    folder, content = stored
    path, said = folder / run_dir.THRESHOLDS, []
    found = thresholds.read(json.loads(path.read_text()), path, step, CLASSES, warn=said.append)
    assert found.tolist() == [0.25, math.inf]
    assert len(said) == (step != content["step"])


@pytest.mark.parametrize("change", [{"classes": {"a": 0.1}}, {"step": "x"}, {"classes": None}])
def test_damaged_thresholds_are_one_line(stored, change):
    folder, content = stored
    with pytest.raises(InputError, match=r"thresholds.json is damaged \(.*\); choose the thresh"):
        thresholds.read(content | change, folder / "thresholds.json", 7, CLASSES, warn=print)
