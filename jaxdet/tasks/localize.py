"""Localization: one label and one box per image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdet.data.normalize import IMAGENET, Normalization, normalize
from jaxdet.losses.boxes import BoxLoss, box_loss
from jaxdet.metrics import classification as classification_metrics
from jaxdet.ops import boxes
from jaxdet.tasks.base import class_factors, forward, masked_means
from jaxdet.types import Array, Batch, StepContext, Tree


@dataclass(frozen=True)
class LocalizationTask:
    """Label and box of the one object in an image.

    net: network from images [B, H, W, C] to logits [B, K] and boxes [B, 4], which are fractions of
      the image.
    classes: names of the K classes.
    transform: function (key, image, box) -> (image, box) that augments one training image [H, W, C]
      with values in [0, 1].
    class_weights: in training, factors of the losses of images of each class; (): none.

    `context.hparams` holds the weights of the loss terms, `class_weight` and `box_weight`, and
    `dropout_scale`, a factor of the dropout rates of the network.
    """

    net: nn.Module
    classes: tuple[str, ...]
    transform: Callable
    box_loss: BoxLoss = "mse"
    label_smoothing: float = 0.0
    normalization: Normalization = IMAGENET
    boxed: bool = True  # whether every image has a box; if not, the task only evaluates
    class_weights: tuple[float, ...] = ()

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """The batch with images in [0, 1]; in training, images are augmented with their boxes."""
        image = batch["image"] / jnp.float32(255)
        if not context.train:
            return batch | {"image": image}
        image, box = jax.vmap(self.transform)(keys, image, batch["boxes"][:, 0])
        return batch | {"image": image, "boxes": box[:, None]}

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """This device's contribution to the mean loss over images, and to its terms.

        Class weights are weights of this mean.  The terms `regression` and `loss` are left out if
        `boxed` is False.
        """
        images = normalize(batch["image"], self.normalization)
        scale = context.hparams["dropout_scale"]
        (logits, box), stats = forward(
            key, self.net, variables, images, context, dropout_scale=scale
        )
        logits, true = logits.astype(jnp.float32), batch["boxes"][:, 0] / _sides(batch["image"])
        target = jax.nn.one_hot(batch["label"], len(self.classes))
        target = optax.smooth_labels(target, self.label_smoothing if context.train else 0.0)
        correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        losses = {
            "classification": optax.softmax_cross_entropy(logits, target),
            "regression": jnp.where(
                boxes.area(true) > 0,  # an object outside the image has no box
                box_loss(self.box_loss, box.astype(jnp.float32), true),
                0.0,
            ),
        }
        factors = class_factors(target, self.class_weights, context)
        terms = masked_means({"accuracy": correct}, batch, context)
        terms |= masked_means(losses, batch, context, factors)
        loss = (
            context.hparams["class_weight"] * terms["classification"]
            + context.hparams["box_weight"] * terms["regression"]
        )
        if not self.boxed:
            del terms["regression"]
            return loss, (stats, terms)
        return loss, (stats, terms | {"loss": loss})

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`label`, `score [B]`, `probabilities [B, K]` and `box [B, 4]` in pixels of the images."""
        images_ = normalize(images, self.normalization)
        outputs: Any = self.net.apply(variables, images_, train=False)
        logits, box = outputs
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return {
            "label": probabilities.argmax(-1),
            "score": probabilities.max(-1),
            "probabilities": probabilities,
            "box": box.astype(jnp.float32) * _sides(images),
        }

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """True and predicted labels, and IoU and distance of predicted and true box, [B] each.

        The distance is the Euclidean distance of the two vectors of corners [4], as fractions of
        the image.  If `self.boxed` is False, the mask `boxed [B]` of the images that have a box is
        also returned.
        """
        true = batch["boxes"][:, 0]
        offset = (predictions["box"] - true) / _sides(batch["image"])
        return {
            "label": batch["label"],
            "predicted": predictions["label"],
            "iou": boxes.iou(predictions["box"], true),
            "distance": jnp.linalg.norm(offset, axis=-1),
            **({} if self.boxed else {"boxed": boxes.area(true) > 0}),
        }

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """Accuracy and IoU, overall and per class, and the confusion matrix."""
        return classification_metrics.localization_scores(rows, classes=self.classes)


def _sides(images: Array) -> np.ndarray:
    """(width, height, width, height) [1, 4] of images [B, H, W, C], to scale box fractions."""
    height, width = images.shape[1:3]
    return np.array([[width, height, width, height]], np.float32)
