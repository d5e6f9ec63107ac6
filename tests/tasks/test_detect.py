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

ENCODINGS = {
    "zeros": class_encoding.ZEROS,
    "objectness": class_encoding.OBJECTNESS,
    "background": class_encoding.BACKGROUND_CLASS,
}
each_encoding = pytest.mark.parametrize("name", ENCODINGS)
CLASSES, SIDE = 3, 32
WEIGHTS = {f"{name}_weight": w for name, w in (("classification", 1.0), ("objectness", 2.0))}
WEIGHTS |= {"box_weight": 5.0, "distance_weight": 0.5}


LEVELS = [(4, 4), (2, 2)], (8, 16)


def random_output(encoding, seed=0, batch=2, reg_max=1):
    """Random outputs of a pyramid of two levels."""
    rng = np.random.default_rng(seed)
    points, strides = anchors.grid_centers(*LEVELS)
    cells = len(points)
    classes = rng.normal(-1, 1, (batch, cells, encoding.num_logits(CLASSES))).astype(np.float32)
    logits = (
        rng.normal(0, 1, (batch, cells, 4, reg_max)).astype(np.float32) if reg_max > 1 else None
    )
    reach = rng.uniform(0.3, 2, (batch, cells, 4)) * strides[None, :, None]
    boxes = np.asarray(anchors.ltrb_to_boxes(reach, points[None]), np.float32)
    objectness = rng.normal(0, 1, (batch, cells)).astype(np.float32)
    return DetectorOutput(
        classes,
        boxes,
        objectness if encoding.objectness else None,
        logits,
        points,
        strides,
        anchors.anchor_boxes(points, strides),
    )


SLOTS = 9


