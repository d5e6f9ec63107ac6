"""Resizing of 8-bit images inside a compiled program, bit-exact with Pillow's `Image.resize`.

Each output value is a weighted mean of input values, first along one axis of the image and then
along the other.  As in Pillow, weights are rounded to `WEIGHT_BITS` bits, and values are rounded to
8 bits after each axis.  All arithmetic is on integers, so results are the same on all devices.

Sizes and offsets are pairs (rows, columns), in int32.
"""

import jax.numpy as jnp
from jax import lax

from jaxdet.types import Array

WEIGHT_BITS = 22  # fractional bits of Pillow's weights
ONE = 1 << WEIGHT_BITS
MAX_SIDE = 2**15 - 1  # pixels per side of an image; larger ones may overflow 32 bits
MAX_AREA = 2**32 // (4 * 256) - 1  # pixels of the canvas of `letterbox_top_left`


def letterbox(
    image: Array,
    size: Array,
    inner: Array,
    offset: Array,
    *,
    shape: tuple[int, int],
    fill: int,
    rows_first: Array | bool = False,
) -> Array:
    """Resize an image, bilinear and antialiased, onto a canvas: [height, width, C] uint8.

    The result equals Pillow's `resize(..., Resampling.BILINEAR)`.  Loops run as often as the sizes
    require: `jax.lax.map` over a batch costs less than `jax.vmap`.

    Args:
        image: [H, W, C] uint8, with sides of at most `MAX_SIDE` pixels.
        size: [2], the used part of the image, from its upper left corner.
        inner: [2], the size of the resized image.
        offset: [2], where its upper left corner is on the canvas.
        shape: height and width of the canvas.
        fill: pixel value of the canvas outside the resized image.
        rows_first: [] bool, whether rows are resampled before columns; see `shrinks_rows_first`.
          Pillow before version 13 always resamples columns first.
    """
    rows, columns = (jnp.arange(side) - offset[axis] for axis, side in enumerate(shape))

    def resample_rows(image):
        return _resample(image, size[0], inner[0], rows)

    def resample_columns(image):
        return _resample(image.swapaxes(0, 1), size[1], inner[1], columns).swapaxes(0, 1)

    found = lax.cond(
        rows_first,
        lambda image: resample_columns(resample_rows(image)),
        lambda image: resample_rows(resample_columns(image)),
        image,
    )
    inside = _is_within(rows, inner[0])[:, None] & _is_within(columns, inner[1])[None]
    return jnp.where(inside[..., None], found, jnp.uint8(fill))


def letterbox_top_left(
    image: Array, size: Array, inner: Array, *, shape: tuple[int, int], fill: int
) -> Array:
    """Resize an image, bilinear from its four nearest pixels, onto the upper left of a canvas.

    Exact values are rounded to the nearest integer, as in `data.images`; OpenCV's INTER_LINEAR
    rounds weights to 11 bits, and may differ by one.  The canvas must have at most `MAX_AREA`
    pixels; arguments and result are as in `letterbox`.
    """
    low, high, part = zip(*map(_neighbors, (size[0], size[1]), inner, shape), strict=True)
    rows, columns = (jnp.uint32(2 * side) for side in inner)

    def across(row):
        left, right = (image[row[:, None], at[None]].astype(jnp.uint32) for at in (low[1], high[1]))
        weight = part[1][None, :, None]
        return (columns - weight) * left + weight * right

    weight = part[0][:, None, None]
    total = (rows - weight) * across(low[0]) + weight * across(high[0])
    inside = [jnp.arange(side) < used for side, used in zip(shape, inner, strict=True)]
    area = rows * columns
    found = ((total + area // 2) // area).astype(jnp.uint8)
    return jnp.where((inside[0][:, None] & inside[1][None])[..., None], found, jnp.uint8(fill))


def letterbox_geometry(
    size: Array, height: int, width: int, *, centered: bool = True
) -> tuple[Array, Array]:
    """Size [2] of an image that fills the canvas as far as possible, and its offset [2].

    size: [2], original size.
    centered: otherwise the image is at the top left, and its sides are rounded down.

    `data.images.letterbox_transform` has the same geometry.
    """
    rows, columns = size
    divide = _round_half_even if centered else jnp.floor_divide
    fitted = jnp.where(
        height * columns <= width * rows,
        jnp.stack([jnp.int32(height), divide(columns * height, rows)]),
        jnp.stack([divide(rows * width, columns), jnp.int32(width)]),
    )
    inner = jnp.maximum(fitted, 1)
    return inner, (jnp.array([height, width], jnp.int32) - inner) // 2 * centered


def shrinks_rows_first(size: Array, inner: Array) -> Array:
    """Whether Pillow, from version 13 on, resamples rows before columns: [] bool."""
    rows, columns = size - inner
    return rows > 2 * jnp.maximum(columns, 0)


def gray(images: Array) -> Array:
    """Convert RGB images [..., 3] uint8 to grayscale [..., 1] uint8, as Pillow does (ITU-R 601)."""
    red, green, blue = jnp.moveaxis(images.astype(jnp.int32), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16).astype(jnp.uint8)[..., None]


def _neighbors(size: Array, inner: Array, side: int) -> tuple[Array, Array, Array]:
    """Both input rows [side] next to each output row, and the weight of the second one.

    Weights are in units of 1 / (2 * inner).
    """
    center = (2 * jnp.minimum(jnp.arange(side), inner - 1) + 1) * size - inner
    first = center // (2 * inner)
    low, high = (jnp.clip(row, 0, size - 1) for row in (first, first + 1))
    return low, high, (center - first * 2 * inner).astype(jnp.uint32)


def _resample(image: Array, size: Array, inner: Array, places: Array) -> Array:
    """Rows `places` [N] of an image [H, W, C] whose first `size` rows become `inner` rows.

    Distances are in units of 1 / (2 * inner) input rows, in which they are integers.
    """
    taps = 2 * -(-size // inner) + 1  # the largest number of input rows per output row
    center = (2 * jnp.clip(places, 0, inner - 1) + 1) * size
    support = 2 * jnp.maximum(size, inner)
    first = (center - support + inner) // (2 * inner)

    def weigh(tap):
        index = first + tap
        distance = jnp.abs((2 * index + 1) * inner - center)
        return index, jnp.where(_is_within(index, size), jnp.maximum(support - distance, 0), 0)

    def add(tap, sum_):
        index, weight = weigh(tap)
        values = image[jnp.clip(index, 0, image.shape[0] - 1)].astype(jnp.int32)
        return sum_ + _rounded_ratio(weight, total)[:, None, None] * values

    total = lax.fori_loop(0, taps, lambda tap, sum_: sum_ + weigh(tap)[1], jnp.zeros_like(center))
    start = jnp.full((len(places), *image.shape[1:]), ONE // 2, jnp.int32)
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
