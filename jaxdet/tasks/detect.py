"""Many boxes a photo: targets from the network's own answers, losses, suppression (seed 002)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import tasks
from jaxdet.data.normalize import IMAGENET, Normalization, normalize
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import detection as detection_metrics
from jaxdet.ops import anchors, assign, boxes
from jaxdet.tasks.readings import ZEROS, Reading
from jaxdet.training import parallel
from jaxdet.types import Task

CANDIDATES = 1000  # best pairs of cell and class that suppression gets, as in TOOD


class View(NamedTuple):
    """A way to look at an image."""

    scale: float = 1.0  # of its sides, to the next multiple of `STRIDE` pixels
    mirrored: bool = False


STRIDE = 32  # pixels of the coarsest cell
PLAIN = (View(),)
TTA = tuple(View(scale, side) for scale in (1.0, 0.83, 1.17) for side in (False, True))


class Detection(NamedTuple):
    """The functions of the task, and what they share.

    net gives `detector.Answers`.  change(keys [B], batch, at) alters training images with their
    boxes.  assigner(epoch, points, strides, scores, boxes, true boxes, labels, valid) gives the
    `Targets` of one image.  box_loss is element-wise.  suppress(boxes, scores, labels) gives the
    `nms.Kept` of one image.  `at.hyper` has the weights of the terms.  Answers are those for all
    `views` of an image together.
    """

    net: Any
    classes: tuple[str, ...]
    change: Callable
    assigner: Callable
    suppress: Callable
    box_loss: Callable = box_losses.ciou
    reading: Reading = ZEROS
    levels: Normalization = IMAGENET
    views: tuple[View, ...] = PLAIN

    def task(self):
        """These functions as a `types.Task`."""
        report = partial(detection_metrics.scores, classes=self.classes)
        return Task(self.init, self.augment, self.loss, self.predict, self.measure, report)

    def init(self, key, batch):
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys, batch, at):
        """Images as levels in [0, 1]; in training they are changed with their boxes."""
        batch = batch | {"image": batch["image"] / jnp.float32(255)}
        return _rescaled(self.change(keys, batch, at), at.scale) if at.train else batch

    def loss(self, variables, batch, key, at):
        """The share of the loss, and its terms: sums over cells by the sum of wanted scores."""
        images = normalize(batch["image"], self.levels)
        answers, stats = tasks.forward(key, self.net, variables, images, at)
        targets = self.targets(answers, batch, at)
        real = batch["real"]
        wanted = targets.scores * real[:, None, None]
        weight = wanted.sum(-1)  # [B, A]
        whole = parallel.total(jax.lax.stop_gradient(weight.sum()), at.axis)
        whole = jnp.maximum(whole, 1.0)
        terms = {
            name: rows @ real / whole for name, rows in self.reading.losses(answers, wanted).items()
        }
        apart = self.box_loss(answers.boxes, targets.boxes)
        terms["box"] = (jnp.where(weight > 0, apart, 0.0) * weight).sum() / whole
        if answers.distances is not None:
            far = _of_distances(answers, targets.boxes)
            terms["distance"] = (jnp.where(weight > 0, far, 0.0) * weight).sum() / whole
        terms["loss"] = sum(at.hyper[f"{name}_weight"] * value for name, value in terms.items())
        terms["positives"] = (targets.positive.sum(1) @ real) / tasks.real_rows(batch, at)
        return terms["loss"], (stats, terms)

    def targets(self, answers, batch, at):
        """The `Targets` of every image for its answers; crowds are not learnt."""
        scores = self.reading.scores(answers)
        one = partial(self.assigner, at.epoch, answers.points, answers.strides)
        valid = batch["valid"] & ~batch["crowd"]
        found = jax.vmap(one)(scores, answers.boxes, batch["boxes"], batch["labels"], valid)
        return jax.lax.stop_gradient(found)

    def assigned(self, variables, batch, at):
        """(`Targets` of every image of an augmented batch, points [A, 2], strides [A])."""
        answers = self.net.apply(variables, normalize(batch["image"], self.levels), train=False)
        return self.targets(answers, batch, at), answers.points, answers.strides

    def predict(self, variables, images):
        """`boxes [B, P, 4]` in pixels, `scores`, `labels` and `valid [B, P]`, best first."""
        found = [self._seen(variables, images, view) for view in self.views]
        scores, boxes = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
        return jax.vmap(partial(self._kept, images.shape[1:3]))(scores, boxes)

    def _seen(self, variables, images, view):
        """Scores [B, A, K] and boxes [B, A, 4], in pixels of the images, of one view of them."""
        shape = images.shape[1:3]
        images = _resized(images, view.scale)
        height, width = images.shape[1:3]
        images = images[:, :, ::-1] if view.mirrored else images
        answers = self.net.apply(variables, normalize(images, self.levels), train=False)
        found = answers.boxes
        if view.mirrored:
            x0, y0, x1, y1 = jnp.moveaxis(found, -1, 0)
            found = jnp.stack([width - x1, y0, width - x0, y1], -1)
        back = np.float32([shape[1] / width, shape[0] / height] * 2)[None, None]
        return self.reading.scores(answers), found * back

    def _kept(self, shape, scores, found):
        """What suppression leaves of scores [A, K] and boxes [A, 4] of one image."""
        best, place = jax.lax.top_k(scores.reshape(-1), min(CANDIDATES, scores.size))
        cell, label = jnp.divmod(place, scores.shape[-1])
        kept = self.suppress(boxes.clip(found, *shape)[cell], best, label)
        named = {"boxes": kept.boxes, "scores": kept.scores, "valid": kept.valid}
        return named | {"labels": jnp.where(kept.valid, label[kept.index], 0)}

    def measure(self, predictions, batch):
        """Predicted and true boxes in pixels of the original photos, and what else mAP needs."""
        names = ("labels", "valid", "crowd", "area")
        back = batch["to_original"]
        return {
            **predictions,
            "boxes": to_original(predictions["boxes"], back),
            "true_boxes": to_original(batch["boxes"], back),
            **{f"true_{name}": batch[name] for name in names},
            "size": batch["size"],
        }


def _resized(images, scale):
    """Images [B, H, W, 3] with sides scaled to the nearest multiples of `STRIDE` pixels."""
    if scale == 1:
        return images
    height, width = (max(round(side * scale / STRIDE), 1) * STRIDE for side in images.shape[1:3])
    return jax.image.resize(images, (len(images), height, width, 3), "linear")


def _rescaled(batch, scale):
    """A batch with its images as `_resized` makes them, and boxes where their objects then are."""
    image = _resized(batch["image"], scale)
    (_, rows, columns, _), (_, height, width, _) = image.shape, batch["image"].shape
    by = np.float32([columns / width, rows / height] * 2)[None, None]
    return batch | {"image": image, "boxes": batch["boxes"] * by}


def to_original(found, back):
    """Boxes [B, P, 4] in pixels of the network's input as pixels of the original, [B, P, 4]."""
    scale, offset = (jnp.tile(part, 2)[:, None] for part in (back[:, :2], back[:, 2:]))
    return found * scale + offset


