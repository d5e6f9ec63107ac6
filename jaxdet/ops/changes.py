"""Changes of a photo and its boxes: parts that take a key and a `Scene`, and ways to join them.

`key` comes first, options are keyword-only and static, and a part takes one scene: `jax.vmap` over
keys and scenes makes the batch.  `mosaic` and `mixup` make new scenes of several, and take a whole
batch.  Levels are floats in [0, 1], lengths are in pixels, angles in degrees; what comes in from
beyond the edge is grey.  A box keeps to the image; one of which less than `KEEP` is left is no
longer valid.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import augment, boxes

KEEP = 0.2  # share of a box that must still be in the image for its object to be asked for


class Scene(NamedTuple):
    """A photo, and what is to be found in it."""

    image: Any  # [H, W, C]
    boxes: Any  # [G, 4]
    labels: Any  # [G]
    valid: Any  # [G]: which slots are in use
    crowd: Any  # [G]: which are of many objects in one


# Joining parts.


def compose(*parts):
    """All parts, one after the other."""

    def change(key, scene):
        for number, part in enumerate(parts):
            scene = part(jax.random.fold_in(key, number), scene)
        return scene

    return change


def sometimes(chance, part):
    """The part, with a probability of `chance`."""

    def change(key, scene):
        does = jax.random.bernoulli(jax.random.fold_in(key, 0), chance)
        changed = part(jax.random.fold_in(key, 1), scene)
        return jax.tree.map(partial(jnp.where, does), changed, scene)

    return change


def some_of(count, *parts):
    """`count` of the parts, any of them, in the order in which they are given."""

    def change(key, scene):
        chosen = jax.random.permutation(jax.random.fold_in(key, 0), len(parts)) < count
        for number, part in enumerate(parts):
            changed = part(jax.random.fold_in(key, number + 1), scene)
            scene = jax.tree.map(partial(jnp.where, chosen[number]), changed, scene)
        return scene

    return change


def one_of(*parts):
    """One of the parts, any of them."""
    return some_of(1, *parts)


def random_order(*parts):
    """All parts, in an order drawn anew for every scene."""

    def change(key, scene):
        order = jax.random.permutation(jax.random.fold_in(key, 0), len(parts))
        for place in range(len(parts)):
            own = jax.random.fold_in(key, place + 1)
            scene = jax.lax.switch(order[place], parts, own, scene)
        return scene

    return change


# Where things are.


def mirror(key, scene):
    """Mirrored left to right every second time."""
    image, found = augment.mirror(key, scene.image, scene.boxes)
    return scene._replace(image=image, boxes=found)


def mirror_down(key, scene):
    """Mirrored upside down every second time."""
    order = np.array([1, 0, 3, 2])  # y for x
    image, found = augment.mirror(key, scene.image.swapaxes(0, 1), scene.boxes[:, order])
    return scene._replace(image=image.swapaxes(0, 1), boxes=found[:, order])


def zoom(key, scene, *, scale=(0.75, 1.3), shift=0.1):
    """Scaled about the middle and moved, as `augment.photo` does."""
    return _mapped(scene, *augment.zoomed(key, scene.image.shape, scale, shift))


def random_resized_crop(key, scene, *, area=(0.3, 1.0), aspect=4 / 3):
    """A part of the photo as large as the photo was: of a share of its `area`, anywhere in it.

    Its width by its height is up to `aspect` times that of the photo, or as much less.
    Szegedy et al. 2014, arXiv:1409.4842.
    """
    share, shape, *place = jax.random.uniform(key, (4,))
    share = area[0] + share * (area[1] - area[0])
    shape = jnp.exp((2 * shape - 1) * math.log(aspect) / 2)
    sides = jnp.minimum(jnp.sqrt(share) * jnp.stack([1 / shape, shape]), 1.0)  # height, width
    whole = jnp.asarray(scene.image.shape[:2], jnp.float32)
    corner = jnp.stack(place) * (1 - sides) * whole
    return _mapped(scene, 1 / sides, -corner / sides)


def rotate(key, scene, *, degrees=30.0):
    """Turned about the middle by an angle within +-`degrees`; boxes hold their turned corners."""
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
    return _kept(scene, augment.turned(scene.image, angle), _rotated(scene, angle))


def _rotated(scene, angle):
    """Boxes [G, 4] around the corners of those of a scene, turned counter-clockwise."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    height, width = scene.image.shape[:2]
    x, y = scene.boxes[:, [0, 0, 2, 2]] - width / 2, scene.boxes[:, [1, 3, 1, 3]] - height / 2
    x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2  # [G, 4 corners]
    return jnp.stack([x.min(1), y.min(1), x.max(1), y.max(1)], -1)


def _mapped(scene, factor, moved):
    """The scene scaled by `factor [2]` and then moved by `moved [2]` pixels, both rows first."""
    image = augment.mapped(scene.image, factor, moved)
    by, to = (jnp.tile(v[::-1], 2)[None] for v in (factor, moved))
    return _kept(scene, image, scene.boxes * by + to)


def _kept(scene, image, found):
    """The scene with another image, and boxes that may leave it."""
    inside = boxes.clip(found, *image.shape[:2])
    enough = boxes.area(inside) > KEEP * boxes.area(found)
    return scene._replace(image=image, boxes=inside, valid=scene.valid & enough)


# How things look.


def light(key, scene, *, strength=0.2):
    """Brightness and contrast changed by up to `strength`, a share."""
    return scene._replace(image=augment.lighting(key, scene.image, light=strength))


