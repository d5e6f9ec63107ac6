"""A detector built from a backbone, a neck and a head, with outputs decoded to boxes in pixels.

    net = Detector(backbone=partial(Lite0, classes=0), neck=partial(FPN, channels=96),
                   head=partial(DecoupledHead, classes=3))
    output = net.apply(variables, images)

`models.necks` and `models.heads` define what a neck and a head take and return.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet.ops import anchors
from jaxdet.types import Array

MAX_LOG_DISTANCE = 8.0  # caps a decoded distance at exp(8) = 2,981 strides


class DetectorOutput(NamedTuple):
    """Predictions for all A anchors, ordered by level (fine to coarse), row, column, anchor.

    In a network without anchors, A is the number of cells.
    """

    classes: Array  # [B, A, K] logits
    boxes: Array  # [B, A, 4] in pixels of the network's input
    objectness: Array | None  # [B, A] logits
    distances: Array | None  # [B, A, 4, R] logits over distances of 0, 1, .. R - 1 strides
    points: Array  # [A, 2] centers of the cells in pixels
    strides: Array  # [A]
    anchors: Array  # [A, 4] in pixels of the network's input


class Detector(nn.Module):
    """A backbone, a neck and a head, given as constructors that take `axis_name` and `name`.

    The constructor of the head also takes `outputs`, the number of outputs per side of a box.

    levels: number of maps of the backbone that the neck takes, counted from the coarsest.
    anchor_scales, anchor_ratios: each cell has one anchor for each pair of a scale and a ratio (see
      `ops.anchors`), and the head must predict as many boxes per cell, as offsets from these
      anchors.  Without scales, the head predicts the distances of a box's sides from the center of
      the cell; the cell's anchor, a square with sides of 4 strides, only serves assignment.
    center_offsets: instead of distances, without scales, the head predicts the offset of a box's
      center from the top left corner of the cell, and the logarithms of the box's width and height,
      all in strides, as YOLOX does.
    reg_max: outputs per side of a box.  A single output is the logarithm of the distance in
      strides; several outputs are logits of a distribution over distances, whose mean is the
      distance (Li et al. 2020, arXiv:2006.04388).
    """

    backbone: Callable[..., nn.Module]
    neck: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    levels: int = 3
    anchor_scales: tuple[float, ...] = ()
    anchor_ratios: tuple[float, ...] = (1.0,)
    center_offsets: bool = False
    reg_max: int = 1
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> DetectorOutput:
        """Predictions for images [B, H, W, C]."""
        height = x.shape[1]
        maps = self.backbone(axis_name=self.axis_name, name="features")(x, train)[-self.levels :]
        maps = self.neck(axis_name=self.axis_name, name="neck")(maps, train)
        head = self.head(axis_name=self.axis_name, outputs=self.reg_max, name="head")
        output = head(maps, train)
        shapes = [m.shape[1:3] for m in maps]
        strides = [_stride(height, rows) for rows, _ in shapes]
        points, strides = anchors.grid_centers(shapes, strides)
        scales = self.anchor_scales or (anchors.DEFAULT_SCALE,)
        anchor_boxes = anchors.anchor_boxes(
            points, strides, scales=scales, ratios=self.anchor_ratios
        )
        per_cell = len(scales) * len(self.anchor_ratios)
        points, strides = (np.repeat(x, per_cell, 0) for x in (points, strides))
        with jax.named_scope("boxes"):
            if self.anchor_scales:
                logits, boxes = None, anchors.decode(output.sides, anchor_boxes[None])
            elif self.center_offsets:
                corners = points - strides[:, None] / 2
                cells = anchors.anchor_boxes(corners, strides, scales=(1.0,))[None]
                limit = MAX_LOG_DISTANCE
                logits, boxes = None, anchors.decode(output.sides, cells, max_log_scale=limit)
            else:
                logits, distances = self._distances(output.sides)
                boxes = anchors.ltrb_to_boxes(distances * strides[None, :, None], points[None])
        return DetectorOutput(
            output.classes, boxes, output.objectness, logits, points, strides, anchor_boxes
        )

    @nn.nowrap
    def _distances(self, sides: Array) -> tuple[Array | None, Array]:
        """Logits over distances (None if `reg_max` is 1), and distances [B, A, 4] in strides."""
        if self.reg_max == 1:
            return None, jnp.exp(jnp.minimum(sides, MAX_LOG_DISTANCE))
        logits = sides.reshape(*sides.shape[:-1], 4, self.reg_max)
        steps = jnp.arange(self.reg_max, dtype=jnp.float32)
        return logits, jax.nn.softmax(logits) @ steps


def _stride(height: int, rows: int) -> int:
    """The power of two nearest to `height / rows`."""
    return 2 ** round(float(np.log2(height / rows)))
