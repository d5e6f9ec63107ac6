"""Locate the one object of an image by convolutional sliding windows (seed 001).

The network looks at every window of the image at once and says, per window: is the object in
sight, which class is it, and where is its box, in units of the window (start 0, end 1).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet import tasks
from jaxdet.ops import boxes, windows
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
    weight = boxes.ratio(weight, weight.sum()[None])
    mean = weight @ out.classes.reshape(-1, out.classes.shape[-1])
    box = weight @ corners.reshape(-1, 4)
    return {"label": jnp.argmax(mean), "score": jnp.exp(mean.max()), "box": box}


def in_sight(box):
    """Share of boxes [..., 4], in window units, that lies inside the window: [...] in [0, 1]."""
    return boxes.ratio(boxes.area(boxes.clip(box, 1, 1)), boxes.area(box))


def one(step):
    """The ramp that is none."""
    return 1.0


def task(net, place, *, gate="both", reduction="sum", score="class", ramp=one):
    """The task of a window network `net`; `place(key, digit)` draws a canvas and the box in it.

    `reduction` sums the loss over images and windows (the seed), or takes the mean.  `at.hyper`
    has the weights of the terms: `class_weight` and `box_weight`; the latter is multiplied by
    `ramp(step)` while training.  The logged loss always has the full weights, so that it can be
    compared between steps and splits.
    """

    def sights(images):
        grid = windows.grid(net.chain(), *images.shape[1:3])
        return grid, windows.corners(grid)

    def answers(raw, images):
        _, sight = sights(images)
        return jax.vmap(lambda r: choose(outputs(r), sight, score=score))(raw)

    def init(key, batch):
        return net.init(key, batch["image"])

    def augment(keys, batch, at):
        """Put every digit on a canvas of its own; evaluation passes keys that never change."""
        image, box = jax.vmap(place)(keys, batch["image"] / 255.0)
        return batch | {"image": image, "boxes": box[:, None]}

    def loss(variables, batch, key, at):
        raw, stats = tasks.forward(net, variables, batch["image"], key, at)
        grid, _ = sights(batch["image"])
        target = jax.vmap(lambda b, y: windows.encode(b, y, grid))(
            batch["boxes"][:, 0], batch["label"]
        )
        parts = loss_terms(outputs(raw), target, gate=gate)
        sums = {name: part.sum((1, 2)) @ batch["real"] for name, part in parts.items()}
        known = sums["detection"] + at.hyper["class_weight"] * sums["classification"]
        placed = at.hyper["box_weight"] * sums["regression"]
        sums["loss"] = known + placed
        right = answers(raw, batch["image"])["label"] == batch["label"]
        sums["accuracy"] = right.astype(jnp.float32) @ batch["real"]
        rows = tasks.real_rows(batch, at)
        terms = {name: total / rows for name, total in sums.items()}
        whole = 1.0 if reduction == "sum" else rows * grid.rows * grid.columns
        share = known + (ramp(at.step) if at.train else 1.0) * placed
        return share / whole, (stats, terms)

    def predict(variables, images):
        return answers(net.apply(variables, images, train=False), images)

    def measure(predictions, batch):
        return {
            "right": predictions["label"] == batch["label"],
            "iou": boxes.iou(predictions["box"], batch["boxes"][:, 0]),
        }

    return Task(init, augment, loss, predict, measure, report)


def report(rows):
    """Scores of `measure`'s rows: shares of images, and the mean IoU, all in [0, 1]."""
    right, iou = rows["right"], rows["iou"]
    return {
        "accuracy": float(right.mean()),
        "iou": float(iou.mean(dtype="float64")),
        "iou50": float((iou >= 0.5).mean()),
        "joint": float((right & (iou >= 0.5)).mean()),
    }
