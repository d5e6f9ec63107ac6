"""Grid centers and anchor boxes of a feature pyramid, and box encodings relative to them.

Cells are ordered level by level, fine to coarse, and row by row within a level.  Cell (i, j) of a
level covers `stride` x `stride` pixels around its center ((j + 0.5) stride, (i + 0.5) stride).
All lengths are in pixels of the network's input.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.numerics import as_float32
from jaxdet.types import Array

MIN_SIDE = 1e-3  # pixels: smaller sides are encoded as this
DEFAULT_SCALE = 4.0  # strides per side of an anchor (RetinaNet, arXiv:1708.02002)
MAX_LOG_SCALE = np.log(1000 / 16)  # decoded log-scales are clamped to this, as in Detectron


def grid_centers(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centers [A, 2] (x, y) of the cells of all levels, and the stride [A] of each cell.

    shapes: (rows, columns) of each level.  Shapes and strides are static, so results are NumPy
    arrays, float32.
    """
    centers, cell_strides = [], []
    for (rows, columns), stride in zip(shapes, strides, strict=True):
        y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
        centers.append(np.stack([x, y], -1) * stride)
        cell_strides.append(np.full(rows * columns, stride))
    return (
        np.concatenate(centers).astype(np.float32),
        np.concatenate(cell_strides).astype(np.float32),
    )


def anchor_boxes(
    points: np.ndarray,
    strides: np.ndarray,
    *,
    scales: Sequence[float] = (DEFAULT_SCALE,),
    ratios: Sequence[float] = (1.0,),
) -> np.ndarray:
    """Anchors [A * R, 4] centered at points [A, 2], one for each of R pairs of scale and ratio.

    strides [A]: stride of the cell of each point.  An anchor covers (stride * scale)^2 pixels, and
    its height is `ratio` times its width.  The anchors of a point are consecutive rows.  Ren et al.
    2015, arXiv:1506.01497.
    """
    sides = np.array([(s / r**0.5, s * r**0.5) for s in scales for r in ratios], np.float32)
    half = np.asarray(strides)[:, None, None] * sides[None] / 2  # [A, R, 2]
    center = np.asarray(points)[:, None]
    return np.concatenate([center - half, center + half], -1).reshape(-1, 4).astype(np.float32)


def octave_scales(count: int) -> tuple[float, ...]:
    """`count` scales from `DEFAULT_SCALE` up, each 2^(1 / count) times the previous one.

    Lin et al. 2017 (RetinaNet), arXiv:1708.02002.
    """
    return tuple(DEFAULT_SCALE * 2 ** (i / count) for i in range(count))


def encode(boxes: Array, anchors: Array) -> jax.Array:
    """Offsets [..., 4] of boxes [..., 4] from anchors [..., 4]: dx, dy, log dw, log dh.

    dx and dy are the differences of the centers, divided by width and height of the anchor; dw and
    dh are the ratios of the sides.  Anchors must not be empty; sides of boxes below `MIN_SIDE`
    count as `MIN_SIDE`.  Girshick et al. 2014, arXiv:1311.2524.
    """
    (center, sides), (anchor_center, anchor_sides) = _center_and_sides(boxes, anchors)
    log_scale = jnp.log(jnp.maximum(sides, MIN_SIDE) / anchor_sides)
    return jnp.concatenate([(center - anchor_center) / anchor_sides, log_scale], -1)


def decode(offsets: Array, anchors: Array, *, max_log_scale: float = MAX_LOG_SCALE) -> jax.Array:
    """Boxes [..., 4] at offsets [..., 4] from anchors [..., 4]; the inverse of `encode`.

    A side is at most exp(max_log_scale), by default 1000 / 16, times the side of its anchor, which
    keeps early predictions finite.
    """
    chex.assert_shape(offsets, (..., 4))
    offsets, ((anchor_center, anchor_sides),) = as_float32(offsets), _center_and_sides(anchors)
    center = anchor_center + offsets[..., :2] * anchor_sides
    half = anchor_sides * jnp.exp(jnp.minimum(offsets[..., 2:], max_log_scale)) / 2
    return jnp.concatenate([center - half, center + half], -1)


def boxes_to_ltrb(boxes: Array, points: Array) -> jax.Array:
    """Distances [..., 4] (left, top, right, bottom) from points [..., 2] to the sides of boxes.

    All four are positive if the point lies strictly inside its box.  Tian et al. 2019,
    arXiv:1904.01355.
    """
    chex.assert_shape(boxes, (..., 4))
    boxes = as_float32(boxes)
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def ltrb_to_boxes(distances: Array, points: Array) -> jax.Array:
    """Boxes [..., 4] at distances [..., 4] from points [..., 2]; the inverse of `boxes_to_ltrb`."""
    chex.assert_shape(distances, (..., 4))
    distances = as_float32(distances)
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], -1)


def _center_and_sides(*arrays):
    """(center [..., 2], sides [..., 2]) of each array of boxes [..., 4]."""
    chex.assert_shape(arrays, (..., 4))
    corners = [(x[..., :2], x[..., 2:]) for x in map(as_float32, arrays)]
    return [((low + high) / 2, high - low) for low, high in corners]
