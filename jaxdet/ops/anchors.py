"""Where a pyramid of feature maps looks, and boxes as seen from there.

Cells come level after level, fine to coarse, and row after row within a level; cell (i, j) of a
level covers `stride` pixels a side, and its centre is ((j + .5) stride, (i + .5) stride).
All lengths are in pixels of the network's input.
"""

import jax.numpy as jnp
import numpy as np

from jaxdet.ops.numerics import as_float32

MIN_SIDE = 1e-3  # pixels a side that `encode` takes a box to have
MAX_LOG_SCALE = np.log(1000 / 16)  # of a logarithm that `decode` takes: Detectron's guard on exp


def grid_centers(shapes, strides):
    """Centres [A, 2] (x, y) of the cells of all levels, and the stride of each cell [A].

    shapes: (rows, columns) of each level.  Arrays are NumPy's: shapes and strides are static.
    """
    centres, of_cell = [], []
    for (rows, columns), stride in zip(shapes, strides, strict=True):
        y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
        centres.append(np.stack([x, y], -1) * stride)
        of_cell.append(np.full(rows * columns, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(of_cell).astype(np.float32)


def anchor_boxes(points, strides, *, scales=(4.0,), ratios=(1.0,)):
    """Anchor boxes [A R, 4] about the points [A, 2], R = scales times ratios of them at each.

    An anchor covers (stride x scale)^2 pixels, and its height is `ratio` times its width.
    Those of a cell stand together.  Ren et al. 2015, arXiv:1506.01497.
    """
    sides = np.array([(s / r**0.5, s * r**0.5) for s in scales for r in ratios], np.float32)
    half = np.asarray(strides)[:, None, None] * sides[None] / 2  # [A, R, 2]
    centre = np.asarray(points)[:, None]
    return np.concatenate([centre - half, centre + half], -1).reshape(-1, 4).astype(np.float32)


def encode(boxes, anchors):
    """Boxes [..., 4] as offsets of anchors [..., 4]: x, y in sides, width, height in logarithms.

    Anchors must have an area; the sides of a box are `LEAST` pixels at least.
    Girshick et al. 2014, arXiv:1311.2524.
    """
    (middle, sides), (from_middle, from_sides) = _center_and_size(boxes), _center_and_size(anchors)
    grown = jnp.log(jnp.maximum(sides, MIN_SIDE) / from_sides)
    return jnp.concatenate([(middle - from_middle) / from_sides, grown], -1)


def decode(offsets, anchors):
    """Boxes [..., 4] of offsets [..., 4] from anchors [..., 4]; undoes `encode`.

    A side grows at most by 1000 / 16, so that early predictions stay finite.
    """
    offsets, (from_middle, from_sides) = as_float32(offsets), _center_and_size(anchors)
    middle = from_middle + offsets[..., :2] * from_sides
    half = from_sides * jnp.exp(jnp.minimum(offsets[..., 2:], MAX_LOG_SCALE)) / 2
    return jnp.concatenate([middle - half, middle + half], -1)


def boxes_to_ltrb(boxes, points):
    """How far the sides of boxes [..., 4] are from points [..., 2]: left, top, right, bottom.

    All four are positive where the point is strictly inside.  Tian et al. 2019, arXiv:1904.01355.
    """
    boxes = as_float32(boxes)
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def ltrb_to_boxes(distances, points):
    """Boxes [..., 4] whose sides are so far from points [..., 2]; undoes `distances`."""
    distances = as_float32(distances)
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], -1)


def _center_and_size(boxes):
    """Centre and sides, [..., 2] each, of boxes [..., 4]."""
    boxes = as_float32(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
