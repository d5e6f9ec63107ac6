"""Localizers: a label and one box per image, predicted by two branches from shared features."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers, necks
from jaxdet.ops import anchors
from jaxdet.types import Array

BOX_BIAS = (-1.4, -1.4, 1.4, 1.4)  # through the sigmoid, a box over the middle 60%


class MLP(nn.Module):
    """Dense layers with ReLU between them, and dropout after each ReLU.

    widths: widths of the hidden layers.
    outputs: width of the last layer.
    rates: dropout rate after each hidden layer; () means no dropout.
    bias: initial biases of the outputs; None means zeros.
    """

    widths: tuple[int, ...]
    outputs: int
    rates: tuple[float, ...] = ()
    dtype: Any = None
    bias: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Map x [B, D] to [B, outputs]; `dropout_scale` multiplies the dropout rates."""
        rates = self.rates or (0.0,) * len(self.widths)
        for i, (width, rate) in enumerate(zip(self.widths, rates, strict=True), 1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = layers.relu(x, f"dense{i}_relu")
            x = layers.Dropout(rate, name=f"dense{i}_drop")(x, dropout_scale, train)
        bias = nn.initializers.zeros if self.bias is None else self._initial_bias
        return nn.Dense(self.outputs, dtype=self.dtype, bias_init=bias, name="out")(x)

    def _initial_bias(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.asarray(self.bias, dtype)


class DenseBoxHead(necks.PyramidModule):
    """One box per image: a weighted mean of the boxes that the cells of a map predict.

    The map is the finest map of an FPN over the last `levels` maps, after two 3x3 convolutions.
    Each cell predicts the distances of the box's sides from the cell's center, as fractions of the
    image (Tian et al. 2019, arXiv:1904.01355), and a logit; a softmax over all cells turns the
    logits into weights.  All cells share one predictor, so that few training images suffice.
    """

    channels: int = 96
    levels: int = 3

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> Array:
        """Maps [B, h, w, C], fine to coarse, to corners [B, 4] as fractions of the image.

        In evaluation, corners are clipped to [0, 1]; not in training, since a clipped corner has no
        gradient.
        """
        fpn = necks.FPN(**self.shared_fields(), channels=self.channels, name="neck")
        x, *_ = fpn(maps[-self.levels :], train)
        for i in (1, 2):
            x = self.conv_norm_act(x, self.channels, 3, f"conv{i}", train=train)
        cells = nn.Conv(
            5,
            kernel_size=(1, 1),
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(0.25),
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name="out",
        )(x).astype(jnp.float32)
        points, _ = anchors.grid_centers([x.shape[1:3]], [1])
        with jax.named_scope("mean"):
            cells = cells.reshape(x.shape[0], -1, 5)
            points = (points / x.shape[2:0:-1])[None]  # [1, A, 2]
            corners = anchors.ltrb_to_boxes(cells[..., :4], points)
            box = (nn.softmax(cells[..., 4:], 1) * corners).sum(1)
            return box if train else box.clip(0, 1)


class Localizer(nn.Module):
    """A backbone with two branches, a classifier and a box branch.

    The classifier takes the last map of the backbone, pooled to side x side cells.  The box branch
    takes the same pooled map, unless `box_head` replaces it.

    features: constructor of the backbone, called with `axis_name` and `name`.
    hidden: widths of the hidden layers of both branches.
    rates: dropout rate after each hidden layer of the classifier.
    box_head: constructor of a box branch that takes all maps of the backbone, such as
      `DenseBoxHead`; None: an `MLP` on the pooled map.
    """

    features: Callable[..., nn.Module]
    classes: int
    hidden: tuple[int, ...]
    rates: tuple[float, ...]
    side: int
    box_head: Callable[..., nn.Module] | None = None
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0
    ) -> tuple[Array, Array]:
        """(logits [B, classes], box [B, 4]) of images [B, H, W, C].

        Boxes are corners x0 y0 x1 y1 as fractions of the image, in [0, 1]; in training, boxes of a
        `DenseBoxHead` may lie outside.  `dropout_scale` multiplies the dropout rates.
        """
        maps = self.features(axis_name=self.axis_name, name="features")(x, train)
        maps = maps if isinstance(maps, tuple) else (maps,)
        x = layers.adaptive_avg_pool(maps[-1], "pool", side=self.side)
        x = x.reshape(x.shape[0], -1)  # [B, side * side * C]
        classifier = MLP(self.hidden, self.classes, self.rates, self.dtype, name="classifier")
        logits = classifier(x, train, dropout_scale)
        if self.box_head:  # "boxer" is the name of the box branch in checkpoints
            return logits, self.box_head(axis_name=self.axis_name, name="boxer")(maps, train)
        box_branch = MLP(self.hidden, 4, (), self.dtype, BOX_BIAS, name="boxer")
        corners = box_branch(x, train).astype(jnp.float32)  # bfloat16 is too coarse for pixels
        return logits, nn.sigmoid(corners)
