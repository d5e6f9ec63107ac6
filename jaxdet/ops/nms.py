"""Fewer boxes from many: suppression and fusion of what a detector says more than once.

All take N boxes of one image and give the P = `size` best answers, best first, with a mask: fixed
sizes, so that they run inside `jit` and under `vmap`.  With `labels`, boxes of unlike labels leave
each other alone; without, all are of one class.  Overlap is IoU, and only more than `threshold` of
it counts.  Boxes whose score is not above `least` take no part.
"""

from functools import partial
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import boxes as shapes
from jaxdet.types import Array

SOFT_SCORE_THRESHOLD = (
    0.001  # score under which soft suppression drops a box, as its authors' code has it
)


class Detections(NamedTuple):
    """What is left; rows that are not `valid` are zeros, and their index is 0."""

    boxes: Array  # [P, 4]
    scores: Array  # [P]
    index: Array  # [P] the box it is, or grew from
    valid: Array  # [P] bool


def nms(boxes, scores, labels=None, *, threshold=0.5, size=100, least=0.0):
    """Greedy suppression: the best box stays, those that overlap it more than `threshold` go.

    boxes [N, 4], scores [N], labels [N] or None.  Of equal scores the first box is the best.
    """

    def decay(overlap):
        return jnp.where(overlap > threshold, 0.0, 1.0)

    return _greedy(boxes, scores, labels, decay, size, least)


def soft_nms(
    boxes,
    scores,
    labels=None,
    *,
    kind: Literal["gaussian", "linear"] = "gaussian",
    threshold=0.5,
    sigma=0.5,
    size=100,
    least=SOFT_SCORE_THRESHOLD,
    original=False,
):
    """Soft suppression: what overlaps a better box loses score instead of being dropped.

    linear: times 1 - IoU where that is above `threshold`.  gaussian: times exp(-IoU^2 / sigma).
    Scores are the decayed ones, or with `original` those given, still in the order of the decayed.
    Bodla et al. 2017, arXiv:1704.04503.
    """

    def linear(overlap):
        return jnp.where(overlap > threshold, 1 - overlap, 1.0)

    def gaussian(overlap):
        return jnp.exp(-(overlap**2) / sigma)

    decay = {"linear": linear, "gaussian": gaussian}[kind]
    kept = _greedy(boxes, scores, labels, decay, size, least)
    scores = jnp.asarray(scores, jnp.float32)
    return kept._replace(scores=jnp.where(kept.valid, scores[kept.index], 0)) if original else kept


def weighted_nms(boxes, scores, labels=None, *, threshold=0.55, size=100, least=0.0):
    """Non-maximum weighted: each box that `hard` keeps is the mean of those that it stands for.

    A box goes to the kept one that it overlaps most, and counts there by score times that IoU; the
    score is that of the best.  Zhou et al. 2017 (CAD), ICCV workshops.
    """
    boxes, scores, labels = _arrays(boxes, scores, labels)
    kept = nms(boxes, scores, labels, threshold=threshold, size=size, least=least)
    overlap = shapes.iou(boxes[kept.index][:, None], boxes[None])  # [P, N]
    if labels is not None:
        overlap = jnp.where(labels[kept.index][:, None] == labels[None], overlap, 0.0)
    overlap = jnp.where(kept.valid[:, None], overlap, 0.0)
    main = jnp.zeros(len(boxes), bool).at[kept.index].max(kept.valid)
    overlap = jnp.where(kept.scores[:, None] >= scores[None], overlap, 0.0)  # began before it
    takes_part = (overlap.max(0) > threshold) & ~main & (scores > least)
    mine = takes_part[None] & (overlap.argmax(0)[None] == jnp.arange(size)[:, None])
    weight = jnp.where(mine, overlap * scores[None], 0.0)
    weight = weight + jax.nn.one_hot(kept.index, len(boxes)) * kept.scores[:, None]
    total = weight.sum(1, keepdims=True)
    return kept._replace(boxes=(weight @ boxes) / jnp.where(total > 0, total, 1.0))


