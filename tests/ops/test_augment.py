from collections import Counter
from functools import partial
from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import rng
from jaxdet.ops import augment, boxes
from jaxdet.training import parallel
from tests.reference import augment as reference

HEIGHT, WIDTH = 48, 64
BOX = (16, 14, 40, 30)
BRIGHT = 0.95  # pixel value of the object; the background is darker


def sample(box=BOX, background=0.2, slots=3):
    """A sample with one bright rectangle, in the second of its slots."""
    x0, y0, x1, y1 = box
    image = np.full((HEIGHT, WIDTH, 3), background, np.float32)
    image[y0:y1, x0:x1] = BRIGHT
    used = np.arange(slots) == 1
    return augment.Sample(
        image=image,
        boxes=np.where(used[:, None], np.float32(box), 0.0).astype(np.float32),
        labels=np.where(used, 2, 0),
        valid=used,
        crowd=np.zeros(slots, bool),
    )


def transformed(transform, count=24, before=None):
    """The transform of one sample with `count` keys, on the host."""
    keys = jax.random.split(jax.random.key(0), count)
    run = jax.jit(jax.vmap(transform, in_axes=(0, None)))
    return jax.device_get(run(keys, sample() if before is None else before))


def unstacked(samples):
    return [jax.tree.map(itemgetter(i), samples) for i in range(len(samples.image))]


def bright_box(image, threshold=0.6):
    """The tight box of the bright pixels of an image, or None."""
    y, x = np.nonzero(image[..., 0] > threshold)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(x) else None


# Geometry.

GEOMETRIC = {  # transform, tolerance in pixels
    "random_flip": (augment.random_flip, 0.0),
    "random_vertical_flip": (augment.random_vertical_flip, 0.0),
    "random_scale_translate": (partial(augment.random_scale_translate, translate=0.3), 1.0),
    "random_resized_crop": (augment.random_resized_crop, 1.5),
    "random_rotate": (augment.random_rotate, 1.5),
}


@pytest.mark.parametrize("transform, tolerance", GEOMETRIC.values(), ids=GEOMETRIC)
def test_boxes_follow_their_pixels(transform, tolerance):
    seen = set()
    for after in unstacked(transformed(transform)):
        assert (after.image >= 0).all() and (after.image <= 1).all()
        assert not after.valid[[0, 2]].any()
        if after.valid[1]:
            np.testing.assert_allclose(after.boxes[1], bright_box(after.image), atol=tolerance)
            seen.add(tuple(after.boxes[1]))
    assert len(seen) == (2 if tolerance == 0 else 24)


def test_boxes_follow_padded_and_cropped_pixels():
    seen = set()
    for after in unstacked(transformed(partial(augment.pad_and_crop, pad=5))):
        np.testing.assert_array_equal(after.boxes[1], bright_box(after.image))
        seen.add(tuple(after.boxes[1]))
    assert len(seen) > 15


def test_flipping_vertically_twice_is_the_identity():
    flip = jax.jit(augment.random_vertical_flip)
    for seed in range(4):
        key, before = jax.random.key(seed), sample()
        once = flip(key, before)
        jax.tree.map(np.testing.assert_array_equal, flip(key, once), before)
        if not np.array_equal(once.image, before.image):
            np.testing.assert_array_equal(once.image, before.image[::-1])


def test_objects_that_are_barely_visible_become_invalid():
    transform = partial(augment.random_scale_translate, scale=(1.0, 1.0), translate=1.0)
    samples = unstacked(transformed(transform, 60))
    area = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    for after in samples:
        box = bright_box(after.image)
        visible = 0 if box is None else np.prod(box[2:] - box[:2]) / area
        if abs(visible - augment.MIN_VISIBLE) > 0.1:
            assert after.valid[1] == (visible > augment.MIN_VISIBLE)
    assert 0.1 < np.mean([after.valid[1] for after in samples]) < 0.9


