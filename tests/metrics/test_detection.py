import json
from pathlib import Path

import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.metrics import detection as detection_metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coco_map.json").read_text())
NAMES = dict(zip(("mAP", "AP50", "AP75"), ("map", "map50", "map75"), strict=True))
CLASSES = ("a", "b")


def test_coco_scores_match_the_golden_ones():
    found = detection_metrics.coco_scores(GOLDEN["ground_truth"], GOLDEN["detections"])
    assert list(found) == list(detection_metrics.COCO_STATS)
    np.testing.assert_allclose(list(found.values()), list(GOLDEN["stats"].values()), atol=1e-6)
    for theirs, ours in NAMES.items():
        assert abs(found[ours] - GOLDEN["stats"][theirs]) < 1e-6


def rows(images, slots=4, predictions=5):
    """Measurements of [(true boxes, their labels, predicted boxes, their labels, scores)]."""
    count = len(images)
    measured = {
        "boxes": np.zeros((count, predictions, 4), np.float32),
        "labels": np.zeros((count, predictions), np.int32),
        "scores": np.zeros((count, predictions), np.float32),
        "valid": np.zeros((count, predictions), bool),
        "true_boxes": np.zeros((count, slots, 4), np.float32),
        "true_labels": np.zeros((count, slots), np.int32),
        "true_valid": np.zeros((count, slots), bool),
        "true_crowd": np.zeros((count, slots), bool),
        "true_area": np.zeros((count, slots), np.float32),
        "size": np.full((count, 2), 100, np.int32),
    }
    for i, (true, true_labels, boxes, labels, scores) in enumerate(images):
        for g, (box, label) in enumerate(zip(true, true_labels, strict=True)):
            measured["true_boxes"][i, g], measured["true_labels"][i, g] = box, label
            measured["true_valid"][i, g] = True
            measured["true_area"][i, g] = (box[2] - box[0]) * (box[3] - box[1])
        for p, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
            measured["boxes"][i, p], measured["labels"][i, p] = box, label
            measured["scores"][i, p], measured["valid"][i, p] = score, True
    return measured


BOX, OTHER = (10, 10, 30, 30), (50, 50, 90, 90)
CONFIDENT = [0.9] * 5


def test_scores_of_right_wrong_and_missing_detections():
    right = rows([([BOX, OTHER], [0, 1], [BOX, OTHER], [0, 1], [0.9, 0.8])])
    assert detection_metrics.scores(right, CLASSES)["map"] == 1
    swapped = rows([([BOX, OTHER], [0, 1], [BOX, OTHER], [1, 0], [0.9, 0.8])])
    assert detection_metrics.scores(swapped, CLASSES)["map"] == 0
    half = detection_metrics.scores(rows([([BOX, OTHER], [0, 1], [BOX], [0], [0.9])]), CLASSES)
    assert half["map"] == 0.5 and half["labels"]["a"] == {"count": 1, "map": 1.0, "map50": 1.0}
    assert half["labels"]["b"]["map"] == 0
    nothing = detection_metrics.scores(rows([([BOX], [0], [], [], [])]), CLASSES)
    assert nothing["map"] == 0 and nothing["labels"]["b"] == {"count": 0, "map": -1, "map50": -1}


def test_a_box_with_iou_two_thirds_counts_at_lower_thresholds_only():
    shifted = (14, 10, 34, 30)  # IoU 16 / 24
    found = detection_metrics.scores(rows([([BOX], [0], [shifted], [0], [0.9])]), CLASSES)
    assert abs(found["map"] - 0.4) < 1e-6 and found["map50"] == 1 and found["map75"] == 0


def test_crowds_are_neither_objects_nor_false_positives():
    measured = rows([([BOX, OTHER], [0, 0], [BOX, (55, 55, 80, 80)], [0, 0], [0.5, 0.9])])
    measured["true_crowd"][0, 1] = True
    assert detection_metrics.scores(measured, CLASSES)["map"] == 1
    assert detection_metrics.scores(measured, CLASSES)["labels"]["a"]["count"] == 1


