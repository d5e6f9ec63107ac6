"""Networks in stages, as seed 004 varies them: options of `bottleneck` and `convnext`."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal

from jaxdet.config import TrainConfig
from jaxdet.errors import InputError
from jaxdet.models import registry

STAGED = registry.names("staged")
EACH = {  # option with a number a stage -> field of the networks
    "channels": "widths",
    "blocks": "blocks",
    "strides": "strides",
    "dilations": "dilations",
    "se_ratios": "se_ratios",
    "stage_dropout": "rates",
}
SHAPES = ("channels", "blocks", "strides", "dilations")  # those that tell a network's shape
OTHERS = ("block", "depthwise", "activation")
NEEDED = {"bottleneck": "strides", "convnext": "blocks"}  # beside another number of channels
STEM = 4  # pixels a side of which a stem makes one
PLAIN = "--model bottleneck --batch 128 --depthwise false --activation relu"
DEEP = (
    "--model bottleneck --batch 128 --channels 32 64 128 256 512 --stage-dropout .2 0 .2 0 .2 "
    "--activation relu6"
)
LAST = f"{DEEP} --strides 1 1 2 2 2 --se-ratios .25 .25 .25 .25 .25 --optimizer sgd"
SEED = (  # the rows of its table; strides that it does not tell halve maps where channels double
    f"{PLAIN} --block convnext --channels 32 32 64 64 128 128 128 128 --strides 1 1 2 1 2 1 1 1 "
    "--epochs 500 --schedule restarts --restart-period 20 --optimizer sgd --lr .01",
    f"{PLAIN} --channels 32 64 64 128 128 256 --strides 1 2 1 2 1 2 "
    "--epochs 500 --schedule restarts --restart-period 20 --optimizer sgd --lr .01",
    f"{PLAIN} --channels 32 64 128 256 --strides 1 2 2 2 --stage-dropout .1 .1 .1 .1 "
    "--epochs 500 --schedule plateau --optimizer adamw --lr .01",
    f"{DEEP} --strides 1 2 2 2 2 --se-ratios 0 0 .25 .25 .25 "
    "--epochs 500 --schedule restarts --restart-period 5 --optimizer adamw --lr .01",
    *(
        f"{LAST} --epochs {epochs} --schedule restarts --restart-period {cycle} --lr {rate}"
        for epochs, cycle, rate in (
            *((500, 20, 0.01), (150, 20, 0.1), (150, 50, 0.01), (150, 60, 0.01)),
            *((95, 100, 0.01), (145, 150, 0.01), (195, 200, 0.01), (478, 20, 0.001)),
        )
    ),
)
GRIDS = {
    "arch": "--model resnet18 mobilenet_v2 bottleneck convnext",
    "loss": (
        "--embedding-loss none",
        "--embedding-loss center --embedding-loss-weight .003",
        *(
            f"--embedding-loss {kind} --embedding-loss-weight 1 --samples-per-class 4"
            for kind in ("contrastive", "triplet_hard", "triplet_semihard")
        ),
    ),
    "head": "--head softmax arcface cosface l_softmax lgm",
    "opt": "--optimizer sgd adamw --lr 0.1 0.01 0.001",
    "schedule": "--schedule restarts --restart-period 5 20 50 60 100 150 200",
    "dropout": "--model bottleneck --stage-dropout 0,0,0,0,0 .1,.1,.1,.1,.1 .2,0,.2,0,.2",
    "squeeze": "--model bottleneck --se-ratios 0,0,0,0,0 0,0,.25,.25,.25 .25,.25,.25,.25,.25",
    "act": "--model bottleneck --activation relu relu6 gelu",
    "seed": SEED,
}


@dataclass(frozen=True)
class Stages(TrainConfig):
    """Settings of each stage of a network: as many numbers as it has stages, () is its own."""

    channels: tuple[int, ...] = ()
    """bottleneck, convnext: channels of each stage"""
    blocks: tuple[int, ...] = ()
    """bottleneck, convnext: blocks of each stage"""
    strides: tuple[int, ...] = ()
    """bottleneck, convnext: stride with which each stage begins"""
    dilations: tuple[int, ...] = ()
    """bottleneck, convnext: pixels between the taps of the spatial convolutions of each stage"""
    se_ratios: tuple[float, ...] = ()
    """bottleneck, convnext: squeeze-excite of each stage, by way of this share of its channels,
    usually .25; 0 is none"""
    stage_dropout: tuple[float, ...] = ()
    """bottleneck: share of numbers dropped after each stage; convnext: of images whose branch is
    left out, of the blocks of each stage"""
    block: Literal["inverted", "convnext"] = "inverted"
    """bottleneck: its blocks; there is a transition before those of each stage"""
    depthwise: bool = True
    """bottleneck, convnext: spatial convolutions are of each channel alone"""
    activation: Literal["own", "relu", "relu6", "gelu"] = "own"
    """bottleneck, convnext: own is relu6 and gelu"""


def fields(config):
    """The fields of the network that `config` names which its options change."""
    from flax import linen as nn

    from jaxdet.models import convnext, inverted_residual, layers

    if config.model not in STAGED:
        return {}
    chosen = {of: getattr(config, name) for name, of in EACH.items() if getattr(config, name)}
    bent = {} if config.activation == "own" else {"activation": getattr(nn, config.activation)}
    how = {"depthwise": config.depthwise}
    if config.model == "convnext":
        block = partial(convnext.Block, **how)
        return {**chosen, **bent, "block": block, "kernel_init": layers.KAIMING_FAN_OUT}
    block = partial(inverted_residual.InvertedResidual, **how)
    if config.block == "convnext":
        block = partial(convnext.Block, **how)
    return {**chosen, **bent, "block": block}


def told(config):
    """What a run is, in the columns of seed 004's table: {column: value}."""
    staged = config.model in STAGED
    network = [config.model]
    if staged:
        kind = f"{config.block} blocks, " if config.model == "bottleneck" else ""
        network.append(f"{kind}{'with' if config.depthwise else 'without'} depthwise")
        given = {name: getattr(config, name) for name in SHAPES}
        network += [f"{name} {_words(numbers)}" for name, numbers in given.items() if numbers]
    elif config.model.startswith("resnet"):
        network.append(f"width {config.width_multiplier:g}")
    if config.weights:
        frozen = f", {config.freeze_stages} parts frozen" if config.freeze_stages else ""
        network.append(f"weights of {config.weights}{frozen}")
    dropped = f"{_words(config.stage_dropout)}, " if config.stage_dropout else ""
    return {
        "architecture": ", ".join(network),
        "dropout": f"{dropped}{config.dropout:g} of the embedding",
        "scheduler": _scheduler(config),
        "optimizer": config.optimizer,
        "lr": config.lr,
        "SE": _words(config.se_ratios) or "none" if staged else "its own",
        "activation": config.activation,
    }


