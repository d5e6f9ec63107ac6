from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import rng
from jaxdet.data import digits
from jaxdet.errors import InputError
from jaxdet.ops import augment
from tests.reference import augment as reference_augment
from tests.reference import boxes as reference_boxes

ROUNDING = 1.01 / 255  # two programs may round to different multiples of 1/255
ROTATED = {"scale": (1.0, 1.0), "canvas": 42}
UNCHANGED = {"degrees": 0.0, **ROTATED}
COUNT = 48
DIGITS = digits.embedded().arrays["image"][:COUNT] / np.float32(255)
FULL = np.ones((28, 28), np.float32)
rotate_and_scale = jax.jit(augment._rotate_and_scale, static_argnames="side")


@partial(jax.jit, static_argnames=("scale", "canvas"))
def placed(images, seed, **options):
    keys = rng.row_keys(jax.random.key(seed), jnp.arange(len(images)))
    return jax.vmap(partial(augment.place_on_canvas, **options))(keys, images)


def batch(images=DIGITS, seed=0, degrees=30.0, **options):
    """Canvases and boxes of images, each with its own key, on the host."""
    return jax.device_get(placed(images, seed, degrees=degrees, **options))


def batches(image, times=9, **options):
    """Canvases and boxes of `times` batches of 48 copies of one image."""
    found = [batch(copies(image), seed, **options) for seed in range(times)]
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def copies(image):
    return np.broadcast_to(image, (COUNT, *image.shape))


def crop(image, box):
    """The pixels of an image [H, W] inside a box."""
    x0, y0, x1, y1 = np.asarray(box, int)
    return image[y0:y1, x0:x1]


def center_of_mass(image):
    """Mean position (x, y) of the foreground of an image [H, W]."""
    rows, columns = np.indices(image.shape) + 0.5
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.mark.parametrize("options", [{}, {"degrees": 180.0, "canvas": 52}, UNCHANGED])
def test_a_canvas_holds_one_digit_in_its_tight_box(options):
    images, boxes = batch(**options)
    canvas = options.get("canvas", 64)
    chex.assert_shape(images, (48, canvas, canvas, 1))
    chex.assert_type([images, boxes], np.float32)
    assert (images >= 0).all() and (images <= 1).all()
    np.testing.assert_allclose(images * 255, np.round(images * 255), rtol=1e-6)
    for image, box in zip(images[..., 0], boxes, strict=True):
        np.testing.assert_array_equal(box, reference_boxes.mask_to_box(image))
        assert image.max() > 0.5


@pytest.mark.parametrize("scale, canvas", [(0.75, 64), (1.0, 42), (1.25, 64)])
@pytest.mark.parametrize("digit", [DIGITS[3], FULL], ids=["scan", "full"])
def test_the_digit_is_whole_at_any_angle(digit, scale, canvas):
    images, _ = batch(copies(digit), degrees=180.0, scale=(scale, scale), canvas=canvas)
    ratio = images.sum(axis=(1, 2, 3)) / (digit.sum() * scale**2)
    np.testing.assert_allclose(ratio, 1, atol=0.03)


def test_the_canvas_size_affects_only_the_position():
    for small, near, large, far in zip(*batch(canvas=52), *batch(), strict=True):
        expected = crop(large[..., 0], far)
        np.testing.assert_allclose(crop(small[..., 0], near), expected, atol=ROUNDING)


def test_pixels_are_copied_without_rotation_and_scaling():
    for digit, image, box in zip(DIGITS, *batch(**UNCHANGED), strict=True):
        expected = crop(digit, reference_boxes.mask_to_box(digit))
        np.testing.assert_allclose(crop(image[..., 0], box), expected, rtol=1e-6)


@pytest.mark.parametrize("sides", [(20, 20), (13, 19)])
@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_are_counter_clockwise(quarters, sides):
    foreground = np.random.default_rng(0).uniform(0.1, 1, sides).astype(np.float32)
    digit = np.pad(foreground, ((2, 26 - sides[0]), (5, 23 - sides[1])))
    patch = np.asarray(rotate_and_scale(digit, quarters * np.pi / 2, 1.0, side=40))
    found = crop(patch, reference_boxes.mask_to_box(patch > 0.01))
    np.testing.assert_allclose(found, np.rot90(foreground, quarters), atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 47), st.floats(-np.pi, np.pi), st.floats(0.5, 1.5))
def test_rotation_and_scaling_match_the_reference(index, angle, scale):
    expected = reference_augment.rotate_and_scale_digit(DIGITS[index], angle, scale, 40)
    found = rotate_and_scale(DIGITS[index], angle, scale, side=40)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("degrees", [30.0, 180.0])
def test_angles_cover_the_whole_range(degrees):
    bar = np.zeros((28, 28), np.float32)
    bar[12:16, 4:24], bar[12:16, 20:24] = 0.1, 1.0
    images, boxes = batches(bar, degrees=degrees, **ROTATED)
    heavy = np.array([center_of_mass(image) for image in images[..., 0]])
    x, y = (heavy - (boxes[:, :2] + boxes[:, 2:]) / 2).T
    angle = np.rad2deg(np.arctan2(-y, x))
    assert -degrees - 3 < angle.min() < 5 - degrees and degrees - 5 < angle.max() < degrees + 3
    assert abs(angle.mean()) < degrees / 10


def test_scales_cover_the_whole_range():
    _, boxes = batches(FULL, degrees=0.0)
    width = boxes[:, 2] - boxes[:, 0]
    assert 20 <= width.min() <= 23 and 35 <= width.max() <= 37


def test_positions_are_uniform():
    _, boxes = batches(FULL, times=110, **UNCHANGED)
    boxes = boxes.astype(int)
    count, positions = len(boxes), 15  # where 28 pixels of 42 can begin
    seen = np.zeros((positions, positions), int)
    np.add.at(seen, (boxes[:, 0], boxes[:, 1]), 1)
    assert (seen > 0).all()
    for marginal in (seen.sum(axis=0), seen.sum(axis=1)):
        np.testing.assert_allclose(marginal, count / positions, atol=5 * np.sqrt(count / positions))


def test_results_depend_on_the_key_alone():
    first, again, other = batch(seed=1), batch(seed=1), batch(seed=2)
    chex.assert_trees_all_equal(first, again)
    assert (first[0] != other[0]).any(axis=(1, 2, 3)).all()
    images, _ = batch(copies(DIGITS[0]))
    assert len({image.tobytes() for image in images}) == COUNT


def test_eager_jit_and_vmap_agree():
    images, boxes = batch()
    for run in (augment.place_on_canvas, jax.jit(augment.place_on_canvas)):
        for i in range(3):
            image, box = run(jax.random.fold_in(jax.random.key(0), i), DIGITS[i])
            np.testing.assert_allclose(image, images[i], atol=ROUNDING)
            np.testing.assert_allclose(box, boxes[i], atol=1)


def test_an_empty_image_gives_an_empty_canvas():
    images, boxes = batch(np.zeros_like(DIGITS))
    assert not images.any() and not boxes.any()


def test_a_canvas_that_is_too_small_is_rejected():
    with pytest.raises(InputError, match="canvas must be at least 52 pixels, got 51"):
        augment.place_on_canvas(jax.random.key(0), FULL, canvas=51)


@pytest.mark.parametrize("digit", [FULL[..., None], FULL.astype(np.uint8)])
def test_the_image_must_be_two_dimensional_and_float(digit):
    with pytest.raises(AssertionError):
        augment.place_on_canvas(jax.random.key(0), digit)
