"""Scores of detections: COCO's mAP, precision-recall curves and the confusion matrix.

`rows` are the measurements of `jaxdet.tasks.detect` for N images, in pixels of the original images:
predicted `boxes [N, P, 4]`, `labels`, `scores` and `valid [N, P]`; `true_boxes [N, T, 4]`,
`true_labels`, `true_valid`, `true_crowd` and `true_area [N, T]`; and the height and width
`size [N, 2]`.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxdet import packages
from jaxdet.errors import InputError
from jaxdet.ops import boxes
from jaxdet.ops.numerics import safe_divide
from jaxdet.types import Array

COCO_STATS = (  # in COCO's order
    *("map", "map50", "map75", "map_small", "map_medium", "map_large"),
    *("recall1", "recall10", "recall100", "recall_small", "recall_medium", "recall_large"),
)
RECALL_LEVELS = np.linspace(0, 1, 101)  # at which COCO samples precision
SCORE_THRESHOLD = 0.25  # lowest score of the boxes in the confusion matrix
IOU_THRESHOLD = 0.5  # IoU above which a box matches an object

CROWD_FLAGS = ("iscrowd", "ignore")
FLAGS_SET = ("1", "1.0", "true")  # values of a flag that is set, as text

Rows = Mapping[str, Array]


def coco_scores(truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's twelve scores, with the names `COCO_STATS`, from data in COCO's JSON format.

    truth: {"images", "annotations", "categories"}.
    detections: [{"image_id", "category_id", "bbox", "score"}].

    mAP is the mean over IoU thresholds .5 to .95 and over classes, with at most 100 boxes per
    image.  A score is -1 if there is no object to find.  Objects whose flag `ignore` is set are
    treated as crowds, as `jaxdet.data.coco` reads them.

    Ids of images and categories may be any integers or strings; ids of annotations are not used.
    Raises InputError if two images or two categories share an id, or if an annotation or a
    detection refers to an id that `truth` does not list.
    Lin et al. 2014, arXiv:1405.0312; computed by faster-coco-eval.
    """
    return _stats(_evaluate(*_renumber(truth, detections)))


