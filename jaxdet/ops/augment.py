"""Random image and box transforms that run inside the compiled training step.

A transform is a function `(key, sample) -> sample` of one `Sample`; options are keyword-only.
`jax.vmap` over keys and samples transforms a batch.  `mosaic` and the two mixups take a whole batch
instead, and combine each image with the images after it in the batch, cyclically; `axis` is the
device axis over which the batch is split, or None.  Unless noted, pixel values are floats in [0,
1], lengths are in pixels, angles in degrees, and pixels beyond the edge of an image are `GRAY`.

    transform = augment.compose(
        augment.random_flip,
        partial(augment.random_scale_translate, scale=(0.5, 1.5)),
        augment.random_apply(0.5, augment.color_jitter),
    )
    samples = jax.vmap(transform)(keys, augment.Sample(images, boxes, labels, valid, crowd))
    images = jax.vmap(augment.on_image(transform))(keys, images)  # without boxes
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import packages
from jaxdet.errors import InputError
from jaxdet.ops import boxes as box_ops
from jaxdet.types import Array

GRAY = 0.5  # pixel value beyond the edge of an image
MAX_ASPECT = 1.1  # `random_scale_translate` changes the aspect ratio by at most this factor
MIN_VISIBLE = 0.2  # a box stays valid only if a larger fraction of it stays inside the image


class Sample(NamedTuple):
    """One image and its objects.

    Fields other than the image may be None.  Transforms that move boxes, other than flips, clip
    them to the image; if `valid` is given, it becomes False for boxes of which a fraction of
    `MIN_VISIBLE` or less remains.
    """

    image: Array  # [H, W, C]
    boxes: Array | None = None  # [G, 4]
    labels: Array | None = None  # [G]
    valid: Array | None = None  # [G] bool: slots in use
    crowd: Array | None = None  # [G] bool: one box around many objects


Transform = Callable[[jax.Array, Sample], Sample]


# Combining transforms.


def compose(*transforms: Transform) -> Transform:
    """Apply all transforms in order, each with its own key."""

    def transform(key, sample):
        for i, each in enumerate(transforms):
            sample = each(jax.random.fold_in(key, i), sample)
        return sample

    return transform


def random_apply(probability: float, transform: Transform) -> Transform:
    """Apply a transform with the given probability."""

    def maybe(key, sample):
        applied = jax.random.bernoulli(jax.random.fold_in(key, 0), probability)
        return _select(applied, transform(jax.random.fold_in(key, 1), sample), sample)

    return maybe


def some_of(count: int, *transforms: Transform) -> Transform:
    """Apply `count` of the transforms, or all if there are fewer, in the given order.

    The transforms are drawn without replacement.
    """

    def transform(key, sample):
        chosen = jax.random.permutation(jax.random.fold_in(key, 0), len(transforms)) < count
        for i, each in enumerate(transforms):
            sample = _select(chosen[i], each(jax.random.fold_in(key, i + 1), sample), sample)
        return sample

    return transform


def one_of(*transforms: Transform) -> Transform:
    """Apply one of the transforms, drawn uniformly."""
    return some_of(1, *transforms)


def random_order(*transforms: Transform) -> Transform:
    """Apply all transforms in random order."""

    def transform(key, sample):
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(transforms))
        for i in range(len(transforms)):
            own = jax.random.fold_in(key, i + 1)
            sample = jax.lax.switch(order[i], transforms, own, sample)
        return sample

    return transform


def on_image(transform: Transform) -> Callable[[jax.Array, Array], Array]:
    """The transform as a function `(key, image) -> image`."""
    return lambda key, image: transform(key, Sample(image)).image


def _select(condition, a, b):
    return jax.tree.map(partial(jnp.where, condition), a, b)


# Geometry: images and boxes.


def random_flip(key: jax.Array, sample: Sample) -> Sample:
    """Flip horizontally with probability 1/2."""
    flip, width = jax.random.bernoulli(key), sample.image.shape[1]
    image = jnp.where(flip, sample.image[:, ::-1], sample.image)
    if sample.boxes is None:
        return sample._replace(image=image)
    x0, y0, x1, y1 = jnp.moveaxis(sample.boxes, -1, 0)
    flipped = jnp.stack([width - x1, y0, width - x0, y1], -1)
    return sample._replace(image=image, boxes=jnp.where(flip, flipped, sample.boxes))


def random_vertical_flip(key: jax.Array, sample: Sample) -> Sample:
    """Flip vertically with probability 1/2."""
    return _transpose(random_flip(key, _transpose(sample)))


def _transpose(sample):
    image, yxyx = sample.image.swapaxes(0, 1), np.array([1, 0, 3, 2])
    boxes = None if sample.boxes is None else sample.boxes[:, yxyx]
    return sample._replace(image=image, boxes=boxes)


def random_scale_translate(
    key: jax.Array,
    sample: Sample,
    *,
    scale: tuple[float, float] = (0.75, 1.3),
    translate: float = 0.1,
) -> Sample:
    """Scale about the center by a factor in `scale`, then translate along both axes.

    The factor is log-uniform, and the aspect ratio changes by a factor of up to `MAX_ASPECT`.  The
    translation is uniform, by up to a fraction `translate` of the image's side in each direction.
    Resampling is bilinear, without anti-aliasing.
    """
    draw = jax.random.uniform(key, (5,), minval=-1.0)  # scale, aspect of y and x, shift of y and x
    low, high = jnp.log(jnp.asarray(scale))
    log_scale = (low + high + draw[0] * (high - low)) / 2
    factor = jnp.exp(log_scale + draw[1:3] * math.log(MAX_ASPECT) / 2)
    sides = jnp.asarray(sample.image.shape[:2], jnp.float32)
    offset = sides * (1 - factor) / 2 + draw[3:] * translate * sides
    return _scale_translate_sample(sample, factor, offset)


def random_resized_crop(
    key: jax.Array,
    sample: Sample,
    *,
    area: tuple[float, float] = (0.3, 1.0),
    aspect: float = 4 / 3,
) -> Sample:
    """Crop a random rectangle and resize it to the size of the image.

    The area of the crop, as a fraction of the image, is uniform in `area`; its aspect ratio is the
    aspect ratio of the image times a log-uniform factor in [1 / aspect, aspect].  A side that would
    be longer than the image is shortened to the side of the image.  Szegedy et al. 2014,
    arXiv:1409.4842.
    """
    fraction, shape, *position = jax.random.uniform(key, (4,))
    fraction = area[0] + fraction * (area[1] - area[0])
    shape = jnp.exp((2 * shape - 1) * math.log(aspect) / 2)
    sides = jnp.minimum(jnp.sqrt(fraction) * jnp.stack([1 / shape, shape]), 1.0)  # height, width
    whole = jnp.asarray(sample.image.shape[:2], jnp.float32)
    corner = jnp.stack(position) * (1 - sides) * whole
    return _scale_translate_sample(sample, 1 / sides, -corner / sides)


def random_rotate(key: jax.Array, sample: Sample, *, degrees: float = 30.0) -> Sample:
    """Rotate about the center by an angle that is uniform in [-degrees, degrees].

    A box becomes the axis-aligned box around its four rotated corners.
    """
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
    height, width = sample.image.shape[:2]

    def rotated(boxes):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        x, y = boxes[:, [0, 0, 2, 2]] - width / 2, boxes[:, [1, 3, 1, 3]] - height / 2
        x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2  # [G, 4 corners]
        return jnp.stack([x.min(1), y.min(1), x.max(1), y.max(1)], -1)

    return _moved(sample, rotate(sample.image, angle), rotated)


def pad_and_crop(key: jax.Array, sample: Sample, *, pad: int = 4) -> Sample:
    """Pad all sides by `pad` pixels of value 0, and crop the original size at random.

    Lee et al. 2015, arXiv:1409.5185.
    """
    padded = jnp.pad(sample.image, ((pad, pad), (pad, pad), (0, 0)))
    start = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    image = jax.lax.dynamic_slice(padded, (*start, 0), sample.image.shape)
    return _moved(sample, image, lambda boxes: boxes + jnp.tile(pad - start[::-1], 2)[None])


def random_tile(
    key: jax.Array, sample: Sample, possible: Array | None = None, *, regions: np.ndarray
) -> Sample:
    """Crop a random one of `regions` [T, 4], boxes of equal size with whole-pixel corners.

    possible: mask [T] of the regions to choose from; None: all.
    """
    places = regions.astype(np.int32)
    width, height = places[0, 2:] - places[0, :2]
    possible = np.ones(len(places), bool) if possible is None else possible
    chosen = jnp.argsort(~possible)[jax.random.randint(key, (), 0, possible.sum())]
    x, y = jnp.asarray(places[:, :2])[chosen]
    shape = (int(height), int(width), sample.image.shape[-1])
    image = jax.lax.dynamic_slice(sample.image, (y, x, 0), shape)
    return _moved(sample, image, lambda boxes: boxes - jnp.stack([x, y, x, y])[None])


def _scale_translate_sample(sample, scale, offset):
    """`scale_translate` of the image and boxes of a sample; scale, offset [2]: rows, columns."""
    image = scale_translate(sample.image, scale, offset)
    factor, shift = (jnp.tile(v[::-1], 2)[None] for v in (scale, offset))
    return _moved(sample, image, lambda boxes: boxes * factor + shift)


def _moved(sample, image, move_boxes):
    """The sample with its new image, and its boxes moved, clipped and checked for visibility."""
    if sample.boxes is None:
        return sample._replace(image=image)
    moved = move_boxes(sample.boxes)
    inside = box_ops.clip(moved, *image.shape[:2])
    if sample.valid is None:
        return sample._replace(image=image, boxes=inside)
    visible = box_ops.area(inside) > MIN_VISIBLE * box_ops.area(moved)
    return sample._replace(image=image, boxes=inside, valid=sample.valid & visible)


# Appearance: images only.


def brightness_contrast(key: jax.Array, sample: Sample, *, strength: float = 0.2) -> Sample:
    """Change brightness and contrast at random, and clip the values to [0, 1].

    A number in [-strength, strength] is added to all values, and the contrast is multiplied by a
    factor in [1 - strength, 1 + strength].
    """
    brightness, contrast = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    dm_pix = packages.load("dm_pix", "brightness_contrast")
    image = dm_pix.random_brightness(brightness, sample.image, strength)
    image = dm_pix.random_contrast(contrast, image, 1 - strength, 1 + strength)
    return sample._replace(image=jnp.clip(image, 0, 1))


def color_jitter(key: jax.Array, sample: Sample, *, strength: float = 0.2) -> Sample:
    """Change saturation and hue at random, and clip the values to [0, 1].

    The saturation is multiplied by a factor in [1 - strength, 1 + strength], and the hue is rotated
    by up to `strength` / 10 turns in either direction.
    """
    saturation, hue = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    dm_pix = packages.load("dm_pix", "color_jitter")
    image = dm_pix.random_saturation(saturation, sample.image, 1 - strength, 1 + strength)
    return sample._replace(image=jnp.clip(dm_pix.random_hue(hue, image, strength / 10), 0, 1))


def gaussian_noise(key: jax.Array, sample: Sample, *, strength: float = 0.05) -> Sample:
    """Add Gaussian noise whose standard deviation is uniform in [0, strength]; clip to [0, 1]."""
    std = jax.random.uniform(jax.random.fold_in(key, 0), maxval=strength)
    noise = jax.random.normal(jax.random.fold_in(key, 1), sample.image.shape)
    return sample._replace(image=jnp.clip(sample.image + std * noise, 0, 1))


def cutout(
    key: jax.Array, sample: Sample, *, count: int = 1, size: float = 0.5, fill: float = GRAY
) -> Sample:
    """Fill `count` random rectangles with the pixel value `fill`.

    The sides of a rectangle are uniform, up to a fraction `size` of the image's sides; its center
    is uniform over the image.  Boxes stay as they are, and the image may have any dtype and range.
    DeVries and Taylor 2017, arXiv:1708.04552, use one square.
    """
    image = sample.image
    height, width = image.shape[:2]
    draw = jax.random.uniform(key, (count, 4))
    sides = jnp.asarray([[height, width]], jnp.float32)
    center, half = draw[:, :2] * sides, draw[:, 2:] * sides * size / 2
    rows, columns = jnp.arange(height)[None] + 0.5, jnp.arange(width)[None] + 0.5
    in_rows = jnp.abs(rows - center[:, :1]) < half[:, :1]  # [count, H]
    in_columns = jnp.abs(columns - center[:, 1:]) < half[:, 1:]  # [count, W]
    hidden = (in_rows[:, :, None] & in_columns[:, None]).any(0)[..., None]
    return sample._replace(image=jnp.where(hidden, jnp.asarray(fill, image.dtype), image))


# Ready-made pipelines.

_ANGLE, _SCALE, _POSITION, _FLIP, _LIGHTING = range(5)  # folded into the key of each draw


def standard(
    key: jax.Array,
    sample: Sample,
    *,
    flip: bool = True,
    scale: tuple[float, float] = (0.8, 1.25),
    translate: float = 0.1,
    lighting: float = 0.3,
) -> Sample:
    """Apply `random_flip`, `random_scale_translate`, and `brightness_contrast` with `lighting`.

    `flip=False` turns off the flip, `scale=(1.0, 1.0)` with `translate=0` turns off scaling and
    translation, and `lighting=0` turns off the change of brightness and contrast.
    """
    chex.assert_rank(sample.image, 3)
    if sample.boxes is not None:
        chex.assert_rank(sample.boxes, 2)
    if flip:
        sample = random_flip(jax.random.fold_in(key, _FLIP), sample)
    if scale != (1.0, 1.0) or translate:
        own = jax.random.fold_in(key, _SCALE)
        sample = random_scale_translate(own, sample, scale=scale, translate=translate)
    if lighting:
        own = jax.random.fold_in(key, _LIGHTING)
        sample = brightness_contrast(own, sample, strength=lighting)
    return sample


def place_on_canvas(
    key: jax.Array,
    image: Array,
    *,
    canvas: int = 64,
    degrees: float = 30.0,
    scale: tuple[float, float] = (0.75, 1.25),
) -> tuple[jax.Array, jax.Array]:
    """Rotate and scale one object [h, w], and place it at random inside an empty square canvas.

    The angle is uniform in [-degrees, degrees], the factor in `scale`, and the position among all
    positions that keep the foreground (`> 0`) inside.  Returns the canvas [canvas, canvas, 1],
    rounded to multiples of 1/255 as if stored in 8 bits, and the tight box [4] of the foreground.
    An empty image gives an empty canvas and a box of zeros.  Raises InputError if the canvas could
    be too small for the rotated and scaled object.
    """
    chex.assert_rank(image, 2)
    chex.assert_type(image, float)
    side = _patch_side(image.shape, scale)
    if canvas < side:
        height, width = image.shape
        raise InputError(
            f"--canvas must be at least {side} pixels, got {canvas}: an image of {height} x "
            f"{width} pixels, scaled by {max(scale)} and rotated, may need as many"
        )
    low, high = scale
    angle = jax.random.uniform(jax.random.fold_in(key, _ANGLE), minval=-degrees, maxval=degrees)
    factor = jax.random.uniform(jax.random.fold_in(key, _SCALE), minval=low, maxval=high)
    patch = _rotate_and_scale(image, jnp.deg2rad(angle), factor, side)
    patch = jnp.round(patch * 255) / 255
    placed = _at_random_position(jax.random.fold_in(key, _POSITION), patch, canvas)
    return placed[..., None], box_ops.mask_to_box(placed)


def _patch_side(shape, scale):
    """Side of a square that holds the scaled image at any angle, with its interpolated edge."""
    return math.ceil(max(scale) * math.sqrt(2) * (max(shape) + 1))


def _rotate_and_scale(image, angle, scale, side):
    """Rotate an image [h, w] counter-clockwise about the center of its foreground, and scale it.

    angle: in radians.  Returns [side, side], with that center in the middle, up to a pixel.
    """
    # The center keeps its fraction of a pixel, so that an angle of 0 radians and a scale of 1 copy
    # the pixels exactly.
    corners = box_ops.mask_to_box(image)
    center = (corners[:2] + corners[2:]) / 2
    pixels = jnp.arange(side) + 0.5
    x, y = pixels[None] - (side // 2 + center % 1)[:, None]  # relative to the center, [side] each
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    column = center[0] + cos * x[None, :] - sin * y[:, None]  # [side, side]
    row = center[1] + sin * x[None, :] + cos * y[:, None]
    return _bilinear(image[..., None], row - 0.5, column - 0.5)[..., 0]


def _at_random_position(key, patch, canvas):
    """Canvas [canvas, canvas] with the foreground of a patch at a random position inside."""
    corners = box_ops.mask_to_box(patch).astype(int)
    room = canvas - (corners[2:] - corners[:2])
    corner = jax.random.randint(key, (2,), 0, room + 1)  # x, y of the foreground
    x, y = canvas + corners[:2] - corner
    return jax.lax.dynamic_slice(jnp.pad(patch, canvas), (y, x), (canvas, canvas))


# Batches: functions of keys [B] and B images; each image is combined with the images after it.


def mixup(
    keys: jax.Array, images: Array, targets: Array, *, alpha: float = 0.2, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mix each image [B, ...] and its target [B, K] with the next row, for classification.

    The weight w of a row is drawn from Beta(alpha, alpha); the next row has the weight 1 - w.
    Zhang et al. 2017, arXiv:1710.09412.
    """
    weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)

    def mixed(rows):
        first = weight.reshape(-1, *(1,) * (rows.ndim - 1))
        return first * rows + (1 - first) * _followed(rows, 1, axis)[1:]

    return mixed(images), mixed(targets)


