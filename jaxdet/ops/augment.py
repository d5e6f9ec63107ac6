"""Random image-and-box transforms, made to run inside the compiled step.

`key` comes first, options are keyword-only and static, and a function takes one image: `jax.vmap`
over keys and images makes the batch.  Values are floats in [0, 1], lengths are in pixels, angles
in degrees.
"""

import math

import chex
import dm_pix
import jax
import jax.numpy as jnp

from jaxdet.errors import InputError
from jaxdet.ops import boxes

GREY = 0.5  # level of what comes in from beyond the edge of a photo

ANGLE, ZOOM, PLACE, FLIP, LIGHT = range(5)  # purposes: one key each


def place(key, digit, *, canvas=64, rotate=30.0, scale=(0.75, 1.25)):
    """One whole digit [h, w], turned, scaled and put anywhere on an empty square canvas.

    Draws uniformly an angle within +-`rotate` degrees, a factor within `scale`, and a place among
    all that keep the ink inside.  Returns the image [canvas, canvas, 1] in steps of 1/255, as if
    stored in 8 bits, and the tight box [4] of its ink (`> 0`).  A digit without ink gives an empty
    canvas and a zero box.  InputError when a turned digit might not fit the canvas.
    """
    chex.assert_rank(digit, 2)
    chex.assert_type(digit, float)
    side = _patch_side(digit.shape, scale)
    if canvas < side:
        patch = f"the {side} pixels that a digit {digit.shape} scaled by {max(scale)} may turn in"
        raise InputError(f"canvas {canvas} is smaller than {patch}")
    angle = jax.random.uniform(jax.random.fold_in(key, ANGLE), minval=-rotate, maxval=rotate)
    zoom = jax.random.uniform(jax.random.fold_in(key, ZOOM), minval=scale[0], maxval=scale[1])
    patch = _eight_bits(_turn(digit, jnp.deg2rad(angle), zoom, side))
    image = _put(jax.random.fold_in(key, PLACE), patch, canvas)
    return image[..., None], boxes.mask_to_box(image)


def photo(key, image, box, *, flip=True, scale=(0.8, 1.25), shift=0.1, light=0.3):
    """One photo [H, W, C], and the box [4] in it, as they may look in another photo.

    Mirrors half of them (`flip`), then scales by a factor drawn from `scale` (its logarithm
    evenly), width and height each by up to a twentieth more or less, moves the middle by up to
    `shift` of a side, and changes brightness and contrast by up to `light` (a share).  What comes
    in from beyond the edge is grey.  The box goes through the same map and keeps to the image; it
    is empty where its object left.
    """
    chex.assert_rank([image, box], [3, 1])
    if flip:
        image, box = mirror(jax.random.fold_in(key, FLIP), image, box)
    if scale != (1.0, 1.0) or shift:
        image, box = zoom(jax.random.fold_in(key, ZOOM), image, box, scale=scale, shift=shift)
    return (lighting(jax.random.fold_in(key, LIGHT), image, light=light) if light else image), box


def colouring(key, image, *, colour=0.2):
    """Image with saturation changed by up to `colour`, hue by up to a tenth of it."""
    more, turn = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    image = dm_pix.random_saturation(more, image, 1 - colour, 1 + colour)
    return jnp.clip(dm_pix.random_hue(turn, image, colour / 10), 0, 1)


def mirror(key, image, box):
    """Image [H, W, C] and boxes [..., 4], mirrored left to right every second time."""
    turned = jax.random.bernoulli(key)
    width = image.shape[1]
    x0, y0, x1, y1 = jnp.moveaxis(box, -1, 0)
    mirrored = jnp.stack([width - x1, y0, width - x0, y1], -1)
    return jnp.where(turned, image[:, ::-1], image), jnp.where(turned, mirrored, box)


ASPECT = 1.1  # factors of width and height are at most so far apart


def zoom(key, image, box, *, scale=(0.8, 1.25), shift=0.1):
    """Image [H, W, C] and boxes [..., 4], scaled about the middle and moved: see `photo`.

    Bilinear, without smoothing before it shrinks.
    """
    factor, moved = zoomed(key, image.shape, scale, shift)
    by, to = (jnp.broadcast_to(jnp.tile(v[::-1], 2), box.shape) for v in (factor, moved))
    return mapped(image, factor, moved), boxes.clip(box * by + to, *image.shape[:2])


def zoomed(key, shape, scale, shift):
    """Factors of height and width, and by how many pixels rows and columns move, [2] each."""
    draw = jax.random.uniform(key, (5,), minval=-1.0)  # one, two for the aspect, two for the place
    low, high = jnp.log(jnp.asarray(scale))
    both = (low + high + draw[0] * (high - low)) / 2
    factor = jnp.exp(both + draw[1:3] * math.log(ASPECT) / 2)
    sides = jnp.asarray(shape[:2], jnp.float32)
    return factor, sides * (1 - factor) / 2 + draw[3:] * shift * sides


def mapped(image, factor, moved):
    """Image [H, W, C] whose row r and column c go to (r, c) * factor + moved; beyond is grey.

    Bilinear: rows between two rows, then columns.  On a CPU five times as fast as
    `jax.image.scale_and_translate`, which multiplies by a matrix.
    """
    for axis in (0, 1):
        image = _resampled(image, axis, factor[axis], moved[axis])
    return image


