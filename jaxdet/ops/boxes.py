"""Corner boxes: area, overlap, clipping and format conversion.

A box is `x0 y0 x1 y1`, float, in pixels: x to the right, y down, half-open, so that one pixel has
area 1.  A box without width or height, or with swapped corners, is empty: its area is 0.  Functions
broadcast over `[..., 4]`: `iou(a, b)` compares row by row, and `iou(a[:, None], b[None])` all
pairs.  Results are float32, or float64 for float64 boxes.
"""

from functools import reduce
from types import ModuleType

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.numerics import as_float32, safe_divide
from jaxdet.types import Array


def area(boxes: Array) -> jax.Array:
    """Area [...] of boxes [..., 4] in square pixels; 0 for empty boxes."""
    return _area(*_corners(boxes))


def intersection(a: Array, b: Array) -> jax.Array:
    """Area of the intersection of boxes [..., 4], broadcasting, in square pixels.

    It is 0 for boxes that only touch and where either is empty, so `intersection(a, b) > 0` tests
    whether two half-open boxes overlap.
    """
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    return _area(jnp.maximum(a_low, b_low), jnp.minimum(a_high, b_high))


def union(a: Array, b: Array) -> jax.Array:
    """Area of the union of boxes [..., 4], broadcasting, in square pixels."""
    return area(a) + area(b) - intersection(a, b)


def enclosing_box(a: Array, b: Array) -> jax.Array:
    """Smallest box [..., 4] that contains boxes a and b [..., 4], broadcasting.

    It contains all corners, even of empty boxes, and its own corners are in order.
    """
    corners = *_corners(a), *_corners(b)
    return jnp.concatenate([reduce(jnp.minimum, corners), reduce(jnp.maximum, corners)], axis=-1)


def iou(a: Array, b: Array, *, eps: float = 0.0) -> jax.Array:
    """Intersection over union of boxes [..., 4], broadcasting, in [0, 1].

    Equal boxes that are not empty give 1; two empty boxes give 0 with a finite gradient.
    Everingham et al. 2010 (PASCAL VOC).

    eps: added to the denominator, also in `giou`, `diou` and `ciou`.
    """
    return safe_divide(intersection(a, b), union(a, b), eps)


def iom(a: Array, b: Array) -> jax.Array:
    """Intersection over the smaller area of boxes [..., 4], broadcasting, in [0, 1].

    It is 1 where one box contains the other, and 0 where either is empty.
    """
    return safe_divide(intersection(a, b), jnp.minimum(area(a), area(b)))


def giou(a: Array, b: Array, *, eps: float = 0.0) -> jax.Array:
    """Generalized IoU of boxes [..., 4], broadcasting, in [-1, 1].

    It is the IoU minus the fraction of the enclosing box that neither box covers.  Equal boxes that
    are not empty give 1; two empty boxes give at most 0, with a finite gradient.  Rezatofighi et
    al. 2019, arXiv:1902.09630.
    """
    enclosing = area(enclosing_box(a, b))
    return iou(a, b, eps=eps) - safe_divide(enclosing - union(a, b), enclosing, eps)


def diou(a: Array, b: Array, *, eps: float = 0.0) -> jax.Array:
    """Distance-IoU of boxes [..., 4], broadcasting, in [-1, 1].

    It is the IoU minus the squared distance of the centers over the squared diagonal of the
    enclosing box.  Equal boxes that are not empty give 1; equal empty boxes give 0 with a finite
    gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    between = _center(a) - _center(b)
    diagonal = _sides(*_corners(enclosing_box(a, b)))
    penalty = safe_divide(_squared_norm(between), _squared_norm(diagonal), eps)
    return iou(a, b, eps=eps) - penalty


def ciou(a: Array, b: Array, *, eps: float = 0.0) -> jax.Array:
    """Complete IoU of boxes [..., 4], broadcasting, in [-1.5, 1].

    It is the DIoU minus a penalty for different aspect ratios; no gradient flows through the weight
    of the penalty.  Equal boxes that are not empty give 1.  The aspect ratio of a point counts as
    0, with a finite gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    v = ((_aspect_angle(a) - _aspect_angle(b)) * 2 / jnp.pi) ** 2  # in [0, 1]
    alpha = safe_divide(v, 1 - iou(a, b, eps=eps) + v, eps)
    return diou(a, b, eps=eps) - jax.lax.stop_gradient(alpha) * v


