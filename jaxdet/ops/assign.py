"""Which cells learn which true box: targets of a dense detector, for one image.

A: cells or anchors, G: slots for true boxes, of which `valid` marks those in use, K: classes.
Padding the slots changes nothing, and no gradient passes through a target.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import anchors, boxes
from jaxdet.types import Array

INSIDE = 1e-9  # pixels by which a centre is inside a box at least
EPS = 1e-9  # of the denominator of normalised scores


class Targets(NamedTuple):
    """What each cell is to answer."""

    positive: Array  # [A] bool: the cell has a true box
    index: Array  # [A] which one; 0 where none
    scores: Array  # [A, K] wanted scores in [0, 1]; zeros where the cell is not positive
    boxes: Array  # [A, 4] the true box; where none, that of slot 0


def task_aligned(
    scores,
    predicted,
    points,
    true_boxes,
    true_labels,
    valid,
    *,
    topk=13,
    alpha=1.0,
    beta=6.0,
    overlap: Literal["iou", "ciou"] = "iou",
):
    """Task-aligned assignment: cells whose own answer is good in class and in box learn the box.

    scores [A, K]: predicted probabilities.  predicted [A, 4], points [A, 2]: boxes and centres.
    true_boxes [G, 4], true_labels [G], valid [G].  With s the score of a true box's class and u
    the overlap, each box takes the `topk` cells of largest s^alpha u^beta among those whose centre
    is strictly inside it; a cell of metric 0 is never taken, and one that several boxes took goes
    to that of the largest overlap among them.  Wanted scores are the metric, scaled so that the
    largest of a box is its largest overlap.

    alpha 1 and beta 6 are those of Feng et al. 2021 (TOOD), arXiv:2108.07755; seed 002 has the two
    the other way round, which is `alpha=6, beta=1`.  Metrics are computed in float32.
    """
    chex.assert_shape([predicted, true_boxes], (None, 4))
    chex.assert_equal_shape_prefix([scores, predicted, points], 1)
    scores, predicted, true_boxes = (
        jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (scores, predicted, true_boxes)
    )
    candidates = points_in_boxes(points, true_boxes) & valid[:, None]  # [G, A]
    shared = jnp.where(candidates, _overlap(overlap, true_boxes[:, None], predicted[None]), 0.0)
    metric = scores[:, true_labels].T ** alpha * shared**beta  # [G, A]
    metric = jnp.where(candidates, metric, 0.0)
    chosen = topk_mask(metric, topk)
    owner, positive = _owner(chosen, shared)
    mine = chosen & (owner[None] == jnp.arange(len(valid))[:, None])
    metric, shared = jnp.where(mine, metric, 0.0), jnp.where(mine, shared, 0.0)
    best, top = shared.max(1, keepdims=True), metric.max(1, keepdims=True)
    wanted = (metric * best / (top + EPS)).max(0)  # [A]
    classes = jax.nn.one_hot(true_labels[owner], scores.shape[-1])
    return Targets(positive, owner, classes * wanted[:, None], true_boxes[owner])


def max_iou(
    anchor_boxes, true_boxes, true_labels, valid, *, classes, positive=0.5, at_least_one=True
):
    """Assignment by overlap: an anchor [A, 4] learns the true box that it shares most with.

    It does where their IoU is at least `positive`; with `at_least_one` the best anchors of each
    box (all that reach its largest IoU, if any touches it) learn it in any case, and the later of
    two such boxes has the anchor.  Wanted scores are 1.  Ren et al. 2015, arXiv:1506.01497, without
    a zone that is ignored.
    """
    chex.assert_shape([anchor_boxes, true_boxes], (None, 4))
    true_boxes = jax.lax.stop_gradient(true_boxes.astype(jnp.float32))
    shared = boxes.iou(true_boxes[:, None], anchor_boxes[None])  # [G, A]
    shared = jnp.where(valid[:, None], shared, 0.0)
    owner, on = shared.argmax(0), shared.max(0) >= positive
    if at_least_one:
        best = shared.max(1, keepdims=True)
        kept = (shared == best) & (best > 0)  # [G, A]
        last = len(valid) - 1 - kept[::-1].argmax(0)
        owner, on = jnp.where(kept.any(0), last, owner), on | kept.any(0)
    owner = jnp.where(on, owner, 0)
    wanted = jax.nn.one_hot(true_labels[owner], classes) * on[:, None]
    return Targets(on, owner, wanted, true_boxes[owner])


def points_in_boxes(points, true_boxes):
    """Whether points [A, 2] are strictly inside boxes [G, 4]: [G, A]."""
    return anchors.boxes_to_ltrb(true_boxes[:, None], points[None]).min(-1) > INSIDE


def topk_mask(metric, count):
    """The `count` largest positive entries of each row of metric [G, A]: [G, A] bool.

    Of equal ones the first are taken.
    """
    count = min(count, metric.shape[1])
    values, places = jax.lax.top_k(metric, count)  # [G, count]
    rows = jnp.arange(len(metric))[:, None]
    return jnp.zeros(metric.shape, bool).at[rows, places].set(values > 0)


def _owner(chosen, shared):
    """The box [A] that each cell goes to, 0 where none, and whether there is one, [A] bool."""
    owner = jnp.where(chosen, shared, -1.0).argmax(0)
    return owner, chosen.any(0)


def _overlap(kind, a, b):
    """Overlap of boxes in [0, 1]; a negative CIoU is 0, or an even power would make it large."""
    return jnp.maximum(getattr(boxes, kind)(a, b), 0.0)
