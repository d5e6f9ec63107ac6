"""Options of the changes of training photos: each does what it says, and nothing else is done."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import AugmentOptions, check_augment
from jaxdet.errors import InputError
from jaxdet.tasks import augmentation
from jaxdet.types import StepContext

REST = {"flip": False, "scale": (1.0, 1.0), "shift": 0.0, "light": 0.0, "colour": 0.0}
STILL = replace(AugmentOptions(epochs=10, plain_last=3), **REST)
PLACES = {
    "flip": True,
    "flip_down": True,
    "scale": (0.5, 2.0),
    "shift": 0.3,
    "crop": (0.2, 0.5),
    "rotate": 30.0,
}
PHOTOMETRIC = {"light": 0.3, "colour": 0.3, "noise": 0.1, "cutout": 3}
JOINED = {"mosaic": 1.0, "mixup": 1.0}


@cache
def program(config):
    """The compiled change of a configuration."""
    change = augmentation.pipeline(config)
    return jax.jit(
        lambda keys, batch, epoch: change(keys, batch, StepContext(True, epoch, epoch, {}))
    )


def changed(epoch=0, **options):
    """A batch of eight photos with a box each, before and after it is changed."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(0, 1, (8, 32, 48, 3)).astype(np.float32),
        "boxes": np.tile(np.float32([[[8, 6, 30, 20], [0, 0, 0, 0]]]), (8, 1, 1)),
        "labels": np.tile([[1, 0]], (8, 1)),
        "valid": np.tile([[True, False]], (8, 1)),
        "crowd": np.zeros((8, 2), bool),
        "id": np.arange(8),
    }
    each = jax.random.split(jax.random.key(0), 8)
    return batch, program(replace(STILL, **options))(each, batch, jnp.int32(epoch))


def test_without_options_a_batch_stays_as_it_is():
    jax.tree.map(np.testing.assert_array_equal, *changed())


@pytest.mark.parametrize("name", [*PLACES, *PHOTOMETRIC])
def test_each_option_changes_photos_and_those_of_place_their_boxes(name):
    before, after = changed(**{name: (PLACES | PHOTOMETRIC)[name]})
    assert (before["image"] != after["image"]).any(axis=(1, 2, 3)).sum() > 1
    assert (before["boxes"] != after["boxes"]).any() == (name in PLACES)
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(before["id"], after["id"])


@pytest.mark.parametrize("name, slots", [("mosaic", 8), ("mixup", 4)])
def test_photos_are_joined_until_the_last_epochs(name, slots):
    for epoch, joined in ((0, True), (6, True), (7, False), (9, False)):
        before, after = changed(epoch, **{name: 1.0})
        assert after["boxes"].shape == (8, slots, 4)
        assert (before["image"] != after["image"]).any() == joined
        assert (after["valid"].sum() > 8) == joined


def test_one_of_the_photometric_changes_or_half_of_them_changes_a_photo():
    """A hole has one level; noise leaves none of a photo's own."""
    for how, both in (("one", 0), ("all", 8)):
        before, after = changed(photometric=how, cutout=3, noise=0.2)
        grey = (after["image"] == 0.5).all(-1).any(axis=(1, 2))
        noisy = (after["image"] != before["image"]).mean(axis=(1, 2, 3)) > 0.6
        assert (grey | noisy).all() and (grey & noisy).sum() == both
    assert len(augmentation._photometric(replace(STILL, photometric="some", **PHOTOMETRIC))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (2.0, 1.0)},
        {"shift": 1.5},
        {"crop": (0.0, 1.0)},
        {"crop": (0.9, 0.5)},
        {"rotate": 200.0},
        {"mosaic": -0.1},
        {"mixup": 1.5},
        {"cutout": -1},
        {"plain_last": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(wrong):
    check_augment(STILL)
    (name,) = wrong
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} "):
        check_augment(replace(STILL, **wrong))