def test_scores_of_rows_match_the_golden_ones():
    truth, found = GOLDEN["ground_truth"], GOLDEN["detections"]
    numbers = [category["id"] for category in truth["categories"]]
    images = []
    for image in truth["images"]:
        true = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        predicted = [d for d in found if d["image_id"] == image["id"]]
        images.append(
            (
                [_corners(a["bbox"]) for a in true],
                [numbers.index(a["category_id"]) for a in true],
                [_corners(d["bbox"]) for d in predicted],
                [numbers.index(d["category_id"]) for d in predicted],
                [d["score"] for d in predicted],
            )
        )
    size = max(max(len(i[0]), len(i[2])) for i in images)
    measured = rows(images, size, size)
    for i, image in enumerate(truth["images"]):
        true = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for g, one in enumerate(true):
            measured["true_crowd"][i, g], measured["true_area"][i, g] = one["iscrowd"], one["area"]
    scores = detection_metrics.scores(measured, [c["name"] for c in truth["categories"]])
    expected = list(GOLDEN["stats"].values())
    np.testing.assert_allclose(
        [scores[n] for n in detection_metrics.COCO_STATS], expected, atol=1e-4
    )


PERFECT = {
    "images": [{"id": 7, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "b"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40]},
        {"id": 2, "image_id": 9, "category_id": 4, "bbox": [20, 10, 40, 40]},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [50, 50, 40, 40]},
    ],
}


def perfect_detections(truth):
    names = ("image_id", "category_id", "bbox")
    return [{n: one[n] for n in names} | {"score": 0.9} for one in truth["annotations"]]


@pytest.mark.parametrize("ids", [(0, 1, 2), (5, 5, 5), ("x", "y", "z"), (2**60, 0, -1)])
def test_annotation_ids_have_no_effect(ids):
    own = [one | {"id": i} for one, i in zip(PERFECT["annotations"], ids, strict=True)]
    truth = PERFECT | {"annotations": own}
    scores = detection_metrics.coco_scores(truth, perfect_detections(truth))
    assert scores["map"] == scores["recall100"] == pytest.approx(1)


def test_image_ids_may_be_texts_and_flags_too():
    images = [{"id": "a.jpg"}, {"id": "b.jpg"}]
    names = {7: "a.jpg", 9: "b.jpg"}
    own = [one | {"image_id": names[one["image_id"]]} for one in PERFECT["annotations"]]
    own[0]["iscrowd"], own[1]["ignore"] = "0", 1
    truth = PERFECT | {"images": images, "annotations": own}
    scores = detection_metrics.coco_scores(truth, perfect_detections(truth)[:1])
    assert scores["map"] == pytest.approx(0.505, abs=0.01)  # two objects of a, none of b to find
    assert scores["map_medium"] == scores["map"] and scores["map_small"] == -1