def clip(boxes: Array, height: float | Array, width: float | Array) -> jax.Array:
    """Boxes [..., 4] clipped to an image of height x width pixels; boxes outside become empty."""
    chex.assert_shape(boxes, (..., 4))
    boxes = as_float32(boxes)
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def from_xywh(boxes: Array) -> Array:
    """Corner boxes [..., 4] from left, top, width and height, as in COCO files.

    For NumPy arrays, all conversions of formats return NumPy arrays of the same dtype, for readers
    of files on the host.
    """
    xp, boxes = _namespace(boxes)
    corner, sides = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([corner, corner + sides], axis=-1)


def to_xywh(boxes: Array) -> Array:
    """Left, top, width and height [..., 4] of corner boxes; the inverse of `from_xywh`."""
    xp, boxes = _namespace(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([low, high - low], axis=-1)


def from_cxcywh(boxes: Array) -> Array:
    """Corner boxes [..., 4] from center x, center y, width and height, as in YOLO files."""
    xp, boxes = _namespace(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return xp.concatenate([center - half, center + half], axis=-1)


def from_yxyx(boxes: Array) -> Array:
    """Corner boxes [..., 4] from y0, x0, y1 and x1, as in tensorflow-datasets."""
    _, boxes = _namespace(boxes)
    return boxes[..., np.array([1, 0, 3, 2])]


def mask_to_box(mask: Array) -> jax.Array:
    """Tight box [4], float32, around the foreground (`> 0`) of a mask [H, W].

    A single pixel gives a box of area 1, an empty mask four zeros.
    """
    chex.assert_rank(mask, 2)
    foreground = mask > 0
    x0, x1 = _extent(foreground.any(axis=0))
    y0, y1 = _extent(foreground.any(axis=1))
    return jnp.stack([x0, y0, x1, y1]).astype(jnp.float32)


def _namespace(boxes) -> tuple[ModuleType, Array]:
    """(numpy, boxes unchanged) for NumPy boxes [..., 4]; else (jax.numpy, boxes as float32)."""
    chex.assert_shape(boxes, (..., 4))
    return (np, boxes) if isinstance(boxes, np.ndarray) else (jnp, as_float32(boxes))


def _corners(boxes):
    """Low and high corners [..., 2] of boxes [..., 4]."""
    chex.assert_shape(boxes, (..., 4))
    boxes = as_float32(boxes)
    return boxes[..., :2], boxes[..., 2:]


def _area(low, high):
    sides = _sides(low, high)
    return sides[..., 0] * sides[..., 1]


def _sides(low, high):
    """Width and height [..., 2] between corners [..., 2]; 0 where they are swapped."""
    return jax.nn.relu(high - low)


def _center(boxes):
    low, high = _corners(boxes)
    return (low + high) / 2


def _squared_norm(vectors):
    return vectors[..., 0] ** 2 + vectors[..., 1] ** 2


def _aspect_angle(boxes):
    """arctan(width / height) [...] of boxes [..., 4], in [0, pi / 2]; 0 for points."""
    sides = _sides(*_corners(boxes))
    extended = _squared_norm(sides) > 0  # arctan2's gradient divides by this
    angle = jnp.arctan2(sides[..., 0], jnp.where(extended, sides[..., 1], 1))
    return jnp.where(extended, angle, 0)


def _extent(occupied):
    """(index of the first true entry of occupied [N], index after the last); (0, 0) without any."""
    first, past = jnp.argmax(occupied), occupied.size - jnp.argmax(occupied[::-1])
    return jnp.where(occupied.any(), first, 0), jnp.where(occupied.any(), past, 0)