def test_rotation_matches_the_reference_and_boxes_contain_the_corners(monkeypatch):
    image = np.random.default_rng(0).random((11, 17, 3), np.float32)
    box = np.float32([[5, 3, 12, 8]])
    before = augment.Sample(image, box, np.zeros(1, int), np.ones(1, bool), np.zeros(1, bool))
    for angle in (-0.5, 0.3, np.pi / 2):
        monkeypatch.setattr(jax.random, "uniform", lambda *_, a=angle, **__: jnp.rad2deg(a))
        found = augment.random_rotate(jax.random.key(0), before)
        np.testing.assert_allclose(found.image, reference.rotate(image, angle), atol=1e-5)
        x, y = np.array([(x, y) for x in (5, 12) for y in (3, 8)]).T - [[8.5], [5.5]]
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        corners = [x.min() + 8.5, y.min() + 5.5, x.max() + 8.5, y.max() + 5.5]
        np.testing.assert_allclose(found.boxes[0], np.clip(corners, 0, [17, 11, 17, 11]), rtol=1e-4)


@pytest.mark.parametrize(
    "scale, offset", [((1.3, 0.8), (-2.2, 3.0)), ((1, 1), (0, 0)), ((2, 2), (-9, 1))]
)
def test_scale_translate_matches_the_reference(scale, offset):
    image = np.random.default_rng(0).random((11, 17, 3), np.float32)
    found = jax.jit(augment.scale_translate)(image, jnp.float32(scale), jnp.float32(offset))
    np.testing.assert_allclose(found, reference.scale_translate(image, scale, offset), atol=1e-5)


def test_crops_have_the_given_area_and_aspect_ratio():
    before = sample((0, 0, WIDTH, HEIGHT))._replace(image=_position_image())
    for area, aspect in ((0.25, 1.0), (0.5, 1.5)):
        transform = partial(augment.random_resized_crop, area=(area, area), aspect=aspect)
        for after in unstacked(transformed(transform, 12, before)):
            rows, columns = (np.ptp(after.image[4:-4, 4:-4, i]) for i in (0, 1))
            height, width = rows * HEIGHT / (HEIGHT - 9), columns * WIDTH / (WIDTH - 9)
            assert height * width == pytest.approx(area, rel=0.05)
            assert 1 / aspect - 0.05 <= width / height <= aspect + 0.05


def _position_image():
    """An image whose first two channels are the row and column, as fractions of the sides."""
    rows, columns = np.meshgrid(
        (np.arange(HEIGHT) + 0.5) / HEIGHT, (np.arange(WIDTH) + 0.5) / WIDTH, indexing="ij"
    )
    return np.stack([rows, columns, rows], -1).astype(np.float32)


# Appearance.

PHOTOMETRIC = {
    "brightness_contrast": augment.brightness_contrast,
    "color_jitter": augment.color_jitter,
    "gaussian_noise": augment.gaussian_noise,
    "cutout": partial(augment.cutout, count=4, size=0.2),
}


