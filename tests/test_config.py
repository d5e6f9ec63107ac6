"""Configurations as JSON and as words of the command line, and data that are read once."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from jaxdet import configs, runs
from jaxdet.cli import flags, options
from jaxdet.config import cached_reader, check_to_train, from_json, reuse_data, to_words
from jaxdet.configs.digits import Config
from jaxdet.errors import InputError
from tests import tiny


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_a_configuration_survives_json(name):
    config = replace(configs.config(name)(), epochs=7, lr=0.25)
    assert from_json(type(config), json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("name", configs.SYSTEMS)
def test_a_configuration_survives_the_command_line(name):
    kind = configs.config(name)
    changed = {"epochs": 7, "lr": 0.25, "bfloat16": True, "eval_first": False, "root": "a b"}
    config = replace(kind(), **changed, schedule="piecewise", decay_at=(0.1, 0.2))
    words = to_words(config)
    _, found = flags.parse_with_config(f"train {name}", words, (options.Train(), kind()))
    assert found == config and words.count("--lr") == 1
    assert to_words(kind()) == []


@pytest.mark.parametrize(
    "system, changes, message",
    [
        ("digits", {"seed": 2**32}, "--seed must be at most 4294967295, got 4294967296"),
        ("digits", {"momentum": 1.0}, "--momentum must be at least 0 and below 1, got 1"),
        ("digits", {"beta2": 1.5}, "--beta2 must be"),
        ("digits", {"schedule": "piecewise", "decay_at": (0.5, 2.0)}, "--decay-at .* got 0.5 2"),
        (
            "digits",
            {"schedule": "plateau", "plateau_metric": "score", "patience": 10},
            "--patience must be above --plateau-patience 10, .* got 10",
        ),
        ("detect", {"backbone_lr": 0.0}, "--backbone-lr 0 needs --weights"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(system, changes, message):
    kind = configs.config(system)
    assert check_to_train(kind()) == []
    with pytest.raises(InputError, match=f"^{message}"):
        check_to_train(replace(kind(), **changes))


@pytest.mark.parametrize(
    "system, changes, warnings",
    [
        ("digits", {"decay_at": (0.9,)}, ["--decay-at has no effect without --schedule piecewise"]),
        ("digits", {"decay_at": (0.9,), "schedule": "piecewise"}, []),
        (
            "digits",
            {"lr_decay": 0.5, "optimizer": "sgd", "beta2": 0.9},
            [
                "--lr-decay has no effect without --schedule piecewise or plateau",
                "--beta2 has no effect without --optimizer adamw or adam or rmsprop",
            ],
        ),
        (
            "detect",
            {"close_mosaic_epochs": 2, "mosaic": 0.0, "mixup": 0.0},
            ["--close-mosaic-epochs has no effect without --mosaic or --mixup"],
        ),
        ("detect", {"close_mosaic_epochs": 2, "mosaic": 1.0}, []),
        ("faces", {"schedule": "restarts", "restart_period": 20, "epochs": 60, "patience": 20}, []),
        (
            "faces",
            {"schedule": "restarts", "restart_period": 20, "epochs": 50, "patience": 19},
            [
                "--patience 19 is below --restart-period 20: the run may end in the middle of a "
                "cycle",
                "--epochs 50 ends in the middle of a cycle of --restart-period 20; cycles end "
                "after 40 or 60 epochs",
            ],
        ),
        (
            "faces",
            {"schedule": "restarts", "restart_period": 2, "restart_factor": 2, "epochs": 7},
            [
                "--epochs 7 ends in the middle of a cycle of --restart-period 2; cycles end after "
                "6 or 14 epochs"
            ],
        ),
        (
            "faces",
            {"schedule": "restarts", "restart_period": 9, "epochs": 7},
            [
                "--epochs 7 ends in the middle of a cycle of --restart-period 9; cycles end after "
                "9 epochs"
            ],
        ),
    ],
)
def test_options_without_effect_and_incomplete_cycles_are_named(system, changes, warnings):
    assert check_to_train(replace(configs.config(system)(), **changes)) == warnings


def test_more_steps_per_update_than_steps_are_refused_when_a_training_begins():
    lines = []
    experiment = tiny.experiment(accumulate=6)  # two epochs of three steps
    runs.check_to_train(experiment, lines.append)
    assert not lines
    for rows, accumulate in ((48, 7), (32, 6)):
        with pytest.raises(InputError, match=f"^--accumulate must be at most {rows // 8}, "):
            runs.check_to_train(tiny.experiment(rows, accumulate=accumulate), lines.append)
    runs.check_to_train(tiny.experiment(warmup=6), lines.append)
    assert lines == ["warning: --warmup 6 does not end: the run has only 6 parameter updates"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": float("inf")}, "--lr must be finite, got inf"),
        ({"scale": (0.5, float("nan"))}, "--scale must be finite, got nan"),
        ({"box_weight": float("nan")}, "--box-weight must be finite, got nan"),
        ({"epochs": 99999999999}, "--epochs must be at most 2147483647, got 99999999999"),
        ({"split_seed": -(2**40)}, "--split-seed must be at least -2147483647, got -1099511627776"),
        ({"channels": (8, 2**40)}, "--channels must be at most 2147483647, got 1099511627776"),
    ],
)
def test_numbers_that_no_program_can_hold_are_refused(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        configs.build("digits", replace(Config(), **changes))


def test_more_steps_than_can_be_counted_are_refused():
    with pytest.raises(
        InputError, match="--epochs must give at most 2147483647 steps, got 6000000000"
    ):
        runs.check_to_train(tiny.experiment(epochs=2_000_000_000), print)


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
