"""Renamed options and values of stored runs."""

import json

import pytest

from jaxdet import migrations
from jaxdet.configs import digits
from jaxdet.training import run_dir

RENAMED_VALUES = [
    ("detect", "background", "yolox", "objectness"),
    ("objects", "box_head", "dense", "mlp"),
    ("objects", "box_head", "cells", "per_cell"),
    ("cifar10", "activation", "own", "default"),
    ("faces", "activation", "own", "default"),
]


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("system, option, old, new", RENAMED_VALUES)
def test_reading_a_run_replaces_renamed_values(tmp_path, schema, system, option, old, new):
    content = {"schema": schema, "system": system, "config": {option: old, "size": 32}}
    content["about" if schema == 1 else "metadata"] = {}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_dir.read_config(tmp_path).config == {option: new, "size": 32}


@pytest.mark.parametrize("system, option, old, new", RENAMED_VALUES)
def test_present_values_and_other_systems_are_unchanged(system, option, old, new):
    assert migrations.migrate_values(system, {option: new}) == {option: new}
    other = "objects" if system == "detect" else "detect"
    assert migrations.migrate_values(other, {option: old}) == {option: old}


def test_list_values_are_unchanged():
    fields = {"channels": [6, 16], "activation": "relu"}
    assert migrations.migrate_values("cifar10", fields) == fields


@pytest.mark.parametrize("given, found", [({}, "mse"), ({"box_loss": "giou"}, "giou")])
def test_an_option_that_a_run_lacks_has_the_value_of_its_time(tmp_path, given, found):
    content = {"schema": 2, "system": "digits", "config": given, "metadata": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_dir.read_config(tmp_path).config == {"box_loss": found}
    assert digits.Config().box_loss not in ("mse", "giou")  # or it would prove nothing
