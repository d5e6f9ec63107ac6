"""Random image-and-box transforms, made to run inside the compiled step.

`key` comes first, options are keyword-only and static, and a function takes one image: `jax.vmap`
over keys and images makes the batch.  Values are floats in [0, 1], lengths are in pixels, angles
in degrees.
"""

import math

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import boxes
from jaxdet.types import InputError

ANGLE, ZOOM, PLACE = range(3)  # purposes: one key each


def place(key, digit, *, canvas=64, rotate=30.0, scale=(0.75, 1.25)):
    """One whole digit [h, w], turned, scaled and put anywhere on an empty square canvas.

    Draws uniformly an angle within +-`rotate` degrees, a factor within `scale`, and a place among
    all that keep the ink inside.  Returns the image [canvas, canvas, 1] in steps of 1/255, as if
    stored in 8 bits, and the tight box [4] of its ink (`> 0`).  A digit without ink gives an empty
    canvas and a zero box.  InputError when a turned digit might not fit the canvas.
    """
    chex.assert_rank(digit, 2)
    side = _patch_side(digit.shape, scale)
    if canvas < side:
        raise InputError(f"canvas {canvas} is smaller than {side}, a turned digit's patch")
    angle = jax.random.uniform(jax.random.fold_in(key, ANGLE), minval=-rotate, maxval=rotate)
    zoom = jax.random.uniform(jax.random.fold_in(key, ZOOM), minval=scale[0], maxval=scale[1])
    patch = _eight_bits(_turn(digit, jnp.deg2rad(angle), zoom, side))
    image = _put(jax.random.fold_in(key, PLACE), patch, canvas)
    return image[..., None], boxes.tight(image)


def _patch_side(shape, scale):
    """Side of a square that holds the digit at any angle, with the pixel that bilinear blur adds."""
    return math.ceil(max(scale) * math.sqrt(2) * (max(shape) + 1))


def _turn(digit, angle, zoom, side):
    """Digit turned counter-clockwise by `angle` radians about the centre of its ink, then scaled.

    [side, side], that centre in the middle; it keeps its fraction of a pixel, so that angle 0 and
    zoom 1 copy the pixels exactly.
    """
    corners = boxes.tight(digit)
    middle = (corners[:2] + corners[2:]) / 2  # x, y
    away = jnp.arange(side)[None] + 0.5 - (side // 2 + middle % 1)[:, None]  # [2, side]
    x, y = away[0][None, :] / zoom, away[1][:, None] / zoom
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _bilinear(digit, middle[0] + cos * x - sin * y - 0.5, middle[1] + sin * x + cos * y - 0.5)


def _bilinear(image, x, y):
    """Values of image [h, w] at x, y [side, side], where pixel 0 is centred at 0; outside is 0.

    The four neighbours lie side by side in one table: one gather instead of four, which the CPU
    does three times as fast.
    """
    height, width = image.shape
    x, y = jnp.clip(x, -1, width), jnp.clip(y, -1, height)
    column, row = jnp.floor(x).astype(int), jnp.floor(y).astype(int)
    edged = jnp.pad(image, ((1, 2), (1, 2)))
    table = jnp.stack([edged[:-1, :-1], edged[:-1, 1:], edged[1:, :-1], edged[1:, 1:]], axis=-1)
    near = table[row + 1, column + 1]  # [side, side, 4]
    right, down = x - column, y - row
    upper = near[..., 0] * (1 - right) + near[..., 1] * right
    lower = near[..., 2] * (1 - right) + near[..., 3] * right
    return upper * (1 - down) + lower * down


def _eight_bits(values):
    return jnp.round(values * 255) / 255


def _put(key, patch, canvas):
    """The canvas [canvas, canvas] with the ink of a patch at a random place wholly inside."""
    corners = boxes.tight(patch).astype(int)
    room = canvas - (corners[2:] - corners[:2])
    corner = jax.random.randint(key, (2,), 0, room + 1)  # x, y where the ink begins
    x, y = canvas + corners[:2] - corner
    return jax.lax.dynamic_slice(jnp.pad(patch, canvas), (y, x), (canvas, canvas))
