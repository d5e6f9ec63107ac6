"""Label and one box a photo from shared features: two branches on one network (seed 000)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers


class Branch(nn.Module):
    """Dense layers with ReLU between them, and dropout after each ReLU.

    widths: outputs of the hidden layers.  outputs: of the last one.
    rates: dropout of each hidden layer; () is none.  start: initial biases of the outputs; 0 else.
    """

    widths: tuple[int, ...]
    outputs: int
    rates: tuple[float, ...] = ()
    dtype: Any = None
    start: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """[B, D] to [B, outputs]; `drop`, traced or not, multiplies the dropout rates."""
        rates = self.rates or (0.0,) * len(self.widths)
        for i, (width, rate) in enumerate(zip(self.widths, rates, strict=True), 1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = layers.relu(x, f"dense{i}_relu")
            x = layers.Dropout(rate, name=f"dense{i}_drop")(x, drop, train)
        start = nn.initializers.zeros if self.start is None else self._begin
        return nn.Dense(self.outputs, dtype=self.dtype, bias_init=start, name="out")(x)

    def _begin(self, key, shape, dtype):
        return jnp.asarray(self.start, dtype)


START = (-1.4, -1.4, 1.4, 1.4)  # a box over the middle 60%, through the sigmoid


class Localizer(nn.Module):
    """Features pooled to `side` x `side` and flattened, a classifier, and a branch for the box.

    features: makes the module of the feature maps, given `axis_name` and `name`; of several maps
    the last is used.  hidden: widths of both branches.  rates: dropout of the classifier.
    """

    features: Callable[..., nn.Module]
    classes: int
    hidden: tuple[int, ...]
    rates: tuple[float, ...]
    side: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """(logits [B, classes], box [B, 4]) of images [B, H, W, C].

        Boxes are x0 y0 x1 y1 in shares of the image's sides, each in [0, 1].  `drop` multiplies the
        dropout rates.
        """
        x = self.features(axis_name=self.axis_name, name="features")(x, train)
        x = x[-1] if isinstance(x, tuple) else x
        x = layers.adaptive_mean_pool(x, "pool", side=self.side)
        x = x.reshape(len(x), -1)  # [B, side * side * channels]
        classifier = Branch(self.hidden, self.classes, self.rates, self.dtype, name="classifier")
        boxer = Branch(self.hidden, 4, (), self.dtype, START, name="boxer")
        corners = boxer(x, train).astype(jnp.float32)  # bfloat16 has steps of nearly a pixel of 224
        return classifier(x, train, drop), nn.sigmoid(corners)
