"""Corner boxes: size, overlap, clipping, formats.

A box is `x0 y0 x1 y1`, float, in pixels: x to the right, y down, half-open, so that a single lit
pixel has area 1.  A box without width or without height is empty and has area 0.
Functions broadcast over `[..., 4]`: all pairs are `a[:, None], b[None]`, one pair a row is `a, b`.
"""

import chex
import jax.numpy as jnp


def area(boxes):
    """Area of boxes [..., 4] in square pixels, [...]; an empty or turned-over box gives 0."""
    chex.assert_shape(boxes, (..., 4))
    return _area(boxes[..., :2], boxes[..., 2:])


def intersection(a, b):
    """Area that boxes a and b [..., 4] share, broadcasting, in square pixels.

    Boxes that only touch share 0, and so does an empty box with any other: `intersection > 0` asks
    whether two half-open boxes meet.
    """
    chex.assert_shape([a, b], (..., 4))
    return _area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))


def iou(a, b):
    """Intersection over union of boxes a and b [..., 4], broadcasting, in [0, 1].

    Equal boxes give 1; two empty ones give 0, with a finite gradient.  Everingham et al. 2010
    (PASCAL VOC).
    """
    shared = intersection(a, b)
    return ratio(shared, area(a) + area(b) - shared)


def clip(boxes, height, width):
    """Boxes [..., 4] cut to an image of height x width pixels; one wholly outside becomes empty."""
    chex.assert_shape(boxes, (..., 4))
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def from_xywh(boxes):
    """Corner boxes from [..., 4] of top-left corner, width and height, as in COCO files."""
    chex.assert_shape(boxes, (..., 4))
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes):
    """Top-left corner, width and height of corner boxes [..., 4]; undoes `from_xywh`."""
    chex.assert_shape(boxes, (..., 4))
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def tight(image):
    """Smallest box [4], float32, around the lit pixels (`> 0`) of one image [H, W].

    A single lit pixel gives area 1; an image with none gives four zeros.
    """
    chex.assert_rank(image, 2)
    lit = image > 0
    x0, x1 = _extent(lit.any(axis=0))
    y0, y1 = _extent(lit.any(axis=1))
    return jnp.stack([x0, y0, x1, y1]).astype(jnp.float32)


def _area(low, high):
    """Area between corners low and high [..., 2]; 0 where high is not beyond low on both axes."""
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def ratio(part, whole):
    """Quotient of arrays [...], 0 where `whole` is not positive, with finite gradients there."""
    positive = whole > 0
    return jnp.where(positive, part / jnp.where(positive, whole, 1), 0)


def _extent(lit):
    """First true index of lit [N] and one past the last; 0 and 0 where none is true."""
    first, past = jnp.argmax(lit), lit.size - jnp.argmax(lit[::-1])
    return jnp.where(lit.any(), first, 0), jnp.where(lit.any(), past, 0)
