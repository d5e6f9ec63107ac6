"""The resizing of Pillow inside a program, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdet.data import images
from jaxdet.ops import resize

SIZES = [(1, 1), (3, 40), (40, 3), (37, 29), (24, 32), (16, 11), (90, 100), (100, 7), (97, 61)]
CANVAS = 24, 32


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def padded(pictures):
    """The pictures in the upper left corner of one array, and their sizes."""
    batch = np.full((len(pictures), 100, 100, 3), 77, np.uint8)
    for place, picture in zip(batch, pictures, strict=True):
        place[: len(picture), : picture.shape[1]] = picture
    return batch, np.int32([picture.shape[:2] for picture in pictures])


@jax.jit
def letterboxed(batch, sizes):
    def one(args):
        image, size = args
        inner, offset = resize.letterbox_geometry(size, *CANVAS)
        first = resize.shrinks_rows_first(size, inner) if images.shrinks_rows_first() else False
        fill = images.LETTERBOX_FILL
        return resize.letterbox(
            image, size, inner, offset, shape=CANVAS, fill=fill, rows_first=first
        )

    return jax.lax.map(one, (batch, sizes))


def test_images_at_the_top_left_equal_those_of_the_reader(pictures):
    @jax.jit
    @jax.vmap
    def placed(image, size):
        inner, offset = resize.letterbox_geometry(size, *CANVAS, centered=False)
        fill = images.LETTERBOX_FILL
        canvas = resize.letterbox_top_left(image, size, inner, shape=CANVAS, fill=fill)
        return canvas, inner, offset

    found = zip(*placed(*padded(pictures)), pictures, strict=True)
    for canvas, inner, offset, picture in found:
        expected, size = images.read_letterboxed(Image.fromarray(picture), *CANVAS, images.TOP_LEFT)
        np.testing.assert_array_equal(canvas, expected)
        scale, _ = images.letterbox_transform(size, *CANVAS, images.TOP_LEFT)
        np.testing.assert_allclose(scale[::-1] * size, inner, rtol=1e-6)
        assert not np.asarray(offset).any()


@jax.jit
@jax.vmap
def stretched(image, size, rows_first):
    inner, zeros = jnp.array(CANVAS, jnp.int32), jnp.zeros(2, jnp.int32)
    return resize.letterbox(image, size, inner, zeros, shape=CANVAS, fill=0, rows_first=rows_first)


def test_letterboxed_images_equal_those_of_the_reader(pictures):
    found = letterboxed(*padded(pictures))
    for one, picture in zip(found, pictures, strict=True):
        expected, _ = images.read_letterboxed(Image.fromarray(picture), *CANVAS)
        np.testing.assert_array_equal(one, expected)


def test_both_orders_of_the_passes(pictures):
    batch, sizes = padded(pictures)
    rows_first = np.arange(len(sizes)) % 2 == 0
    for one, picture, first in zip(
        stretched(batch, sizes, rows_first), pictures, rows_first, strict=True
    ):
        image = Image.fromarray(picture)
        between = (image.width, CANVAS[0]) if first else (CANVAS[1], image.height)
        for width, height in (between, CANVAS[::-1]):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(one, image)


def test_pillow_chooses_the_order_by_the_removed_rows_and_columns():
    random = np.random.default_rng(1)
    for _ in range(200):
        (h, w), (rows, columns) = random.integers(1, 60, (2, 2)).tolist()
        image = Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8))
        first = resize.shrinks_rows_first(np.int32([h, w]), np.int32([rows, columns]))
        between = (w, rows) if first and images.shrinks_rows_first() else (columns, h)
        once, twice = (
            start.resize((columns, rows), Image.Resampling.BILINEAR)
            for start in (image, image.resize(between, Image.Resampling.BILINEAR))
        )
        np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("canvas", [(416, 608), (96, 128)])
def test_the_geometry_equals_that_of_the_reader(canvas):
    random = np.random.default_rng(0)
    ties = [(169, 832), (704, 55)]  # sides that lie halfway between two integers
    sizes = np.int32([*ties, *random.integers(1, 3000, (300, 2))])
    geometry = jax.jit(jax.vmap(lambda size: resize.letterbox_geometry(size, *canvas)))
    inner, offsets = geometry(sizes)
    for size, own, offset in zip(sizes.tolist(), inner, offsets, strict=True):
        scale, place = images.letterbox_transform(tuple(size), *canvas)
        np.testing.assert_array_equal(np.rint(scale * size[::-1]), own[::-1])
        np.testing.assert_array_equal(place, offset[::-1])


def test_gray_equals_the_conversion_of_pillow():
    colors = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)
    expected = np.asarray(Image.fromarray(colors).convert("L"))
    np.testing.assert_array_equal(jax.jit(resize.gray)(colors)[..., 0], expected)