@pytest.mark.parametrize("transform", PHOTOMETRIC.values(), ids=PHOTOMETRIC)
def test_photometric_transforms_change_the_image_alone(transform):
    before = sample()
    before.image[..., 1] *= 0.5
    for after in unstacked(transformed(transform, 6, before)):
        assert (after.image >= 0).all() and (after.image <= 1).all()
        assert not np.allclose(after.image, before.image)
        for name in ("boxes", "labels", "valid", "crowd"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_strength_of_noise_and_size_of_cutout_are_bounds():
    gray = sample()._replace(image=np.full((HEIGHT, WIDTH, 3), 0.45, np.float32))
    noise = partial(augment.gaussian_noise, strength=0.1)
    stds = [after.image.std() for after in unstacked(transformed(noise, 40, gray))]
    assert 0 <= min(stds) < 0.02 < 0.08 < max(stds) < 0.105
    cutout = partial(augment.cutout, count=1, size=0.5)
    for after in unstacked(transformed(cutout, 40, gray)):
        y, x = np.nonzero(after.image[..., 0] == augment.GRAY)
        assert not len(y) or (np.ptp(y) <= HEIGHT / 2 and np.ptp(x) <= WIDTH / 2)


# Combining transforms.


def add(value):
    """A transform that adds to the boxes."""
    return lambda key, sample: sample._replace(boxes=sample.boxes + value)


def multiply(value):
    return lambda key, sample: sample._replace(boxes=sample.boxes * value)


def results(transform, count=300):
    """{number: how often a transform of boxes turns 1 into it}."""
    start = sample()._replace(boxes=np.ones((3, 4), np.float32))
    return Counter(float(box[0, 0]) for box in transformed(transform, count, start).boxes)


def test_compose_applies_all_in_order_with_a_key_each():
    assert results(augment.compose(add(1), multiply(10)), 3) == {20: 3}
    twice = transformed(augment.compose(augment.gaussian_noise, augment.gaussian_noise), 3)
    once = transformed(augment.gaussian_noise, 3)
    assert not np.allclose(twice.image, once.image)


def test_random_apply_has_the_given_probability():
    found = results(augment.random_apply(0.3, add(1)))
    assert set(found) == {1, 2} and 60 < found[2] < 120


def test_some_of_applies_that_many_in_order():
    transforms = add(1), multiply(10), add(100)
    found = results(augment.some_of(2, *transforms))
    assert set(found) == {20.0, 102.0, 110.0} and min(found.values()) > 70
    found = results(augment.one_of(*transforms))
    assert set(found) == {2.0, 10.0, 101.0} and min(found.values()) > 70


def test_random_order_is_uniform():
    found = results(augment.random_order(add(1), multiply(10), multiply(2)))
    orders = Counter({40: 1 / 3, 30: 1 / 6, 22: 1 / 6, 21: 1 / 3})  # of 1: 2 * 10 * 2, ...
    assert set(found) <= {40.0, 22.0, 30.0, 21.0}
    assert {k: pytest.approx(v * 300, abs=35) for k, v in orders.items()} == found


def test_eager_jit_and_vmap_agree():
    keys = jax.random.split(jax.random.key(1), 2)
    cutout = partial(augment.cutout, count=4, size=0.2)
    transform = augment.compose(augment.random_vertical_flip, cutout)
    vmapped = unstacked(jax.jit(jax.vmap(transform, in_axes=(0, None)))(keys, sample()))
    eager, jitted = transform(keys[0], sample()), jax.jit(transform)(keys[1], sample())
    for found, expected in zip((eager, jitted), vmapped, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)


# Combining samples.


def batch(rectangles):
    """Stacked samples of one bright rectangle each, whose backgrounds differ."""
    samples = [sample(box, background=0.05 * i, slots=2) for i, box in enumerate(rectangles)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)


BOXES = [(8, 8, 40, 30), (20, 4, 60, 20), (2, 2, 60, 44), (30, 20, 50, 40), (10, 20, 20, 40)]


def test_mosaic_joins_four_images_and_their_visible_boxes():
    keys = jax.random.split(jax.random.key(3), len(BOXES))
    found = jax.device_get(jax.jit(augment.mosaic)(keys, batch(BOXES)))
    assert found.boxes.shape == (5, 8, 4) and found.labels.shape == (5, 8)
    kept = 0
    for after in unstacked(found):
        assert not after.valid[[0, 2, 4, 6]].any()
        for box, label in zip(after.boxes[after.valid], after.labels[after.valid], strict=True):
            x0, y0, x1, y1 = np.round(box).astype(int)
            inside = after.image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1, 0]
            np.testing.assert_allclose(inside, BRIGHT, atol=1e-5)
            assert label == 2
            kept += 1
        bright = (after.image[..., 0] > 0.8).sum()
        areas = (after.boxes[:, 2:] - after.boxes[:, :2]).prod(-1)[after.valid].sum()
        assert areas == pytest.approx(bright, rel=0.35)
    assert kept > 8


