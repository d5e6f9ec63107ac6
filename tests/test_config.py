"""Configurations as JSON and as words of the command line, and data that are read once."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from jaxdet import configs
from jaxdet.cli import flags, options
from jaxdet.config import cached_reader, from_json, reuse_data
from jaxdet.configs.digits import Config
from jaxdet.errors import InputError


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_a_configuration_survives_json(name):
    config = replace(configs.config(name)(), epochs=7, lr=0.25)
    assert from_json(type(config), json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_a_configuration_survives_the_command_line(name):
    kind = configs.config(name)
    changed = {"epochs": 7, "lr": 0.25, "bfloat16": True, "eval_first": False, "root": "a b"}
    config = replace(kind(), **changed, schedule="piecewise", decay_at=(0.1, 0.2))
    words = flags.to_words(config)
    _, found = flags.parse_with_config(f"train {name}", words, (options.Train(), kind()))
    assert found == config and words.count("--lr") == 1
    assert flags.to_words(kind()) == []


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown fields color, shape"):
        from_json(Config, {"epochs": 3, "shape": 1, "color": 2})


def test_a_canvas_smaller_than_the_window_is_refused():
    with pytest.raises(InputError, match="smaller than"):
        configs.build("digits", replace(Config(), canvas=32))


def test_an_experiment_has_the_metadata_that_its_runs_keep():
    experiment = configs.build("digits", Config())
    assert {"classes", "input", "normalization"} <= set(experiment.metadata)
    assert {"train", "val", "test"} <= set(experiment.splits)


def make_reader():
    """A reader of two fields, and the list of the values that it was called with."""
    calls = []

    @cached_reader("root", "size")
    def read(config):
        """The data."""
        calls.append((config.root, config.size))
        return object()

    return read, calls


def make_config(root, size, lr=1.0):
    return SimpleNamespace(root=root, size=size, lr=lr)


def test_inside_reuse_data_the_last_result_is_kept():
    read, calls = make_reader()
    with reuse_data():
        first = read(make_config("a", (2, 3)))
        assert read(make_config("a", (2, 3), lr=2.0)) is first
        assert read(make_config("a", (3, 3))) is not first
        assert read(make_config("a", (2, 3))) is not first
    assert calls == [("a", (2, 3)), ("a", (3, 3)), ("a", (2, 3))]
    assert read.__doc__ == "The data."


def test_outside_reuse_data_and_in_another_block_data_are_read_again():
    read, calls = make_reader()
    for _ in range(2):
        with reuse_data():
            read(make_config("a", 1))
        read(make_config("a", 1))
    assert len(calls) == 4


def test_a_failed_reading_is_not_kept():
    @cached_reader("root")
    def read(config):
        raise OSError(config.root)

    with reuse_data():
        for _ in range(2):
            with pytest.raises(OSError, match="gone"):
                read(make_config("gone", 1))


def test_a_reader_sees_no_other_fields():
    @cached_reader("root")
    def read(config):
        return config.size

    with pytest.raises(AttributeError):
        read(make_config("a", 1))
