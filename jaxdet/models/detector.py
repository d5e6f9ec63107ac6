"""A detector: backbone, neck and head, and boxes in pixels from what the head says.

net = Detector(backbone=partial(Lite0, classes=0), neck=partial(FPN, width=96),
               head=partial(Decoupled, classes=3))
answers = net.apply(variables, images)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet.ops import anchors
from jaxdet.types import Array

MAX_LOG_DISTANCE = 8.0  # logarithm of a side in strides at which boxes stop growing: exp(8) = 2,981


class DetectorOutput(NamedTuple):
    """What every cell of an image says, [B, A, ...]."""

    classes: Array  # [B, A, K] logits
    boxes: Array  # [B, A, 4] in pixels of the network's input
    objectness: Array | None  # [B, A] logits
    distances: Array | None  # [B, A, 4, R] logits over distances of 0, 1, .. R - 1 strides
    points: Array  # [A, 2] centres of the cells in pixels
    strides: Array  # [A]


class Detector(nn.Module):
    """Parts that make modules, given `axis_name` and `name`.

    levels: how many maps of the backbone, the coarsest ones, the neck gets.
    bins: numbers for each side of a box: 1 is the logarithm of a distance in strides, more are a
    distribution over distances (Li et al. 2020, arXiv:2006.04388), of which a box is the mean.
    """

    backbone: Callable[..., nn.Module]
    neck: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    levels: int = 3
    bins: int = 1
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        """`Answers` for images [B, H, W, C]."""
        height, width = x.shape[1:3]
        maps = self.backbone(axis_name=self.axis_name, name="features")(x, train)[-self.levels :]
        maps = self.neck(axis_name=self.axis_name, name="neck")(maps, train)
        head = self.head(axis_name=self.axis_name, outputs=self.bins, name="head")
        raw = head(maps, train)
        shapes = [m.shape[1:3] for m in maps]
        points, strides = anchors.grid_centers(
            shapes, [_stride((height, width), s) for s in shapes]
        )
        with jax.named_scope("boxes"):
            distances, reach = self._reach(raw.sides)
            boxes = anchors.ltrb_to_boxes(reach * strides[None, :, None], points[None])
        return DetectorOutput(raw.classes, boxes, raw.objectness, distances, points, strides)

    @nn.nowrap
    def _reach(self, sides):
        """(logits over distances or None, distances [B, A, 4] in strides)."""
        if self.bins == 1:
            return None, jnp.exp(jnp.minimum(sides, MAX_LOG_DISTANCE))
        logits = sides.reshape(*sides.shape[:-1], 4, self.bins)
        steps = jnp.arange(self.bins, dtype=jnp.float32)
        return logits, jax.nn.softmax(logits) @ steps


def _stride(sides, of_map):
    """Pixels of the image a cell of a map: a power of two, whatever was rounded up."""
    return 2 ** round(float(np.log2(sides[0] / of_map[0])))