def _scheduler(config):
    """The schedule, with the numbers that it has."""
    match config.schedule:
        case "restarts":
            return f"restarts, {config.restart_period} epochs, times {config.restart_factor}"
        case "plateau":
            return f"plateau, {config.lr_decay:g} after {config.plateau_patience}, {config.plateau_metric}"
    return config.schedule


def check(config):
    """Refuse options of stages that do not fit the network or each other."""
    given = [name for name in EACH if getattr(config, name)]
    changed = [name for name in OTHERS if getattr(config, name) != getattr(Stages, name)]
    if config.model not in STAGED and given + changed:
        raise InputError(f"{_option((given + changed)[0])} is for --model {' and '.join(STAGED)}")
    if config.model not in STAGED:
        return
    if config.model == "convnext" and config.block != "inverted":
        raise InputError("--block is for --model bottleneck")
    count = _count(config)
    for name in given:
        _check_numbers(name, getattr(config, name), count)
    strides = config.strides or (1, *(2,) * (count - 1))  # of convnext, whose patches end at edges
    if config.model == "convnext" and config.size < STEM * prod(strides):
        raise InputError(
            f"--size {config.size}: a stem of {STEM} and --strides {_words(strides)} want at least "
            f"{STEM * prod(strides)} pixels"
        )


def _count(config):
    """How many stages there are; refuses a number of channels that leaves other options open."""
    own = len(registry.get(config.model).build().widths)
    count = len(config.channels) or own
    needed = NEEDED[config.model]
    if count != own and not getattr(config, needed):
        raise InputError(
            f"{_option(needed)}: {count} numbers are wanted, one for each of --channels "
            f"{_words(config.channels)}"
        )
    return count


def _check_numbers(name, values, count):
    """Refuse another number of numbers than of stages, and numbers that cannot be."""
    told = f"{_option(name)} {_words(values)}"
    if len(values) != count:
        raise InputError(f"{told}: {count} numbers are wanted, one a stage")
    if name == "se_ratios" and not all(0 <= value <= 1 for value in values):
        raise InputError(f"{told}: shares from 0 to 1 are wanted")
    if name == "stage_dropout" and not all(0 <= value < 1 for value in values):
        raise InputError(f"{told}: shares of at least 0, under 1 are wanted")
    if name not in ("se_ratios", "stage_dropout") and min(values) < 1:
        raise InputError(f"{told}: numbers of at least 1 are wanted")


def _option(name):
    return f"--{name.replace('_', '-')}"


def _words(values):
    return " ".join(f"{value:g}" for value in values)