def _resampled(image, axis, factor, moved):
    """`mapped` along one axis."""
    length = image.shape[axis]
    place = (jnp.arange(length) + 0.5 - moved) / factor - 0.5
    others = [i for i in range(image.ndim) if i != axis]
    inside = jnp.expand_dims(jnp.abs(2 * place + 1 - length) <= length, others)
    before = jnp.floor(place).astype(int)
    after = jnp.expand_dims(place - before, others)
    low, high = (jnp.take(image, before + i, axis, mode="clip") for i in (0, 1))
    return jnp.where(inside, low * (1 - after) + high * after, GREY)


def turned(image, angle):
    """Image [H, W, C] turned counter-clockwise about its middle by `angle` radians; beyond is grey.

    Bilinear.
    """
    height, width = image.shape[:2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = jnp.arange(width) + 0.5 - width / 2, jnp.arange(height) + 0.5 - height / 2
    column = cos * x[None] - sin * y[:, None] + width / 2 - 0.5  # [H, W]: where a pixel was
    row = sin * x[None] + cos * y[:, None] + height / 2 - 0.5
    return _bilinear(image, row, column, outside=GREY)


def lighting(key, image, *, light=0.3):
    """Image with brightness and contrast changed by up to `light`, kept within [0, 1]."""
    brighter, contrast = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    image = dm_pix.random_brightness(brighter, image, light)
    image = dm_pix.random_contrast(contrast, image, 1 - light, 1 + light)
    return jnp.clip(image, 0, 1)


def cutout(key, image, grey, *, count=1, side=0.5):
    """Image [H, W, C] with `count` rectangles of up to `side` of its sides in the level `grey`.

    Their middles are anywhere.  DeVries and Taylor 2017, arXiv:1708.04552, whose square is one.
    """
    height, width = image.shape[:2]
    draw = jax.random.uniform(key, (count, 4))
    whole = jnp.float32([[height, width]])
    middle, half = draw[:, :2] * whole, draw[:, 2:] * whole * side / 2
    rows, columns = jnp.arange(height)[None] + 0.5, jnp.arange(width)[None] + 0.5
    down = jnp.abs(rows - middle[:, :1]) < half[:, :1]  # [count, H]
    across = jnp.abs(columns - middle[:, 1:]) < half[:, 1:]
    hidden = (down[:, :, None] & across[:, None]).any(0)[..., None]
    return jnp.where(hidden, jnp.asarray(grey, image.dtype), image)


def shifted(key, image, *, pad=4):
    """Image [H, W, C] padded by `pad` pixels of 0 on all sides, and cropped back anywhere.

    Lee et al. 2015, arXiv:1409.5185.
    """
    edged = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    place = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(edged, (*place, 0), image.shape)


def mixup(keys, images, wanted, *, alpha=0.2):
    """Images [B, ...] mixed with the next of the batch, and their `wanted [B, K]` as much.

    The share of the first is from Beta(alpha, alpha).  Zhang et al. 2017, arXiv:1710.09412.
    """
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)

    def mixed(of):
        by = share.reshape(-1, *(1,) * (of.ndim - 1))
        return by * of + (1 - by) * jnp.roll(of, -1, 0)

    return mixed(images), mixed(wanted)


def _patch_side(shape, scale):
    """Side of a square that holds the digit at any angle, and the pixel that bilinear blur adds."""
    return math.ceil(max(scale) * math.sqrt(2) * (max(shape) + 1))


def _turn(digit, angle, zoom, side):
    """Digit turned counter-clockwise by `angle` radians about the centre of its ink, then scaled.

    [side, side] with that centre in the middle; it keeps its fraction of a pixel, so that angle 0
    and zoom 1 copy the pixels exactly.
    """
    corners = boxes.mask_to_box(digit)
    middle = (corners[:2] + corners[2:]) / 2
    pixels = jnp.arange(side) + 0.5
    x, y = pixels[None] - (side // 2 + middle % 1)[:, None]  # from the centre, each [side]
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    column = middle[0] + cos * x[None, :] - sin * y[:, None]  # [side, side]
    row = middle[1] + sin * x[None, :] + cos * y[:, None]
    return _bilinear(digit[..., None], row - 0.5, column - 0.5)[..., 0]


def _bilinear(image, row, column, outside=0.0):
    """Values [H, W, C] of image [h, w, C] at row, column [H, W], counted between pixel centres.

    outside: the level beyond the edge.  The four neighbours of a place lie side by side in a table:
    one gather instead of four, which makes `place` nearly twice as fast on a CPU.
    """
    height, width = image.shape[:2]
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    top, left = jnp.floor(row).astype(int), jnp.floor(column).astype(int)
    down, right = (row - top)[..., None], (column - left)[..., None]
    edged = jnp.pad(image, ((1, 2), (1, 2), (0, 0)), constant_values=outside)
    corners = edged[:-1, :-1], edged[:-1, 1:], edged[1:, :-1], edged[1:, 1:]
    table = jnp.stack(corners, axis=2)  # [h + 2, w + 2, 4, C]
    near = table.at[top + 1, left + 1].get(mode="promise_in_bounds")  # [H, W, 4, C]
    upper = near[:, :, 0] * (1 - right) + near[:, :, 1] * right
    lower = near[:, :, 2] * (1 - right) + near[:, :, 3] * right
    return upper * (1 - down) + lower * down


def _eight_bits(values):
    return jnp.round(values * 255) / 255


def _put(key, patch, canvas):
    """The canvas [canvas, canvas] with the ink of a patch at a random place wholly inside."""
    corners = boxes.mask_to_box(patch).astype(int)
    room = canvas - (corners[2:] - corners[:2])
    corner = jax.random.randint(key, (2,), 0, room + 1)  # x, y where the ink begins
    x, y = canvas + corners[:2] - corner
    return jax.lax.dynamic_slice(jnp.pad(patch, canvas), (y, x), (canvas, canvas))