def detection_mixup(
    keys: jax.Array,
    samples: Sample,
    *,
    probability: float = 1.0,
    alpha: float = 32.0,
    axis: str | None = None,
) -> Sample:
    """Mix each sample with the next one, with the given probability, and keep the boxes of both.

    samples: all fields [B, ...]; the result has twice as many box slots.  The weight of the first
    of the two images is drawn from Beta(alpha, alpha).  Zhang et al. 2019, arXiv:1902.04103.
    """

    def mixed(key, pair):
        weight = jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha)
        image = weight * pair.image[0] + (1 - weight) * pair.image[1]
        applied = jax.random.bernoulli(jax.random.fold_in(key, 0), probability)
        return _select(applied, _flatten_slots(pair)._replace(image=image), _only_first(pair))

    return jax.vmap(mixed)(keys, _with_successors(samples, 2, axis))


def mosaic(
    keys: jax.Array,
    samples: Sample,
    *,
    probability: float = 1.0,
    scale: tuple[float, float] = (0.4, 1.0),
    axis: str | None = None,
) -> Sample:
    """Join each sample and the next three around a random point, with the given probability.

    samples: all fields [B, ...]; the result has four times as many box slots.  The point lies in
    the middle half of each axis.  Each of the four images is scaled by a factor in `scale` and
    placed with one corner at the point.  Bochkovskiy et al. 2020, arXiv:2004.10934.
    """

    def joined(key, four):
        made = _mosaic(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2), four, scale)
        applied = jax.random.bernoulli(jax.random.fold_in(key, 0), probability)
        return _select(applied, made, _only_first(four))

    return jax.vmap(joined)(keys, _with_successors(samples, 4, axis))


