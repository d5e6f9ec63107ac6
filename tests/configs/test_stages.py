"""What options of stages make of the networks that have them."""

import json
from dataclasses import asdict, replace

import pytest
from flax import linen as nn

from jaxdet import configs, flops
from jaxdet.cli import flags, sweep
from jaxdet.cli.options import Sweep, Train
from jaxdet.config import check, from_json
from jaxdet.configs import stages
from jaxdet.configs.faces import Config, network
from jaxdet.errors import InputError
from jaxdet.models import convnext, layers
from tests.cli.test_main import main
from tests.models.test_resnet import outputs, shaped, size

SEED = {  # the last rows of seed 004's table
    "model": "bottleneck",
    "channels": (32, 64, 128, 256, 512),
    "strides": (1, 1, 2, 2, 2),
    "se_ratios": (0.25,) * 5,
    "stage_dropout": (0.2, 0, 0.2, 0, 0.2),
}
FIRST = {  # and its first
    "model": "bottleneck",
    "channels": (32, 32, 64, 64, 128, 128, 128, 128),
    "strides": (1, 1, 2, 1, 2, 1, 1, 1),
    "block": "convnext",
    "depthwise": False,
    "activation": "relu",
}


def made(**options):
    """The backbone of a configuration."""
    net, _ = network(Config(**options), 7)
    return net.features()


def test_the_networks_of_the_seed():
    last, first = made(**SEED), made(**FIRST)
    assert (last.widths, last.strides) == (SEED["channels"], SEED["strides"])
    assert (last.squeezes, last.rates) == (SEED["se_ratios"], SEED["stage_dropout"])
    assert last.activation is nn.relu6 and last.block().depthwise
    assert first.activation is nn.relu and len(first.widths) == 8
    block = first.block()
    assert isinstance(block, convnext.Block) and not block.depthwise
    assert block.kernel_init is layers.KAIMING_FAN_OUT
    assert made(model="convnext").kernel_init is layers.KAIMING_FAN_OUT is not convnext.KERNEL_INIT


def test_each_option_reaches_its_network():
    both = {"dilations": (1, 2, 1, 1), "se_ratios": (0, 0, 0, 0.5), "strides": (1, 2, 2, 1)}
    both |= {"channels": (8, 16, 24, 32), "blocks": (1, 1, 2, 1), "depthwise": False}
    for model in stages.STAGED:
        more = {"stage_dropout": (0, 0, 0, 0.1), "activation": "gelu", "size": 64}
        net = made(model=model, **both, **more)
        for option, field in stages.EACH.items():
            assert getattr(net, field) == (both | more)[option], (model, option)
        _, variables = outputs(net, shaped(1, 64, 64, 3))
        names = flops.count(net.apply, variables, shaped(1, 64, 64, 3)).by_layer
        assert any("gelu" in path or "activation" in path for path, _ in names)
        kernels = variables["params"]["stage3_block2"]["conv"]["kernel"]
        assert kernels.ndim == 4 and kernels.shape[2] == kernels.shape[3]


def test_without_options_networks_are_as_they_were():
    for model, kept in (("bottleneck", 4_429_728), ("convnext", 27_818_592)):
        assert size(outputs(made(model=model), shaped(1, 64, 64, 3))[1]["params"]) == kept
    assert stages.fields(Config(model="resnet18")) == {}


