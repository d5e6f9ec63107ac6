"""Non-maximum suppression and box fusion, for one image and with fixed output sizes.

All functions take boxes [N, 4] and scores [N] in [0, 1], where N may be 0, and return the best
P = `max_detections` boxes as `Detections`, so that they run inside `jit` and under `vmap`.  With
`labels` [N], boxes of different labels do not affect each other; without labels, all boxes count as
one class.  Boxes overlap if their IoU is above `iou_threshold`.  Boxes whose score does not exceed
`score_threshold`, which must be at least 0, are ignored.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import boxes as box_ops
from jaxdet.types import Array

SOFT_SCORE_THRESHOLD = 0.001  # as in the code of Bodla et al.


class Detections(NamedTuple):
    """The boxes that suppression or fusion leaves; rows that are not `valid` are zeros."""

    boxes: Array  # [P, 4]
    scores: Array  # [P]
    indices: Array  # [P] index of the input box, or of the first box that was merged
    valid: Array  # [P] bool


def nms(
    boxes: Array,
    scores: Array,
    labels: Array | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    score_threshold: float = 0.0,
    overlap: Callable[[Array, Array], jax.Array] = box_ops.iou,
) -> Detections:
    """Greedy non-maximum suppression: keep the best box, drop boxes that overlap it, repeat.

    boxes [N, 4], scores [N], labels [N].  The best box comes first; of boxes with equal scores, the
    first is the best.

    overlap: measure of overlap in place of the IoU, such as `boxes.iom`.
    """

    def decay(overlap):
        return jnp.where(overlap > iou_threshold, 0.0, 1.0)

    return _greedy(boxes, scores, labels, decay, max_detections, score_threshold, overlap)


def soft_nms(
    boxes: Array,
    scores: Array,
    labels: Array | None = None,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    max_detections: int = 100,
    score_threshold: float = SOFT_SCORE_THRESHOLD,
    original_scores: bool = False,
) -> Detections:
    """Soft-NMS: boxes that overlap a better one lose score instead of being dropped at once.

    A box is dropped when its score has fallen to `score_threshold`.

    method: "linear" multiplies scores by 1 - IoU if the IoU is above `iou_threshold`; "gaussian"
      multiplies them by exp(-IoU^2 / sigma) at any IoU.
    original_scores: whether the result has the original scores instead of the lowered scores.  It
      is sorted by the lowered scores in any case.
    Bodla et al. 2017, arXiv:1704.04503.
    """

    def linear(overlap):
        return jnp.where(overlap > iou_threshold, 1 - overlap, 1.0)

    def gaussian(overlap):
        return jnp.exp(-(overlap**2) / sigma)

    decay = {"linear": linear, "gaussian": gaussian}[method]
    kept = _greedy(boxes, scores, labels, decay, max_detections, score_threshold)
    if not original_scores:
        return kept
    _, scores, _ = _as_arrays(boxes, scores, labels)
    return kept._replace(scores=jnp.where(kept.valid, scores[kept.indices], 0))


def weighted_nms(
    boxes: Array,
    scores: Array,
    labels: Array | None = None,
    *,
    iou_threshold: float = 0.55,
    max_detections: int = 100,
    score_threshold: float = 0.0,
) -> Detections:
    """Non-maximum weighted (NMW): average each box that `nms` keeps with the boxes it suppresses.

    A suppressed box joins the kept box that it overlaps most, among the kept boxes with at least
    its score; its weight in the average is its score times the IoU of the two boxes.  Kept boxes
    keep their scores.  Zhou et al. 2017 (CAD), ICCV workshops.
    """
    boxes, scores, labels = _as_arrays(boxes, scores, labels)
    kept = nms(
        boxes,
        scores,
        labels,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        score_threshold=score_threshold,
    )
    overlap = box_ops.iou(boxes[kept.indices][:, None], boxes[None])  # [P, N]
    if labels is not None:
        overlap = jnp.where(labels[kept.indices][:, None] == labels[None], overlap, 0.0)
    overlap = jnp.where(kept.valid[:, None], overlap, 0.0)
    is_kept = jnp.zeros(len(boxes), bool).at[kept.indices].max(kept.valid)
    overlap = jnp.where(kept.scores[:, None] >= scores[None], overlap, 0.0)  # only by better boxes
    joins = (overlap.max(0) > iou_threshold) & ~is_kept & (scores > score_threshold)
    member = joins[None] & (overlap.argmax(0)[None] == jnp.arange(max_detections)[:, None])
    weight = jnp.where(member, overlap * scores[None], 0.0)
    weight = weight + jax.nn.one_hot(kept.indices, len(boxes)) * kept.scores[:, None]
    total = weight.sum(1, keepdims=True)
    return kept._replace(boxes=(weight @ boxes) / jnp.where(total > 0, total, 1.0))


def weighted_boxes_fusion(
    boxes: Array,
    scores: Array,
    labels: Array | None = None,
    *,
    iou_threshold: float = 0.55,
    max_detections: int = 100,
    score_threshold: float = 0.0,
    score_reduction: Literal["mean", "max"] = "mean",
    num_models: int = 1,
) -> Detections:
    """Weighted boxes fusion (WBF): each box, best first, joins the fused box that it overlaps most.

    A box that overlaps no fused box begins a new one or, if there are `max_detections` already, is
    dropped.  A fused box is the score-weighted mean of its members, updated with each new member.

    score_reduction: whether a fused box has the mean or the maximum of its members' scores.
    num_models: number of models that predicted the boxes; the score is multiplied by
      min(members, num_models) / num_models, so that boxes of few models have lower scores.
    Solovyev et al. 2019, arXiv:1910.13302.
    """
    boxes, scores, labels = _as_arrays(boxes, scores, labels)
    order = jnp.argsort(-scores, stable=True)
    zeros = jnp.zeros(max_detections)
    empty = _Clusters(
        jnp.zeros((max_detections, 4)), zeros, zeros.astype(int), zeros, zeros.astype(int)
    )
    step = partial(_join_cluster, boxes, scores, labels, iou_threshold, score_threshold)
    clusters, _ = jax.lax.scan(step, empty, order)
    valid = clusters.size > 0
    weight = jnp.where(valid, clusters.weight, 1.0)
    if score_reduction == "max":
        fused_scores = clusters.max_score
    else:
        fused_scores = clusters.weight / jnp.maximum(clusters.size, 1)
    fused_scores = fused_scores * jnp.minimum(clusters.size, num_models) / num_models
    fused = Detections(clusters.boxes / weight[:, None], fused_scores, clusters.indices, valid)
    return jax.tree.map(lambda leaf: leaf[jnp.argsort(-fused_scores, stable=True)], fused)


class _Clusters(NamedTuple):
    """P fused boxes, each as running sums over its members, the boxes that joined it."""

    boxes: Array  # [P, 4] score-weighted sums
    weight: Array  # [P] sums of scores
    size: Array  # [P] number of members
    max_score: Array  # [P]
    indices: Array  # [P] index of the first member


def _join_cluster(boxes, scores, labels, iou_threshold, score_threshold, clusters, i):
    """A step of `lax.scan`: box i joins a cluster, begins a new one, or is dropped."""
    box, score, capacity = boxes[i], scores[i], len(clusters.size)
    mean = clusters.boxes / jnp.where(clusters.size > 0, clusters.weight, 1.0)[:, None]
    overlap = box_ops.iou(mean, box[None])
    if labels is not None:
        overlap = jnp.where(labels[clusters.indices] == labels[i], overlap, 0.0)
    found = overlap.max() > iou_threshold
    new = (clusters.size > 0).sum()  # `capacity` if all are in use: out of bounds, dropped
    to = jnp.where(score > score_threshold, jnp.where(found, overlap.argmax(), new), capacity)
    return _Clusters(
        clusters.boxes.at[to].add(score * box, mode="drop"),
        clusters.weight.at[to].add(score, mode="drop"),
        clusters.size.at[to].add(1, mode="drop"),
        clusters.max_score.at[to].max(score, mode="drop"),
        clusters.indices.at[to].set(jnp.where(found, clusters.indices[to], i), mode="drop"),
    ), None


def _greedy(
    boxes, scores, labels, decay: Callable, max_detections, score_threshold, overlap=box_ops.iou
) -> Detections:
    """Repeatedly keep the best box and multiply the other scores by decay(overlap with it)."""
    boxes, scores, labels = _as_arrays(boxes, scores, labels)

    def step(remaining, _):
        best = remaining.argmax()
        score = remaining[best]
        factor = decay(overlap(boxes, boxes[best][None]))
        if labels is not None:
            factor = jnp.where(labels == labels[best], factor, 1.0)
        remaining = (remaining * factor).at[best].set(0.0)
        remaining = jnp.where(remaining > score_threshold, remaining, 0.0)
        return remaining, (best, score)

    start = jnp.where(scores > score_threshold, scores, 0.0)
    _, (index, kept_scores) = jax.lax.scan(step, start, length=max_detections)
    valid = kept_scores > 0
    index = jnp.where(valid, index, 0)
    return Detections(jnp.where(valid[:, None], boxes[index], 0), kept_scores, index, valid)


def _as_arrays(boxes, scores, labels):
    """The arguments as arrays; without boxes, one empty box that passes no threshold."""
    boxes, scores = (jnp.asarray(x, jnp.float32) for x in (boxes, scores))
    labels = None if labels is None else jnp.asarray(labels, jnp.int32)
    if not boxes.size:
        none = jnp.zeros(1, jnp.int32)
        return jnp.zeros((1, 4)), jnp.full(1, -jnp.inf), None if labels is None else none
    chex.assert_shape([boxes], (None, 4))
    chex.assert_equal_shape_prefix([boxes, scores], 1)
    return boxes, scores, labels