def _with_successors(samples, count, axis):
    """Each sample of a batch with the `count - 1` samples after it, [B, count, ...]."""

    def windows(rows):
        longer = _followed(rows, count - 1, axis)
        return jnp.stack([longer[i : i + len(rows)] for i in range(count)], 1)

    return jax.tree.map(windows, samples)


def _followed(rows, count, axis):
    """This device's rows [B, ...] and the next `count` of the global batch, cyclically."""
    parts = [rows]
    while count > 0:
        part = parts[-1][:count]
        if axis is not None:
            devices = jax.lax.psum(1, axis)
            part = jax.lax.ppermute(part, axis, [(i, (i - 1) % devices) for i in range(devices)])
        parts.append(part)
        count -= len(part)
    return jnp.concatenate(parts)


def _flatten_slots(group):
    """One sample with the first of N images and the box slots of all N, [N * G, ...]."""
    flat = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), group._replace(image=()))
    return flat._replace(image=group.image[0])


def _only_first(group):
    """The first of N samples, with the box slots of all N; only its own boxes are valid."""
    first = (jnp.arange(len(group.valid)) == 0)[:, None]
    return _flatten_slots(group._replace(valid=group.valid & first))


def _mosaic(point_key, scale_key, four, scale):
    height, width = four.image.shape[1:3]
    point = jax.random.uniform(point_key, (2,), minval=0.25, maxval=0.75)
    point = point * jnp.asarray([height, width], jnp.float32)  # y, x
    factor = jax.random.uniform(scale_key, (4,), minval=scale[0], maxval=scale[1])
    before = jnp.asarray([[1, 1], [1, 0], [0, 1], [0, 0]], jnp.float32)  # above, left of the point
    tiles = jax.vmap(partial(_tile, point))(factor, before, four)
    above, left = jnp.arange(height) + 0.5 < point[0], jnp.arange(width) + 0.5 < point[1]
    in_rows = jnp.stack([above, above, ~above, ~above])  # [4, H]
    in_columns = jnp.stack([left, ~left, left, ~left])  # [4, W]
    own = in_rows[:, :, None] & in_columns[:, None]  # [4, H, W]
    image = jnp.where(own[..., None], tiles.image, 0.0).sum(0)
    return _flatten_slots(tiles)._replace(image=image)


