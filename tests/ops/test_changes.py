"""Changes of a photo and its boxes: boxes go where the pixels go, and parts are joined as told."""

from collections import Counter
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import augment, changes
from tests.reference import augment as reference

HEIGHT, WIDTH = 48, 64
BOX = (16, 14, 40, 30)
MARK = 0.95  # level of the object; around it there is less


def photo(box=BOX, around=0.2, slots=3):
    """A scene with one bright rectangle, in the second of its slots."""
    x0, y0, x1, y1 = box
    image = np.full((HEIGHT, WIDTH, 3), around, np.float32)
    image[y0:y1, x0:x1] = MARK
    place = np.arange(slots) == 1
    return changes.Scene(
        image=image,
        boxes=np.where(place[:, None], np.float32(box), 0.0).astype(np.float32),
        labels=np.where(place, 2, 0),
        valid=place,
        crowd=np.zeros(slots, bool),
    )


def many(part, count=24, scene=None):
    """What a part makes of one scene with several keys, on the host."""
    each = jax.random.split(jax.random.key(0), count)
    run = jax.jit(jax.vmap(part, in_axes=(0, None)))
    return jax.device_get(run(each, photo() if scene is None else scene))


def rows(scenes):
    """Scenes one by one."""
    return [jax.tree.map(itemgetter(i), scenes) for i in range(len(scenes.valid))]


def marked(image, level=0.6):
    """The tight box of what is bright in an image, or None."""
    y, x = np.nonzero(image[..., 0] > level)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(x) else None


WHERE = {
    "mirror": (changes.mirror, 0.0),
    "mirror_down": (changes.mirror_down, 0.0),
    "zoom": (partial(changes.zoom, shift=0.3), 1.0),
    "random_resized_crop": (changes.random_resized_crop, 1.5),
    "rotate": (changes.rotate, 1.5),
}


@pytest.mark.parametrize("part, near", WHERE.values(), ids=WHERE)
def test_the_box_goes_where_the_pixels_go(part, near):
    seen = set()
    for scene in rows(many(part)):
        assert (scene.image >= 0).all() and (scene.image <= 1).all()
        assert not scene.valid[[0, 2]].any()
        if scene.valid[1]:
            np.testing.assert_allclose(scene.boxes[1], marked(scene.image), atol=near)
            seen.add(tuple(scene.boxes[1]))
    assert len(seen) == (2 if near == 0 else 24)


def test_upside_down_twice_is_the_identity():
    down = jax.jit(changes.mirror_down)
    for seed in range(4):
        key, before = jax.random.key(seed), photo()
        once = down(key, before)
        jax.tree.map(np.testing.assert_array_equal, down(key, once), before)
        if not np.array_equal(once.image, before.image):
            np.testing.assert_array_equal(once.image, before.image[::-1])


def test_an_object_of_which_little_is_left_is_not_asked_for():
    scenes = rows(many(partial(changes.zoom, scale=(1.0, 1.0), shift=1.0), 60))
    whole = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    for scene in scenes:
        box = marked(scene.image)
        left = 0 if box is None else np.prod(box[2:] - box[:2])
        if abs(left / whole - changes.KEEP) > 0.1:
            assert scene.valid[1] == (left / whole > changes.KEEP)
    assert 0.1 < np.mean([scene.valid[1] for scene in scenes]) < 0.9


def test_turning_is_the_loop_and_boxes_hold_the_corners(monkeypatch):
    image = np.random.default_rng(0).random((11, 17, 3), np.float32)
    box = np.float32([[5, 3, 12, 8]])
    one = np.ones(1, bool)
    scene = changes.Scene(image, box, np.zeros(1, int), one, ~one)
    for angle in (-0.5, 0.3, np.pi / 2):
        monkeypatch.setattr(jax.random, "uniform", lambda *_, a=angle, **__: jnp.rad2deg(a))
        found = changes.rotate(jax.random.key(0), scene)
        np.testing.assert_allclose(found.image, reference.rotate(image, angle), atol=1e-5)
        x, y = np.array([(x, y) for x in (5, 12) for y in (3, 8)]).T - [[8.5], [5.5]]
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        corners = [x.min() + 8.5, y.min() + 5.5, x.max() + 8.5, y.max() + 5.5]
        np.testing.assert_allclose(found.boxes[0], np.clip(corners, 0, [17, 11, 17, 11]), rtol=1e-4)


