import json
from pathlib import Path

import numpy as np
import pytest

from jaxdet.metrics import classification as classification_metrics
from jaxdet.metrics import detection as detection_metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coco_map.json").read_text())
NAMES = dict(zip(("mAP", "AP50", "AP75"), ("map", "map50", "map75"), strict=True))
CLASSES = ("a", "b")


def test_coco_map_is_the_golden_one():
    found = detection_metrics.coco_scores(GOLDEN["ground_truth"], GOLDEN["detections"])
    assert list(found) == list(detection_metrics.COCO_STATS)
    np.testing.assert_allclose(list(found.values()), list(GOLDEN["stats"].values()), atol=1e-6)
    for theirs, ours in NAMES.items():
        assert abs(found[ours] - GOLDEN["stats"][theirs]) < 1e-6


def rows(photos, slots=4, most=5):
    """Rows as `tasks.detect` measures them, of [(true boxes, labels, found, labels, scores)]."""
    count = len(photos)
    made = {
        "boxes": np.zeros((count, most, 4), np.float32),
        "labels": np.zeros((count, most), np.int32),
        "scores": np.zeros((count, most), np.float32),
        "valid": np.zeros((count, most), bool),
        "true_boxes": np.zeros((count, slots, 4), np.float32),
        "true_labels": np.zeros((count, slots), np.int32),
        "true_valid": np.zeros((count, slots), bool),
        "true_crowd": np.zeros((count, slots), bool),
        "true_area": np.zeros((count, slots), np.float32),
        "size": np.full((count, 2), 100, np.int32),
    }
    for i, (true, labels, found, told, scores) in enumerate(photos):
        for g, (box, label) in enumerate(zip(true, labels, strict=True)):
            made["true_boxes"][i, g], made["true_labels"][i, g] = box, label
            made["true_valid"][i, g] = True
            made["true_area"][i, g] = (box[2] - box[0]) * (box[3] - box[1])
        for p, (box, label, score) in enumerate(zip(found, told, scores, strict=True)):
            made["boxes"][i, p], made["labels"][i, p] = box, label
            made["scores"][i, p], made["valid"][i, p] = score, True
    return made


BOX, FAR = (10, 10, 30, 30), (50, 50, 90, 90)
SURE = [0.9] * 5


def test_detections_that_are_right_wrong_and_missing():
    right = rows([([BOX, FAR], [0, 1], [BOX, FAR], [0, 1], [0.9, 0.8])])
    assert detection_metrics.scores(right, CLASSES)["map"] == 1
    swapped = rows([([BOX, FAR], [0, 1], [BOX, FAR], [1, 0], [0.9, 0.8])])
    assert detection_metrics.scores(swapped, CLASSES)["map"] == 0
    half = detection_metrics.scores(rows([([BOX, FAR], [0, 1], [BOX], [0], [0.9])]), CLASSES)
    assert half["map"] == 0.5 and half["labels"]["a"] == {"count": 1, "map": 1.0, "map50": 1.0}
    assert half["labels"]["b"]["map"] == 0
    nothing = detection_metrics.scores(rows([([BOX], [0], [], [], [])]), CLASSES)
    assert nothing["map"] == 0 and nothing["labels"]["b"] == {"count": 0, "map": -1, "map50": -1}


def test_a_box_that_overlaps_by_two_thirds_counts_up_to_that():
    shifted = (14, 10, 34, 30)  # IoU 16 / 24
    found = detection_metrics.scores(rows([([BOX], [0], [shifted], [0], [0.9])]), CLASSES)
    assert abs(found["map"] - 0.4) < 1e-6 and found["map50"] == 1 and found["map75"] == 0


def test_crowds_are_not_asked_for_and_do_not_count_against():
    made = rows([([BOX, FAR], [0, 0], [BOX, (55, 55, 80, 80)], [0, 0], [0.5, 0.9])])
    made["true_crowd"][0, 1] = True
    assert detection_metrics.scores(made, CLASSES)["map"] == 1
    assert detection_metrics.scores(made, CLASSES)["labels"]["a"]["count"] == 1


