from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.data import digits
from jaxdet.ops import augment, boxes, keys
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


HEIGHT, WIDTH = 40, 56
AS_IT_IS = {"flip": False, "scale": (1.0, 1.0), "shift": 0.0, "light": 0.0}
FUNCTIONS = {
    "photo": augment.photo,
    "mirror": augment.mirror,
    "zoom": augment.zoom,
    "lighting": lambda key, image, box, **options: (
        augment.lighting(key, image, **options),
        box,
    ),
}
tight = jax.jit(jax.vmap(boxes.tight))
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def noise(seed=0):
    """A photo [H, W, 3] of random levels."""
    return np.random.default_rng(seed).uniform(size=(HEIGHT, WIDTH, 3)).astype(np.float32)


def lit(x0, y0, x1, y1):
    """A black photo with one white rectangle, and its box."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    image[y0:y1, x0:x1] = 1
    return image, np.float32([x0, y0, x1, y1])


PLACES = {
    "middle": (16, 12, 36, 28),
    "small": (30, 22, 36, 27),
    "corner": (0, 0, 16, 12),
    "edge": (40, 10, 56, 36),
    "all": (0, 0, WIDTH, HEIGHT),
}


@partial(jax.jit, static_argnums=0, static_argnames=("count", *AS_IT_IS))
def compiled(function, image, box, *, count, **options):
    each = keys.per_row(jax.random.key(0), jnp.arange(count))
    return jax.vmap(partial(function, **options), in_axes=(0, None, None))(each, image, box)


def many(function, image, box, count=200, **options):
    """What `count` keys make of one photo and its box, on the host."""
    return jax.device_get(compiled(function, image, box, count=count, **options))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name, options",
    [
        ("photo", {"light": 0.0}),
        ("photo", {"light": 0.0, "scale": (0.5, 2.0), "shift": 0.3}),
        ("mirror", {}),
        ("zoom", {"scale": (1.0, 1.0)}),
        ("zoom", {"scale": (0.6, 1.1), "shift": 0.0}),
    ],
)
def test_the_box_goes_where_the_pixels_go(name, options, place):
    images, corners = many(FUNCTIONS[name], *lit(*PLACES[place]), **options)
    bright = images[..., 0] > 0.6  # grey, of 0.5, comes in from beyond the edge
    seen = np.asarray(tight(bright))
    sides = (corners[:, 2:] - corners[:, :2]).min(-1)
    whole = sides > 1.5  # of thinner ones, cut by the edge, no pixel may be left
    assert whole.mean() > 0.7
    assert abs(seen - corners)[whole].max() < 1.5
    left = (seen[:, 2:] - seen[:, :2]).min(-1)
    assert (left[~whole] <= 3).all()
    assert (corners >= 0).all() and (corners <= np.float32([WIDTH, HEIGHT] * 2)).all()
    assert len(np.unique(corners, axis=0)) > 1 or place == "all"


def test_mirroring_twice_is_the_identity():
    for seed in range(4):
        key, image, box = jax.random.key(seed), noise(), lit(3, 5, 20, 9)[1]
        chex.assert_trees_all_equal(
            augment.mirror(key, *augment.mirror(key, image, box)), (image, box)
        )


def test_half_of_the_photos_are_mirrored_whole():
    image, box = noise(), lit(3, 5, 20, 9)[1]
    images, corners = many(augment.mirror, image, box)
    turned = corners[:, 0] != 3
    assert abs(turned.mean() - 0.5) < 0.18  # five standard deviations
    np.testing.assert_array_equal(corners[turned], np.tile([36, 5, 53, 9], (turned.sum(), 1)))
    for photo, other in zip(images, turned, strict=True):
        np.testing.assert_array_equal(photo, image[:, ::-1] if other else image)


@each_function
def test_the_key_decides_how_a_photo_changes(name):
    image, box = noise(), lit(3, 5, 20, 9)[1]
    images, corners = many(FUNCTIONS[name], image, box)
    different = {photo.tobytes() for photo in images}
    assert len(different) == (2 if name == "mirror" else 200)
    run = jax.jit(FUNCTIONS[name])
    for i in (3, 5, 3):
        photo, found = run(jax.random.fold_in(jax.random.key(0), i), image, box)
        np.testing.assert_allclose(photo, images[i], atol=1e-5)
        np.testing.assert_allclose(found, corners[i], atol=1e-4)


def test_plain_jit_and_vmap_agree_on_photos():
    image, box = noise(), lit(3, 5, 20, 9)[1]
    key = jax.random.fold_in(jax.random.key(0), 7)
    plain, swept = augment.photo(key, image, box), many(augment.photo, image, box)
    once = jax.jit(augment.photo)(key, image, box)
    chex.assert_trees_all_close(plain, once, tuple(each[7] for each in swept), atol=1e-4)


def test_without_options_a_photo_stays_as_it_is():
    image, box = noise(), np.float32([3.25, 5.5, 20.75, 9.0])
    for photo, found in zip(*many(augment.photo, image, box, **AS_IT_IS), strict=True):
        np.testing.assert_array_equal(photo, image)
        np.testing.assert_array_equal(found, box)


@pytest.mark.parametrize("change", ["flip", "scale", "shift", "light"])
def test_each_option_alone_changes_photos(change):
    value = {"flip": True, "scale": (0.9, 1.2), "shift": 0.1, "light": 0.2}[change]
    image, box = noise(), lit(3, 5, 20, 9)[1]
    images, corners = many(augment.photo, image, box, **{**AS_IT_IS, change: value})
    assert (images != image).any()
    assert (corners != box).any() == (change != "light")


@each_function
def test_levels_stay_within_zero_and_one(name):
    image, box = noise(), lit(3, 5, 20, 9)[1]
    hard = np.round(image)  # black and white
    options = {"light": 0.9} if name in ("photo", "lighting") else {}
    images, _ = many(FUNCTIONS[name], hard, box, **options)
    assert images.min() > -1e-6 and images.max() < 1 + 1e-6
    assert images.min() < 0.05 and images.max() > 0.95
    chex.assert_tree_all_finite(images)


def test_lighting_keeps_the_box_and_the_order_of_levels():
    image, box = noise(), lit(3, 5, 20, 9)[1]
    lighted, corners = many(augment.photo, image, box)
    plain, same = many(augment.photo, image, box, light=0.0)
    np.testing.assert_array_equal(corners, same)
    assert (abs(lighted - plain).max(axis=(1, 2, 3)) > 0).all()
    for light, level in zip(
        lighted[:30].reshape(30, -1, 3), plain[:30].reshape(30, -1, 3), strict=True
    ):
        for channel in range(3):
            ranked = light[np.argsort(level[:, channel]), channel]
            assert (np.diff(ranked) > -1e-5).all()


def test_lighting_is_brightness_and_contrast_of_each_channel():
    image = 0.4 + 0.2 * noise()  # far from the ends: nothing is cut
    images, _ = many(FUNCTIONS["lighting"], image, lit(3, 5, 20, 9)[1])
    brighter = images.mean((1, 2, 3)) - float(image.mean())
    contrast = images.std((1, 2)) / np.asarray(image.std((0, 1)))
    np.testing.assert_allclose(contrast, contrast[:, :1] * np.ones((1, 3)), rtol=1e-3)
    for drawn, middle in ((brighter, 0.0), (contrast[:, 0], 1.0)):
        assert middle - 0.301 < drawn.min() < middle - 0.28
        assert middle + 0.28 < drawn.max() < middle + 0.301
    assert abs(np.corrcoef(brighter, contrast[:, 0])[0, 1]) < 0.3  # two draws


def test_zoom_draws_all_factors_and_places_asked_for():
    image, box = lit(*PLACES["small"])
    _, corners = many(augment.zoom, image, box, count=600)
    sides = (corners[:, 2:] - corners[:, :2]) / np.asarray(box[2:] - box[:2])
    both = np.sqrt(sides[:, 0] * sides[:, 1])
    spread = np.sqrt(augment.ASPECT)
    assert 0.8 / spread - 1e-4 < sides.min() < 0.8 and 1.25 < sides.max() < 1.25 * spread + 1e-4
    assert abs(np.log(both).mean()) < 0.03  # evenly in logarithms: as much larger as smaller
    ratio = sides[:, 0] / sides[:, 1]
    assert 1 / augment.ASPECT - 1e-4 < ratio.min() < 0.93 and 1.07 < ratio.max() < 1.1001
    whole = np.array([WIDTH, HEIGHT]) / 2
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    moved = middle - whole - (np.array([33, 24.5]) - whole) * sides
    share = moved / np.array([WIDTH, HEIGHT])
    assert -0.1001 < share.min() < -0.095 and 0.095 < share.max() < 0.1001
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.2


def test_grey_comes_in_from_beyond_the_edge():
    images, corners = many(augment.zoom, *lit(*PLACES["all"]), scale=(0.5, 0.6), shift=0.0)
    levels = np.unique(images.round(4))
    np.testing.assert_allclose(levels, [0.5, 1], atol=1e-4)
    for photo, (x0, y0, x1, y1) in zip(images, corners, strict=True):
        area = (photo[..., 0] > 0.75).sum()
        assert area == pytest.approx((x1 - x0) * (y1 - y0), rel=0.1)
        assert 0.5 / 1.05 * WIDTH - 0.1 < x1 - x0 < 0.6 * 1.05 * WIDTH + 0.1


@pytest.mark.parametrize(
    "image, box", [(jnp.ones((4, 4)), jnp.ones(4)), (jnp.ones((4, 4, 3)), jnp.ones((1, 4)))]
)
def test_a_photo_has_channels_and_one_box(image, box):
    with pytest.raises(AssertionError):
        augment.photo(jax.random.key(0), image, box)


AT_REST = {"flip": False, "scale": (1.0, 1.0), "shift": 0.0, "light": 0.0, "colour": 0.0}


def scenes(count=60, **options):
    """What `scene` makes, `count` times, of a photo with two boxes, of which one is valid."""
    image, box = lit(16, 8, 36, 24)
    found, valid = np.stack([box, np.float32([1, 1, 9, 9])]), np.array([True, False])
    each = jax.random.split(jax.random.key(2), count)
    one = partial(augment.scene, **{**AT_REST, **options})
    made = jax.jit(jax.vmap(lambda key: one(key, image, found, valid)))(each)
    return [np.asarray(column) for column in made]


@pytest.mark.parametrize(
    "options",
    [{"flip": True}, {"flip_down": True}, {"scale": (0.6, 1.6)}, {"shift": 0.2}, {}],
    ids=["flip", "flip_down", "scale", "shift", "none"],
)
def test_boxes_of_a_scene_go_where_the_pixels_go(options):
    images, found, valid = scenes(**options)
    seen = np.asarray(tight(images[..., 0] > 0.6))
    np.testing.assert_allclose(seen[valid[:, 0]], found[valid[:, 0], 0], atol=1.5)
    assert not valid[:, 1].any() and valid[:, 0].mean() > 0.9
    assert (len(np.unique(found[:, 0], axis=0)) > 1) == bool(options)


def test_a_scene_may_be_upside_down_and_that_twice_is_the_identity():
    image, box = noise(), np.float32([[3, 5, 20, 9], [0, 0, 8, 8]])
    for seed in range(4):
        key = jax.random.key(seed)
        once = augment._upside_down(key, image, box)
        chex.assert_trees_all_equal(augment._upside_down(key, *once), (image, box))
        if not np.array_equal(once[0], image):
            np.testing.assert_array_equal(once[0], image[::-1])
            np.testing.assert_array_equal(once[1][0], [3, HEIGHT - 9, 20, HEIGHT - 5])


def test_an_object_that_left_is_no_longer_asked_for():
    _, found, valid = scenes(400, shift=0.9)
    share = np.asarray(boxes.area(found[:, 0])) / boxes.area(found[0, 1] * 0 + [16, 8, 36, 24])
    assert 0 < valid[:, 0].mean() < 1
    assert (share[valid[:, 0]] > 0.15).all()  # sides may also shrink by a tenth
    assert (share[~valid[:, 0]] < 0.25).all()


def test_colours_change_and_grey_stays_grey():
    keys_ = jax.random.split(jax.random.key(0), 20)
    image = jnp.asarray(noise())
    changed = jax.vmap(lambda key: augment.colouring(key, image, colour=0.4))(keys_)
    assert (abs(changed - image[None]).max((1, 2, 3)) > 0.01).all()
    assert (changed >= 0).all() and (changed <= 1).all()
    grey = jnp.broadcast_to(image[..., :1], image.shape)
    same = jax.vmap(lambda key: augment.colouring(key, grey, colour=0.4))(keys_)
    np.testing.assert_allclose(same, jnp.broadcast_to(grey, same.shape), atol=1e-5)
