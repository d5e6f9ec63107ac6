"""Corner boxes: size, overlap, clipping, formats.

A box is `x0 y0 x1 y1`, float, in pixels: x to the right, y down, half-open, so that a single lit
pixel has area 1.  A box without width or without height is empty and has area 0.
Functions broadcast over `[..., 4]`: all pairs are `a[:, None], b[None]`, one pair a row is `a, b`.
Areas and overlaps are computed in float32 at least, whatever the boxes are stored in.
"""

from functools import reduce
from types import ModuleType

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import numerics
from jaxdet.types import Array


def area(boxes):
    """Area of boxes [..., 4] in square pixels, [...]; an empty or turned-over box gives 0."""
    return _area(*_corners(boxes))


def intersection(a, b):
    """Area that boxes a and b [..., 4] share, broadcasting, in square pixels.

    Boxes that only touch share 0, and so does an empty box with any other: `intersection > 0` asks
    whether two half-open boxes meet.
    """
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    return _area(jnp.maximum(a_low, b_low), jnp.minimum(a_high, b_high))


def union(a, b):
    """Area that boxes a and b [..., 4] cover together, broadcasting, in square pixels.

    Where either is empty, it is the area of the other.
    """
    return area(a) + area(b) - intersection(a, b)


def enclosing_box(a, b):
    """Smallest box [..., 4] around boxes a and b [..., 4], broadcasting, in pixels.

    It is in order, and holds all corners of both, even where they are empty or turned over.
    """
    corners = *_corners(a), *_corners(b)
    return jnp.concatenate([reduce(jnp.minimum, corners), reduce(jnp.maximum, corners)], axis=-1)


def iou(a, b, *, eps=0.0):
    """Intersection over union of boxes a and b [..., 4], broadcasting, in [0, 1].

    Equal boxes give 1; two empty ones give 0, with a finite gradient.  Denominators of this and
    of the next three are `eps` square pixels larger.  Everingham et al. 2010 (PASCAL VOC).
    """
    return numerics.safe_divide(intersection(a, b), union(a, b), eps)


def giou(a, b, *, eps=0.0):
    """Generalised IoU of boxes a and b [..., 4], broadcasting, in [-1, 1]: at most their IoU.

    IoU less the share of the hull that neither covers.  Equal boxes give 1; where the hull is
    empty too, 0, with a finite gradient.  Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    around = area(enclosing_box(a, b))
    return iou(a, b, eps=eps) - numerics.safe_divide(around - union(a, b), around, eps)


def diou(a, b, *, eps=0.0):
    """Distance-IoU of boxes a and b [..., 4], broadcasting, in [-1, 1]: at most their IoU.

    IoU less the squared distance of the centres over that of the hull's corners.  Equal boxes give
    1; two points in one place 0, with a finite gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    between = _centre(a) - _centre(b)
    across = _sides(*_corners(enclosing_box(a, b)))
    return iou(a, b, eps=eps) - numerics.safe_divide(_squared(between), _squared(across), eps)


def ciou(a, b, *, eps=0.0):
    """Complete IoU of boxes a and b [..., 4], broadcasting, in [-1.5, 1]: at most their DIoU.

    DIoU less a penalty on unlike aspect ratios, whose weight passes no gradient.  Equal boxes give
    1; a point has aspect ratio 0, with a finite gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    unlike = ((_slant(a) - _slant(b)) * 2 / jnp.pi) ** 2  # v of the paper, in [0, 1]
    weight = numerics.safe_divide(unlike, 1 - iou(a, b, eps=eps) + unlike, eps)  # its alpha
    return diou(a, b, eps=eps) - jax.lax.stop_gradient(weight) * unlike


def clip(boxes, height, width):
    """Boxes [..., 4] cut to an image of height x width pixels; one wholly outside becomes empty."""
    boxes = numerics.as_float32(boxes)
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def from_xywh(boxes: Array) -> Array:
    """Corner boxes [..., 4] from left, top, width and height, as in COCO files.

    This and the other conversions keep NumPy arrays in NumPy, in their own precision: readers of
    files convert on the host.
    """
    xp, boxes = _host_or_device(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes: Array) -> Array:
    """Left, top, width and height of corner boxes [..., 4]; undoes `from_xywh`."""
    xp, boxes = _host_or_device(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def from_cxcywh(boxes: Array) -> Array:
    """Corner boxes [..., 4] from centre x, centre y, width and height, as in YOLO files."""
    xp, boxes = _host_or_device(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return xp.concatenate([center - half, center + half], axis=-1)


def from_yxyx(boxes: Array) -> Array:
    """Corner boxes [..., 4] from y0, x0, y1 and x1, as in tensorflow-datasets."""
    _, boxes = _host_or_device(boxes)
    return boxes[..., np.array([1, 0, 3, 2])]


def mask_to_box(image):
    """Smallest box [4], float32, around the lit pixels (`> 0`) of one image [H, W].

    A single lit pixel gives area 1; an image with none gives four zeros.
    """
    chex.assert_rank(image, 2)
    lit = image > 0
    x0, x1 = _extent(lit.any(axis=0))
    y0, y1 = _extent(lit.any(axis=1))
    return jnp.stack([x0, y0, x1, y1]).astype(jnp.float32)


def _host_or_device(boxes: Array) -> tuple[ModuleType, Array]:
    """(numpy, boxes as they are) of a NumPy array; (jax.numpy, boxes in float32 or wider) else."""
    if isinstance(boxes, np.ndarray):
        return np, boxes
    return jnp, numerics.as_float32(boxes)


def _corners(boxes):
    """Low and high corners [..., 2] of boxes [..., 4], in float32 or wider."""
    boxes = numerics.as_float32(boxes)
    return boxes[..., :2], boxes[..., 2:]


def _area(low, high):
    """Area between corners low and high [..., 2]; 0 where high is not beyond low on both axes."""
    sides = _sides(low, high)
    return sides[..., 0] * sides[..., 1]


def _sides(low, high):
    """Width and height [..., 2] from corners low to high [..., 2]; 0 where they are turned over.

    Zero sides have no gradient, so that boxes that touch have none of their intersection.
    """
    return jax.nn.relu(high - low)


def _centre(boxes):
    """Middle [..., 2] of boxes [..., 4]."""
    low, high = _corners(boxes)
    return (low + high) / 2


def _squared(vectors):
    """Squared length of vectors [..., 2]."""
    return vectors[..., 0] ** 2 + vectors[..., 1] ** 2


def _slant(boxes):
    """Angle whose tangent is width over height of boxes [..., 4], in [0, pi / 2]; of a point, 0."""
    sides = _sides(*_corners(boxes))
    extended = _squared(sides) > 0  # the gradient of arctan2 divides by this
    angle = jnp.arctan2(sides[..., 0], jnp.where(extended, sides[..., 1], 1))
    return jnp.where(extended, angle, 0)


def _extent(lit):
    """First true index of lit [N] and one past the last; 0 and 0 where none is true."""
    first, past = jnp.argmax(lit), lit.size - jnp.argmax(lit[::-1])
    return jnp.where(lit.any(), first, 0), jnp.where(lit.any(), past, 0)