@pytest.mark.parametrize(
    "factor, moved", [((1.3, 0.8), (-2.2, 3.0)), ((1, 1), (0, 0)), ((2, 2), (-9, 1))]
)
def test_scaling_and_moving_is_the_loop(factor, moved):
    image = np.random.default_rng(0).random((11, 17, 3), np.float32)
    found = jax.jit(augment.mapped)(image, jnp.float32(factor), jnp.float32(moved))
    np.testing.assert_allclose(found, reference.scale_translate(image, factor, moved), atol=1e-5)


def test_a_crop_has_the_share_and_the_shape_that_are_asked_for():
    box = (0, 0, WIDTH, HEIGHT)
    for area, aspect in ((0.25, 1.0), (0.5, 1.5)):
        part = partial(changes.random_resized_crop, area=(area, area), aspect=aspect)
        ramp = photo(box)._replace(image=_ramps())
        for scene in rows(many(part, 12, ramp)):
            down, across = (np.ptp(scene.image[4:-4, 4:-4, i]) for i in (0, 1))
            high, wide = down * HEIGHT / (HEIGHT - 9), across * WIDTH / (WIDTH - 9)  # shares
            assert high * wide == pytest.approx(area, rel=0.05)
            assert 1 / aspect - 0.05 <= wide / high <= aspect + 0.05


def _ramps():
    """An image whose first two levels say where a pixel is, in shares of its sides."""
    down, across = np.meshgrid(
        (np.arange(HEIGHT) + 0.5) / HEIGHT, (np.arange(WIDTH) + 0.5) / WIDTH, indexing="ij"
    )
    return np.stack([down, across, down], -1).astype(np.float32)


LOOKS = {
    "light": changes.light,
    "colour": changes.colour,
    "noise": changes.noise,
    "cutout": changes.cutout,
}


@pytest.mark.parametrize("part", LOOKS.values(), ids=LOOKS)
def test_looks_change_and_boxes_do_not(part):
    before = photo()
    before.image[..., 1] *= 0.5
    for scene in rows(many(part, 6, before)):
        assert (scene.image >= 0).all() and (scene.image <= 1).all()
        assert not np.allclose(scene.image, before.image)
        for name in ("boxes", "labels", "valid", "crowd"):
            np.testing.assert_array_equal(getattr(scene, name), getattr(before, name))


def test_noise_is_as_strong_as_drawn_and_holes_are_as_large_as_allowed():
    grey = photo()._replace(image=np.full((HEIGHT, WIDTH, 3), 0.45, np.float32))
    spreads = [s.image.std() for s in rows(many(partial(changes.noise, strength=0.1), 40, grey))]
    assert 0 <= min(spreads) < 0.02 < 0.08 < max(spreads) < 0.105
    for scene in rows(many(partial(changes.cutout, count=1, side=0.5), 40, grey)):
        y, x = np.nonzero(scene.image[..., 0] == augment.GREY)
        assert not len(y) or (np.ptp(y) <= HEIGHT / 2 and np.ptp(x) <= WIDTH / 2)


# Joining.


def adds(value):
    """A part that adds to the boxes."""
    return lambda key, scene: scene._replace(boxes=scene.boxes + value)


def times(value):
    return lambda key, scene: scene._replace(boxes=scene.boxes * value)


def totals(part, count=300):
    """How often a part that changes boxes gives which number, from 1."""
    start = photo()._replace(boxes=np.ones((3, 4), np.float32))
    return Counter(float(box[0, 0]) for box in many(part, count, start).boxes)


def test_in_turn_takes_all_in_order_with_a_key_each():
    assert totals(changes.compose(adds(1), times(10)), 3) == {20: 3}
    twice = many(changes.compose(changes.noise, changes.noise), 3)
    once = many(changes.noise, 3)
    assert not np.allclose(twice.image, once.image)


def test_sometimes_is_as_often_as_told():
    found = totals(changes.sometimes(0.3, adds(1)))
    assert set(found) == {1, 2} and 60 < found[2] < 120


