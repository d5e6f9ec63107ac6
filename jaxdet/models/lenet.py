"""The small network of PyTorch's CIFAR-10 tutorial, after LeNet-5, and its variants (seed 003).

LeCun et al., "Gradient-based learning applied to document recognition", 1998.  With ReLU, max pools
and three channels it has 62,006 parameters and, on 32 x 32 pixels, 651,720 multiplications.

    net = LeNet(widths=(12, 32), dense=(240, 168), rate=0.5, activation=nn.gelu)
    logits = net.apply(variables, images, train=True, drop=0.8, rngs={"dropout": key})
"""

from functools import partial
from typing import Literal

import jax
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import layers
from jaxdet.models.cifar import CifarModule, check_not_empty


class Inception(CifarModule):
    """Convolutions of 1x1, 3x3 and 5x5 and a projected max pool side by side, without reductions.

    Szegedy et al. 2014, arXiv:1409.4842, figure 2.  width: channels of all four, shared evenly.
    """

    width: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]."""
        if self.width < 4:
            raise InputError(f"four parallel branches cannot have {self.width} channels in all")
        one, three, five, pooled = ((self.width + 3 - i) // 4 for i in range(4))
        branches = [
            self.active(x, one, 1, "conv1x1", train=train),
            self.active(x, three, 3, "conv3x3", train=train),
            self.active(x, five, 5, "conv5x5", train=train),
        ]
        x = layers.max_pool(x, "pool", kernel=3, stride=1, padding=1)
        return layers.concatenate(*branches, self.active(x, pooled, 1, "project", train=train))


class LeNet(CifarModule):
    """Two 5x5 convolutions without padding, each pooled, then three dense layers.

    widths, dense: channels of the convolutions, and of the hidden dense layers.
    extra: channels of further 3x3 convolutions, padded, after the last pool.
    form: what is pooled: one 5x5 convolution, two of 3x3, or `Inception`, which is padded.
    norm: batch norm after each convolution.  activation: of all hidden layers.
    rate: of dropout after each hidden dense layer.
    classes: outputs.
    """

    widths: tuple[int, ...] = (6, 16)
    dense: tuple[int, ...] = (120, 84)
    extra: tuple[int, ...] = ()
    form: Literal["5x5", "3x3", "inception"] = "5x5"
    norm: bool = False
    rate: float = 0.0
    classes: int = 10

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; 16 x 16 pixels are the least for two pools.

        `drop`, traced or not, multiplies the dropout rate.  InputError for images too small.
        """
        for i, width in enumerate(self.widths, 1):
            x = self._features(x, width, f"conv{i}", train)
            x = layers.max_pool(x, f"conv{i}_pool", kernel=2, stride=2)
        for i, width in enumerate(self.extra, len(self.widths) + 1):
            x = self.active(x, width, 3, f"conv{i}", train=train)
        with jax.named_scope("flatten"):
            x = x.reshape(len(x), -1)  # [B, rows * columns * channels]
        check_not_empty(x, "dense1" if self.dense else "logits")
        for i, width in enumerate(self.dense, 1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = self.activate(x, f"dense{i}")
            x = layers.Dropout(self.rate, name=f"dense{i}_drop")(x, drop, train)
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def _features(self, x, width, name, train):
        """What comes before a pool."""
        bare = {"padding": "VALID", "train": train}
        match self.form:
            case "5x5":
                return self.active(x, width, 5, name, **bare)
            case "3x3":
                x = self.active(x, width, 3, f"{name}a", **bare)
                return self.active(x, width, 3, f"{name}b", **bare)
            case "inception":
                return Inception(**self.shared(), width=width, name=name)(x, train)
        raise InputError(f"no form {self.form!r}: take 5x5, 3x3 or inception")


# The variants of seed 003: sizes doubled, a layer inserted, smaller kernels, parallel branches.
Doubled = partial(LeNet, widths=(12, 32), dense=(240, 168))
ExtraConv = partial(LeNet, extra=(16,))
ExtraDense = partial(LeNet, dense=(120, 84, 84))
ExtraBoth = partial(LeNet, extra=(16,), dense=(120, 84, 84))
Smaller = partial(LeNet, form="3x3")
Parallel = partial(LeNet, form="inception")
