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
from jaxdet.ops import augment, boxes
from tests.reference import augment as reference_augment
from tests.reference import boxes as reference_boxes

LEVEL = 1.01 / 255  # rounding may fall either way between two programs
TURNED = {"scale": (1.0, 1.0), "canvas": 42}
STILL = {"rotate": 0.0, **TURNED}
COUNT = 48
DIGITS = digits.embedded().arrays["image"][:COUNT] / np.float32(255)
FULL = np.ones((28, 28), np.float32)
turn = jax.jit(augment._turn, static_argnames="side")


@partial(jax.jit, static_argnames=("scale", "canvas"))
def placed(images, seed, **options):
    each = rng.row_keys(jax.random.key(seed), jnp.arange(len(images)))
    return jax.vmap(partial(augment.place, **options))(each, images)


def batch(images=DIGITS, seed=0, rotate=30.0, **options):
    """A canvas and a box of every image, each with its own key, on the host."""
    return jax.device_get(placed(images, seed, rotate=rotate, **options))


def batches(image, times=9, **options):
    """A canvas and a box of so many times 48 copies of one image."""
    made = [batch(copies(image), seed, **options) for seed in range(times)]
    return [np.concatenate(column) for column in zip(*made, strict=True)]


def copies(image):
    return np.broadcast_to(image, (COUNT, *image.shape))


def inside(image, box):
    """The pixels of an image [H, W] within a box."""
    x0, y0, x1, y1 = np.asarray(box, int)
    return image[y0:y1, x0:x1]


def centre_of_mass(image):
    """Where the ink of an image [H, W] is on average: x, y."""
    rows, columns = np.indices(image.shape) + 0.5
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.mark.parametrize("options", [{}, {"rotate": 180.0, "canvas": 52}, STILL])
def test_a_canvas_holds_one_digit_in_its_tight_box(options):
    images, corners = batch(**options)
    canvas = options.get("canvas", 64)
    chex.assert_shape(images, (48, canvas, canvas, 1))
    chex.assert_type([images, corners], np.float32)
    assert (images >= 0).all() and (images <= 1).all()
    np.testing.assert_allclose(images * 255, np.round(images * 255), rtol=1e-6)
    for image, box in zip(images[..., 0], corners, strict=True):
        np.testing.assert_array_equal(box, reference_boxes.mask_to_box(image))
        assert image.max() > 0.5


@pytest.mark.parametrize("zoom, canvas", [(0.75, 64), (1.0, 42), (1.25, 64)])
@pytest.mark.parametrize("digit", [DIGITS[3], FULL], ids=["scan", "full"])
def test_the_ink_is_whole_at_any_angle(digit, zoom, canvas):
    images, _ = batch(copies(digit), rotate=180.0, scale=(zoom, zoom), canvas=canvas)
    ink = images.sum(axis=(1, 2, 3)) / (digit.sum() * zoom**2)
    np.testing.assert_allclose(ink, 1, atol=0.03)


def test_the_canvas_changes_where_the_digit_lies_and_nothing_else():
    for small, near, large, far in zip(*batch(canvas=52), *batch(), strict=True):
        ink = inside(large[..., 0], far)
        np.testing.assert_allclose(inside(small[..., 0], near), ink, atol=LEVEL)


def test_without_turn_or_scale_the_pixels_are_copied():
    for digit, image, box in zip(DIGITS, *batch(**STILL), strict=True):
        ink = inside(digit, reference_boxes.mask_to_box(digit))
        np.testing.assert_allclose(inside(image[..., 0], box), ink, rtol=1e-6)


@pytest.mark.parametrize("sides", [(20, 20), (13, 19)])
@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_go_counter_clockwise(quarters, sides):
    ink = np.random.default_rng(0).uniform(0.1, 1, sides).astype(np.float32)
    digit = np.pad(ink, ((2, 26 - sides[0]), (5, 23 - sides[1])))
    patch = np.asarray(turn(digit, quarters * np.pi / 2, 1.0, side=40))
    found = inside(patch, reference_boxes.mask_to_box(patch > 0.01))
    np.testing.assert_allclose(found, np.rot90(ink, quarters), atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 47), st.floats(-np.pi, np.pi), st.floats(0.5, 1.5))
