from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from benchmarks.lib import reference
from jaxdet.losses import boxes as box_losses
from jaxdet.models.detector import DetectorOutput
from jaxdet.ops import anchors, nms
from jaxdet.tasks import class_encoding, detect
from jaxdet.types import StepContext
from tests.reference import boxes as reference_boxes
from tests.reference import detection as reference_detection

READINGS = {
    "zeros": class_encoding.ZEROS,
    "objectness": class_encoding.OBJECTNESS,
    "background": class_encoding.BACKGROUND_CLASS,
}
each_reading = pytest.mark.parametrize("name", READINGS)
CLASSES, SIDE = 3, 32
WEIGHTS = {f"{name}_weight": w for name, w in (("classification", 1.0), ("objectness", 2.0))}
WEIGHTS |= {"box_weight": 5.0, "distance_weight": 0.5}


LEVELS = [(4, 4), (2, 2)], (8, 16)


def answers(reading, seed=0, batch=2, bins=1):
    """Random answers of a pyramid of two levels."""
    rng = np.random.default_rng(seed)
    points, strides = anchors.grid_centers(*LEVELS)
    cells = len(points)
    classes = rng.normal(-1, 1, (batch, cells, reading.logits(CLASSES))).astype(np.float32)
    logits = rng.normal(0, 1, (batch, cells, 4, bins)).astype(np.float32) if bins > 1 else None
    reach = rng.uniform(0.3, 2, (batch, cells, 4)) * strides[None, :, None]
    boxes = np.asarray(anchors.ltrb_to_boxes(reach, points[None]), np.float32)
    objectness = rng.normal(0, 1, (batch, cells)).astype(np.float32)
    return DetectorOutput(
        classes, boxes, objectness if reading.objectness else None, logits, points, strides
    )


SLOTS = 9


