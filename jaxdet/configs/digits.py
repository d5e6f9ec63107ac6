"""Digits: locate one digit on a larger canvas by convolutional sliding windows (seed 001)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxdet.configs.base import System, Training


@dataclass(frozen=True)
class Config(Training):
    """Locate one digit on a larger canvas by convolutional sliding windows."""

    source: str = "embedded"
    """embedded (scikit-learn's 1,797 scans), mnist (idx files in --root), or tfds:NAME"""
    root: str = ""
    """folder of the data"""
    canvas: int = 64
    """side of the image in pixels"""
    rotate: float = 30.0
    """digits are turned by up to this many degrees either way"""
    scale: tuple[float, float] = (0.75, 1.25)
    """digits are scaled by a factor in this range"""
    stages: str = "c5s2,c3,p2,c3,c3"
    """convolutions (c) and pools (p): kernel, then s stride"""
    widths: tuple[int, ...] = (32, 48, 64, 64)
    """channels of each convolution"""
    dense: tuple[int, ...] = (128,)
    """channels of the dense layers, slid as convolutions"""
    window: int = 39
    """side of the window in pixels"""
    gate: Literal["both", "truth"] = "both"
    """class and box count where the digit is in sight and the network says so; or where it is"""
    reduction: Literal["sum", "mean"] = "sum"
    """sum the loss over images and windows, or take the mean"""
    class_weight: float = 1.0
    """weight of the classification term"""
    box_weight: float = 100.0
    """weight of the box term"""
    score: Literal["class", "product", "merge"] = "class"
    """which window answers: highest class score, times detection, or all windows merged"""
    epochs: int = 30
    lr: float = 2e-3


def build(config):
    """The system of a `Config`."""
    import jax.numpy as jnp

    from jaxdet.data import digits
    from jaxdet.models.sliding import SlidingNet
    from jaxdet.ops import augment, windows
    from jaxdet.tasks import windows as locate

    splits = digits.splits(config.source, config.root or None, config.seed)
    net = SlidingNet(
        stages=windows.parse(config.stages),
        widths=config.widths,
        dense=config.dense,
        outputs=1 + 10 + 4,
        window=config.window,
        norm=True,
        ink=True,
        dtype=jnp.bfloat16 if config.bfloat16 else None,
    )
    windows.grid(net.chain(), config.canvas, config.canvas)  # refuses a canvas under a window
    place = partial(augment.place, canvas=config.canvas, rotate=config.rotate, scale=config.scale)
    return System(
        task=locate.task(
            net, place, gate=config.gate, reduction=config.reduction, score=config.score
        ),
        splits=splits,
        hyper={"class_weight": config.class_weight, "box_weight": config.box_weight},
        about={
            "classes": [str(digit) for digit in range(10)],
            "input": [config.canvas, config.canvas, 1],
            "normalisation": "grey level / 255",
        },
    )
