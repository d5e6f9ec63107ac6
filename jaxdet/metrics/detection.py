"""Scores of detections: COCO's mAP, precision against recall, and confusion."""

import contextlib
import io

import jax
import numpy as np

from jaxdet.ops import boxes, numerics

COCO_STATS = (  # the twelve numbers of COCO, in its order
    *("map", "map50", "map75", "map_small", "map_medium", "map_large"),
    *("recall1", "recall10", "recall100", "recall_small", "recall_medium", "recall_large"),
)


def coco_scores(truth, detections):
    """COCO's twelve numbers, by the names `STATS`, of boxes told as COCO's JSON tells them.

    truth: {"images", "annotations", "categories"}; detections: [{"image_id", "category_id",
    "bbox", "score"}].  mAP is the mean over IoU .5 to .95 and classes, at most 100 boxes a photo;
    -1 where there is nothing to find.  Lin et al. 2014, arXiv:1405.0312, by faster-coco-eval.
    """
    judged = _judged(truth, detections)
    return dict(zip(COCO_STATS, map(float, judged.stats[:12]), strict=True))


def scores(rows, classes):
    """Scores of many boxes a photo, from the rows that `tasks.detect` measures.

    The twelve of `coco_map`; `labels` has count, map and map50 of each class.
    """
    truth, found = _as_coco(rows, classes)
    judged = _judged(truth, found)
    scores = dict(zip(COCO_STATS, map(float, judged.stats[:12]), strict=True))
    precision = judged.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    labels = {}
    on = rows["true_valid"] & ~rows["true_crowd"]
    for i, name in enumerate(classes):
        count = int((rows["true_labels"][on] == i).sum())
        labels[name] = {
            "count": count,
            "map": _mean(precision[:, :, i]),
            "map50": _mean(precision[0, :, i]),
        }
    return {**scores, "count": len(rows["size"]), "labels": labels}


RECALL_LEVELS = np.linspace(0, 1, 101)  # where COCO looks at precision
SCORE_THRESHOLD, IOU_THRESHOLD = (
    0.25,
    0.5,
)  # score of a box that counts, IoU from which it finds an object


def precision_recall(rows, classes):
    """{class: (precision, least score)} at each of `RECALLS` and IoU .5, [101] each.

    -1 where nothing is known; both are 0 at a recall that is not reached.
    """
    judged = _judged(*_as_coco(rows, classes)).eval
    both = [judged[name][0, :, :, 0, -1] for name in ("precision", "scores")]  # [recall, class]
    return {name: tuple(of_all[:, i] for of_all in both) for i, name in enumerate(classes)}


THRESHOLDS = (0.05, 0.1, 0.2)  # of mAP: what seed 002 gives points for


def passed_thresholds(value):
    """{name: whether it is reached} of each of `THRESHOLDS` by a mAP."""
    return {f"map_at_least_{least:g}": value >= least for least in THRESHOLDS}


def confusion_matrix(rows, classes):
    """Objects by true class (rows) and found class (columns), [K + 1, K + 1]; last is background.

    Boxes of a score of at least `CONFIDENCE` find the object that they overlap most, if by more
    than `IOU` and no better one has it; an object that nothing finds was taken for background, a
    box that finds none is one that background was taken for.  Crowds are left out, and so are boxes
    that find none and lie in a crowd: by more than `IOU` of their own area, as COCO has it.
    """
    counts = np.zeros((len(classes) + 1,) * 2, int)
    overlaps = jax.jit(_overlaps)  # one photo after the other: all at once are gigabytes for COCO
    for i, (truth, found) in enumerate(zip(rows["true_boxes"], rows["boxes"], strict=True)):
        shared, inside = map(np.asarray, overlaps(truth[:, None], found[None]))  # [G, P] each
        true, crowds = (
            np.flatnonzero(rows["true_valid"][i] & (rows["true_crowd"][i] == crowd))
            for crowd in (False, True)
        )
        sure = np.flatnonzero(rows["valid"][i] & (rows["scores"][i] >= SCORE_THRESHOLD))
        pairs = [(g, p) for g in true for p in sure if shared[g, p] > IOU_THRESHOLD]
        mine = {}
        for g, p in sorted(pairs, key=lambda pair: -shared[pair]):
            if g not in mine and p not in mine.values():
                mine[g] = p
        for g in true:
            as_class = rows["labels"][i, mine[g]] if g in mine else len(classes)
            counts[rows["true_labels"][i, g], as_class] += 1
        for p in set(sure) - set(mine.values()):
            counts[-1, rows["labels"][i, p]] += not (inside[crowds, p] > IOU_THRESHOLD).any()
    return counts


def _overlaps(true, found):
    """IoU of boxes [..., 4], broadcasting, and the share of the found ones that is in the true."""
    return boxes.iou(true, found), numerics.safe_divide(
        boxes.intersection(true, found), boxes.area(found)
    )


def _mean(precision):
    """Mean of what is known; -1 where nothing is."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def _judged(truth, detections):
    """A finished evaluation of faster-coco-eval, which prints as it goes."""
    from faster_coco_eval import COCO, COCOeval_faster

    whole = {"info": {}, "images": [], "annotations": [], "categories": [], **truth}
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(whole)
        judged = COCOeval_faster(true, _loaded(true, detections), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _loaded(true, detections):
    """Detections beside their truth; the library takes no empty list."""
    from faster_coco_eval import COCO

    if detections:
        return true.loadRes(detections)
    return COCO({**true.dataset, "annotations": []})


def _as_coco(rows, classes):
    """(truth, detections) of rows [N, ...], as COCO's JSON tells them."""
    height, width = rows["size"].T.tolist()
    images = [
        {"id": i, "height": h, "width": w}
        for i, (h, w) in enumerate(zip(height, width, strict=True))
    ]
    annotations = []
    for number, (i, g) in enumerate(zip(*np.nonzero(rows["true_valid"]), strict=True), 1):
        one = _box(i, rows["true_boxes"][i, g], rows["true_labels"][i, g])
        more = {"id": number, "area": float(rows["true_area"][i, g])}
        annotations.append(one | more | {"iscrowd": int(rows["true_crowd"][i, g])})
    found = [
        _box(i, rows["boxes"][i, p], rows["labels"][i, p]) | {"score": float(rows["scores"][i, p])}
        for i, p in zip(*np.nonzero(rows["valid"]), strict=True)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def _box(image, corners, label):
    x0, y0, x1, y1 = map(float, corners)
    return {
        "image_id": int(image),
        "category_id": int(label) + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
    }