def test_detection_mixup_keeps_the_boxes_of_both_images():
    keys, before = jax.random.split(jax.random.key(0), len(BOXES)), batch(BOXES)
    found = jax.device_get(jax.jit(augment.detection_mixup)(keys, before))
    for i, after in enumerate(unstacked(found)):
        a, b = np.asarray(before.image[i]), np.asarray(before.image[(i + 1) % len(BOXES)])
        weight = np.median(((after.image - b) / np.where(a == b, np.inf, a - b))[a != b])
        assert 0.2 < weight < 0.8
        np.testing.assert_allclose(after.image, weight * a + (1 - weight) * b, atol=1e-5)
        np.testing.assert_array_equal(after.boxes[[1, 3]], [BOXES[i], BOXES[(i + 1) % len(BOXES)]])
        np.testing.assert_array_equal(after.valid, [False, True, False, True])


@pytest.mark.parametrize("transform, slots", [(augment.mosaic, 8), (augment.detection_mixup, 4)])
def test_probability_zero_keeps_the_sample_and_adds_empty_slots(transform, slots):
    keys, before = jax.random.split(jax.random.key(0), len(BOXES)), batch(BOXES)
    found = jax.jit(partial(transform, probability=0.0))(keys, before)
    np.testing.assert_array_equal(found.image, before.image)
    assert found.valid.shape == (5, slots)
    np.testing.assert_array_equal(found.boxes[:, :2], before.boxes)
    np.testing.assert_array_equal(found.valid.sum(1), before.valid.sum(1))


def test_images_are_combined_across_devices_as_on_one():
    """With one row per device, all of the other images are on other devices."""
    keys = rng.row_keys(jax.random.key(3), jnp.arange(4))
    rows = batch(BOXES[:4])
    transform = partial(augment.mosaic, probability=0.5)
    mapped = jax.pmap(partial(transform, axis="d"), "d", devices=jax.devices()[:4])
    found = parallel.unshard(jax.device_get(mapped(*parallel.shard((keys, rows), 4))), 4)
    chex.assert_trees_all_close(found, jax.jit(transform)(keys, rows), atol=1e-5)


def test_mixup_of_images_and_targets_matches_the_reference():
    images = np.stack([random_image(seed) for seed in range(5)])
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0]]
    keys = rng.row_keys(jax.random.key(0), jnp.arange(5))
    found = jax.device_get(jax.jit(partial(augment.mixup, alpha=0.7))(keys, images, targets))
    weights = [float(jax.random.beta(key, 0.7, 0.7)) for key in keys]
    assert len(set(weights)) == 5 and all(0 <= weight <= 1 for weight in weights)
    for mixed, rows in zip(found, (images, targets), strict=True):
        np.testing.assert_allclose(mixed, reference.mixup(rows, weights), atol=1e-5)
    np.testing.assert_allclose(found[1].sum(-1), 1, rtol=1e-5)


# `standard` and its parts, over many keys.

ROWS, COLUMNS = 40, 56
IDENTITY = {"flip": False, "scale": (1.0, 1.0), "translate": 0.0, "lighting": 0.0}
TRANSFORMS = {
    "standard": augment.standard,
    "random_flip": augment.random_flip,
    "random_scale_translate": partial(augment.random_scale_translate, scale=(0.8, 1.25)),
    "brightness_contrast": partial(augment.brightness_contrast, strength=0.3),
}
each_transform = pytest.mark.parametrize("name", TRANSFORMS)
mask_to_box = jax.jit(jax.vmap(boxes.mask_to_box))


def random_image(seed=0):
    """A random image [ROWS, COLUMNS, 3]."""
    return np.random.default_rng(seed).uniform(size=(ROWS, COLUMNS, 3)).astype(np.float32)


def rectangle(x0, y0, x1, y1):
    """A black image with one white rectangle, and its box."""
    image = np.zeros((ROWS, COLUMNS, 3), np.float32)
    image[y0:y1, x0:x1] = 1
    return image, np.float32([x0, y0, x1, y1])


RECTANGLES = {
    "middle": (16, 12, 36, 28),
    "small": (30, 22, 36, 27),
    "corner": (0, 0, 16, 12),
    "edge": (40, 10, 56, 36),
    "all": (0, 0, COLUMNS, ROWS),
}


