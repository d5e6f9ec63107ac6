"""Resizing of 8-bit images to the bits of Pillow's `Image.resize`, inside a compiled program.

Each output value is a weighted mean of input values, first along one axis of the image and then
along the other.  Pillow rounds the weights to `WEIGHT_BITS` bits and the values after each of both
passes to 8 bits.  All of it is integer arithmetic, so that results are the same on all devices.

Sizes and offsets are pairs (rows, columns), in int32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.types import Array

WEIGHT_BITS = 22  # of Pillow's weights
ONE = 1 << WEIGHT_BITS
MAX_SIDE = 2**15 - 1  # pixels per side of an image; larger ones may overflow 32 bits


def letterbox(
    images: Array,
    sizes: Array,
    inner: Array,
    offsets: Array,
    *,
    shape: tuple[int, int],
    fill: int,
    rows_first: Array | None = None,
) -> Array:
    """Resize each image, bilinear and antialiased, onto a canvas: [B, height, width, C] uint8.

    The resized images equal those of Pillow's `resize(..., Resampling.BILINEAR)`.  Loops run as
    often as the largest image of the batch requires.

    Args:
        images: [B, H, W, C] uint8, with sides of at most `MAX_SIDE` pixels.
        sizes: [B, 2], the used part of each image, from its upper left corner.
        inner: [B, 2], the size of each resized image.
        offsets: [B, 2], where its upper left corner is on the canvas.
        shape: height and width of the canvas.
        fill: pixel value of the canvas outside the resized image.
        rows_first: [B] bool, whether rows are resampled before columns; see `shrinks_rows_first`.
          None: columns are always first, as in Pillow before version 13.
    """
    rows, columns = (
        jnp.arange(side)[None] - offsets[:, axis, None] for axis, side in enumerate(shape)
    )
    between = sizes[:, 0]
    if rows_first is not None:
        between = jnp.where(rows_first, inner[:, 0], between)
        every_row = jnp.broadcast_to(jnp.arange(images.shape[1])[None], images.shape[:2])
        first = partial(_resample, size=sizes[:, 0], inner=between, places=every_row)
        images = lax.cond(rows_first.any(), first, lambda images: images, images)
    found = _resample(images.swapaxes(1, 2), sizes[:, 1], inner[:, 1], columns).swapaxes(1, 2)
    found = _resample(found, between, inner[:, 0], rows)
    inside = _is_within(rows, inner[:, :1])[:, :, None] & _is_within(columns, inner[:, 1:])[:, None]
    return jnp.where(inside[..., None], found, jnp.uint8(fill))


def letterbox_geometry(sizes: Array, height: int, width: int) -> tuple[Array, Array]:
    """Sizes [B, 2] of images that fill the canvas as far as possible, and their offsets [B, 2].

    sizes: [B, 2], original sizes.  `data.images.letterbox_transform` has the same geometry.
    """
    rows, columns = sizes[:, 0], sizes[:, 1]
    fitted = jnp.where(
        (height * columns <= width * rows)[:, None],
        jnp.stack([jnp.full_like(rows, height), _round_half_even(columns * height, rows)], 1),
        jnp.stack([_round_half_even(rows * width, columns), jnp.full_like(rows, width)], 1),
    )
    inner = jnp.maximum(fitted, 1)
    return inner, (jnp.array([[height, width]], jnp.int32) - inner) // 2


def shrinks_rows_first(sizes: Array, inner: Array) -> Array:
    """Whether Pillow, from version 13 on, resamples rows before columns: [B] bool."""
    removed = sizes - inner
    return removed[:, 0] > 2 * jnp.maximum(removed[:, 1], 0)


def gray(images: Array) -> Array:
    """Convert RGB images [..., 3] uint8 to grayscale [..., 1] uint8, as Pillow does (ITU-R 601)."""
    red, green, blue = jnp.moveaxis(images.astype(jnp.int32), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16).astype(jnp.uint8)[..., None]


def _resample(images: Array, size: Array, inner: Array, places: Array) -> Array:
    """Rows `places` [B, N] of images [B, H, W, C] whose first `size` [B] rows become `inner` [B].

    Distances are in units of 1 / (2 * inner) input rows, in which they are integers.
    """
    taps = 2 * jnp.max(-(-size // inner)) + 1  # the largest number of input rows per output row
    size, inner = size[:, None], inner[:, None]
    center = (2 * jnp.clip(places, 0, inner - 1) + 1) * size
    support = 2 * jnp.maximum(size, inner)
    first = (center - support + inner) // (2 * inner)

    def weigh(tap):
        index = first + tap
        distance = jnp.abs((2 * index + 1) * inner - center)
        return index, jnp.where(_is_within(index, size), jnp.maximum(support - distance, 0), 0)

    def add(tap, sum_):
        index, weight = weigh(tap)
        index = jnp.clip(index, 0, images.shape[1] - 1)
        values = jax.vmap(lambda image, index: image[index])(images, index).astype(jnp.int32)
        return sum_ + _rounded_ratio(weight, total)[..., None, None] * values

    total = lax.fori_loop(0, taps, lambda tap, sum_: sum_ + weigh(tap)[1], jnp.zeros_like(center))
    start = jnp.full((*places.shape, *images.shape[2:]), ONE // 2, jnp.int32)
    return (lax.fori_loop(0, taps, add, start) >> WEIGHT_BITS).astype(jnp.uint8)


def _rounded_ratio(part: Array, total: Array) -> Array:
    """`part / total * ONE`, rounded to the nearest integer, by long division."""

    def divide(_, state):
        quotient, rest = state
        bit = 2 * rest >= total
        return 2 * quotient + bit, 2 * rest - jnp.where(bit, total, 0)

    quotient, rest = lax.fori_loop(0, WEIGHT_BITS, divide, (part // total, part % total))
    return quotient + (2 * rest >= total)


def _round_half_even(part: Array, total: Array) -> Array:
    """`part / total`, rounded to the nearest integer, as Python's `round` does."""
    quotient, twice = part // total, 2 * (part % total)
    return quotient + ((twice > total) | ((twice == total) & (quotient % 2 == 1)))


def _is_within(index: Array, size: Array) -> Array:
    return (index >= 0) & (index < size)