def test_turning_is_the_loop(index, angle, zoom):
    expected = reference_augment.rotate_and_scale_digit(DIGITS[index], angle, zoom, 40)
    found = turn(DIGITS[index], angle, zoom, side=40)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("rotate", [30.0, 180.0])
def test_all_angles_asked_for_are_drawn(rotate):
    bar = np.zeros((28, 28), np.float32)
    bar[12:16, 4:24], bar[12:16, 20:24] = 0.1, 1.0
    images, corners = batches(bar, rotate=rotate, **TURNED)
    heavy = np.array([centre_of_mass(image) for image in images[..., 0]])
    x, y = (heavy - (corners[:, :2] + corners[:, 2:]) / 2).T
    angle = np.rad2deg(np.arctan2(-y, x))
    assert -rotate - 3 < angle.min() < 5 - rotate and rotate - 5 < angle.max() < rotate + 3
    assert abs(angle.mean()) < rotate / 10


def test_all_scales_asked_for_are_drawn():
    _, corners = batches(FULL, rotate=0.0)
    width = corners[:, 2] - corners[:, 0]
    assert 20 <= width.min() <= 23 and 35 <= width.max() <= 37


def test_every_place_is_equally_likely():
    _, corners = batches(FULL, times=110, **STILL)
    corners = corners.astype(int)
    count, places = len(corners), 15  # where 28 pixels of 42 can begin
    seen = np.zeros((places, places), int)
    np.add.at(seen, (corners[:, 0], corners[:, 1]), 1)
    assert (seen > 0).all()
    for along in (seen.sum(axis=0), seen.sum(axis=1)):
        np.testing.assert_allclose(along, count / places, atol=5 * np.sqrt(count / places))


def test_the_key_decides():
    first, again, other = batch(seed=1), batch(seed=1), batch(seed=2)
    chex.assert_trees_all_equal(first, again)
    assert (first[0] != other[0]).any(axis=(1, 2, 3)).all()
    images, _ = batch(copies(DIGITS[0]))
    assert len({image.tobytes() for image in images}) == COUNT


def test_plain_jit_and_vmap_agree():
    images, corners = batch()
    for run in (augment.place, jax.jit(augment.place)):
        for i in range(3):
            image, box = run(jax.random.fold_in(jax.random.key(0), i), DIGITS[i])
            np.testing.assert_allclose(image, images[i], atol=LEVEL)
            np.testing.assert_allclose(box, corners[i], atol=1)


def test_a_digit_without_ink_leaves_the_canvas_empty():
    images, corners = batch(np.zeros_like(DIGITS))
    assert not images.any() and not corners.any()


def test_a_canvas_too_small_is_named_with_what_it_must_hold():
    with pytest.raises(InputError, match="canvas 51 .* 52 "):
        augment.place(jax.random.key(0), FULL, canvas=51)


@pytest.mark.parametrize("digit", [FULL[..., None], FULL.astype(np.uint8)])
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
tight = jax.jit(jax.vmap(boxes.mask_to_box))
mirror = jax.jit(augment.mirror)
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


def swept(function, image, box, first, **options):
    each = rng.row_keys(jax.random.key(0), first + jnp.arange(200))
    return jax.vmap(partial(function, **options), in_axes=(0, None, None))(each, image, box)


compiled = jax.jit(swept, static_argnums=0, static_argnames=tuple(AS_IT_IS))
any_zoom = jax.jit(partial(swept, augment.zoom))  # one program for all numbers