def over_keys(transform, image, box, first, **options):
    keys = rng.row_keys(jax.random.key(0), first + jnp.arange(200))
    run = jax.vmap(partial(transform, **options), in_axes=(0, None))
    found = run(keys, augment.Sample(image, box[None]))
    return found.image, found.boxes[:, 0]


compiled = jax.jit(over_keys, static_argnums=0, static_argnames=(*IDENTITY, "strength"))
any_scale_translate = jax.jit(partial(over_keys, augment.random_scale_translate))


def swept(transform, image, box, first=0, **options):
    """Images [200, H, W, 3] and boxes [200, 4] of one image and box with 200 keys, on the host."""
    if transform is TRANSFORMS["random_scale_translate"]:  # one program for all numbers
        return jax.device_get(
            any_scale_translate(image, box, first, **{"scale": (0.8, 1.25)} | options)
        )
    return jax.device_get(compiled(transform, image, box, first, **options))


@pytest.mark.parametrize("place", RECTANGLES)
@pytest.mark.parametrize(
    "name, options",
    [
        ("standard", {"lighting": 0.0}),
        ("standard", {"lighting": 0.0, "scale": (0.5, 2.0), "translate": 0.3}),
        ("random_flip", {}),
        ("random_scale_translate", {"scale": (1.0, 1.0), "translate": 0.1}),
        ("random_scale_translate", {"scale": (0.6, 1.1), "translate": 0.0}),
    ],
)
def test_boxes_stay_tight_around_their_pixels(name, options, place):
    images, found = swept(TRANSFORMS[name], *rectangle(*RECTANGLES[place]), **options)
    bright = images[..., 0] > 0.6  # beyond the edge pixels are 0.5
    seen = np.asarray(mask_to_box(bright))
    sides = (found[:, 2:] - found[:, :2]).min(-1)
    whole = sides > 1.5  # thinner ones, cut by the edge, may have no bright pixel
    assert whole.mean() > 0.7
    assert abs(seen - found)[whole].max() < 1.5
    thinnest = (seen[:, 2:] - seen[:, :2]).min(-1)
    assert (thinnest[~whole] <= 3).all()
    assert (found >= 0).all() and (found <= np.float32([COLUMNS, ROWS] * 2)).all()
    assert len(np.unique(found, axis=0)) > 1 or place == "all"


def test_flipping_twice_is_the_identity():
    flip = jax.jit(augment.random_flip)
    for seed in range(4):
        key, image, box = jax.random.key(seed), random_image(), rectangle(3, 5, 20, 9)[1]
        before = augment.Sample(image, box[None])
        chex.assert_trees_all_equal(flip(key, flip(key, before)), before)


def test_half_of_the_images_are_flipped():
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    images, found = swept(augment.random_flip, image, box)
    flipped = found[:, 0] != 3
    assert abs(flipped.mean() - 0.5) < 0.18  # five standard deviations
    np.testing.assert_array_equal(found[flipped], np.tile([36, 5, 53, 9], (flipped.sum(), 1)))
    for after, mirrored in zip(images, flipped, strict=True):
        np.testing.assert_array_equal(after, image[:, ::-1] if mirrored else image)


@each_transform
def test_results_depend_on_the_key_and_not_on_the_row(name):
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    images, found = swept(TRANSFORMS[name], image, box)
    different = {after.tobytes() for after in images}
    assert len(different) == (2 if name == "random_flip" else 200)
    for i in (3, 5, 3):
        shifted_images, shifted_boxes = swept(TRANSFORMS[name], image, box, first=i)
        np.testing.assert_allclose(shifted_images[:-i], images[i:], atol=1e-5)
        np.testing.assert_allclose(shifted_boxes[:-i], found[i:], atol=1e-4)


def test_eager_jit_and_vmap_of_standard_agree():
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    key, before = jax.random.fold_in(jax.random.key(0), 7), augment.Sample(image, box[None])
    eager, jitted = augment.standard(key, before), jax.jit(augment.standard)(key, before)
    images, found = swept(augment.standard, image, box)
    vmapped = augment.Sample(images[7], found[7][None])
    chex.assert_trees_all_close(eager, jitted, vmapped, atol=1e-4)