def _tile(point, factor, before, sample):
    """One part of a mosaic: the sample scaled, with a corner at `point`, and its boxes clipped."""
    whole = jnp.asarray(sample.image.shape[:2], jnp.float32)
    offset = point - before * factor * whole
    tile = _scale_translate_sample(sample, jnp.tile(factor, 2), offset)
    low = jnp.where(before > 0, 0.0, point)[::-1]  # x, y
    high = jnp.where(before > 0, point, whole)[::-1]
    inside = jnp.clip(tile.boxes, jnp.tile(low, 2)[None], jnp.tile(high, 2)[None])
    visible = box_ops.area(inside) > MIN_VISIBLE * (box_ops.area(sample.boxes) * factor**2)
    return tile._replace(boxes=inside, valid=tile.valid & visible)


# Resampling, deterministic.


def scale_translate(image: Array, scale: Array, offset: Array) -> jax.Array:
    """Image [H, W, C] with the pixel at (row, column) moved to (row, column) * scale + offset.

    scale, offset [2]: for rows and columns; positions are measured from the top-left corner of the
    image.  Interpolation is bilinear, first vertical, then horizontal.  On a CPU it is five times
    as fast as `jax.image.scale_and_translate`, which multiplies by a matrix.
    """
    for axis in (0, 1):
        image = _resample_axis(image, axis, scale[axis], offset[axis])
    return image