def batch(seed=1, slots=SLOTS):
    """True boxes: eight in the first photo, one of them a crowd; six in the second."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 16, (2, slots, 2))
    boxes = np.concatenate([low, low + rng.uniform(6, 14, (2, slots, 2))], -1).astype(np.float32)
    return {
        "image": np.zeros((2, SIDE, SIDE, 3), np.float32),
        "boxes": boxes,
        "labels": rng.integers(0, CLASSES, (2, slots)).astype(np.int32),
        "valid": np.arange(slots)[None] < np.array([[8], [6]]),
        "crowd": np.arange(slots)[None] == np.array([[1], [8]]),
        "area": np.ones((2, slots), np.float32),
        "real": np.ones(2, np.float32),
        "size": np.full((2, 2), SIDE),
        "to_original": np.float32([[2, 2, 0, 0], [1, 3, -5, 0]]),
    }


HOW = {"topk": 4, "alpha": 0.5, "beta": 2.0}


def task(reading, found, assigner=None, **changes):
    """The task of a network whose answers are `found`, whatever it sees."""
    net = SimpleNamespace(apply=lambda variables, images, train: found)
    return detect.DetectionTask(
        net,
        tuple("abc"),
        change=lambda keys, batch, context: batch,
        assigner=assigner or detect.make_assigner(**HOW),
        suppress=partial(nms.nms, max_detections=5, score_threshold=0.1),
        reading=reading,
        **changes,
    )


def loss(found, rows, reading=class_encoding.ZEROS, box_loss=box_losses.ciou):
    """(share, terms) of the loss, compiled."""
    return judged(found, rows, reading, box_loss)


@partial(jax.jit, static_argnums=(2, 3))
def judged(found, rows, reading, box_loss):
    share, (_, terms) = task(reading, found, box_loss=box_loss).loss({}, rows, None, at())
    return share, terms


@partial(jax.jit, static_argnums=3)
def targets(found, rows, epoch, assigner=None):
    points, strides = anchors.grid_centers(*LEVELS)  # of NumPy, as the detector has them
    found = found._replace(points=points, strides=strides)
    return task(class_encoding.ZEROS, found, assigner).targets(found, rows, at(epoch=epoch))


@jax.jit
def predicted(found, images):
    return task(class_encoding.ZEROS, found).predict({}, images)


def at(train=False, epoch=0):
    return StepContext(train, jnp.int32(0), jnp.int32(epoch), WEIGHTS)


@each_reading
def test_the_loss_is_the_loop(name):
    reading = READINGS[name]
    found, rows = answers(reading), batch()
    share, terms = loss(found, rows, reading)
    scores = np.asarray(reading.scores(found))
    whole, kept = 0.0, {"classification": 0.0, "objectness": 0.0, "box": 0.0}
    for i in range(2):
        valid = rows["valid"][i] & ~rows["crowd"][i]
        given = scores[i], found.boxes[i], found.points, rows["boxes"][i], rows["labels"][i], valid
        on, index, wanted, _ = reference.task_aligned(*given, **HOW)
        whole += wanted.sum()
        for a in range(len(on)):
            told = _cell_losses(name, found, i, a, wanted[a])
            for term, value in told.items():
                kept[term] += value
            if on[a]:
                true = rows["boxes"][i][index[a]]
                kept["box"] += wanted[a].sum() * (
                    1 - reference_boxes.ciou(found.boxes[i, a], true, eps=1e-7)
                )
    assert whole > 1  # or the smallest divisor hides it
    for term in kept:
        if term in terms:
            np.testing.assert_allclose(terms[term], kept[term] / whole, rtol=2e-3)
    total = sum(WEIGHTS[f"{term}_weight"] * kept[term] for term in kept) / whole
    np.testing.assert_allclose(share, total, rtol=2e-3)
    assert share == terms["loss"]


def _cell_losses(name, found, i, a, wanted):
    """The terms of one cell, from its logits and its wanted scores [K]."""

    def cross(logit, true):
        chance = 1 / (1 + np.exp(-logit))
        return -(true * np.log(chance) + (1 - true) * np.log(1 - chance))

    logits = found.classes[i, a].astype(float)
    if name == "zeros":
        return {"classification": sum(map(cross, logits, wanted))}
    if name == "objectness":
        classes = sum(cross(x, float(w > 0)) for x, w in zip(logits, wanted, strict=True))
        here = cross(float(found.objectness[i, a]), wanted.max())
        return {"classification": wanted.max() * classes, "objectness": here}
    logits[0] += np.log(CLASSES * 0.99 / 0.01)
    chances = np.exp(logits) / np.exp(logits).sum()
    whole = [1 - wanted.sum(), *wanted]
    return {"classification": -sum(w * np.log(c) for w, c in zip(whole, chances, strict=True))}


@each_reading
def test_scores_are_chances_and_fresh_logits_find_little(name):
    reading = READINGS[name]
    scores = reading.scores(answers(reading))
    chex.assert_shape(scores, (2, 20, CLASSES))
    assert (scores >= 0).all() and (scores <= 1).all()
    fresh = answers(reading)._replace(
        classes=jnp.full((2, 20, reading.logits(CLASSES)), -4.595),
        objectness=jnp.full((2, 20), -4.595) if reading.objectness else None,
    )
    assert (reading.scores(fresh) <= 0.0101).all()


def test_a_photo_without_objects_has_a_finite_loss_and_no_gradient_of_boxes():
    found, rows = answers(class_encoding.ZEROS), batch()
    rows["valid"] = rows["valid"] & False

    def share(boxes, classes):
        told = task(class_encoding.ZEROS, found._replace(boxes=boxes, classes=classes))
        return told.loss({}, rows, None, at())[0]

    slopes = jax.jit(jax.value_and_grad(share, (0, 1)))
    value, (of_boxes, of_classes) = slopes(found.boxes, found.classes)
    assert np.isfinite(value) and not np.asarray(of_boxes).any()
    assert np.asarray(of_classes).all()


def test_rows_that_only_pad_change_nothing():
    found = answers(class_encoding.ZEROS)
    rows = batch()
    whole, _ = loss(found, rows | {"real": np.float32([1, 0])})
    first = found._replace(classes=found.classes[:1], boxes=found.boxes[:1])
    alone = {name: column[:1] for name, column in rows.items()}
    np.testing.assert_allclose(whole, loss(first, alone)[0], rtol=1e-5)


def test_more_slots_change_no_number():
    found, rows = answers(class_encoding.ZEROS), batch()
    more = dict(rows)
    for name in ("boxes", "labels", "valid", "crowd", "area"):
        blank = np.zeros((2, 100 - SLOTS, *rows[name].shape[2:]), rows[name].dtype)
        more[name] = np.concatenate([rows[name], blank], 1)
    told = [loss(found, r)[1] for r in (rows, more)]
    chex.assert_trees_all_equal(*told)


def test_the_distance_term_is_the_loop():
    found, rows = answers(class_encoding.ZEROS, bins=6), batch()
    _, terms = loss(found, rows)
    wanted = jax.device_get(targets(found._replace(distances=None), rows, 0))
    total = 0.0
    for i in range(2):
        for a in np.flatnonzero(wanted.positive[i]):
            far, box, point = 0.0, wanted.boxes[i, a], found.points[a]
            for side, apart in enumerate([*(point - box[:2]), *(box[2:] - point)]):
                apart = min(max(float(apart) / found.strides[a], 0), 4.99)
                logits = found.distances[i, a, side].astype(float)
                chances = np.exp(logits) / np.exp(logits).sum()
                low = int(apart)
                far -= (low + 1 - apart) * np.log(chances[low])
                far -= (apart - low) * np.log(chances[low + 1])
            total += float(wanted.scores[i, a].sum()) * far / 4
    whole = max(float(wanted.scores.sum()), 1)
    np.testing.assert_allclose(terms["distance"], total / whole, rtol=1e-3)


def test_assigners_change_at_their_epoch():
    found, rows = answers(class_encoding.ZEROS), batch()
    both = detect.make_assigner(tal_from=2, positive=0.3, **HOW)
    early, late = (targets(found, rows, epoch, both) for epoch in (1, 2))
    plain = detect.make_assigner(positive=0.3)
    chex.assert_trees_all_equal(early, targets(found, rows, 0, plain))
    chex.assert_trees_all_close(late, targets(found, rows, 0))
    assert not np.array_equal(early.positive, late.positive)


def test_predictions_are_the_best_of_each_class_inside_the_image():
    found = answers(class_encoding.ZEROS)
    out = jax.device_get(predicted(found, batch()["image"]))
    scores = special.expit(found.classes)
    for i in range(2):
        boxes = np.repeat(np.clip(found.boxes[i], 0, SIDE), CLASSES, 0)
        labels = np.tile(np.arange(CLASSES), len(found.points))
        flat = scores[i].reshape(-1)
        kept = [k for k in reference_detection.nms(boxes, flat, labels, 0.5) if flat[k] > 0.1][:5]
        np.testing.assert_allclose(out["scores"][i], flat[kept], rtol=1e-5)
        np.testing.assert_array_equal(out["labels"][i], labels[kept])
        np.testing.assert_allclose(out["boxes"][i], boxes[kept], rtol=1e-5)


def test_measures_are_in_pixels_of_the_photos():
    found, rows = answers(class_encoding.ZEROS), batch()
    out = predicted(found, rows["image"])
    told = jax.jit(task(class_encoding.ZEROS, found).measure)(out, rows)
    scale = np.float32([[2, 2, 2, 2], [1, 3, 1, 3]])[:, None]
    offset = np.float32([[0, 0, 0, 0], [-5, 0, -5, 0]])[:, None]
    np.testing.assert_allclose(told["boxes"], out["boxes"] * scale + offset, rtol=1e-6)
    np.testing.assert_allclose(told["true_boxes"], rows["boxes"] * scale + offset, rtol=1e-6)


def test_box_losses_by_name():
    found, rows = answers(class_encoding.ZEROS), batch()
    names = ("iou", "giou", "diou", "ciou")

    @jax.jit
    def all_of(rows):  # what they share is compiled once
        return {
            name: loss(found, rows, box_loss=getattr(box_losses, name))[1]["box"] for name in names
        }

    told = jax.device_get(all_of(rows))
    assert told["iou"] <= told["diou"] <= told["ciou"] and told["iou"] <= told["giou"]