REFUSED = {
    "another model": ({"channels": (8, 8)}, "--channels is for --model bottleneck and convnext"),
    "another activation": ({"activation": "relu"}, "--activation is for --model"),
    "convnext blocks": ({"model": "convnext", "block": "convnext"}, "--block is for --model"),
    "no strides": (
        {"model": "bottleneck", "channels": (8, 16)},
        "--strides: 2 numbers are wanted, one for each of --channels 8 16",
    ),
    "no blocks": (
        {"model": "convnext", "channels": (8, 16)},
        "--blocks: 2 numbers are wanted",
    ),
    "too few": ({"model": "bottleneck", "se_ratios": (0, 0.25)}, "--se-ratios 0 0.25: 5 numbers"),
    "no share": (
        {"model": "bottleneck", "stage_dropout": (0, 0, 0, 0, 1)},
        "--stage-dropout 0 0 0 0 1: shares of at least 0, under 1",
    ),
    "too large": (
        {"model": "bottleneck", "se_ratios": (0, 0, 0, 0, 2)},
        "--se-ratios 0 0 0 0 2: shares from 0 to 1",
    ),
    "no stride": ({"model": "bottleneck", "strides": (0, 1, 1, 1, 1)}, "numbers of at least 1"),
    "too small": (
        {"model": "convnext", "strides": (2, 2, 2, 2), "size": 63},
        "--size 63: a stem of 4 and --strides 2 2 2 2 want at least 64",
    ),
}


@pytest.mark.parametrize("changes, said", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_line(changes, said):
    for make in (network, lambda config: configs.build("faces", config)):
        with pytest.raises(InputError, match=said) as error:
            make(Config(root="nowhere", **changes))
        assert "\n" not in str(error.value)


def test_options_of_stages_are_words_and_survive_json(capsys):
    assert main("train", "faces", "--help") == 0
    told = capsys.readouterr().out
    for name in (*stages.EACH, *stages.OTHERS):
        assert f"--{name.replace('_', '-')} " in told
    config = Config(**SEED)
    assert from_json(Config, json.loads(json.dumps(asdict(config)))) == config
    found = flags.with_config("train faces", flags.words(config), (Train(), Config()))
    assert found[1] == config


# grids


def chosen(grid, *words):
    """{configuration: folder} of the runs of a grid."""
    options, kind = Sweep(grid=grid), Config
    words, axes, listed = sweep._with_grid("faces", kind, options, list(words), {})
    return sweep._titles("faces", options, words, axes, listed)


@pytest.mark.parametrize("name", Config.GRIDS)
def test_every_run_of_a_grid_is_a_network(name):
    found = chosen(name)
    assert len(set(found.values())) == len(found) > 1
    for config in found:
        check(config)
        configs.network("faces", config)


def test_the_table_of_the_seed():
    found = {title: config for config, title in chosen("seed", "--epochs", "3").items()}
    assert list(found) == [f"seed{row:02d}" for row in range(1, 13)]
    assert {config.epochs for config in found.values()} == {3}
    last = Config(epochs=3, batch=128, **SEED, activation="relu6", optimizer="sgd")
    cycles = ((20, 0.01), (20, 0.1), (50, 0.01), (60, 0.01), (100, 0.01), (150, 0.01))
    for row, (cycle, rate) in enumerate((*cycles, (200, 0.01), (20, 0.001)), 5):
        how = {"schedule": "restarts", "restart_period": cycle, "lr": rate}
        assert found[f"seed{row:02d}"] == replace(last, **how)
    first = found["seed01"]
    assert all(getattr(first, name) == value for name, value in FIRST.items())
    assert found["seed03"].schedule == "plateau" and found["seed03"].optimizer == "adamw"
    assert [c.epochs for c in chosen("seed")] == [500] * 5 + [150] * 3 + [95, 145, 195, 478]


def test_what_a_run_is_in_the_columns_of_the_seed():
    (row,) = (config for config, title in chosen("seed").items() if title == "seed04")
    assert stages.told(row) == {
        "architecture": "bottleneck, inverted blocks, with depthwise, "
        "channels 32 64 128 256 512, strides 1 2 2 2 2",
        "dropout": "0.2 0 0.2 0 0.2, 0 of the embedding",
        "scheduler": "restarts, 5 epochs, times 1",
        "optimizer": "adamw",
        "lr": 0.01,
        "SE": "0 0 0.25 0.25 0.25",
        "activation": "relu6",
    }
    plain = stages.told(Config(schedule="plateau"))
    assert (plain["architecture"], plain["SE"]) == ("resnet18, width 0.5", "its own")
    assert plain["scheduler"] == "plateau, 0.1 after 10, loss"
