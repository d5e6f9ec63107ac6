import json
from dataclasses import asdict, replace

import pytest

from jaxdet import configs, flags, options
from jaxdet.configs import base
from jaxdet.configs.digits import Config
from jaxdet.errors import InputError


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_a_configuration_survives_json(name):
    config = replace(configs.config(name)(), epochs=7, lr=0.25)
    assert base.from_json(type(config), json.loads(json.dumps(asdict(config)))) == config


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
        base.from_json(Config, {"epochs": 3, "shape": 1, "colour": 2})


def test_a_canvas_under_the_window_is_refused():
    with pytest.raises(InputError, match="smaller than"):
        configs.build("digits", replace(Config(), canvas=32))


def test_a_system_says_what_its_runs_must_keep():
    system = configs.build("digits", Config())
    assert {"classes", "input", "normalisation"} <= set(system.about)
    assert {"train", "val", "test"} <= set(system.splits)
