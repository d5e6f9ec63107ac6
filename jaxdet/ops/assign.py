"""Assignment of true boxes to cells: the targets of a dense detector, for one image.

A: cells or anchors; G: true-box slots; `valid` marks the slots in use; K: classes.  Padded slots do
not change the result, and targets pass no gradient.  A and G may be 0.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import anchors, boxes
from jaxdet.types import Array

INSIDE_MARGIN = 1e-9  # pixels; a point is inside a box if it is farther than this from each side
EPS = 1e-9  # added to the denominator of normalized scores


class Targets(NamedTuple):
    """Targets of all cells."""

    positive: Array  # [A] bool: assigned to a true box
    indices: Array  # [A] slot of that box; 0 where not positive
    scores: Array  # [A, K] class scores in [0, 1]; zeros where not positive
    boxes: Array  # [A, 4] true box of that slot


def task_aligned(
    scores: Array,
    pred_boxes: Array,
    points: Array,
    true_boxes: Array,
    true_labels: Array,
    valid: Array,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    overlap: Literal["iou", "ciou"] = "iou",
) -> Targets:
    """Task-aligned assignment (TAL) of true boxes to cells that predict both class and box well.

    scores [A, K]: predicted probabilities; pred_boxes [A, 4]; points [A, 2]: cell centers;
    true_boxes [G, 4]; true_labels [G]; valid [G].

    The metric of a true box and a cell is s^alpha u^beta, where s is the cell's score for the class
    of the true box, and u the `overlap` of the true box and the cell's predicted box; a negative
    CIoU counts as 0.  Each true box takes the cells whose center is strictly inside it and whose
    metric is positive, at most the `topk` largest.  A cell taken by several true boxes goes to the
    true box that its predicted box overlaps most.  The target score of a cell is its metric, scaled
    so that the largest score of each true box is the largest overlap of its cells.  Computed in
    float32.  Defaults follow Feng et al. 2021 (TOOD), arXiv:2108.07755.
    """
    true_boxes, true_labels, valid = _as_slots(true_boxes, true_labels, valid)
    scores, pred_boxes, points = (jnp.asarray(x) for x in (scores, pred_boxes, points))
    chex.assert_shape([pred_boxes], (None, 4))
    chex.assert_equal_shape_prefix([scores, pred_boxes, points], 1)
    if not len(points):
        return _no_cells(scores.shape[-1])
    scores, pred_boxes = (
        jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (scores, pred_boxes)
    )
    candidates = points_in_boxes(points, true_boxes) & valid[:, None]  # [G, A]
    pairwise = {"iou": boxes.iou, "ciou": boxes.ciou}[overlap]
    overlaps = jnp.maximum(pairwise(true_boxes[:, None], pred_boxes[None]), 0.0)
    overlaps = jnp.where(candidates, overlaps, 0.0)  # [G, A]
    metric = scores[:, true_labels].T ** alpha * overlaps**beta
    metric = jnp.where(candidates, metric, 0.0)
    chosen = topk_mask(metric, topk)
    indices, positive = jnp.where(chosen, overlaps, -1.0).argmax(0), chosen.any(0)
    assigned = chosen & (indices[None] == jnp.arange(len(valid))[:, None])
    metric, overlaps = jnp.where(assigned, metric, 0.0), jnp.where(assigned, overlaps, 0.0)
    max_overlap, max_metric = overlaps.max(1, keepdims=True), metric.max(1, keepdims=True)
    target = (metric * max_overlap / (max_metric + EPS)).max(0)  # [A]
    classes = jax.nn.one_hot(true_labels[indices], scores.shape[-1])
    return Targets(positive, indices, classes * target[:, None], true_boxes[indices])


def max_iou(
    anchor_boxes: Array,
    true_boxes: Array,
    true_labels: Array,
    valid: Array,
    *,
    num_classes: int,
    positive_iou: float = 0.5,
    allow_low_quality: bool = True,
) -> Targets:
    """Max-IoU assignment: each anchor [A, 4] goes to the true box of largest IoU.

    An anchor whose largest IoU is below `positive_iou` goes to no box.  With `allow_low_quality`,
    each true box also takes its best anchors: all anchors that tie for its largest IoU, if this IoU
    is above 0.  A best anchor of two boxes goes to the box with the higher index.  Target scores
    are 1 for the class of the box, else 0.  No range of IoUs is ignored: anchors that go to no box
    are background.  Ren et al. 2015, arXiv:1506.01497.
    """
    true_boxes, true_labels, valid = _as_slots(true_boxes, true_labels, valid)
    anchor_boxes = jnp.asarray(anchor_boxes)
    if not len(anchor_boxes):
        return _no_cells(num_classes)
    chex.assert_shape([anchor_boxes], (None, 4))
    overlaps = boxes.iou(true_boxes[:, None], anchor_boxes[None])  # [G, A]
    overlaps = jnp.where(valid[:, None], overlaps, 0.0)
    indices, positive = overlaps.argmax(0), overlaps.max(0) >= positive_iou
    if allow_low_quality:
        best = overlaps.max(1, keepdims=True)
        is_best = (overlaps == best) & (best > 0)  # [G, A]
        last = len(valid) - 1 - is_best[::-1].argmax(0)
        indices = jnp.where(is_best.any(0), last, indices)
        positive = positive | is_best.any(0)
    indices = jnp.where(positive, indices, 0)
    scores = jax.nn.one_hot(true_labels[indices], num_classes) * positive[:, None]
    return Targets(positive, indices, scores, true_boxes[indices])


def points_in_boxes(points: Array, boxes: Array) -> jax.Array:
    """Mask [G, A]: whether each of the points [A, 2] lies strictly inside each box [G, 4]."""
    return anchors.boxes_to_ltrb(boxes[:, None], points[None]).min(-1) > INSIDE_MARGIN


def topk_mask(metric: Array, k: int) -> jax.Array:
    """Mask [G, A] of the k largest positive entries in each row of metric [G, A].

    Of equal entries the first are taken.
    """
    values, columns = jax.lax.top_k(metric, min(k, metric.shape[1]))  # [G, k]
    rows = jnp.arange(len(metric))[:, None]
    return jnp.zeros(metric.shape, bool).at[rows, columns].set(values > 0)


def _as_slots(true_boxes, true_labels, valid) -> tuple[jax.Array, jax.Array, jax.Array]:
    """True boxes [G, 4] in float32, labels and mask [G], without gradient; G is at least 1."""
    true_boxes = jax.lax.stop_gradient(jnp.asarray(true_boxes, jnp.float32))
    if not true_boxes.size:
        return jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)
    chex.assert_shape([true_boxes], (None, 4))
    return true_boxes, jnp.asarray(true_labels), jnp.asarray(valid)


def _no_cells(num_classes: int) -> Targets:
    empty = jnp.zeros(0, jnp.int32)
    return Targets(empty.astype(bool), empty, jnp.zeros((0, num_classes)), jnp.zeros((0, 4)))
