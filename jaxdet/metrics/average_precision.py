"""Average precision of detections as a function of image weights, for the bootstrap.

    matches = match(rows, num_classes)
    ap = average_precision(matches, np.ones(N))  # [IoU threshold, class], as in COCO
    samples = bootstrap(matches, resamples=1000)  # {score: [resamples]}

`rows` are as in `jaxdet.metrics.detection`.  Boxes are matched to objects once; a resample of the
images only changes their weights.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.metrics.detection import RECALL_LEVELS, Rows
from jaxdet.ops import boxes
from jaxdet.ops.numerics import safe_divide
from jaxdet.types import Array

IOU_THRESHOLDS = np.arange(0.5, 1, 0.05)  # COCO's
MAX_DETECTIONS = 100  # per image and class, as in COCO


class Matches(NamedTuple):
    """Predicted boxes of each class, highest score first, padded to D boxes, and object counts.

    A box that matches a crowd is neither right nor wrong: its `counted` is False, as in padding.
    """

    image: np.ndarray  # [K, D] index of the image
    score: np.ndarray  # [K, D]; -inf in padding
    hit: np.ndarray  # [I, K, D] whether the box is right at an IoU threshold
    counted: np.ndarray  # [I, K, D]
    objects: np.ndarray  # [N, K] objects in each image that are not crowds


class ImageMatches(NamedTuple):
    """The matches of N images with P boxes and T objects each."""

    hit: Array  # [I, N, P] whether the box is right at an IoU threshold
    ignored: Array  # [I, N, P] whether the box, in a crowd, counts as neither right nor wrong
    taken: Array  # [I, N, T] whether a box matches the object
    counted: Array  # [N, P] whether the box is among the `MAX_DETECTIONS` of its class


def match(rows: Rows, num_classes: int, iou_thresholds: np.ndarray = IOU_THRESHOLDS) -> Matches:
    """Match the boxes of every image to its objects, as COCO does, at each of I IoU thresholds.

    In descending order of score, each box takes the object of its class with the highest IoU among
    the objects that no box has taken, if this IoU is at least the threshold.  A box that takes no
    object is ignored if a fraction of its area of at least the threshold is in a crowd of its
    class.
    """
    names = ("boxes", "labels", "scores", "valid", "true_boxes", "true_labels", "true_valid")
    columns = [np.asarray(rows[name]) for name in (*names, "true_crowd")]
    hit, ignored, _, counted = map(np.asarray, match_images(iou_thresholds, *columns))
    labels, scores = columns[1], columns[2]
    true_labels, objects = columns[5], columns[6] & ~columns[7]
    found = [np.nonzero(counted & (labels == k)) for k in range(num_classes)]
    order = [np.argsort(-scores[places], kind="stable") for places in found]
    found = [tuple(axis[o] for axis in places) for places, o in zip(found, order, strict=True)]
    depth = max([1, *(len(places[0]) for places in found)])

    def padded(values: list[np.ndarray], fill: float) -> np.ndarray:
        widths = [(0, 0)] * (values[0].ndim - 1)
        return np.stack(
            [
                np.pad(each, [*widths, (0, depth - each.shape[-1])], constant_values=fill)
                for each in values
            ],
            axis=-2,
        )

    return Matches(
        image=padded([places[0] for places in found], 0),
        score=padded([scores[places] for places in found], -np.inf),
        hit=padded([hit[:, *places] for places in found], False),
        counted=padded([~ignored[:, *places] for places in found], False),
        objects=np.stack(
            [(objects & (true_labels == k)).sum(1) for k in range(num_classes)], axis=1
        ),
    )


@jax.jit
def average_precision(matches: Matches, weights: Array) -> Array:
    """Average precision [I, K] over images with these weights [N]; NaN for absent classes.

    As in COCO, it is the mean precision at 101 recall levels.  An image with a weight of 2 counts
    twice; if all weights are 1, the result is the ordinary average precision.
    """
    of_boxes = weights[matches.image][None]  # [1, K, D]
    right = jnp.cumsum(of_boxes * (matches.hit & matches.counted), -1)  # [I, K, D]
    all_boxes = jnp.cumsum(of_boxes * matches.counted, -1)
    objects = (weights @ matches.objects)[None, :, None]  # [1, K, 1]
    precision = jax.lax.cummax(safe_divide(right, all_boxes), 2, reverse=True)
    recall = safe_divide(right, jnp.broadcast_to(objects, right.shape))
    search = jax.vmap(jax.vmap(partial(jnp.searchsorted, v=jnp.asarray(RECALL_LEVELS - 1e-6))))
    places = search(recall)  # [I, K, 101]
    ends = jnp.pad(precision, ((0, 0), (0, 0), (0, 1)))  # 0 at levels that are not reached
    sampled = jnp.take_along_axis(ends, places, -1)
    return jnp.where(objects[..., 0] > 0, sampled.mean(-1), jnp.nan)


def bootstrap(
    matches: Matches,
    *,
    resamples: int,
    seed: int = 0,
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
) -> dict[str, np.ndarray]:
    """`map`, `map50` and `map75` of images drawn with replacement, [resamples] each.

    iou_thresholds: the thresholds that `matches` was made with.
    """
    count = len(matches.objects)
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples)
    on_device = jax.device_put(matches)
    samples = jax.lax.map(lambda weights: average_precision(on_device, weights), np.float32(draws))
    of_threshold = jnp.nanmean(samples, -1)  # [resamples, I]
    found = {"map": of_threshold.mean(-1)}
    for name, threshold in (("map50", 0.5), ("map75", 0.75)):
        (place,) = np.flatnonzero(np.isclose(iou_thresholds, threshold))
        found[name] = of_threshold[:, place]
    return {name: np.asarray(values) for name, values in found.items()}


@jax.jit
def match_images(
    thresholds: Array,
    found: Array,
    labels: Array,
    scores: Array,
    valid: Array,
    true: Array,
    true_labels: Array,
    true_valid: Array,
    crowd: Array,
) -> ImageMatches:
    """Match the boxes [N, P, 4] to the objects [N, T, 4] at IoU `thresholds` [I], see `match`.

    labels, scores, valid: labels, scores and mask of the boxes, [N, P].
    true_labels, true_valid, crowd: labels and masks of the objects, [N, T].
    """
    images = (found, labels, scores, valid, true, true_labels, true_valid, crowd)
    one = jax.vmap(_match_image, (0, *(None,) * 8))
    *masks, counted = jax.lax.map(lambda image: one(thresholds, *image), images)
    hit, ignored, taken = (jnp.moveaxis(mask, 1, 0) for mask in masks)
    return ImageMatches(hit, ignored, taken, counted[:, 0])


def _match_image(threshold, found, labels, scores, valid, true, true_labels, true_valid, crowd):
    """(hit [P], ignored [P], taken [T], counted [P]) of one image at one IoU threshold."""
    order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf))  # stable
    same = labels[:, None] == labels[None]
    place = jnp.argsort(order)  # position of each box in the order
    before = (same & valid[None] & (place[None] < place[:, None])).sum(1)
    counted = valid & (before < MAX_DETECTIONS)
    iou = boxes.iou(found[:, None], true[None])  # [P, T]
    inside = safe_divide(boxes.intersection(found[:, None], true[None]), boxes.area(found)[:, None])
    fits = (labels[:, None] == true_labels[None]) & true_valid[None] & counted[:, None]
    threshold = jnp.minimum(threshold, 1 - 1e-10)
    free = jnp.where(fits & ~crowd[None] & (iou >= threshold), iou, -1.0)
    in_crowd = (fits & crowd[None] & (inside >= threshold)).any(1)

    def step(taken, p):
        candidates = jnp.where(taken, -1.0, free[p])
        last_best = len(candidates) - 1 - jnp.argmax(candidates[::-1])  # as COCO breaks ties
        is_hit = candidates[last_best] >= 0
        return taken.at[last_best].max(is_hit), is_hit

    taken, hits = jax.lax.scan(step, jnp.zeros(len(true), bool), order)
    hit = jnp.zeros(len(found), bool).at[order].set(hits)
    return hit, in_crowd & ~hit, taken, counted
