"""Label and one box a photo from shared features: two branches on one network (seed 000)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers, necks
from jaxdet.ops import anchors


class MLP(nn.Module):
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


class DenseBoxHead(necks.PyramidModule):
    """One box a photo from all cells of a map: the mean of their boxes, weighted by a softmax.

    An FPN of `width` over the last `levels` maps, two 3x3 convolutions on its finest, and five
    numbers a cell: how far the sides of the box are from the cell's centre, in shares of the photo
    (Tian et al. 2019, arXiv:1904.01355), and the logit of its weight.  What a cell says does not
    depend on where it is, so that few photos teach where in a photo the object can be.
    """

    width: int = 96
    levels: int = 3

    @nn.compact
    def __call__(self, maps, train=False):
        """Maps [B, h, w, C], fine to coarse, to corners [B, 4] in shares of the photo."""
        shared = {**self.shared(), "width": self.width}
        x, *_ = necks.FPN(**shared, name="neck")(maps[-self.levels :], train)
        for i in (1, 2):
            x = self.active(x, self.width, 3, f"conv{i}", train=train)
        said = nn.Conv(
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
            said = said.reshape(len(x), -1, 5)
            points = (points / x.shape[2:0:-1])[None]  # [1, A, 2]
            corners = anchors.ltrb_to_boxes(said[..., :4], points)
            box = (nn.softmax(said[..., 4:], 1) * corners).sum(1)
            return box if train else box.clip(0, 1)  # outside there is no way back for a gradient


BOX_BIAS = (-1.4, -1.4, 1.4, 1.4)  # a box over the middle 60%, through the sigmoid


class Localizer(nn.Module):
    """Features pooled to `side` x `side` and flattened, a classifier, and a branch for the box.

    features: makes the module of the feature maps, given `axis_name` and `name`; of several maps
    the last is used.  hidden: widths of both branches.  rates: dropout of the classifier.
    boxer: makes a branch of the box that takes the maps as they are, such as `Cells`.
    """

    features: Callable[..., nn.Module]
    classes: int
    hidden: tuple[int, ...]
    rates: tuple[float, ...]
    side: int
    boxer: Callable[..., nn.Module] | None = None
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """(logits [B, classes], box [B, 4]) of images [B, H, W, C].

        Boxes are x0 y0 x1 y1 in shares of the image's sides, each in [0, 1] (those of a `boxer`,
        outside of training).  `drop` multiplies the dropout rates.
        """
        maps = self.features(axis_name=self.axis_name, name="features")(x, train)
        maps = maps if isinstance(maps, tuple) else (maps,)
        x = layers.adaptive_avg_pool(maps[-1], "pool", side=self.side)
        x = x.reshape(len(x), -1)  # [B, side * side * channels]
        classifier = MLP(self.hidden, self.classes, self.rates, self.dtype, name="classifier")
        logits = classifier(x, train, drop)
        if self.boxer:
            return logits, self.boxer(axis_name=self.axis_name, name="boxer")(maps, train)
        boxer = MLP(self.hidden, 4, (), self.dtype, BOX_BIAS, name="boxer")
        corners = boxer(x, train).astype(jnp.float32)  # bfloat16 has steps of nearly a pixel of 224
        return logits, nn.sigmoid(corners)
