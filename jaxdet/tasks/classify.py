"""One label an image (seeds 003 and 004)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet import tasks
from jaxdet.data.normalize import CENTERED, Normalization, normalize
from jaxdet.losses import classification as classification_losses
from jaxdet.metrics import classification as classification_metrics
from jaxdet.types import Task


class Classifier(NamedTuple):
    """The functions of the task, and what they share.

    `net` gives logits [B, K].  `change(key, image)` alters one training image [H, W, C] of levels
    in [0, 255], `mix(keys [B], images, wanted [B, K])` a batch of levels in [0, 1] and what it is
    to be taken for.  `at.hyper` has `dropout`, which multiplies the network's rates.  Answers of
    `mirrored` are by the mean logits of an image and its mirror image; the loss is not.
    """

    net: Any
    classes: tuple[str, ...]
    change: Callable | None = None
    mix: Callable | None = None
    loss_kind: classification_losses.LabelLoss = "cross_entropy"
    smoothing: float = 0.0
    mirrored: bool = False
    levels: Normalization = CENTERED

    def task(self):
        """These functions as a `types.Task`."""
        report = partial(classification_metrics.scores, classes=self.classes)
        return Task(self.init, self.augment, self.loss, self.predict, self.measure, report)

    def init(self, key, batch):
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys, batch, at):
        """Images as levels in [0, 1], and `wanted [B, K]`; in training each is changed."""
        image, wanted = batch["image"], jax.nn.one_hot(batch["label"], len(self.classes))
        if at.train:
            wanted = optax.smooth_labels(wanted, self.smoothing)
            image = jax.vmap(self.change)(keys, image) if self.change else image
        image = image / jnp.float32(255)
        if at.train and self.mix:
            image, wanted = self.mix(keys, image, wanted)
        return batch | {"image": image, "wanted": wanted}

    def loss(self, variables, batch, key, at):
        """The share of the loss, and its terms as means over images."""
        images, extra = normalize(batch["image"], self.levels), {"drop": at.hyper["dropout"]}
        logits, stats = tasks.forward(key, self.net, variables, images, at, **extra)
        logits = logits.astype(jnp.float32)
        terms = {
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
            "loss": classification_losses.label_loss(self.loss_kind, logits, batch["wanted"]),
        }
        rows = tasks.real_rows(batch, at)
        terms = {name: values @ batch["real"] / rows for name, values in terms.items()}
        return terms["loss"], (stats, terms)

    def predict(self, variables, images):
        """`label [B]` and `score [B]` of images [B, H, W, C]; scores are a softmax's."""
        logits = self._logits(variables, images)
        if self.mirrored:
            logits = (logits + self._logits(variables, images[:, :, ::-1])) / 2
        chances = jax.nn.softmax(logits)
        return {"label": chances.argmax(-1), "score": chances.max(-1)}

    def measure(self, predictions, batch):
        """Labels, true and predicted, [B]."""
        return {"label": batch["label"], "predicted": predictions["label"]}

    def _logits(self, variables, images):
        logits = self.net.apply(variables, normalize(images, self.levels), train=False)
        return logits.astype(jnp.float32)