def scores(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """The twelve scores of `coco_scores`, the number of images (`count`), and scores by class.

    `labels` has, for the name of each class, `map`, `map50`, and `count`, the number of its objects
    that are not crowds.
    """
    evaluation = _evaluate(*_to_coco(rows, classes))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    objects = rows["true_labels"][rows["true_valid"] & ~rows["true_crowd"]]
    labels = {
        name: {
            "count": int((objects == i).sum()),
            "map": _mean(precision[:, :, i]),
            "map50": _mean(precision[0, :, i]),
        }
        for i, name in enumerate(classes)
    }
    return {**_stats(evaluation), "count": len(rows["size"]), "labels": labels}


def precision_recall(rows: Rows, classes: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    """{class: (precision, score threshold)} at IoU .5 and each of `RECALL_LEVELS`, [101] each.

    Both are -1 for classes without objects, and 0 at recalls that are not reached.
    """
    curves = _evaluate(*_to_coco(rows, classes)).eval
    precision, scores = (curves[name][0, :, :, 0, -1] for name in ("precision", "scores"))
    return {name: (precision[:, i], scores[:, i]) for i, name in enumerate(classes)}


def passed_thresholds(value: float, thresholds: Sequence[float]) -> dict[str, bool]:
    """{"map_at_least_<threshold>": whether the mAP `value` is at least the threshold}."""
    return {f"map_at_least_{threshold:g}": value >= threshold for threshold in thresholds}


def confusion_matrix(rows: Rows, classes: Sequence[str]) -> np.ndarray:
    """Counts [K + 1, K + 1] by true class (rows) and predicted class (columns).

    The last row and the last column stand for the background.  Boxes with a score below
    `SCORE_THRESHOLD` are left out; the others are matched to objects in descending order of IoU, as
    far as the IoU exceeds `IOU_THRESHOLD`.  Objects without a box count as predicted background,
    boxes without an object as true background.  Crowds are ignored; unmatched boxes with more than
    a fraction `IOU_THRESHOLD` of their area in a crowd are ignored, too, as in COCO.
    """
    counts = np.zeros((len(classes) + 1,) * 2, int)
    overlaps = jax.jit(_overlaps)  # per image: all images of COCO at once would take gigabytes
    for i, (true, predicted) in enumerate(zip(rows["true_boxes"], rows["boxes"], strict=True)):
        iou, inside = map(np.asarray, overlaps(true[:, None], predicted[None]))  # [T, P] each
        valid, crowd = rows["true_valid"][i], rows["true_crowd"][i]
        objects, crowds = np.flatnonzero(valid & ~crowd), np.flatnonzero(valid & crowd)
        kept = np.flatnonzero(rows["valid"][i] & (rows["scores"][i] >= SCORE_THRESHOLD))
        pairs = [(g, p) for g in objects for p in kept if iou[g, p] > IOU_THRESHOLD]
        matches = {}  # object -> box
        for g, p in sorted(pairs, key=lambda pair: -iou[pair]):
            if g not in matches and p not in matches.values():
                matches[g] = p
        for g in objects:
            label = rows["labels"][i, matches[g]] if g in matches else len(classes)
            counts[rows["true_labels"][i, g], label] += 1
        for p in set(kept) - set(matches.values()):
            counts[-1, rows["labels"][i, p]] += not (inside[crowds, p] > IOU_THRESHOLD).any()
    return counts


def _overlaps(true, predicted):
    """(IoU, fraction of the predicted box inside the true one) of boxes [..., 4], broadcasting."""
    inside = safe_divide(boxes.intersection(true, predicted), boxes.area(predicted))
    return boxes.iou(true, predicted), inside


def _stats(evaluation) -> dict[str, float]:
    return dict(zip(COCO_STATS, map(float, evaluation.stats[:12]), strict=True))


def _mean(precision: np.ndarray) -> float:
    """Mean over known values; -1 if there are none."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def _evaluate(truth, detections):
    """Run an evaluation of faster-coco-eval; discards the output that the library prints."""
    coco = packages.load("faster_coco_eval", "mAP")
    complete = {"info": {}, "images": [], "annotations": [], "categories": [], **truth}
    with contextlib.redirect_stdout(io.StringIO()):
        true = coco.COCO(complete)
        if detections:
            predicted = true.loadRes(detections)
        else:  # which loadRes does not accept
            predicted = coco.COCO({**true.dataset, "annotations": []})
        evaluation = coco.COCOeval_faster(true, predicted, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _renumber(
    truth: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and detections with ids from 1; InputError for repeated or unknown ids."""
    numbers: dict[str, dict[Any, int]] = {}
    for kind, field in (("images", "image_id"), ("categories", "category_id")):
        ids = [one["id"] for one in truth[kind]]
        numbers[field] = {number: i for i, number in enumerate(ids, 1)}
        if len(numbers[field]) < len(ids):
            twice = next(number for i, number in enumerate(ids) if number in ids[:i])
            raise InputError(f"truth: ids of {kind} must be unique, got {twice!r} twice")

    def renumbered(place: str, entry: dict[str, Any]) -> dict[str, Any]:
        for field, known in numbers.items():
            if entry[field] not in known:
                raise InputError(
                    f"{place}: {field} must be an id listed in truth, got {entry[field]!r}"
                )
        return entry | {field: known[entry[field]] for field, known in numbers.items()}

    annotations = []
    for number, entry in enumerate(truth["annotations"], 1):
        _, _, width, height = entry["bbox"]
        crowd = any(str(entry.get(flag, 0)).lower() in FLAGS_SET for flag in CROWD_FLAGS)
        area = entry.get("area", width * height)
        found = renumbered(f"truth annotation {number}", entry) | {
            "id": number,
            "iscrowd": int(crowd),
            "area": area,
        }
        annotations.append(found)
    images = [entry | {"id": i} for i, entry in enumerate(truth["images"], 1)]
    categories = [entry | {"id": i} for i, entry in enumerate(truth["categories"], 1)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    found = [renumbered(f"detection {i}", entry) for i, entry in enumerate(detections, 1)]
    return truth | whole, found


def _to_coco(rows: Rows, classes: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(truth, detections) in COCO's JSON format."""
    height, width = rows["size"].T.tolist()
    images = [
        {"id": i, "height": h, "width": w}
        for i, (h, w) in enumerate(zip(height, width, strict=True))
    ]
    annotations = [
        _annotation(i, rows["true_boxes"][i, g], rows["true_labels"][i, g])
        | {"id": number, "area": float(rows["true_area"][i, g])}
        | {"iscrowd": int(rows["true_crowd"][i, g])}
        for number, (i, g) in enumerate(zip(*np.nonzero(rows["true_valid"]), strict=True), 1)
    ]
    detections = [
        _annotation(i, rows["boxes"][i, p], rows["labels"][i, p])
        | {"score": float(rows["scores"][i, p])}
        for i, p in zip(*np.nonzero(rows["valid"]), strict=True)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def _annotation(image, corners, label) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, corners)
    return {
        "image_id": int(image),
        "category_id": int(label) + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
    }
