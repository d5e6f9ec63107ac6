"""Classification: one label per image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxdet.data.normalize import CENTERED, Normalization, normalize
from jaxdet.losses.classification import LabelLoss, label_loss
from jaxdet.metrics import classification as classification_metrics
from jaxdet.tasks.base import class_factors, forward, masked_means
from jaxdet.types import Array, Batch, StepContext, Tree


@dataclass(frozen=True)
class ClassificationTask:
    """Classification with softmax cross-entropy, or with another `LabelLoss`.

    net: network from images [B, H, W, C] to logits [B, K].
    classes: names of the K classes.
    transform: function (key, image) -> image that augments one training image [H, W, C] with values
      in [0, 255]; None: no augmentation.
    mix: function (keys [B], images, targets [B, K], axis=) -> (images, targets) that mixes a batch
      with values in [0, 1]; the batch is split over the device axis `axis`, unless it is None.
      `mix` itself may be None: no mixing.
    tta: whether to predict from the mean logits of an image and its mirror image; the loss is not
      affected.
    class_weights: in training, factors of the losses of images of each class; (): none.

    `context.hparams["dropout"]` multiplies the dropout rates of the network.
    """

    net: nn.Module
    classes: tuple[str, ...]
    transform: Callable | None = None
    mix: Callable | None = None
    loss_name: LabelLoss = "cross_entropy"
    label_smoothing: float = 0.0
    tta: bool = False
    normalization: Normalization = CENTERED
    class_weights: tuple[float, ...] = ()

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """The batch with target probabilities [B, K] and with images scaled to [0, 1].

        In training, labels are smoothed and images augmented.
        """
        image, target = batch["image"], jax.nn.one_hot(batch["label"], len(self.classes))
        if context.train:
            target = optax.smooth_labels(target, self.label_smoothing)
            image = jax.vmap(self.transform)(keys, image) if self.transform else image
        image = image / jnp.float32(255)
        if context.train and self.mix:
            image, target = self.mix(keys, image, target, axis=context.axis)
        return batch | {"image": image, "target": target}

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """This device's contribution to the mean loss and accuracy over images.

        Class weights are weights of this mean of losses.
        """
        images = normalize(batch["image"], self.normalization)
        extra = {"dropout_scale": context.hparams["dropout"]}
        logits, stats = forward(key, self.net, variables, images, context, **extra)
        logits = logits.astype(jnp.float32)
        correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        losses = label_loss(self.loss_name, logits, batch["target"])
        factors = class_factors(batch["target"], self.class_weights, context)
        terms = masked_means({"accuracy": correct}, batch, context)
        terms |= masked_means({"loss": losses}, batch, context, factors)
        return terms["loss"], (stats, terms)

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`label [B]`, its softmax probability `score [B]`, and `probabilities [B, K]`."""
        logits = self._logits(variables, images)
        if self.tta:
            logits = (logits + self._logits(variables, images[:, :, ::-1])) / 2
        probabilities = jax.nn.softmax(logits)
        return {
            "label": probabilities.argmax(-1),
            "score": probabilities.max(-1),
            "probabilities": probabilities,
        }

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """True and predicted labels [B]."""
        return {"label": batch["label"], "predicted": predictions["label"]}

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """Accuracy, overall and per class, and the confusion matrix."""
        return classification_metrics.scores(rows, classes=self.classes)

    def _logits(self, variables: Tree, images: Array) -> Array:
        images = normalize(images, self.normalization)
        logits: Any = self.net.apply(variables, images, train=False)
        return logits.astype(jnp.float32)
