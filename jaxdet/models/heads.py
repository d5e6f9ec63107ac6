"""Heads: class scores, boxes and objectness of every cell of a feature pyramid.

    output = DecoupledHead(classes=3).apply(variables, (p3, p4, p5))

Outputs are unbounded; `detector.Detector` decodes boxes from them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import necks
from jaxdet.types import Array

PRIOR = 0.01  # initial score of every cell (RetinaNet, arXiv:1708.02002)


class HeadOutput(NamedTuple):
    """Outputs for all A anchors, ordered by level (fine to coarse), row, column, anchor."""

    classes: Array  # [B, A, K] logits
    sides: Array  # [B, A, 4 R]: R numbers for each of left, top, right, bottom, or 4 offsets
    objectness: Array | None  # [B, A] logits


class DecoupledHead(necks.PyramidModule):
    """The head of YOLOX (Ge et al. 2021, arXiv:2107.08430); levels share no weights.

    Each level has a 1x1 stem, a branch of 3x3 convolutions for classes, another for boxes and
    objectness, and 1x1 convolutions to the outputs.  Class scores and objectness start near
    `PRIOR`.

    anchors: boxes per cell.
    outputs: outputs per side of a box; several outputs are logits of a distribution over distances.
    objectness: whether boxes have an objectness logit.
    convolutions: 3x3 convolutions per branch.
    depthwise: whether the 3x3 convolutions are separable.
    """

    classes: int = 80
    anchors: int = 1
    outputs: int = 1
    objectness: bool = True
    convolutions: int = 2
    depthwise: bool = False

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> HeadOutput:
        """Outputs for maps [B, h, w, C], fine to coarse."""
        levels = [self._level(x, f"level{i}", train) for i, x in enumerate(maps, 1)]
        columns = zip(*levels, strict=True)
        return HeadOutput(*(None if c[0] is None else jnp.concatenate(c, 1) for c in columns))

    @nn.nowrap
    def _level(self, x: Array, name: str, train: bool) -> HeadOutput:
        x = self.conv_norm_act(x, self.channels, 1, f"{name}_stem", train=train)
        branches = []
        for branch in ("class", "box"):
            y = x
            for i in range(1, self.convolutions + 1):
                options = {"depthwise": self.depthwise, "train": train}
                y = self.conv_3x3(y, self.channels, f"{name}_{branch}{i}", **options)
            branches.append(y)
        class_branch, box_branch = branches
        objectness = None
        if self.objectness:
            objectness = self._predict(box_branch, 1, f"{name}_objectness", PRIOR)[..., 0]
        return HeadOutput(
            self._predict(class_branch, self.classes, f"{name}_classes", PRIOR),
            self._predict(box_branch, 4 * self.outputs, f"{name}_sides"),
            objectness,
        )

    @nn.nowrap
    def _predict(self, x: Array, channels: int, name: str, prior: float = 0.5) -> Array:
        """Apply a 1x1 convolution; sigmoids of its outputs start near `prior`."""
        x = nn.Conv(
            self.anchors * channels,
            kernel_size=(1, 1),
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(-math.log((1 - prior) / prior)),
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)
        return x.reshape(x.shape[0], -1, channels).astype(jnp.float32)
