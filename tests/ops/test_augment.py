from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.data import digits
from jaxdet.ops import augment, keys
from jaxdet.types import InputError
from tests import slow

LEVEL = 1.01 / 255  # rounding may fall either way between two programs
STILL = {"rotate": 0.0, "scale": (1.0, 1.0)}
DIGITS = jnp.asarray(digits.embedded().arrays["image"][:48] / np.float32(255))
FULL = jnp.ones((28, 28))
turn = jax.jit(augment._turn, static_argnames="side")


def batch(images=DIGITS, seed=0, **options):
    """A canvas and a box of every image, each with its own key."""
    each = keys.per_row(jax.random.key(seed), jnp.arange(len(images)))
    return jax.jit(jax.vmap(partial(augment.place, **options)))(each, images)


def copies(image, count):
    return jnp.broadcast_to(image, (count, *image.shape))


def inside(image, box):
    """The pixels of an image [H, W] within a box."""
    x0, y0, x1, y1 = np.asarray(box, int)
    return np.asarray(image)[y0:y1, x0:x1]


def centre_of_mass(image):
    """Where the ink of an image [H, W] is on average: x, y."""
    rows, columns = np.indices(image.shape) + 0.5
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.mark.parametrize("options", [{}, {"rotate": 180.0, "canvas": 52}, STILL])
def test_a_canvas_holds_one_digit_in_its_tight_box(options):
    images, corners = batch(**options)
    canvas = options.get("canvas", 64)
    chex.assert_shape(images, (48, canvas, canvas, 1))
    chex.assert_type([images, corners], jnp.float32)
    assert (images >= 0).all() and (images <= 1).all()
    np.testing.assert_allclose(images * 255, np.round(images * 255), rtol=1e-6)
    for image, box in zip(images[..., 0], corners, strict=True):
        np.testing.assert_array_equal(box, slow.tight_box(np.asarray(image)))
        assert image.max() > 0.5


@pytest.mark.parametrize("zoom", [0.75, 1.0, 1.25])
@pytest.mark.parametrize("digit", [DIGITS[3], FULL], ids=["scan", "full"])
def test_the_ink_is_whole_at_any_angle(digit, zoom):
    images, _ = batch(copies(digit, 48), rotate=180.0, scale=(zoom, zoom))
    ink = images.sum(axis=(1, 2, 3)) / (digit.sum() * zoom**2)
    np.testing.assert_allclose(ink, 1, atol=0.03)


def test_the_canvas_changes_where_the_digit_lies_and_nothing_else():
    for small, near, large, far in zip(*batch(), *batch(canvas=150), strict=True):
        ink = inside(large[..., 0], far)
        np.testing.assert_allclose(inside(small[..., 0], near), ink, atol=LEVEL)


def test_without_turn_or_scale_the_pixels_are_copied():
    for digit, image, box in zip(DIGITS, *batch(**STILL), strict=True):
        ink = inside(digit, slow.tight_box(np.asarray(digit)))
        np.testing.assert_allclose(inside(image[..., 0], box), ink, rtol=1e-6)


@pytest.mark.parametrize("sides", [(20, 20), (13, 19)])
@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_go_counter_clockwise(quarters, sides):
    ink = jax.random.uniform(jax.random.key(0), sides, minval=0.1)
    digit = jnp.pad(ink, ((2, 26 - sides[0]), (5, 23 - sides[1])))
    patch = turn(digit, quarters * jnp.pi / 2, 1.0, side=52)
    found = inside(patch, slow.tight_box(np.asarray(patch) > 0.01))
    np.testing.assert_allclose(found, np.rot90(ink, quarters), atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 47), st.floats(-np.pi, np.pi), st.floats(0.5, 1.5))
def test_turning_is_the_loop(index, angle, zoom):
    expected = slow.turned(np.asarray(DIGITS[index]), angle, zoom, 40)
    found = turn(DIGITS[index], angle, zoom, side=40)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("rotate", [30.0, 180.0])
def test_all_angles_asked_for_are_drawn(rotate):
    bar = jnp.zeros((28, 28)).at[12:16, 4:24].set(0.1).at[12:16, 20:24].set(1.0)
    images, corners = batch(copies(bar, 400), rotate=rotate, scale=(1.0, 1.0), canvas=52)
    heavy = np.array([centre_of_mass(image) for image in np.asarray(images[..., 0])])
    x, y = (heavy - (corners[:, :2] + corners[:, 2:]) / 2).T
    angle = np.rad2deg(np.arctan2(-y, x))
    assert -rotate - 3 < angle.min() < 5 - rotate and rotate - 5 < angle.max() < rotate + 3
    assert abs(angle.mean()) < rotate / 10


def test_all_scales_asked_for_are_drawn():
    _, corners = batch(copies(FULL, 400), rotate=0.0)
    width = corners[:, 2] - corners[:, 0]
    assert 20 <= width.min() <= 23 and 35 <= width.max() <= 37


def test_every_place_is_equally_likely():
    dot = jnp.zeros((8, 8)).at[2:6, 1:5].set(1.0)
    count, places = 5200, 13  # where 4 pixels of 16 can begin
    _, corners = batch(copies(dot, count), canvas=16, **STILL)
    corners = np.asarray(corners, int)
    seen = np.zeros((places, places), int)
    np.add.at(seen, (corners[:, 0], corners[:, 1]), 1)
    assert (seen > 0).all()
    for along in (seen.sum(axis=0), seen.sum(axis=1)):
        np.testing.assert_allclose(along, count / places, atol=5 * np.sqrt(count / places))


def test_the_key_decides():
    first, again, other = batch(seed=1), batch(seed=1), batch(seed=2)
    chex.assert_trees_all_equal(first, again)
    assert (first[0] != other[0]).any(axis=(1, 2, 3)).all()
    images, _ = batch(copies(DIGITS[0], 20))
    assert len({np.asarray(image).tobytes() for image in images}) == 20


def test_plain_jit_and_vmap_agree():
    images, corners = batch(DIGITS[:3])
    each = keys.per_row(jax.random.key(0), jnp.arange(3))
    for run in (augment.place, jax.jit(augment.place)):
        for i in range(3):
            image, box = run(each[i], DIGITS[i])
            np.testing.assert_allclose(image, images[i], atol=LEVEL)
            np.testing.assert_allclose(box, corners[i], atol=1)


def test_a_digit_without_ink_leaves_the_canvas_empty():
    image, box = augment.place(jax.random.key(0), jnp.zeros((28, 28)))
    assert not image.any() and not box.any()


def test_a_canvas_too_small_is_named_with_what_it_must_hold():
    with pytest.raises(InputError, match="canvas 51 .* 52 "):
        augment.place(jax.random.key(0), FULL, canvas=51)


@pytest.mark.parametrize("digit", [FULL[..., None], FULL.astype(jnp.uint8)])
def test_a_digit_is_one_plane_of_floats(digit):
    with pytest.raises(AssertionError):
        augment.place(jax.random.key(0), digit)