def test_detections_are_the_golden_numbers_by_way_of_rows():
    truth, found = GOLDEN["ground_truth"], GOLDEN["detections"]
    numbers = [category["id"] for category in truth["categories"]]
    photos = []
    for image in truth["images"]:
        true = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        told = [d for d in found if d["image_id"] == image["id"]]
        photos.append(
            (
                [_corners(a["bbox"]) for a in true],
                [numbers.index(a["category_id"]) for a in true],
                [_corners(d["bbox"]) for d in told],
                [numbers.index(d["category_id"]) for d in told],
                [d["score"] for d in told],
            )
        )
    most = max(max(len(p[0]), len(p[2])) for p in photos)
    made = rows(photos, most, most)
    for i, image in enumerate(truth["images"]):
        true = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for g, one in enumerate(true):
            made["true_crowd"][i, g], made["true_area"][i, g] = one["iscrowd"], one["area"]
    scores = detection_metrics.scores(made, [c["name"] for c in truth["categories"]])
    wanted = list(GOLDEN["stats"].values())
    np.testing.assert_allclose([scores[n] for n in detection_metrics.COCO_STATS], wanted, atol=1e-4)


def _corners(box):
    x, y, width, height = box
    return x, y, x + width, y + height


def scene_rows(seed=0, photos=3, slots=6, found=9):
    """Rows as `tasks.detect` measures them: boxes near true ones, and some that are not."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (photos, slots, 2))
    true = np.concatenate([low, low + rng.uniform(10, 30, (photos, slots, 2))], -1)
    near = np.concatenate([true, true[:, : found - slots]], 1) + rng.normal(
        0, 3, (photos, found, 4)
    )
    return {
        "true_boxes": np.float32(true),
        "true_labels": rng.integers(0, 3, (photos, slots)),
        "true_valid": rng.random((photos, slots)) < 0.8,
        "true_crowd": rng.random((photos, slots)) < 0.2,
        "true_area": np.ones((photos, slots), np.float32),
        "boxes": np.float32(near),
        "labels": rng.integers(0, 3, (photos, found)),
        "scores": rng.uniform(0, 1, (photos, found)).astype(np.float32),
        "valid": rng.random((photos, found)) < 0.8,
        "size": np.full((photos, 2), 100),
    }


def test_confusion_counts_every_object_and_every_sure_box():
    rows, names = scene_rows(photos=20), ("a", "b", "c")
    counts = detection_metrics.confusion_matrix(rows, names)
    assert counts.shape == (4, 4) and counts[3, 3] == 0
    on = rows["true_valid"] & ~rows["true_crowd"]
    expected = np.bincount(rows["true_labels"][on], minlength=3)
    np.testing.assert_array_equal(counts[:3].sum(1), expected)
    alone = detection_metrics.confusion_matrix(
        rows | {"true_valid": on}, names
    )  # as if no crowd were known
    sure = rows["valid"] & (rows["scores"] >= detection_metrics.SCORE_THRESHOLD)
    expected = np.bincount(rows["labels"][sure], minlength=3)
    np.testing.assert_array_equal(alone[:, :3].sum(0), expected)
    np.testing.assert_array_equal(counts[:3], alone[:3])
    assert (counts[3] <= alone[3]).all() and 5 < counts[3].sum() < alone[3].sum() - 5
    assert counts[:3, :3].sum() > 10 and counts[:, 3].sum() > 10


def test_confusion_of_a_photo_told_by_hand():
    def box(x):
        return [x, 0, x + 10, 10]

    rows = {
        "true_boxes": np.float32([[box(0), box(20), box(40), box(60)]]),
        "true_labels": np.array([[0, 1, 1, 0]]),
        "true_valid": np.array([[True, True, True, False]]),
        "true_crowd": np.zeros((1, 4), bool),
        "boxes": np.float32([[box(1), box(0), box(21), box(80), box(40)]]),
        "labels": np.array([[1, 0, 0, 1, 1]]),
        "scores": np.float32([[0.9, 0.3, 0.8, 0.7, 0.1]]),  # the last is not sure enough
        "valid": np.ones((1, 5), bool),
    }
    found = detection_metrics.confusion_matrix(rows, ("a", "b"))
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 1], [0, 2, 0]])


def test_confusion_leaves_out_boxes_in_a_crowd_that_find_nothing():
    crowd, one = (0, 0, 100, 10), (40, 0, 50, 10)
    right, within = (41, 0, 51, 10), (60, 0, 70, 10)
    half, more, apart = (95, 0, 105, 10), (94, 0, 104, 10), (0, 20, 10, 30)
    made = rows([([crowd, one], [0, 1], [within, half, more, apart, right], [1, 0, 0, 0, 1], SURE)])
    made["true_crowd"][0, 0] = True
    found = detection_metrics.confusion_matrix(made, CLASSES)
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 1, 0], [2, 0, 0]])  # half and apart
    made["true_crowd"][0, 0] = made["true_valid"][0, 0] = False
    np.testing.assert_array_equal(detection_metrics.confusion_matrix(made, CLASSES)[2], [3, 1, 0])


def test_precision_of_boxes_that_are_right_is_one_and_its_mean_is_map50():
    rows = scene_rows()
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


def test_thresholds_of_the_seed_are_reached_from_their_value_on():
    assert detection_metrics.passed_thresholds(0.1) == {
        "map_at_least_0.05": True,
        "map_at_least_0.1": True,
        "map_at_least_0.2": False,
    }


def labels(count, known=3):
    """Random true labels, the first `known` of three, and predicted ones."""
    random = np.random.default_rng(count)
    return {
        "label": random.integers(known, size=count),
        "predicted": random.integers(3, size=count),
    }


@pytest.mark.parametrize("count, known", [(40, 3), (1, 1), (12, 2)])
def test_scores_of_labels_are_those_of_the_loop(count, known):
    rows = labels(count, known)
    pairs = list(zip(*rows.values(), strict=True))
    found = classification_metrics.scores(rows, ("a", "b", "c"))
    assert found["correct"] == sum(true == said for true, said in pairs)
    assert found["accuracy"] == pytest.approx(found["correct"] / count)
    for i, (name, of_label) in enumerate(found["labels"].items()):
        own = [said for true, said in pairs if true == i]
        assert (name, of_label["count"], of_label["correct"]) == ("abc"[i], len(own), own.count(i))
        assert of_label.get("accuracy") == (pytest.approx(own.count(i) / len(own)) if own else None)
        assert found["confusion"][i] == [own.count(j) for j in range(3)]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "scores, place",
    [
        ([0.1, 0.3, 0.5, 0.5, 0.501, 0.5], 2),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ([0.5, 0.5, 0.5], None),  # not three after any
        ([0.5, 0.5, 0.5, 0.5], 0),
        ([0.5, 0.4, 0.3, 0.6, 0.1, 0.1, 0.1], 3),
        ([], None),
    ],
)
def test_a_plateau_begins_where_the_next_scores_are_hardly_higher(scores, place):
    assert classification_metrics.plateau_start(scores, rise=0.002, over=3) == place


def test_labels_with_boxes_have_the_scores_of_labels_alone():
    rows, boxes = labels(30), {"iou": np.zeros(30, np.float32), "distance": np.zeros(30)}
    alone, both = (
        classification_metrics.scores(rows, "abc"),
        classification_metrics.localization_scores(rows | boxes, "abc"),
    )
    assert both["confusion"] == alone["confusion"]
    assert {name: both[name] for name in ("count", "correct", "accuracy")} == {
        name: alone[name] for name in ("count", "correct", "accuracy")
    }