def test_some_of_takes_that_many_in_order():
    parts = adds(1), times(10), adds(100)
    found = totals(changes.some_of(2, *parts))
    assert set(found) == {20.0, 102.0, 110.0} and min(found.values()) > 70
    found = totals(changes.one_of(*parts))
    assert set(found) == {2.0, 10.0, 101.0} and min(found.values()) > 70


def test_any_order_is_taken_as_often_as_another():
    found = totals(changes.random_order(adds(1), times(10), times(2)))
    orders = Counter({40: 1 / 3, 30: 1 / 6, 22: 1 / 6, 21: 1 / 3})  # of 1: 2 * 10 * 2, ...
    assert set(found) <= {40.0, 22.0, 30.0, 21.0}
    assert {k: pytest.approx(v * 300, abs=35) for k, v in orders.items()} == found


# Of several.


def batch(boxes):
    """Scenes of one bright rectangle each, stacked; the surroundings tell them apart."""
    made = [photo(box, around=0.05 * i, slots=2) for i, box in enumerate(boxes)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


BOXES = [(8, 8, 40, 30), (20, 4, 60, 20), (2, 2, 60, 44), (30, 20, 50, 40), (10, 20, 20, 40)]


def test_a_mosaic_has_four_photos_and_the_boxes_that_are_left_of_them():
    keys = jax.random.split(jax.random.key(3), len(BOXES))
    found = jax.device_get(jax.jit(changes.mosaic)(keys, batch(BOXES)))
    assert found.boxes.shape == (5, 8, 4) and found.labels.shape == (5, 8)
    kept = 0
    for scene in rows(found):
        assert not scene.valid[[0, 2, 4, 6]].any()
        for box, label in zip(scene.boxes[scene.valid], scene.labels[scene.valid], strict=True):
            x0, y0, x1, y1 = np.round(box).astype(int)
            inside = scene.image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1, 0]
            np.testing.assert_allclose(inside, MARK, atol=1e-5)
            assert label == 2
            kept += 1
        bright = (scene.image[..., 0] > 0.8).sum()
        areas = (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(-1)[scene.valid].sum()
        assert areas == pytest.approx(bright, rel=0.35)
    assert kept > 8


def test_two_photos_mixed_have_the_boxes_of_both():
    keys, before = jax.random.split(jax.random.key(0), len(BOXES)), batch(BOXES)
    found = jax.device_get(jax.jit(changes.mixup)(keys, before))
    for i, scene in enumerate(rows(found)):
        a, b = np.asarray(before.image[i]), np.asarray(before.image[(i + 1) % len(BOXES)])
        share = np.median(((scene.image - b) / np.where(a == b, np.inf, a - b))[a != b])
        assert 0.2 < share < 0.8
        np.testing.assert_allclose(scene.image, share * a + (1 - share) * b, atol=1e-5)
        np.testing.assert_array_equal(scene.boxes[[1, 3]], [BOXES[i], BOXES[(i + 1) % len(BOXES)]])
        np.testing.assert_array_equal(scene.valid, [False, True, False, True])


@pytest.mark.parametrize("joined, slots", [(changes.mosaic, 8), (changes.mixup, 4)])
def test_without_a_chance_a_scene_stays_and_has_room(joined, slots):
    keys, before = jax.random.split(jax.random.key(0), len(BOXES)), batch(BOXES)
    found = jax.jit(partial(joined, chance=0.0))(keys, before)
    np.testing.assert_array_equal(found.image, before.image)
    assert found.valid.shape == (5, slots)
    np.testing.assert_array_equal(found.boxes[:, :2], before.boxes)
    np.testing.assert_array_equal(found.valid.sum(1), before.valid.sum(1))


def test_plain_jit_and_vmap_agree():
    keys = jax.random.split(jax.random.key(1), 2)
    part = changes.compose(changes.mirror_down, changes.cutout)
    whole = rows(jax.jit(jax.vmap(part, in_axes=(0, None)))(keys, photo()))
    plain, alone = part(keys[0], photo()), jax.jit(part)(keys[1], photo())
    for found, expected in zip((plain, alone), whole, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)