def assigner(*, tal_from=0, positive=0.5, scale=4.0, **how):
    """The assigner of a `Detection`: by overlap in the first `tal_from` epochs, then task-aligned.

    how: options of `assign.task_aligned`; without any all epochs are by overlap, with one square
    anchor of `scale` strides a cell.
    """

    def by_overlap(points, strides, classes, *true):
        fixed = anchors.anchor_boxes(points, strides, scales=(scale,))
        return assign.max_iou(fixed, *true, classes=classes, positive=positive)

    def assigned(epoch, points, strides, scores, found, *true):
        aligned = partial(assign.task_aligned, scores, found, points, *true, **how)
        if how and not tal_from:
            return aligned()
        plain = by_overlap(points, strides, scores.shape[-1], *true)
        if not how:
            return plain
        late = epoch >= tal_from
        return jax.tree.map(lambda a, b: jnp.where(late, a, b), aligned(), plain)

    return assigned


def _of_distances(answers, true):
    """Cross entropy [B, A] of distributions over distances: the two steps beside the true one.

    A mean over the four sides.  Li et al. 2020 (distribution focal loss), arXiv:2006.04388.
    """
    apart = anchors.boxes_to_ltrb(true, answers.points[None]) / answers.strides[None, :, None]
    last = answers.distances.shape[-1] - 1
    apart = jnp.clip(apart, 0, last - 0.01)
    chances = jax.nn.log_softmax(answers.distances)  # [B, A, 4, R]
    steps = jnp.arange(last + 1)[None, None, None]
    near = jnp.maximum(1 - jnp.abs(steps - apart[..., None]), 0)  # of the two beside it
    return -(near * chances).sum(-1).mean(-1)
