"""The worst answers of a run: what `jaxdet compare` shows of each."""

from typing import Any, NamedTuple

import numpy as np

from jaxdet.ops import boxes
from jaxdet.training import evaluator

MOST = 6  # failures of a run


class Failure(NamedTuple):
    """A sample whose answer is among the worst."""

    title: str
    picture: Any  # [H, W, C]
    true: Any  # [4] in pixels of the picture; None where answers have no box
    predicted: Any
    wrong: bool  # whether its label is


def telling(task):
    """The task, with the answers to each image as `seen`, where they have a label."""

    def measure(answers, batch):
        return {"scored": task.measure(answers, batch), "seen": _seen(answers, batch)}

    def report(rows):
        return {**task.report(rows["scored"]), "seen": rows["seen"]}

    return task._replace(measure=measure, report=report)


def worst(name, system, split, seen):
    """The `MOST` worst of the answers `seen`: wrong labels first, then by how good they are.

    That is the IoU of their boxes; without boxes, the score of a right label, or what that of a
    wrong one lacks.
    """
    classes = system.about["classes"]
    right = seen["given"] == seen["label"]
    measure, much = ("IoU", seen["iou"]) if "iou" in seen else ("score", seen["score"])
    chosen = np.lexsort((much if "iou" in seen else np.where(right, much, -much), right))[:MOST]
    source = system.splits[split].take(chosen)
    rows = evaluator.samples(system._replace(splits={split: source}), split, MOST)
    names = source.names or [f"{split}:{number}" for number in rows["id"]]
    found = []
    for i, photo, picture in zip(chosen, names, rows["image"], strict=True):
        words = f"true {classes[seen['label'][i]]}, predicted {classes[seen['given'][i]]}"
        title = f"{name}: {photo}\n{words}, {measure} {much[i]:.2f}"
        both = (seen[which][i] if which in seen else None for which in ("box", "found"))
        found.append(Failure(title, picture, *both, not right[i]))
    return found


def _seen(answers, batch):
    """A label, or a label and a box, true and given; nothing of answers that have neither."""
    if not ("label" in answers and "label" in batch):
        return {}
    seen = {"label": batch["label"], "given": answers["label"], "score": answers["score"]}
    if "box" in answers and "boxes" in batch:
        seen |= {"box": batch["boxes"][:, 0], "found": answers["box"]}
        seen["iou"] = boxes.iou(seen["found"], seen["box"])
    return seen