def rotate(image: Array, angle: Array) -> jax.Array:
    """Image [H, W, C] rotated counter-clockwise about its center by `angle` radians, bilinear."""
    height, width = image.shape[:2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = jnp.arange(width) + 0.5 - width / 2, jnp.arange(height) + 0.5 - height / 2
    column = cos * x[None] - sin * y[:, None] + width / 2 - 0.5  # [H, W]: where a pixel comes from
    row = sin * x[None] + cos * y[:, None] + height / 2 - 0.5
    return _bilinear(image, row, column, outside=GRAY)


def _resample_axis(image, axis, scale, offset):
    length = image.shape[axis]
    source = (jnp.arange(length) + 0.5 - offset) / scale - 0.5
    others = [i for i in range(image.ndim) if i != axis]
    inside = jnp.expand_dims(jnp.abs(2 * source + 1 - length) <= length, others)
    before = jnp.floor(source).astype(int)
    after = jnp.expand_dims(source - before, others)
    low, high = (jnp.take(image, before + i, axis, mode="clip") for i in (0, 1))
    return jnp.where(inside, low * (1 - after) + high * after, GRAY)


def _bilinear(image, row, column, outside=0.0):
    """Values [H, W, C] of image [h, w, C] at row, column [H, W], in pixel indices."""
    # The four neighbors of a position are stored side by side in a table: one gather instead of
    # four, almost twice as fast on a CPU.
    height, width = image.shape[:2]
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    top, left = jnp.floor(row).astype(int), jnp.floor(column).astype(int)
    down, right = (row - top)[..., None], (column - left)[..., None]
    padded = jnp.pad(image, ((1, 2), (1, 2), (0, 0)), constant_values=outside)
    neighbors = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    table = jnp.stack(neighbors, axis=2)  # [h + 2, w + 2, 4, C]
    near = table.at[top + 1, left + 1].get(mode="promise_in_bounds")  # [H, W, 4, C]
    upper = near[:, :, 0] * (1 - right) + near[:, :, 1] * right
    lower = near[:, :, 2] * (1 - right) + near[:, :, 3] * right
    return upper * (1 - down) + lower * down