def many(function, image, box, first=0, **options):
    """What 200 keys make of one photo and its box, on the host."""
    run = any_zoom if function is augment.zoom else partial(compiled, function)
    return jax.device_get(run(image, box, first, **options))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name, options",
    [
        ("photo", {"light": 0.0}),
        ("photo", {"light": 0.0, "scale": (0.5, 2.0), "shift": 0.3}),
        ("mirror", {}),
        ("zoom", {"scale": (1.0, 1.0), "shift": 0.1}),
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
        chex.assert_trees_all_equal(mirror(key, *mirror(key, image, box)), (image, box))


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
    for i in (3, 5, 3):
        again, found = many(FUNCTIONS[name], image, box, first=i)  # elsewhere in the batch
        np.testing.assert_allclose(again[:-i], images[i:], atol=1e-5)
        np.testing.assert_allclose(found[:-i], corners[i:], atol=1e-4)


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
    runs = [many(augment.zoom, image, box, first=200 * i)[1] for i in range(3)]
    corners = np.concatenate(runs)
    sides = (corners[:, 2:] - corners[:, :2]) / (box[2:] - box[:2])
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


def test_colours_change_and_grey_stays_grey():
    image = noise()

    @jax.jit
    def coloured(image):
        each = jax.random.split(jax.random.key(0), 20)
        return jax.vmap(lambda key: augment.colouring(key, image, colour=0.4))(each)

    changed = np.asarray(coloured(image))
    assert (abs(changed - image).max((1, 2, 3)) > 0.01).all()
    assert (changed >= 0).all() and (changed <= 1).all()
    grey = np.broadcast_to(image[..., :1], image.shape)
    same = np.asarray(coloured(grey))
    np.testing.assert_allclose(same, np.broadcast_to(grey, same.shape), atol=1e-5)


def alone(function, image, times=8, **options):
    """So many keys, and what each makes of one image without a box, on the host."""
    each = rng.row_keys(jax.random.key(0), jnp.arange(times))
    run = jax.jit(jax.vmap(partial(function, **options), in_axes=(0, None)))
    return each, jax.device_get(run(each, image))


@pytest.mark.parametrize("levels", [np.float32, np.uint8])
def test_holes_are_those_of_the_loop(levels):
    image = np.asarray(255 * noise(), levels)
    each, found = alone(partial(augment.cutout, grey=128), image, count=2, side=0.4)
    assert found.dtype == levels
    for key, made in zip(each, found, strict=True):
        draw = np.asarray(jax.random.uniform(key, (2, 4)))
        np.testing.assert_array_equal(made, reference_augment.cutout(image, draw, 128, 0.4))


def test_no_hole_is_larger_than_asked_for_and_most_are_seen():
    holes = partial(augment.cutout, grey=2)
    _, found = alone(holes, noise(), side=0.25)
    hidden = (found == 2).all(-1)  # [8, H, W]
    assert (hidden.any(2).sum(1) <= HEIGHT / 4 + 1).all()
    assert (hidden.any(1).sum(1) <= WIDTH / 4 + 1).all()
    assert hidden.any((1, 2)).sum() > 4
    np.testing.assert_array_equal(alone(holes, noise(), side=0.0)[1][0], noise())


def test_a_shifted_image_is_that_of_the_loop():
    image = noise()
    each, found = alone(augment.shifted, image, pad=3)
    places = [np.asarray(jax.random.randint(key, (2,), 0, 7)) - 3 for key in each]
    for (down, across), made in zip(places, found, strict=True):
        np.testing.assert_array_equal(made, reference_augment.shift(image, down, across))


def test_every_shift_is_drawn_and_none_without_padding():
    image = noise()[:4, :5]
    places = {(i, j): reference_augment.shift(image, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    _, found = alone(augment.shifted, image, 200, pad=1)
    drawn = [next(p for p, made in places.items() if (made == each).all()) for each in found]
    assert set(drawn) == set(places)
    np.testing.assert_array_equal(alone(augment.shifted, image, pad=0)[1][7], image)


def test_mixed_images_are_those_of_the_loop_and_what_they_are_taken_for_as_well():
    images = np.stack([noise(seed) for seed in range(5)])
    wanted = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0]]
    each = rng.row_keys(jax.random.key(0), jnp.arange(5))
    found = jax.device_get(jax.jit(partial(augment.mixup, alpha=0.7))(each, images, wanted))
    shares = [float(jax.random.beta(key, 0.7, 0.7)) for key in each]
    assert len(set(shares)) == 5 and all(0 <= share <= 1 for share in shares)
    for made, rows in zip(found, (images, wanted), strict=True):
        np.testing.assert_allclose(made, reference_augment.mixup(rows, shares), atol=1e-5)
    np.testing.assert_allclose(found[1].sum(-1), 1, rtol=1e-5)