def colour(key, scene, *, strength=0.2):
    """Saturation changed by up to `strength`, a share, and hue by up to a tenth of it."""
    return scene._replace(image=augment.colouring(key, scene.image, colour=strength))


def noise(key, scene, *, strength=0.05):
    """Gaussian noise, of a standard deviation of up to `strength`, on every level."""
    image = scene.image
    spread = jax.random.uniform(jax.random.fold_in(key, 0), maxval=strength)
    drawn = jax.random.normal(jax.random.fold_in(key, 1), image.shape)
    return scene._replace(image=jnp.clip(image + spread * drawn, 0, 1))


def cutout(key, scene, *, count=4, side=0.2):
    """`count` grey rectangles of up to `side` of the photo's sides; boxes stay as they are.

    DeVries and Taylor 2017 (cutout), arXiv:1708.04552.
    """
    return scene._replace(
        image=augment.cutout(key, scene.image, augment.GREY, count=count, side=side)
    )


# New scenes of several: of a batch of B, with slots for the boxes of all that are joined.


def mosaic(keys, scenes, *, chance=1.0, scale=(0.4, 1.0)):
    """Four photos around a point: each scene, with a probability of `chance`, and three others.

    keys [B], scenes [B, ...] -> [B, ...] with four times the slots.  The point is in the middle
    half of the photo, each of the four is scaled by a factor within `scale` and touches it with a
    corner.  The others are the next in the batch.  Bochkovskiy et al. 2020, arXiv:2004.10934.
    """
    together = _neighbours(scenes, 4)
    return jax.vmap(partial(_mosaic, chance=chance, scale=scale))(keys, together)


def mixup(keys, scenes, *, chance=1.0, alpha=32.0):
    """Two photos in one, with the boxes of both: each scene, with `chance`, and the next one.

    keys [B], scenes [B, ...] -> [B, ...] with twice the slots.  The share of the first is from
    Beta(alpha, alpha).  Zhang et al. 2017, arXiv:1710.09412; Zhang et al. 2019, arXiv:1902.04103.
    """
    return jax.vmap(partial(_mixup, chance=chance, alpha=alpha))(keys, _neighbours(scenes, 2))


def _neighbours(scenes, count):
    """Every scene of a batch with the `count - 1` that come after it: [B, count, ...]."""
    return jax.tree.map(
        lambda rows: jnp.stack([jnp.roll(rows, -i, 0) for i in range(count)], 1), scenes
    )


def _slots(scene):
    """Slots of several scenes [N, G, ...] as those of one, [N * G, ...]; the image is the first."""
    flat = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), scene._replace(image=()))
    return flat._replace(image=scene.image[0])


def _only_first(scene):
    """Slots of several scenes, of which those of the first are in use."""
    first = (jnp.arange(len(scene.valid)) == 0)[:, None]
    return _slots(scene._replace(valid=scene.valid & first))


def _mosaic(key, four, *, chance, scale):
    """The mosaic of scenes [4, ...], or the first of them with as many slots."""
    does, place, sizes = (jax.random.fold_in(key, i) for i in range(3))
    height, width = four.image.shape[1:3]
    middle = jax.random.uniform(place, (2,), minval=0.25, maxval=0.75)
    middle = middle * jnp.float32([height, width])  # y, x
    factor = jax.random.uniform(sizes, (4,), minval=scale[0], maxval=scale[1])
    before = jnp.float32([[1, 1], [1, 0], [0, 1], [0, 0]])  # above, and left of the point
    tiles = jax.vmap(partial(_tile, middle))(factor, before, four)
    down, across = _sides(height, middle[0]), _sides(width, middle[1])
    own = down[np.array([0, 0, 1, 1]), :, None] & across[np.array([0, 1, 0, 1]), None]  # [4, H, W]
    image = jnp.where(own[..., None], tiles.image, 0.0).sum(0)
    made = _slots(tiles)._replace(image=image)
    chosen = jax.random.bernoulli(does, chance)
    return jax.tree.map(partial(jnp.where, chosen), made, _only_first(four))


def _sides(length, middle):
    """[2, length]: which places are before the middle, and which are not."""
    before = jnp.arange(length) + 0.5 < middle
    return jnp.stack([before, ~before])


def _tile(middle, factor, before, scene):
    """A scene scaled, with a corner at `middle`, and its boxes kept to that side of it."""
    whole = jnp.float32(scene.image.shape[:2])
    moved = _mapped(scene, jnp.tile(factor, 2), middle - before * factor * whole)
    low = jnp.where(before > 0, 0.0, middle)[::-1]  # x, y
    high = jnp.where(before > 0, middle, whole)[::-1]
    limits = jnp.tile(low, 2)[None], jnp.tile(high, 2)[None]
    inside = jnp.clip(moved.boxes, *limits)
    grown = boxes.area(scene.boxes) * factor**2
    return moved._replace(boxes=inside, valid=moved.valid & (boxes.area(inside) > KEEP * grown))


def _mixup(key, two, *, chance, alpha):
    """Scenes [2, ...] in one, or the first of them with as many slots."""
    does, how = (jax.random.fold_in(key, i) for i in range(2))
    share = jax.random.beta(how, alpha, alpha)
    made = _slots(two)._replace(image=share * two.image[0] + (1 - share) * two.image[1])
    chosen = jax.random.bernoulli(does, chance)
    return jax.tree.map(partial(jnp.where, chosen), made, _only_first(two))
