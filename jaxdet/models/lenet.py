"""The network of PyTorch's CIFAR-10 tutorial, after LeNet-5, and its variants.

LeCun et al., "Gradient-based learning applied to document recognition", 1998.  With ReLU, max pools
and three channels it has 62,006 parameters and, at 32 x 32 pixels, 651,720 multiplications.

    net = LeNet(channels=(12, 32), fc_widths=(240, 168), rate=0.5, activation=nn.gelu)
    logits = net.apply(variables, images, train=True, dropout_scale=0.8, rngs={"dropout": key})
"""

from functools import partial
from typing import Literal

import jax
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import layers
from jaxdet.models.cifar import CifarModule, check_not_empty
from jaxdet.types import Array


class Inception(CifarModule):
    """1x1, 3x3 and 5x5 convolutions and a projected max pool of the input, concatenated.

    Szegedy et al. 2014, arXiv:1409.4842, figure 2b, without reductions before the convolutions.
    width: output channels, divided evenly among the four branches.
    """

    width: int = 16

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H, W, width]; InputError for a width below 4."""
        if self.width < 4:
            raise InputError(
                f"--channels must be at least 4 for each inception block, got {self.width}"
            )
        one, three, five, pooled = ((self.width + 3 - i) // 4 for i in range(4))
        branches = [
            self.conv_pool_norm_act(x, one, 1, "conv1x1", train=train),
            self.conv_pool_norm_act(x, three, 3, "conv3x3", train=train),
            self.conv_pool_norm_act(x, five, 5, "conv5x5", train=train),
        ]
        x = layers.max_pool(x, "pool", kernel=3, stride=1, padding=1)
        projected = self.conv_pool_norm_act(x, pooled, 1, "project", train=train)
        return layers.concatenate(*branches, projected)


class LeNet(CifarModule):
    """Two 5x5 convolutions without padding, each followed by a max pool, and three dense layers.

    channels: output channels of the layers before each pool, one number per pool.
    fc_widths: widths of the hidden dense layers.
    extra: channels of further 3x3 convolutions, with padding, after the last pool.
    form: layers before each pool: "5x5" is one 5x5 convolution, "3x3" two 3x3 convolutions, both
      without padding; "inception" is an `Inception`, with padding.
    norm: whether batch norm follows each convolution.
    rate: dropout rate after each hidden dense layer.
    classes: number of classes.
    """

    channels: tuple[int, ...] = (6, 16)
    fc_widths: tuple[int, ...] = (120, 84)
    extra: tuple[int, ...] = ()
    form: Literal["5x5", "3x3", "inception"] = "5x5"
    norm: bool = False
    rate: float = 0.0
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Logits [B, classes] of images [B, H, W, C]; `dropout_scale` multiplies the dropout rate.

        Raises InputError for images that the pools shrink to nothing: with two pools, below 16 x 16
        pixels, or below 4 x 4 for inception.
        """
        for i, channels in enumerate(self.channels, 1):
            x = self._before_pool(x, channels, f"conv{i}", train)
            x = layers.max_pool(x, f"conv{i}_pool", kernel=2, stride=2)
        for i, channels in enumerate(self.extra, len(self.channels) + 1):
            x = self.conv_pool_norm_act(x, channels, 3, f"conv{i}", train=train)
        with jax.named_scope("flatten"):
            x = x.reshape(x.shape[0], -1)  # [B, h * w * C]
        check_not_empty(x, "dense1" if self.fc_widths else "logits")
        for i, width in enumerate(self.fc_widths, 1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = self.activate(x, f"dense{i}")
            x = layers.Dropout(self.rate, name=f"dense{i}_drop")(x, dropout_scale, train)
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def _before_pool(self, x: Array, channels: int, name: str, train: bool) -> Array:
        valid = {"padding": "VALID", "train": train}
        match self.form:
            case "5x5":
                return self.conv_pool_norm_act(x, channels, 5, name, **valid)
            case "3x3":
                x = self.conv_pool_norm_act(x, channels, 3, f"{name}a", **valid)
                return self.conv_pool_norm_act(x, channels, 3, f"{name}b", **valid)
            case "inception":
                return Inception(**self.shared_fields(), width=channels, name=name)(x, train)
        raise InputError(f"form must be 5x5, 3x3 or inception, got {self.form!r}")


Doubled = partial(LeNet, channels=(12, 32), fc_widths=(240, 168))
ExtraConv = partial(LeNet, extra=(16,))
ExtraDense = partial(LeNet, fc_widths=(120, 84, 84))
ExtraBoth = partial(LeNet, extra=(16,), fc_widths=(120, 84, 84))
Smaller = partial(LeNet, form="3x3")
Parallel = partial(LeNet, form="inception")
