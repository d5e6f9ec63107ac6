"""Each augmentation option has its own effect, and no other."""

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

NONE = AugmentOptions(
    epochs=10,
    close_mosaic_epochs=3,
    flip=False,
    scale=(1.0, 1.0),
    shift=0.0,
    brightness_contrast=0.0,
    color_jitter=0.0,
)
GEOMETRIC = {
    "flip": True,
    "vflip": True,
    "scale": (0.5, 2.0),
    "shift": 0.3,
    "crop_area": (0.2, 0.5),
    "rotate": 30.0,
}
PHOTOMETRIC = {
    "brightness_contrast": 0.3,
    "color_jitter": 0.3,
    "noise": 0.1,
    "cutout_holes": 3,
}


@cache
def compiled(config):
    """The compiled pipeline of a configuration."""
    pipeline = augmentation.pipeline(config)
    return jax.jit(
        lambda keys, batch, epoch: pipeline(keys, batch, StepContext(True, epoch, epoch, {}))
    )


def augmented(epoch=0, **options):
    """A batch of eight images with one box each, before and after augmentation."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(0, 1, (8, 32, 48, 3)).astype(np.float32),
        "boxes": np.tile(np.float32([[[8, 6, 30, 20], [0, 0, 0, 0]]]), (8, 1, 1)),
        "labels": np.tile([[1, 0]], (8, 1)),
        "valid": np.tile([[True, False]], (8, 1)),
        "crowd": np.zeros((8, 2), bool),
        "id": np.arange(8),
    }
    keys = jax.random.split(jax.random.key(0), 8)
    return batch, compiled(replace(NONE, **options))(keys, batch, jnp.int32(epoch))


def test_without_options_a_batch_is_unchanged():
    jax.tree.map(np.testing.assert_array_equal, *augmented())


@pytest.mark.parametrize("name", [*GEOMETRIC, *PHOTOMETRIC])
def test_every_option_changes_images_and_geometric_ones_change_boxes(name):
    before, after = augmented(**{name: (GEOMETRIC | PHOTOMETRIC)[name]})
    assert (before["image"] != after["image"]).any(axis=(1, 2, 3)).sum() > 1
    assert (before["boxes"] != after["boxes"]).any() == (name in GEOMETRIC)
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(before["id"], after["id"])


@pytest.mark.parametrize("name, slots", [("mosaic", 8), ("mixup", 4)])
def test_mosaic_and_mixup_are_off_in_the_last_epochs(name, slots):
    for epoch, on in ((0, True), (6, True), (7, False), (9, False)):
        before, after = augmented(epoch, **{name: 1.0})
        assert after["boxes"].shape == (8, slots, 4)
        assert (before["image"] != after["image"]).any() == on
        assert (after["valid"].sum() > 8) == on


def test_photometric_applies_one_or_all_or_half_of_the_transforms():
    """A hole has one pixel value; noise changes every pixel."""
    for photometric, both in (("one", 0), ("all", 8)):
        before, after = augmented(photometric=photometric, cutout_holes=3, noise=0.2)
        gray = (after["image"] == 0.5).all(-1).any(axis=(1, 2))
        noisy = (after["image"] != before["image"]).mean(axis=(1, 2, 3)) > 0.6
        assert (gray | noisy).all() and (gray & noisy).sum() == both
    assert len(augmentation._photometric(replace(NONE, photometric="some", **PHOTOMETRIC))) == 1


def test_photometric_transforms_in_random_order_are_all_applied():
    """Noise covers the holes of images that get it after them."""
    before, after = augmented(photometric="random_order", cutout_holes=3, noise=0.2)
    gray = (after["image"] == 0.5).all(-1).any(axis=(1, 2))
    assert 0 < gray.sum() < 8
    assert ((after["image"] != before["image"]).mean(axis=(1, 2, 3)) > 0.6).all()


@pytest.mark.parametrize(
    "invalid",
    [
        {"scale": (2.0, 1.0)},
        {"shift": 1.5},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.9, 0.5)},
        {"rotate": 200.0},
        {"mosaic": -0.1},
        {"mixup": 1.5},
        {"cutout_holes": -1},
        {"close_mosaic_epochs": -1},
    ],
    ids=str,
)
def test_invalid_values_are_refused_by_option_name(invalid):
    check_augment(NONE)
    (name,) = invalid
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} "):
        check_augment(replace(NONE, **invalid))
