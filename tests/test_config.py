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
def test_the_words_of_a_configuration_make_it_again(name):
    kind = configs.config(name)
    changed = {"epochs": 7, "lr": 0.25, "bfloat16": True, "eval_first": False, "drops": (0.1, 0.2)}
    config = replace(kind(), **changed, schedule="piecewise", root="a b")
    words = flags.words(config)
    _, found = flags.with_config(f"train {name}", words, (options.Train(), kind()))
    assert found == config and words.count("--lr") == 1
    assert flags.words(kind()) == []


def test_fields_of_another_version_are_named():
    with pytest.raises(ValueError, match="unknown fields colour, shape"):
        from_json(Config, {"epochs": 3, "shape": 1, "colour": 2})


def test_a_canvas_under_the_window_is_refused():
    with pytest.raises(InputError, match="smaller than"):
        configs.build("digits", replace(Config(), canvas=32))


def test_a_system_says_what_its_runs_must_keep():
    system = configs.build("digits", Config())
    assert {"classes", "input", "normalisation"} <= set(system.about)
    assert {"train", "val", "test"} <= set(system.splits)


def a_reader():
    """A reader of two fields, and the list of what it was asked for."""
    asked = []

    @cached_reader("root", "size")
    def read(config):
        """What is there."""
        asked.append((config.root, config.size))
        return object()

    return read, asked


def asking(root, size, lr=1.0):
    return SimpleNamespace(root=root, size=size, lr=lr)


def test_what_is_read_last_is_kept_inside():
    read, asked = a_reader()
    with reuse_data():
        first = read(asking("a", (2, 3)))
        assert read(asking("a", (2, 3), lr=2.0)) is first
        assert read(asking("a", (3, 3))) is not first
        assert read(asking("a", (2, 3))) is not first
    assert asked == [("a", (2, 3)), ("a", (3, 3)), ("a", (2, 3))]
    assert read.__doc__ == "What is there."


def test_outside_and_another_time_it_is_read_again():
    read, asked = a_reader()
    for _ in range(2):
        with reuse_data():
            read(asking("a", 1))
        read(asking("a", 1))
    assert len(asked) == 4


def test_what_fails_is_not_kept():
    @cached_reader("root")
    def read(config):
        raise OSError(config.root)

    with reuse_data():
        for _ in range(2):
            with pytest.raises(OSError, match="gone"):
                read(asking("gone", 1))


def test_a_reader_has_no_other_fields():
    @cached_reader("root")
    def read(config):
        return config.size

    with pytest.raises(AttributeError):
        read(asking("a", 1))
