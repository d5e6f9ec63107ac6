"""One label and one box a photo (seed 000)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import tasks
from jaxdet.data.normalize import IMAGENET, Normalization, normalize
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import classification as classification_metrics
from jaxdet.ops import boxes
from jaxdet.types import Task


class Labeller(NamedTuple):
    """The functions of the task, and what they share.

    `net` gives logits [B, K] and boxes [B, 4] in shares of the image.  `change(key, image, box)`
    alters one training image [H, W, C] and its box.  `at.hyper` has the weights of the terms,
    `class_weight` and `box_weight`, and `dropout`, which multiplies the network's rates.
    """

    net: Any
    classes: tuple[str, ...]
    change: Callable
    box_loss: box_losses.BoxLoss = "mse"
    smoothing: float = 0.0
    levels: Normalization = IMAGENET

    def task(self):
        """These functions as a `types.Task`."""
        report = partial(classification_metrics.localization_scores, classes=self.classes)
        return Task(self.init, self.augment, self.loss, self.predict, self.measure, report)

    def init(self, key, batch):
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys, batch, at):
        """Images as levels in [0, 1]; in training each is changed with its box."""
        image = batch["image"] / jnp.float32(255)
        if not at.train:
            return batch | {"image": image}
        image, box = jax.vmap(self.change)(keys, image, batch["boxes"][:, 0])
        return batch | {"image": image, "boxes": box[:, None]}

    def loss(self, variables, batch, key, at):
        """The share of the loss, and its terms as means over images."""
        images = normalize(batch["image"], self.levels)
        extra = {"drop": at.hyper["dropout"]}
        (logits, box), stats = tasks.forward(key, self.net, variables, images, at, **extra)
        logits, true = logits.astype(jnp.float32), batch["boxes"][:, 0] / _sides(batch["image"])
        wanted = jax.nn.one_hot(batch["label"], len(self.classes))
        wanted = optax.smooth_labels(wanted, self.smoothing if at.train else 0.0)
        terms = {
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
            "classification": optax.softmax_cross_entropy(logits, wanted),
            "regression": jnp.where(
                boxes.area(true) > 0,  # an object that left the photo says nothing of its box
                box_losses.box_loss(self.box_loss, box.astype(jnp.float32), true),
                0.0,
            ),
        }
        rows = tasks.real_rows(batch, at)
        terms = {name: values @ batch["real"] / rows for name, values in terms.items()}
        terms["loss"] = (
            at.hyper["class_weight"] * terms["classification"]
            + at.hyper["box_weight"] * terms["regression"]
        )
        return terms["loss"], (stats, terms)

    def predict(self, variables, images):
        """`label [B]`, `score [B]` and `box [B, 4]`, in pixels, of images [B, H, W, C]."""
        logits, box = self.net.apply(variables, normalize(images, self.levels), train=False)
        chances = jax.nn.softmax(logits.astype(jnp.float32))
        pixels = box.astype(jnp.float32) * _sides(images)
        return {"label": chances.argmax(-1), "score": chances.max(-1), "box": pixels}

    def measure(self, predictions, batch):
        """Labels, IoU of each box, and the distance of its corners in shares of the image, [B]."""
        true = batch["boxes"][:, 0]
        apart = (predictions["box"] - true) / _sides(batch["image"])
        return {
            "label": batch["label"],
            "predicted": predictions["label"],
            "iou": boxes.iou(predictions["box"], true),
            "distance": jnp.linalg.norm(apart, axis=-1),
        }


def _sides(images):
    """[1, 4]: width and height of images [B, H, W, C], twice: what shares of a box are of."""
    height, width = images.shape[1:3]
    return np.float32([[width, height, width, height]])
