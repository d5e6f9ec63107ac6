"""What is wrong with detections: boxes by kind of error, and missed objects.

A box that matches no object is of one kind, the first that applies:

- `duplicate`: its IoU with an object of its class is at least .5, but a box with a higher score
  matches that object;
- `mislabeled`: its IoU with an object of another class is at least .5;
- `misplaced`: its IoU with an object of its class is at least .1;
- `invented`: any other box.

The kinds follow Bolya et al. 2020, arXiv:2008.08115, which has a sixth one, "both": boxes of the
wrong class with an IoU from .1 to .5; they count as invented here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxdet.metrics.average_precision import match_images
from jaxdet.metrics.detection import IOU_THRESHOLD, Rows
from jaxdet.ops import boxes
from jaxdet.types import Array

OVERLAP = 0.1  # lowest IoU of a misplaced box with its object
KINDS = ("duplicate", "mislabeled", "misplaced", "invented")  # of wrong boxes


class Errors(NamedTuple):
    """Masks of predicted boxes [N, P] and, in `missed`, of objects [N, T]."""

    correct: np.ndarray
    duplicate: np.ndarray
    mislabeled: np.ndarray
    misplaced: np.ndarray
    invented: np.ndarray
    missed: np.ndarray


def find(rows: Rows, threshold: float) -> Errors:
    """Find the errors among the boxes with a score of at least `threshold`.

    rows: as in `jaxdet.metrics.detection`.

    Every box with such a score is correct or has one kind of error, unless it lies in a crowd of
    its class.  A crowd does not count as missed.
    """
    names = ("boxes", "labels", "scores", "valid", "true_boxes", "true_labels", "true_valid")
    columns = {name: np.asarray(rows[name]) for name in (*names, "true_crowd")}
    columns["valid"] = columns["valid"] & (columns["scores"] >= threshold)
    found = match_images(np.array([IOU_THRESHOLD]), *columns.values())
    hit, ignored, taken = (np.asarray(part[0]) for part in (found.hit, found.ignored, found.taken))
    objects = columns["true_valid"] & ~columns["true_crowd"]
    same, other = map(np.asarray, _best_overlaps(columns | {"objects": objects}))
    wrong = np.asarray(found.counted) & ~hit & ~ignored
    masks = {}
    applies = (same >= IOU_THRESHOLD, other >= IOU_THRESHOLD, same >= OVERLAP, same >= 0)
    for kind, mask in zip(KINDS, applies, strict=True):
        masks[kind], wrong = wrong & mask, wrong & ~mask
    return Errors(correct=hit, **masks, missed=objects & ~taken)


def severity(errors: Errors, scores: Array) -> dict[str, np.ndarray]:
    """Severity of the errors of each kind in each image: {kind: [N]}; 0 without such errors.

    It is the sum of the scores of the wrong boxes or, for `missed`, the number of missed objects.
    """
    found = {kind: (getattr(errors, kind) * np.asarray(scores)).sum(1) for kind in KINDS}
    return {"missed": errors.missed.sum(1).astype(float), **found}


@jax.jit
def _best_overlaps(columns: Mapping[str, Array]) -> tuple[Array, Array]:
    """Largest IoU [N, P] of each box with an object of its class, and of another class."""

    def of_image(one):
        iou = boxes.iou(one["boxes"][:, None], one["true_boxes"][None]) * one["objects"][None]
        same = one["labels"][:, None] == one["true_labels"][None]
        return (iou * same).max(1, initial=0), (iou * ~same).max(1, initial=0)

    return jax.lax.map(of_image, columns)