def make_batch(seed=1, slots=SLOTS):
    """True boxes: eight in the first image, one of them a crowd; six in the second."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 16, (2, slots, 2))
    boxes = np.concatenate([low, low + rng.uniform(6, 14, (2, slots, 2))], -1).astype(np.float32)
    return {
        "image": np.zeros((2, SIDE, SIDE, 3), np.float32),
        "boxes": boxes,
        "labels": rng.integers(0, CLASSES, (2, slots)).astype(np.int32),
        "valid": np.arange(slots)[None] < np.array([[8], [6]]),
        "crowd": np.arange(slots)[None] == np.array([[1], [8]]),
        "real": np.ones(2, np.float32),
        "size": np.int32([[50, 60], [90, 20]]),
        "to_original": np.float32([[2, 2, 0, 0], [1, 3, -5, 0]]),
        "true_boxes": 2 * boxes,
        "true_labels": np.ones((2, slots), np.int32),
        "true_valid": np.ones((2, slots), bool),
        "true_crowd": np.zeros((2, slots), bool),
        "true_area": np.ones((2, slots), np.float32),
    }


TAL = {"topk": 4, "alpha": 0.5, "beta": 2.0}


def make_task(encoding, found, assigner=None, **changes):
    """The task of a network that outputs `found` for any image."""

    def apply(variables, images, train, **_):
        return (found, {}) if train else found

    net = SimpleNamespace(apply=apply)
    net.clone = lambda axis_name: net
    return detect.DetectionTask(
        net,
        tuple("abc"),
        transform=lambda keys, batch, context: batch,
        assigner=assigner or detect.make_assigner(**TAL),
        suppress=partial(nms.nms, max_detections=5, score_threshold=0.1),
        encoding=encoding,
        **changes,
    )


def loss(found, rows, encoding=class_encoding.ZEROS, box_loss=box_losses.ciou, weights=()):
    """(loss, terms), compiled; with weights of the classes as in training."""
    return compiled_loss(found, rows, encoding, box_loss, weights)


@partial(jax.jit, static_argnums=(2, 3, 4))
def compiled_loss(found, rows, encoding, box_loss, weights):
    task = make_task(encoding, found, box_loss=box_loss, class_weights=weights)
    value, (_, terms) = task.loss({}, rows, None, context(train=bool(weights)))
    return value, terms


@partial(jax.jit, static_argnums=3)
def assign_targets(found, rows, epoch, assigner=None):
    points, strides = anchors.grid_centers(*LEVELS)  # NumPy arrays, as those of a detector
    kinds = {"points": points, "anchors": anchors.anchor_boxes(points, strides)}
    found = found._replace(strides=strides, **kinds)
    task = make_task(class_encoding.ZEROS, found, assigner)
    return task.assignments({}, rows, context(epoch=epoch))[0]


@jax.jit
def predict(found, images):
    return make_task(class_encoding.ZEROS, found).predict({}, images)


def context(train=False, epoch=0):
    return StepContext(train, jnp.int32(0), jnp.int32(epoch), WEIGHTS)


@pytest.mark.parametrize("weights", [(), (1.0, 4.0, 0.5)], ids=["unweighted", "weighted"])
@each_encoding
def test_loss_equals_scalar_reference(name, weights):
    encoding = ENCODINGS[name]
    found, rows = random_output(encoding), make_batch()
    value, terms = loss(found, rows, encoding, weights=weights)
    scores = np.asarray(encoding.scores(found))
    divisor, sums = 0.0, {"classification": 0.0, "objectness": 0.0, "box": 0.0}
    for i in range(2):
        valid = rows["valid"][i] & ~rows["crowd"][i]
        arguments = (
            scores[i],
            found.boxes[i],
            found.points,
            rows["boxes"][i],
            rows["labels"][i],
            valid,
        )
        on, index, target, _ = reference.task_aligned(*arguments, **TAL)
        for a in range(len(on)):
            factor = weights[target[a].argmax()] if weights and target[a].any() else 1
            divisor += factor * target[a].sum()
            for term, amount in _cell_losses(name, found, i, a, target[a]).items():
                sums[term] += factor * amount
            if on[a]:
                true = rows["boxes"][i][index[a]]
                sums["box"] += (
                    factor
                    * target[a].sum()
                    * (1 - reference_boxes.ciou(found.boxes[i, a], true, eps=1e-7))
                )
    assert divisor > 1  # the smallest divisor is 1
    for term in sums:
        if term in terms:
            np.testing.assert_allclose(terms[term], sums[term] / divisor, rtol=2e-3)
    total = sum(WEIGHTS[f"{term}_weight"] * sums[term] for term in sums) / divisor
    np.testing.assert_allclose(value, total, rtol=2e-3)
    assert value == terms["loss"]


def _cell_losses(name, found, i, a, target):
    """The terms of one cell, from its logits and its target scores [K]."""

    def cross_entropy(logit, true):
        p = 1 / (1 + np.exp(-logit))
        return -(true * np.log(p) + (1 - true) * np.log(1 - p))

    logits = found.classes[i, a].astype(float)
    if name == "zeros":
        return {"classification": sum(map(cross_entropy, logits, target))}
    if name == "objectness":
        classes = sum(cross_entropy(x, float(w > 0)) for x, w in zip(logits, target, strict=True))
        objectness = cross_entropy(float(found.objectness[i, a]), target.max())
        return {"classification": target.max() * classes, "objectness": objectness}
    logits[0] += np.log(CLASSES * 0.99 / 0.01)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    pairs = zip([1 - target.sum(), *target], probabilities, strict=True)
    return {"classification": -sum(t * np.log(p) for t, p in pairs)}


@each_encoding
def test_scores_are_probabilities_and_low_at_initial_logits(name):
    encoding = ENCODINGS[name]
    scores = encoding.scores(random_output(encoding))
    chex.assert_shape(scores, (2, 20, CLASSES))
    assert (scores >= 0).all() and (scores <= 1).all()
    initial = random_output(encoding)._replace(
        classes=jnp.full((2, 20, encoding.num_logits(CLASSES)), -4.595),
        objectness=jnp.full((2, 20), -4.595) if encoding.objectness else None,
    )
    assert (encoding.scores(initial) <= 0.0101).all()


def test_an_image_without_objects_has_finite_loss_and_no_box_gradient():
    found, rows = random_output(class_encoding.ZEROS), make_batch()
    rows["valid"] = rows["valid"] & False

    def loss_of(boxes, classes):
        output = found._replace(boxes=boxes, classes=classes)
        return make_task(class_encoding.ZEROS, output).loss({}, rows, None, context())[0]

    loss_and_gradient = jax.jit(jax.value_and_grad(loss_of, (0, 1)))
    value, (box_gradient, class_gradient) = loss_and_gradient(found.boxes, found.classes)
    assert np.isfinite(value) and not np.asarray(box_gradient).any()
    assert np.asarray(class_gradient).all()


def test_padded_rows_have_no_effect():
    found = random_output(class_encoding.ZEROS)
    rows = make_batch()
    padded, _ = loss(found, rows | {"real": np.float32([1, 0])})
    first = found._replace(classes=found.classes[:1], boxes=found.boxes[:1])
    alone = {name: column[:1] for name, column in rows.items()}
    np.testing.assert_allclose(padded, loss(first, alone)[0], rtol=1e-5)


def test_more_box_slots_have_no_effect():
    found, rows = random_output(class_encoding.ZEROS), make_batch()
    more = dict(rows)
    for name in ("boxes", "labels", "valid", "crowd"):
        blank = np.zeros((2, 100 - SLOTS, *rows[name].shape[2:]), rows[name].dtype)
        more[name] = np.concatenate([rows[name], blank], 1)
    chex.assert_trees_all_equal(*(loss(found, r)[1] for r in (rows, more)))


def test_distance_loss_equals_scalar_reference():
    found, rows = random_output(class_encoding.ZEROS, reg_max=6), make_batch()
    _, terms = loss(found, rows)
    targets = jax.device_get(assign_targets(found._replace(distances=None), rows, 0))
    total = 0.0
    for i in range(2):
        for a in np.flatnonzero(targets.positive[i]):
            far, box, point = 0.0, targets.boxes[i, a], found.points[a]
            for side, apart in enumerate([*(point - box[:2]), *(box[2:] - point)]):
                apart = min(max(float(apart) / found.strides[a], 0), 4.99)
                logits = found.distances[i, a, side].astype(float)
                chances = np.exp(logits) / np.exp(logits).sum()
                low = int(apart)
                far -= (low + 1 - apart) * np.log(chances[low])
                far -= (apart - low) * np.log(chances[low + 1])
            total += float(targets.scores[i, a].sum()) * far / 4
    divisor = max(float(targets.scores.sum()), 1)
    np.testing.assert_allclose(terms["distance"], total / divisor, rtol=1e-3)


def test_assigner_switches_at_tal_from():
    found, rows = random_output(class_encoding.ZEROS), make_batch()
    both = detect.make_assigner(tal_from=2, positive_iou=0.3, **TAL)
    early, late = (assign_targets(found, rows, epoch, both) for epoch in (1, 2))
    plain = detect.make_assigner(positive_iou=0.3)
    chex.assert_trees_all_equal(early, assign_targets(found, rows, 0, plain))
    chex.assert_trees_all_close(late, assign_targets(found, rows, 0))
    assert not np.array_equal(early.positive, late.positive)


@pytest.mark.parametrize("assigner", [None, detect.make_assigner(positive_iou=0.4)])
def test_loss_of_several_anchors_per_cell_equals_scalar_reference(assigner):
    """Smooth L1 of offsets, with targets of the scalar assigners over all anchors."""
    points, strides = anchors.grid_centers(*LEVELS)
    options = {"scales": (1.0, 1.5), "ratios": (0.5, 2.0)}
    tables = anchors.anchor_boxes(points, strides, **options)
    points, strides = (np.repeat(x, 4, 0) for x in (points, strides))
    rng, rows = np.random.default_rng(4), make_batch()
    offsets = rng.normal(0, 0.4, (2, len(tables), 4)).astype(np.float32)
    classes = rng.normal(-1, 1, (2, len(tables), CLASSES)).astype(np.float32)
    boxes = np.asarray(anchors.decode(offsets, tables[None]))
    found = DetectorOutput(classes, boxes, None, None, points, strides, tables)
    task = make_task(
        class_encoding.ZEROS,
        found,
        assigner,
        box_loss=box_losses.smooth_l1,
        offset_loss=True,
    )
    _, (_, terms) = jax.jit(lambda: task.loss({}, rows, None, context()))()
    total = divisor = 0.0
    for i in range(2):
        valid = rows["valid"][i] & ~rows["crowd"][i]
        true, labels = rows["boxes"][i], rows["labels"][i]
        if assigner:
            on, index = reference_detection.max_iou(
                tables, true, valid, positive_iou=0.4, allow_low_quality=True
            )
            weight = on.astype(float)
        else:
            scores = special.expit(classes[i])
            on, index, target, _ = reference.task_aligned(
                scores, boxes[i], points, true, labels, valid, **TAL
            )
            weight = target.sum(-1)
        divisor += weight.sum()
        assert on.sum() > 8
        for a in np.flatnonzero(on):
            apart = offsets[i, a] - reference_detection.encode_offsets(true[index[a]], tables[a])
            each = np.where(abs(apart) < 1, apart**2 / 2, abs(apart) - 0.5)
            total += weight[a] * each.mean()
    np.testing.assert_allclose(terms["box"], total / divisor, rtol=1e-3)


def test_predictions_equal_reference_nms_of_boxes_clipped_to_the_image():
    found = random_output(class_encoding.ZEROS)
    out = jax.device_get(predict(found, make_batch()["image"]))
    scores = special.expit(found.classes)
    for i in range(2):
        boxes = np.repeat(np.clip(found.boxes[i], 0, SIDE), CLASSES, 0)
        labels = np.tile(np.arange(CLASSES), len(found.points))
        flat = scores[i].reshape(-1)
        kept = [k for k in reference_detection.nms(boxes, flat, labels, 0.5) if flat[k] > 0.1][:5]
        np.testing.assert_allclose(out["scores"][i], flat[kept], rtol=1e-5)
        np.testing.assert_array_equal(out["labels"][i], labels[kept])
        np.testing.assert_allclose(out["boxes"][i], boxes[kept], rtol=1e-5)


def test_measured_boxes_are_in_pixels_of_the_original_images():
    found, rows = random_output(class_encoding.ZEROS), make_batch()
    out = predict(found, rows["image"])
    measured = jax.jit(make_task(class_encoding.ZEROS, found).measure)(out, rows)
    scale = np.float32([[2, 2, 2, 2], [1, 3, 1, 3]])[:, None]
    offset = np.float32([[0, 0, 0, 0], [-5, 0, -5, 0]])[:, None]
    moved = out["boxes"] * scale + offset
    limits = np.float32([[60, 50, 60, 50], [20, 90, 20, 90]])[:, None]
    np.testing.assert_allclose(measured["boxes"], np.clip(moved, 0, limits), rtol=1e-6)
    assert (moved > limits).any() and (moved < 0).any()
    for name in ("true_boxes", "true_labels", "true_valid", "true_crowd", "true_area"):
        np.testing.assert_array_equal(measured[name], rows[name])


def test_box_losses_are_ordered():
    found, rows = random_output(class_encoding.ZEROS), make_batch()
    names = ("iou", "giou", "diou", "ciou")

    @jax.jit
    def all_losses(rows):  # compiled together, since they have much in common
        return {
            name: loss(found, rows, box_loss=getattr(box_losses, name))[1]["box"] for name in names
        }

    values = jax.device_get(all_losses(rows))
    assert values["iou"] <= values["diou"] <= values["ciou"]
    assert values["iou"] <= values["giou"]