def test_standard_without_any_step_is_the_identity():
    image, box = random_image(), np.float32([3.25, 5.5, 20.75, 9.0])
    for after, found in zip(*swept(augment.standard, image, box, **IDENTITY), strict=True):
        np.testing.assert_array_equal(after, image)
        np.testing.assert_array_equal(found, box)


@pytest.mark.parametrize("option", IDENTITY)
def test_each_option_of_standard_has_an_effect(option):
    value = {"flip": True, "scale": (0.9, 1.2), "translate": 0.1, "lighting": 0.2}[option]
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    images, found = swept(augment.standard, image, box, **{**IDENTITY, option: value})
    assert (images != image).any()
    assert (found != box).any() == (option != "lighting")


@each_transform
def test_pixel_values_stay_within_zero_and_one(name):
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    black_and_white = np.round(image)
    options = {"standard": {"lighting": 0.9}, "brightness_contrast": {"strength": 0.9}}
    images, _ = swept(TRANSFORMS[name], black_and_white, box, **options.get(name, {}))
    assert images.min() > -1e-6 and images.max() < 1 + 1e-6
    assert images.min() < 0.05 and images.max() > 0.95
    chex.assert_tree_all_finite(images)


def test_lighting_keeps_boxes_and_the_order_of_pixel_values():
    image, box = random_image(), rectangle(3, 5, 20, 9)[1]
    images, found = swept(augment.standard, image, box)
    unlit, same = swept(augment.standard, image, box, lighting=0.0)
    np.testing.assert_array_equal(found, same)
    assert (abs(images - unlit).max(axis=(1, 2, 3)) > 0).all()
    before, after = (x[:30].reshape(30, -1, 3) for x in (unlit, images))
    for i in range(30):
        for channel in range(3):
            ranked = after[i][np.argsort(before[i][:, channel]), channel]
            assert (np.diff(ranked) > -1e-5).all()


def test_brightness_and_contrast_are_drawn_independently_within_strength():
    image = 0.4 + 0.2 * random_image()  # far from 0 and 1: nothing is clipped
    transform = TRANSFORMS["brightness_contrast"]
    images, _ = swept(transform, image, rectangle(3, 5, 20, 9)[1])
    brightness = images.mean((1, 2, 3)) - float(image.mean())
    contrast = images.std((1, 2)) / np.asarray(image.std((0, 1)))
    np.testing.assert_allclose(contrast, contrast[:, :1] * np.ones((1, 3)), rtol=1e-3)
    for drawn, middle in ((brightness, 0.0), (contrast[:, 0], 1.0)):
        assert middle - 0.301 < drawn.min() < middle - 0.28
        assert middle + 0.28 < drawn.max() < middle + 0.301
    assert abs(np.corrcoef(brightness, contrast[:, 0])[0, 1]) < 0.3


def test_scales_and_translations_cover_their_whole_ranges():
    image, box = rectangle(*RECTANGLES["small"])
    transform = TRANSFORMS["random_scale_translate"]
    found = np.concatenate([swept(transform, image, box, first=200 * i)[1] for i in range(3)])
    sides = (found[:, 2:] - found[:, :2]) / (box[2:] - box[:2])
    mean = np.sqrt(sides[:, 0] * sides[:, 1])
    spread = np.sqrt(augment.MAX_ASPECT)
    assert 0.8 / spread - 1e-4 < sides.min() < 0.8 and 1.25 < sides.max() < 1.25 * spread + 1e-4
    assert abs(np.log(mean).mean()) < 0.03  # log-uniform
    aspect = sides[:, 0] / sides[:, 1]
    assert 1 / augment.MAX_ASPECT - 1e-4 < aspect.min() < 0.93 and 1.07 < aspect.max() < 1.1001
    center = np.array([COLUMNS, ROWS]) / 2
    moved = (found[:, :2] + found[:, 2:]) / 2 - center - (np.array([33, 24.5]) - center) * sides
    fraction = moved / np.array([COLUMNS, ROWS])
    assert -0.1001 < fraction.min() < -0.095 and 0.095 < fraction.max() < 0.1001
    assert abs(np.corrcoef(fraction.T)[0, 1]) < 0.2


