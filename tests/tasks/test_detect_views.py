"""Several views, or tiles, of an image: all detect the same objects, in pixels of the image."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.normalize import Normalization
from jaxdet.models.detector import DetectorOutput
from jaxdet.ops import boxes, nms
from jaxdet.ops.tiles import Tiling
from jaxdet.tasks import class_encoding, detect
from jaxdet.types import StepContext

BOX = (40, 20, 72, 60)
UNCHANGED = Normalization((0.0,) * 3, (1.0,) * 3)


def bright_object(variables, images, train):
    """Outputs of a network with one cell, which detects bright pixels."""
    found = jnp.stack(
        [boxes.mask_to_box(jnp.where(image[..., 0] > 0.5, 1.0, 0.0)) for image in images]
    )
    count = len(images)
    logits = jnp.broadcast_to(jnp.float32([[[3.0, -3.0]]]), (count, 1, 2))
    point, stride, anchor = jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((1, 4))
    return DetectorOutput(logits, found[:, None], None, None, point, stride, anchor)


def make_task(views, iou_threshold=2.0):
    """The task of `bright_object`; no IoU reaches the default threshold."""
    return detect.DetectionTask(
        SimpleNamespace(apply=bright_object),
        ("a", "b"),
        transform=None,
        assigner=None,
        suppress=partial(
            nms.nms, max_detections=8, score_threshold=0.1, iou_threshold=iou_threshold
        ),
        encoding=class_encoding.ZEROS,
        normalization=UNCHANGED,
        views=views,
    )


@pytest.fixture
def images():
    x0, y0, x1, y1 = BOX
    image = np.zeros((96, 128, 3), np.float32)
    image[y0:y1, x0:x1] = 1
    return np.stack([image, image[:, ::-1]])


def test_every_view_detects_the_object_in_image_pixels(images):
    found = jax.jit(make_task(detect.TTA).predict)({}, images)
    assert found["valid"].sum(1).tolist() == [6, 6]
    mirrored = (128 - BOX[2], BOX[1], 128 - BOX[0], BOX[3])
    for row, expected in zip(found["boxes"], (BOX, mirrored), strict=True):
        np.testing.assert_allclose(row[:6], np.float32([expected] * 6), atol=1.5)
    assert len(np.unique(np.round(found["boxes"][0, :6], 3), axis=0)) > 1


def test_boxes_of_all_views_are_suppressed_together(images):
    found = jax.jit(make_task(detect.TTA, 0.5).predict)({}, images)
    assert found["valid"].sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("scale, shape", [(1.0, (96, 128)), (0.5, (64, 64)), (1.3, (128, 160))])
def test_rescaled_training_images_have_their_boxes_on_the_objects(images, scale, shape):
    task = replace(make_task(detect.SINGLE_VIEW), transform=lambda keys, batch, context: batch)
    context = StepContext(True, jnp.int32(0), jnp.int32(0), {}, scale=scale)
    batch = {"image": images * 255, "boxes": np.float32([[BOX], [(56, 20, 88, 60)]])}
    found = task.augment(None, batch, context)
    assert found["image"].shape == (2, *shape, 3)
    for image, box in zip(found["image"], found["boxes"], strict=True):
        np.testing.assert_allclose(boxes.mask_to_box((image[..., 0] > 0.5) * 1.0), box[0], atol=1)
    evaluated = task.augment(None, batch, context._replace(train=False))
    assert evaluated["image"].shape == images.shape


def test_single_and_mirrored_views_are_exact(images):
    for views in (detect.SINGLE_VIEW, (detect.View(1.0, True),)):
        found = make_task(views).predict({}, images)
        np.testing.assert_array_equal(found["boxes"][0, 0], BOX)


def tiled(rows, columns, views=detect.SINGLE_VIEW):
    """The task with tiles of 96 x 96 or, if it is alone, 96 x 128 pixels."""
    width = 128 if rows == columns == 1 else 96
    tiling = Tiling(rows, columns, 0.6, 96, width)
    return replace(make_task(views, 0.5), tiling=tiling)


def test_a_tile_as_large_as_the_image_gives_identical_boxes(images):
    views = (detect.View(), detect.View(0.67, True))
    expected = jax.jit(make_task(views, 0.5).predict)({}, images)
    found = jax.jit(tiled(1, 1, views).predict)({}, images)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_an_object_that_tiles_show_in_part_is_one_box(images):
    task = tiled(1, 2)  # 0..96 and 32..128: both tiles show the first object whole
    assert task.tiling.canvas == (96, 128)
    wide = np.zeros((1, 96, 128, 3), np.float32)
    wide[:, 20:60, 10:120] = 1  # which both tiles cut
    images = np.concatenate([images, wide])
    found = jax.jit(task.predict)({}, images)
    assert found["valid"].sum(1).tolist() == [1, 1, 1]
    mirrored = (128 - BOX[2], BOX[1], 128 - BOX[0], BOX[3])
    for box, expected in zip(found["boxes"], (BOX, mirrored, (10, 20, 120, 60)), strict=True):
        np.testing.assert_allclose(box[0], expected, atol=1)


def test_tiles_by_size_on_the_same_grid_give_identical_boxes(images):
    fixed = tiled(2, 2)
    free = replace(fixed, tiling=fixed.tiling._replace(rows=None, columns=None))
    images = np.pad(images, [(0, 0), (0, 32), (0, 0), (0, 0)])
    expected, found = (jax.jit(task.predict)({}, images) for task in (fixed, free))
    assert fixed.tiling.canvas == (128, 128) and found["valid"].any(1).all()
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_tiles_beyond_an_image_count_for_nothing(images):
    task = replace(tiled(1, 2), tiling=Tiling(None, None, 0.6, 96, 96))
    sizes, scale = np.array([[48, 64], [48, 40]]), 2.0  # 96 x 128 and 96 x 80 pixels of the input
    larger = np.ones((2, 160, 192, 3), np.float32)
    larger[0, :96, :128], larger[1, :96, :96] = images[0], images[1, :, :96]
    to_original = np.float32([[1 / scale, 1 / scale, 0, 0]] * 2)
    batch = {"image": larger, "size": sizes, "to_original": to_original}
    extents = np.asarray(task.extents(batch))
    np.testing.assert_array_equal(extents, [[96, 128], [96, 96]])
    found = jax.jit(task.predict_batch)({}, batch)
    for i, (rows, columns) in enumerate(extents):
        alone = jax.jit(task.predict)({}, larger[i : i + 1, :rows, :columns])
        assert found["valid"][i].sum() == alone["valid"].sum() == 1
        for name, column in alone.items():
            np.testing.assert_allclose(found[name][i], column[0], atol=1e-5)
    parts = {name: np.ones((2, 1), bool) for name in ("labels", "valid", "crowd")}
    task = replace(task, transform=lambda keys, batch, context: batch)
    batch |= {"image": larger * 255, "boxes": np.zeros((2, 1, 4), np.float32), **parts}
    context = StepContext(True, jnp.int32(0), jnp.int32(0), {})
    for seed in range(8):
        keys = jax.random.split(jax.random.key(seed), 2)
        drawn = task.augment(keys, batch, context)["image"]
        np.testing.assert_array_equal(drawn[1], larger[1, :96, :96])


def test_many_tiles_are_predicted_a_few_at_a_time(images, monkeypatch):
    task = tiled(2, 2)
    images = np.pad(images, [(0, 0), (0, 32), (0, 0), (0, 0)])
    expected = jax.jit(task.candidates)({}, images)
    monkeypatch.setattr(detect, "TILES_AT_ONCE", 3)
    for one, other in zip(expected, jax.jit(task.candidates)({}, images), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_sees_a_tile_of_each_image(images):
    task = replace(tiled(1, 2), transform=lambda keys, batch, context: batch)
    batch = {"image": images * 255, "boxes": np.float32([[BOX], [(56, 20, 88, 60)]])}
    batch |= dict.fromkeys(("labels", "valid", "crowd"), np.ones((2, 1), bool))
    keys = jax.random.split(jax.random.key(1), 2)
    context = StepContext(True, jnp.int32(0), jnp.int32(0), {})
    found = jax.jit(partial(task.augment, context=context))(keys, batch)
    assert found["image"].shape == (2, 96, 96, 3) and found["valid"].all()
    for image, box in zip(found["image"], found["boxes"], strict=True):
        np.testing.assert_allclose(boxes.mask_to_box((image[..., 0] > 0.5) * 1.0), box[0], atol=1)
    whole = task.augment(keys, batch, context._replace(train=False))
    assert whole["image"].shape == images.shape