class _Clusters(NamedTuple):
    """Running sums of `fused`, P clusters."""

    boxes: Array  # [P, 4] score-weighted sums
    weight: Array  # [P] sums of scores
    count: Array  # [P] boxes in it
    top: Array  # [P] best score
    index: Array  # [P] the box it began with


def weighted_boxes_fusion(
    boxes,
    scores,
    labels=None,
    *,
    threshold=0.55,
    size=100,
    least=0.0,
    score: Literal["mean", "max"] = "mean",
    models=1,
):
    """Weighted boxes fusion: boxes join the fused box that they overlap most, best first.

    A fused box is the mean of its boxes, weighed by score, and moves as they join; its score is
    their mean, or the best, times min(boxes, models) / models: a box that few of several models
    saw counts less.  Once there are `size` clusters no other begins.
    Solovyev et al. 2019, arXiv:1910.13302.
    """
    boxes, scores, labels = _arrays(boxes, scores, labels)
    order = jnp.argsort(-scores, stable=True)

    none = jnp.zeros(size)
    empty = _Clusters(jnp.zeros((size, 4)), none, none.astype(int), none, none.astype(int))
    joined = partial(_join, boxes, scores, labels, threshold, least)
    done, _ = jax.lax.scan(joined, empty, order)
    valid = done.count > 0
    safe = jnp.where(valid, done.weight, 1.0)
    value = done.top if score == "max" else done.weight / jnp.maximum(done.count, 1)
    value = value * jnp.minimum(done.count, models) / models
    kept = Detections(done.boxes / safe[:, None], value, done.index, valid)
    return jax.tree.map(lambda leaf: leaf[jnp.argsort(-value, stable=True)], kept)


def _join(boxes, scores, labels, threshold, least, clusters, at):
    """Clusters with box `at` in the one that it overlaps most, or in one of its own."""
    box, value, size = boxes[at], scores[at], len(clusters.count)
    mean = clusters.boxes / jnp.where(clusters.count > 0, clusters.weight, 1.0)[:, None]
    overlap = shapes.iou(mean, box[None])
    if labels is not None:
        overlap = jnp.where(labels[clusters.index] == labels[at], overlap, 0.0)
    found = overlap.max() > threshold
    fresh = (clusters.count > 0).sum()  # `size` when all are taken: out of bounds, dropped
    to = jnp.where(value > least, jnp.where(found, overlap.argmax(), fresh), size)
    return _Clusters(
        clusters.boxes.at[to].add(value * box, mode="drop"),
        clusters.weight.at[to].add(value, mode="drop"),
        clusters.count.at[to].add(1, mode="drop"),
        clusters.top.at[to].max(value, mode="drop"),
        clusters.index.at[to].set(jnp.where(found, clusters.index[to], at), mode="drop"),
    ), None


def _greedy(boxes, scores, labels, decay, size, least):
    """`size` times: keep the best box, and multiply the others' scores by decay(IoU with it)."""
    boxes, scores, labels = _arrays(boxes, scores, labels)

    def step(left, _):
        best = left.argmax()
        value = left[best]
        factor = decay(shapes.iou(boxes, boxes[best][None]))
        if labels is not None:
            factor = jnp.where(labels == labels[best], factor, 1.0)
        left = (left * factor).at[best].set(0.0)
        left = jnp.where(left > least, left, 0.0)
        return left, (best, value)

    _, (index, value) = jax.lax.scan(step, jnp.where(scores > least, scores, 0.0), length=size)
    valid = value > 0
    index = jnp.where(valid, index, 0)
    return Detections(jnp.where(valid[:, None], boxes[index], 0), value, index, valid)


def _arrays(boxes, scores, labels):
    """What was given, checked, as arrays: boxes and scores float32."""
    chex.assert_shape([boxes], (None, 4))
    chex.assert_equal_shape_prefix([boxes, scores], 1)
    labels = None if labels is None else jnp.asarray(labels)
    return jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32), labels
