"""COCO's twelve scores of a generated set, compared with pycocotools on the same JSON."""

import contextlib
import io

import numpy as np
import pytest

from jaxdet.metrics import detection as detection_metrics

coco = pytest.importorskip("pycocotools.coco")  # in the extra `test`
cocoeval = pytest.importorskip("pycocotools.cocoeval")

IMAGES, CLASSES, OBJECTS, PREDICTIONS = 24, 40, 12, 100
CROWDS, EMPTY, INVENTED = 0.15, 0.1, 0.3  # fractions of objects, images, and predictions


def generated_rows():
    """Objects of all of COCO's sizes, and predictions near them, some of them with equal scores.

    Coordinates are multiples of 1/4, so that corners and sides are exact in float32.
    """
    random = np.random.default_rng(0)

    def boxes(count):
        low = random.uniform(0, 400, (IMAGES, count, 2))
        return np.concatenate([low, low + 2 ** random.uniform(2, 8, (IMAGES, count, 2))], -1)

    true, labels = boxes(OBJECTS), random.integers(0, CLASSES, (IMAGES, OBJECTS))
    of = random.integers(0, OBJECTS, (IMAGES, PREDICTIONS))
    near = np.take_along_axis(true, of[..., None], 1)
    sides = np.tile(near[..., 2:] - near[..., :2], 2)
    near = near + random.normal(0, 0.08, near.shape) * sides
    found = np.take_along_axis(labels, of, 1)
    invented = random.random(found.shape) < INVENTED
    found[invented] = random.integers(0, CLASSES, invented.sum())
    near[invented] = boxes(PREDICTIONS)[invented]
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
    true, near = np.round(true * 4) / 4, np.round(near * 4) / 4
    valid = (random.random(labels.shape) < 0.7) & (random.random((IMAGES, 1)) >= EMPTY)
    return {
        "true_boxes": np.float32(true),
        "true_labels": labels,
        "true_valid": valid,
        "true_crowd": random.random(labels.shape) < CROWDS,
        "true_area": np.float32(np.round(0.6 * (true[..., 2:] - true[..., :2]).prod(-1))),
        "boxes": np.float32(near),
        "labels": found,
        "scores": np.float32(random.integers(1, 65, found.shape) / 64),
        "valid": random.random(found.shape) < 0.9,
        "size": np.full((IMAGES, 2), 700),
    }


def as_json(rows):
    """The truth and the detections of rows in COCO's format."""

    def entry(i, box, label):
        sides = (box[2:] - box[:2]).tolist()
        return {"image_id": int(i), "category_id": int(label) + 1, "bbox": box[:2].tolist() + sides}

    annotations = [
        entry(i, rows["true_boxes"][i, g], rows["true_labels"][i, g])
        | {"id": number, "iscrowd": int(rows["true_crowd"][i, g])}
        | {"area": float(rows["true_area"][i, g])}
        for number, (i, g) in enumerate(zip(*np.nonzero(rows["true_valid"]), strict=True), 1)
    ]
    detections = [
        entry(i, rows["boxes"][i, p], rows["labels"][i, p]) | {"score": float(rows["scores"][i, p])}
        for i, p in zip(*np.nonzero(rows["valid"]), strict=True)
    ]
    truth = {
        "images": [{"id": i, "height": 700, "width": 700} for i in range(IMAGES)],
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(CLASSES)],
        "annotations": annotations,
    }
    return truth, detections


def reference(truth, detections):
    """The twelve numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = coco.COCO()
        true.dataset = {"info": {}, **truth}
        true.createIndex()
        evaluation = cocoeval.COCOeval(true, true.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_scores_equal_those_of_pycocotools():
    truth, detections = as_json(rows := generated_rows())
    expected = reference(truth, detections)
    assert len(truth["annotations"]) > 150 and sum(a["iscrowd"] for a in truth["annotations"]) > 20
    assert (expected > 0.05).all() and (expected < 0.95).all()  # the comparison says something
    found = detection_metrics.coco_scores(truth, detections)
    np.testing.assert_allclose([*found.values()], expected, rtol=0, atol=1e-6)
    of_rows = detection_metrics.scores(rows, [c["name"] for c in truth["categories"]])
    of_rows = [of_rows[name] for name in detection_metrics.COCO_STATS]
    np.testing.assert_allclose(of_rows, expected, rtol=0, atol=1e-6)
