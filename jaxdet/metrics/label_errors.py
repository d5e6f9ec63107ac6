"""Label errors that predictions point to: missing, misplaced, mislabeled and duplicate true boxes.

A box has a score in [0, 1] for each kind of error.  In the formulas, p is a predicted box with the
score s(p), and t and u are true boxes.  support(t) is the largest s(p) IoU(p, t) of all predictions
p of the class of t.  Crowds are left out.

- missing, for each p: s(p) (1 - IoU(p, t)), where t is the true box that p overlaps most, if this
  IoU is below `SAME`.  The prediction is confident, and matches no true box.
- misplaced, for each t: s(p) (1 - IoU(p, t)) (1 - support(t)), where p has the highest s(p)
  IoU(p, t) among the predictions of the class of t that overlap no true box more than t, and have
  an IoU of at least `OVERLAP` with t.  The prediction is confident, and lies elsewhere.
- mislabeled, for each t: the largest s(p) IoU(p, t) of all predictions p of other classes, less
  support(t), if this is positive.
- duplicate, for each t: the largest IoU(t, u), if at least `SAME`, with a true box u of the same
  class that has a higher support or, if the supports are equal, comes earlier.  Of two boxes on one
  object, the duplicate is the box that fits the predictions less.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.metrics.detection import Rows
from jaxdet.ops import boxes
from jaxdet.ops.numerics import safe_divide
from jaxdet.types import Array

OVERLAP = 0.1  # lowest IoU of a misplaced true box with its prediction
SAME = 0.5  # lowest IoU of two boxes of one object
CROWD_FRACTION = 0.5  # a prediction with this fraction of its area in a crowd is not missing there
KINDS = ("missing", "misplaced", "mislabeled", "duplicate")
NAMES = ("boxes", "labels", "scores", "valid")
NAMES += ("true_boxes", "true_labels", "true_valid", "true_crowd")


class LabelErrors(NamedTuple):
    """Scores of the P predicted and T true boxes of an image; 0 where nothing points to an error.

    `partner` has, for the last three kinds, the index of the box that points to the error: the
    prediction, or for duplicates the other true box.
    """

    missing: Array  # [P]
    misplaced: Array  # [T]
    mislabeled: Array  # [T]
    duplicate: Array  # [T]
    partner: dict[str, Array]  # [T] each


def find(rows: Rows) -> LabelErrors:
    """Label-error scores of all boxes of N images: [N, P] for predictions, [N, T] for true boxes.

    rows: as in `jaxdet.metrics.detection`.
    """
    columns = [np.asarray(rows[name]) for name in NAMES]
    return jax.tree.map(np.asarray, _find_all(*columns))


def find_in_image(
    predicted: Array,
    labels: Array,
    scores: Array,
    valid: Array,
    true: Array,
    true_labels: Array,
    true_valid: Array,
    crowd: Array,
) -> LabelErrors:
    """Scores of the boxes of one image, by the formulas of the module docstring.

    predicted: boxes [P, 4] with `labels`, `scores` and the mask `valid` [P].  true: boxes [T, 4]
    with `true_labels` and the masks `true_valid` and `crowd` [T].
    """
    objects = true_valid & ~crowd
    both = valid[:, None] & objects[None]
    iou = jnp.where(both, boxes.iou(predicted[:, None], true[None]), 0.0)  # [P, T]
    inside = safe_divide(
        boxes.intersection(predicted[:, None], true[None]), boxes.area(predicted)[:, None]
    )
    in_crowd = ((true_valid & crowd)[None] & (inside >= CROWD_FRACTION)).any(1)
    confidence = jnp.where(valid, scores, 0.0)[:, None]
    same = labels[:, None] == true_labels[None]
    fit = confidence * iou
    support = (fit * same).max(0, initial=0.0)  # [T]
    best = iou.max(1, initial=0.0, keepdims=True)
    nearest = same & (iou >= jnp.maximum(best, OVERLAP))
    offset = _pick(fit * nearest, confidence * (1 - iou))
    other = _pick(fit * ~same, fit)
    overlap = jnp.where(objects[:, None] & objects[None], boxes.iou(true[:, None], true[None]), 0.0)
    place = jnp.arange(len(true))
    better = support[:, None] > support[None]
    better |= (support[:, None] == support[None]) & (place[:, None] < place[None])
    twins = overlap * (overlap >= SAME) * (better & (true_labels[:, None] == true_labels[None]))
    twin = _pick(twins, twins)
    return LabelErrors(
        missing=(confidence * (1 - best) * (best < SAME))[:, 0] * ~in_crowd,
        misplaced=offset[0] * (1 - support),
        mislabeled=jnp.maximum(other[0] - support, 0),
        duplicate=twin[0],
        partner={"misplaced": offset[1], "mislabeled": other[1], "duplicate": twin[1]},
    )


_find_all = jax.jit(lambda *columns: jax.lax.map(lambda row: find_in_image(*row), columns))


def _pick(weight: Array, value: Array) -> tuple[Array, Array]:
    """(values [T], rows [T]) at the largest weight of each column of [R, T].

    The value is 0 where no weight of the column is positive.
    """
    row = weight.argmax(0)
    column = jnp.arange(weight.shape[1])
    return jnp.where(weight[row, column] > 0, value[row, column], 0.0), row
