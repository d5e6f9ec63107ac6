"""Heads: from the maps of a pyramid, classes, boxes and objectness of every cell.

    raw = Decoupled(classes=3).apply(variables, (p3, p4, p5))

A head answers in numbers without bounds; `detector.Detector` makes boxes of them.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import necks
from jaxdet.types import Array

PRIOR = 0.01  # the share of cells that a fresh head takes for objects (RetinaNet, 1708.02002)


class HeadOutput(NamedTuple):
    """What the cells of all levels say, fine to coarse, row after row."""

    classes: Array  # [B, A, K] logits
    sides: Array  # [B, A, 4 R]: R numbers for each of left, top, right, bottom
    objectness: Array | None  # [B, A] logits


class DecoupledHead(necks.PyramidModule):
    """The head of YOLOX (Ge et al. 2021, arXiv:2107.08430), one a level, nothing shared.

    A 1x1 stem; two branches of two 3x3 convolutions; 1x1 convolutions to the `classes`, and to
    boxes and, from the same branch, objectness.  The last of classes and objectness begin where
    they say `PRIOR`.

    outputs: numbers for each side of a box; more than one are for a distribution over distances.
    """

    classes: int = 80
    outputs: int = 1
    objectness: bool = True
    convolutions: int = 2

    @nn.compact
    def __call__(self, maps, train=False):
        """Maps [B, h, w, C], fine to coarse, to a `Raw`."""
        levels = [self._level(x, f"level{i + 1}", train) for i, x in enumerate(maps)]
        columns = zip(*levels, strict=True)
        return HeadOutput(*(None if c[0] is None else jnp.concatenate(c, 1) for c in columns))

    @nn.nowrap
    def _level(self, x, name, train):
        x = self.active(x, self.width, 1, f"{name}_stem", train=train)
        branches = []
        for branch in ("class", "box"):
            y = x
            for i in range(self.convolutions):
                y = self.active(y, self.width, 3, f"{name}_{branch}{i + 1}", train=train)
            branches.append(y)
        classed, boxed = branches
        objectness = None
        if self.objectness:
            objectness = self._last(boxed, 1, f"{name}_objectness", PRIOR)[..., 0]
        return (
            self._last(classed, self.classes, f"{name}_classes", PRIOR),
            self._last(boxed, 4 * self.outputs, f"{name}_sides"),
            objectness,
        )

    @nn.nowrap
    def _last(self, x, width, name, prior=0.5):
        """[B, h w, width] of a map by a 1x1 convolution, in float32, beginning near `prior`."""
        start = -math.log((1 - prior) / prior)
        x = nn.Conv(
            width,
            kernel_size=(1, 1),
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(start),
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)
        return x.reshape(len(x), -1, width).astype(jnp.float32)