def test_two_images_or_categories_of_one_id_are_refused():
    for kind in ("images", "categories"):
        truth = PERFECT | {kind: PERFECT[kind] + PERFECT[kind][:1]}
        repeated = f"ids of {kind} must be unique, got {PERFECT[kind][0]['id']} twice"
        with pytest.raises(InputError, match=repeated):
            detection_metrics.coco_scores(truth, [])
    unknown = [{"image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1.0}]
    listed = "detection 1: image_id must be an id listed in truth, got 8"
    with pytest.raises(InputError, match=listed):
        detection_metrics.coco_scores(PERFECT, unknown)


def _corners(box):
    x, y, width, height = box
    return x, y, x + width, y + height


def random_rows(seed=0, images=3, slots=6, predictions=9):
    """Measurements of random boxes, each close to a true one."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (images, slots, 2))
    true = np.concatenate([low, low + rng.uniform(10, 30, (images, slots, 2))], -1)
    near = np.concatenate([true, true[:, : predictions - slots]], 1) + rng.normal(
        0, 3, (images, predictions, 4)
    )
    return {
        "true_boxes": np.float32(true),
        "true_labels": rng.integers(0, 3, (images, slots)),
        "true_valid": rng.random((images, slots)) < 0.8,
        "true_crowd": rng.random((images, slots)) < 0.2,
        "true_area": np.ones((images, slots), np.float32),
        "boxes": np.float32(near),
        "labels": rng.integers(0, 3, (images, predictions)),
        "scores": rng.uniform(0, 1, (images, predictions)).astype(np.float32),
        "valid": rng.random((images, predictions)) < 0.8,
        "size": np.full((images, 2), 100),
    }


def test_confusion_matrix_counts_every_object_and_every_confident_box():
    rows, names = random_rows(images=20), ("a", "b", "c")
    counts = detection_metrics.confusion_matrix(rows, names)
    assert counts.shape == (4, 4) and counts[3, 3] == 0
    on = rows["true_valid"] & ~rows["true_crowd"]
    expected = np.bincount(rows["true_labels"][on], minlength=3)
    np.testing.assert_array_equal(counts[:3].sum(1), expected)
    alone = detection_metrics.confusion_matrix(rows | {"true_valid": on}, names)  # without crowds
    confident = rows["valid"] & (rows["scores"] >= detection_metrics.SCORE_THRESHOLD)
    expected = np.bincount(rows["labels"][confident], minlength=3)
    np.testing.assert_array_equal(alone[:, :3].sum(0), expected)
    np.testing.assert_array_equal(counts[:3], alone[:3])
    assert (counts[3] <= alone[3]).all() and 5 < counts[3].sum() < alone[3].sum() - 5
    assert counts[:3, :3].sum() > 10 and counts[:, 3].sum() > 10


def test_confusion_matrix_of_a_small_example():
    def box(x):
        return [x, 0, x + 10, 10]

    rows = {
        "true_boxes": np.float32([[box(0), box(20), box(40), box(60)]]),
        "true_labels": np.array([[0, 1, 1, 0]]),
        "true_valid": np.array([[True, True, True, False]]),
        "true_crowd": np.zeros((1, 4), bool),
        "boxes": np.float32([[box(1), box(0), box(21), box(80), box(40)]]),
        "labels": np.array([[1, 0, 0, 1, 1]]),
        "scores": np.float32([[0.9, 0.3, 0.8, 0.7, 0.1]]),  # the last is below the threshold
        "valid": np.ones((1, 5), bool),
    }
    found = detection_metrics.confusion_matrix(rows, ("a", "b"))
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 1], [0, 2, 0]])


def test_confusion_matrix_ignores_unmatched_boxes_in_crowds():
    crowd, one = (0, 0, 100, 10), (40, 0, 50, 10)
    right, within = (41, 0, 51, 10), (60, 0, 70, 10)
    half, most, outside = (95, 0, 105, 10), (94, 0, 104, 10), (0, 20, 10, 30)
    measured = rows(
        [([crowd, one], [0, 1], [within, half, most, outside, right], [1, 0, 0, 0, 1], CONFIDENT)]
    )
    measured["true_crowd"][0, 0] = True
    found = detection_metrics.confusion_matrix(measured, CLASSES)
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 1, 0], [2, 0, 0]])  # half and outside
    measured["true_crowd"][0, 0] = measured["true_valid"][0, 0] = False
    np.testing.assert_array_equal(
        detection_metrics.confusion_matrix(measured, CLASSES)[2], [3, 1, 0]
    )


def test_precision_is_one_for_right_boxes_and_its_mean_is_map50():
    rows = random_rows()
    rows |= {"true_valid": np.ones((3, 6), bool), "true_crowd": np.zeros((3, 6), bool)}
    right = {"boxes": rows["true_boxes"], "labels": rows["true_labels"]}
    right |= {"scores": rows["scores"][:, :6], "valid": rows["true_valid"]}
    curves = detection_metrics.precision_recall(rows | right, "abc")
    for i, (precision, scores) in enumerate(curves.values()):
        own = np.sort(right["scores"][rows["true_labels"] == i])[::-1]
        assert (precision == 1).all()
        places = np.ceil(detection_metrics.RECALL_LEVELS * len(own) - 1e-9).astype(int)
        np.testing.assert_allclose(scores, own[np.maximum(places - 1, 0)], rtol=1e-6)
    curves = detection_metrics.precision_recall(rows, "abc")
    labels = detection_metrics.scores(rows, "abc")["labels"]
    for name, (precision, scores) in curves.items():
        assert len(precision) == len(detection_metrics.RECALL_LEVELS) == len(scores)
        assert precision.mean() == pytest.approx(labels[name]["map50"])
        assert (np.diff(scores) <= 0).all()


def test_thresholds_are_passed_from_their_value_on():
    assert detection_metrics.passed_thresholds(0.1, (0.05, 0.1, 0.2)) == {
        "map_at_least_0.05": True,
        "map_at_least_0.1": True,
        "map_at_least_0.2": False,
    }