def test_pixels_beyond_the_edge_are_grey():
    options = {"scale": (0.5, 0.6), "translate": 0.0}
    transform = TRANSFORMS["random_scale_translate"]
    images, found = swept(transform, *rectangle(*RECTANGLES["all"]), **options)
    np.testing.assert_allclose(np.unique(images.round(4)), [0.5, 1], atol=1e-4)
    for after, (x0, y0, x1, y1) in zip(images, found, strict=True):
        area = (after[..., 0] > 0.75).sum()
        assert area == pytest.approx((x1 - x0) * (y1 - y0), rel=0.1)
        assert 0.5 / 1.05 * COLUMNS - 0.1 < x1 - x0 < 0.6 * 1.05 * COLUMNS + 0.1


@pytest.mark.parametrize(
    "image, found", [(jnp.ones((4, 4)), jnp.ones((1, 4))), (jnp.ones((4, 4, 3)), jnp.ones(4))]
)
def test_standard_rejects_images_without_channels_and_boxes_without_slots(image, found):
    with pytest.raises(AssertionError):
        augment.standard(jax.random.key(0), augment.Sample(image, found))


# Images without boxes.


def on_image(transform, image, count=8):
    """`count` keys, and the transforms of one image with them, on the host."""
    keys = rng.row_keys(jax.random.key(0), jnp.arange(count))
    run = jax.jit(jax.vmap(augment.on_image(transform), in_axes=(0, None)))
    return keys, jax.device_get(run(keys, image))


def test_color_jitter_changes_colors_and_keeps_grey():
    jitter, image = partial(augment.color_jitter, strength=0.4), random_image()
    _, found = on_image(jitter, image, 20)
    assert (abs(found - image).max((1, 2, 3)) > 0.01).all()
    assert (found >= 0).all() and (found <= 1).all()
    gray = np.broadcast_to(image[..., :1], image.shape)
    _, same = on_image(jitter, gray, 20)
    np.testing.assert_allclose(same, np.broadcast_to(gray, same.shape), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_cutout_matches_the_reference(dtype):
    image = np.asarray(255 * random_image(), dtype)
    keys, found = on_image(partial(augment.cutout, fill=128, count=2, size=0.4), image)
    assert found.dtype == dtype
    for key, after in zip(keys, found, strict=True):
        draw = np.asarray(jax.random.uniform(key, (2, 4)))
        np.testing.assert_array_equal(after, reference.cutout(image, draw, 128, 0.4))


def test_cutout_rectangles_are_visible_and_bounded():
    image = random_image()
    _, found = on_image(partial(augment.cutout, fill=2, size=0.25), image)
    hidden = (found == 2).all(-1)  # [8, H, W]
    assert (hidden.any(2).sum(1) <= ROWS / 4 + 1).all()
    assert (hidden.any(1).sum(1) <= COLUMNS / 4 + 1).all()
    assert hidden.any((1, 2)).sum() > 4
    _, found = on_image(partial(augment.cutout, fill=2, size=0.0), image)
    np.testing.assert_array_equal(found[0], image)


def test_pad_and_crop_matches_the_reference():
    image = random_image()
    keys, found = on_image(partial(augment.pad_and_crop, pad=3), image)
    shifts = [np.asarray(jax.random.randint(key, (2,), 0, 7)) - 3 for key in keys]
    for (down, across), after in zip(shifts, found, strict=True):
        np.testing.assert_array_equal(after, reference.shift(image, down, across))


def test_pad_and_crop_draws_every_shift_and_none_without_padding():
    image = random_image()[:4, :5]
    shifts = {(i, j): reference.shift(image, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    _, found = on_image(partial(augment.pad_and_crop, pad=1), image, 200)
    drawn = [next(s for s, made in shifts.items() if (made == each).all()) for each in found]
    assert set(drawn) == set(shifts)
    _, found = on_image(partial(augment.pad_and_crop, pad=0), image)
    np.testing.assert_array_equal(found[7], image)
