"""Locate the one object of an image by convolutional sliding windows (seed 001).

The network looks at every window of the image at once and says, per window: is the object in
sight, which class is it, and where is its box, in units of the window (start 0, end 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet import tasks
from jaxdet.ops import boxes, numerics, windows
from jaxdet.types import Array, Task

Gate = Literal["both", "truth"]
Score = Literal["class", "product", "merge"]


class Outputs(NamedTuple):
    """What the network says of each window."""

    detect: Array  # [...] logit of "the object is in sight"
    classes: Array  # [..., K] log-probabilities
    box: Array  # [..., 4] corners in window units


def outputs(raw):
    """Split raw numbers [..., 1 + K + 4] into `Outputs`, in float32."""
    raw = raw.astype(jnp.float32)
    return Outputs(raw[..., 0], jax.nn.log_softmax(raw[..., 1:-4]), raw[..., -4:])


def loss_terms(out, target, *, gate="both"):
    """The seed's three terms per window, [...] each, of `target [..., 6]` (`windows.encode`).

    Classification (negative log likelihood) and regression (mean squared error) count where the
    object is in sight and, under `gate="both"`, the network says so too; the gate has no gradient.
    """
    here = target[..., 0]
    said = (out.detect > 0).astype(jnp.float32) if gate == "both" else 1.0
    label, box = target[..., 1].astype(jnp.int32), target[..., 2:]
    missed = -jnp.take_along_axis(out.classes, label[..., None], -1)[..., 0]
    return {
        "detection": optax.sigmoid_binary_cross_entropy(out.detect, here),
        "classification": here * said * missed,
        "regression": here * said * jnp.square(out.box - box).mean(-1),
    }


def choose(out, sight, *, score="class"):
    """One answer for an image from the windows' `out [R, C, ...]`: `label`, `score`, `box [4]`.

    `sight [R, C, 4]` are the windows' corners.  `class` takes the window with the highest class
    log-probability (the seed); `product` adds the log-probability of detection, since a window
    without an object was never taught a class; `merge` averages all windows, weighted by how sure
    they are of both and by how much of the box they say is in their sight (after OverFeat, Sermanet
    et al. 2013, arXiv:1312.6229).
    """
    seen = jax.nn.log_sigmoid(out.detect)
    sure = out.classes.max(-1) + (0.0 if score == "class" else seen)  # [R, C]
    corners = windows.from_window(out.box, sight)
    if score == "merge":
        return _merged(out, corners, sure)
    best = jnp.argmax(sure)  # of the windows in reading order
    label = jnp.argmax(out.classes.reshape(-1, out.classes.shape[-1])[best])
    return {
        "label": label,
        "score": jnp.exp(sure.ravel()[best]),
        "box": corners.reshape(-1, 4)[best],
    }


SURENESS, SIGHT = 4.0, 2.0  # powers by which windows outweigh others when merged


def _merged(out, corners, sure):
    """The weighted mean over windows [R, C] of log-probabilities and of boxes in image pixels."""
    weight = jax.nn.softmax(SURENESS * sure.ravel()) * in_sight(out.box).ravel() ** SIGHT
    weight = numerics.safe_divide(weight, weight.sum()[None])
    mean = weight @ out.classes.reshape(-1, out.classes.shape[-1])
    box = weight @ corners.reshape(-1, 4)
    return {"label": jnp.argmax(mean), "score": jnp.exp(mean.max()), "box": box}


def in_sight(box):
    """Share of boxes [..., 4], in window units, that lies inside the window: [...] in [0, 1]."""
    return numerics.safe_divide(boxes.area(boxes.clip(box, 1, 1)), boxes.area(box))


def one(at):
    """The ramp that is none."""
    return 1.0


class Locator(NamedTuple):
    """The functions of the task, and what they share.

    `net` is a window network, and `place(key, digit)` draws a canvas and the box in it.
    `reduction` sums the loss over images and windows (the seed), or takes the mean.  `at.hyper`
    has the weights of the terms: `class_weight` and `box_weight`; the latter is multiplied by
    `ramp(at)` while training.
    """

    net: Any
    place: Callable
    gate: Gate = "both"
    reduction: Literal["sum", "mean"] = "sum"
    score: Score = "class"
    ramp: Callable = one

    def task(self):
        """These functions as a `types.Task`."""
        return Task(self.init, self.augment, self.loss, self.predict, self.measure, report)

    def init(self, key, batch):
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys, batch, at):
        """Put every digit on a canvas of its own; evaluation passes keys that never change."""
        image, box = jax.vmap(self.place)(keys, batch["image"] / 255.0)
        return batch | {"image": image, "boxes": box[:, None]}

    def loss(self, variables, batch, key, at):
        """The share of the loss, and its terms as means over images, always with full weights."""
        raw, stats = tasks.forward(key, self.net, variables, batch["image"], at)
        sums = {name: part.sum((1, 2)) @ batch["real"] for name, part in self._parts(raw, batch)}
        known = sums["detection"] + at.hyper["class_weight"] * sums["classification"]
        placed = at.hyper["box_weight"] * sums["regression"]
        right = self._answers(raw, batch["image"])["label"] == batch["label"]
        sums |= {"loss": known + placed, "accuracy": right.astype(jnp.float32) @ batch["real"]}
        rows = tasks.real_rows(batch, at)
        share = known + (self.ramp(at) if at.train else 1.0) * placed
        whole = 1.0 if self.reduction == "sum" else rows * raw.shape[1] * raw.shape[2]
        return share / whole, (stats, {name: total / rows for name, total in sums.items()})

    def predict(self, variables, images):
        """`label [B]`, `score [B]` and `box [B, 4]` of images of any size from the window's up."""
        return self._answers(self.net.apply(variables, images, train=False), images)

    def measure(self, predictions, batch):
        """Whether each label is right, and the IoU of each box, [B] each."""
        return {
            "right": predictions["label"] == batch["label"],
            "iou": boxes.iou(predictions["box"], batch["boxes"][:, 0]),
        }

    def _grid(self, images):
        return windows.grid(self.net.chain(), *images.shape[1:3])

    def _parts(self, raw, batch):
        """The terms of the loss of every window, (name, [B, R, C]) each."""
        encode = partial(windows.encode_targets, grid=self._grid(batch["image"]))
        target = jax.vmap(encode)(batch["boxes"][:, 0], batch["label"])
        return loss_terms(outputs(raw), target, gate=self.gate).items()

    def _answers(self, raw, images):
        sight = windows.window_boxes(self._grid(images))
        return jax.vmap(lambda one: choose(outputs(one), sight, score=self.score))(raw)


def report(rows):
    """Scores of `measure`'s rows: shares of images, and mean IoUs, all in [0, 1].

    `right_iou` takes the IoU of an image whose label is wrong for 0.
    """
    right, iou = rows["right"], rows["iou"]
    return {
        "accuracy": float(right.mean()),
        "iou": float(iou.mean(dtype="float64")),
        "iou50": float((iou >= 0.5).mean()),
        "joint": float((right & (iou >= 0.5)).mean()),
        "right_iou": float((right * iou).mean(dtype="float64")),
    }
