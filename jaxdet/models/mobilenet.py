"""MobileNets: V2 (Sandler et al. 2018, arXiv:1801.04381), V3 (Howard et al. 2019, 1905.02244).

    logits = V3Large().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = V2(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32

As torchvision builds them, whose trained weights fit (`pretrained.mobilenet`).  V2 has 3,504,872
parameters, V3 5,483,032 (large) and 2,542,856 (small).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from flax import linen as nn

from jaxdet.models import layers


class BlockConfig(NamedTuple):
    """A block: a row of tables 1 and 2 of V3's paper."""

    kernel: int
    expand: int  # channels within
    width: int  # channels that come out
    squeeze: bool
    activation: Callable
    stride: int


def _v2_blocks():
    """Table 2 of V2's paper: factor of the channels within, channels, blocks, first stride."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    stages += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    channels, rows = 32, []
    for times, width, blocks, stride in stages:
        for i in range(blocks):
            rows.append(
                BlockConfig(3, times * channels, width, False, nn.relu6, 1 if i else stride)
            )
            channels = width
    return tuple(rows)


V2_BLOCKS = _v2_blocks()
V3_LARGE_BLOCKS = (
    BlockConfig(3, 16, 16, False, nn.relu, 1),
    BlockConfig(3, 64, 24, False, nn.relu, 2),
    BlockConfig(3, 72, 24, False, nn.relu, 1),
    BlockConfig(5, 72, 40, True, nn.relu, 2),
    BlockConfig(5, 120, 40, True, nn.relu, 1),
    BlockConfig(5, 120, 40, True, nn.relu, 1),
    BlockConfig(3, 240, 80, False, nn.hard_swish, 2),
    BlockConfig(3, 200, 80, False, nn.hard_swish, 1),
    BlockConfig(3, 184, 80, False, nn.hard_swish, 1),
    BlockConfig(3, 184, 80, False, nn.hard_swish, 1),
    BlockConfig(3, 480, 112, True, nn.hard_swish, 1),
    BlockConfig(3, 672, 112, True, nn.hard_swish, 1),
    BlockConfig(5, 672, 160, True, nn.hard_swish, 2),
    BlockConfig(5, 960, 160, True, nn.hard_swish, 1),
    BlockConfig(5, 960, 160, True, nn.hard_swish, 1),
)
V3_SMALL_BLOCKS = (
    BlockConfig(3, 16, 16, True, nn.relu, 2),
    BlockConfig(3, 72, 24, False, nn.relu, 2),
    BlockConfig(3, 88, 24, False, nn.relu, 1),
    BlockConfig(5, 96, 40, True, nn.hard_swish, 2),
    BlockConfig(5, 240, 40, True, nn.hard_swish, 1),
    BlockConfig(5, 240, 40, True, nn.hard_swish, 1),
    BlockConfig(5, 120, 48, True, nn.hard_swish, 1),
    BlockConfig(5, 144, 48, True, nn.hard_swish, 1),
    BlockConfig(5, 288, 96, True, nn.hard_swish, 2),
    BlockConfig(5, 576, 96, True, nn.hard_swish, 1),
    BlockConfig(5, 576, 96, True, nn.hard_swish, 1),
)


class SqueezeExcite(layers.ConvModule):
    """Channels weighed by what the whole image shows (Hu et al. 2017, arXiv:1709.01507)."""

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to the same, by way of a quarter of the channels."""
        channels = x.shape[-1]
        with jax.named_scope("pool"):
            y = x.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
        y = self._plain(layers.divisible(channels // 4), "reduce")(y)
        y = self._plain(channels, "expand")(layers.relu(y, "reduce_activation"))
        with jax.named_scope("gate"):
            return x * nn.hard_sigmoid(y)

    @nn.nowrap
    def _plain(self, width, name):
        """A 1x1 convolution with a bias."""
        how = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        return nn.Conv(
            width, kernel_size=(1, 1), kernel_init=layers.KAIMING_FAN_OUT, name=name, **how
        )


class InvertedResidual(layers.ConvModule):
    """An inverted residual: 1x1 to more channels, depthwise, squeeze-excite, 1x1 to fewer."""

    row: BlockConfig = V2_BLOCKS[0]

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H / stride, W / stride, width]; added to x where shapes agree."""
        row, y = self.row, x
        if row.expand != x.shape[-1]:
            y = self.convolve(y, row.expand, 1, "expand", train=train)
            y = _activated(row.activation, y, "expand")
        how = {"stride": row.stride, "groups": row.expand, "train": train}
        y = self.convolve(y, row.expand, row.kernel, "depthwise", **how)
        y = _activated(row.activation, y, "depthwise")
        if row.squeeze:
            y = SqueezeExcite(**self.shared(), name="squeeze")(y)
        y = self.convolve(y, row.width, 1, "project", train=train)
        if row.stride > 1 or row.width != x.shape[-1]:
            return y
        with jax.named_scope("add"):
            return x + y


def _activated(activation, x, name):
    """The activation of x, called `name_activation`."""
    with jax.named_scope(f"{name}_activation"):
        return activation(x)


class MobileNet(layers.Freezable):
    """A stem, blocks, a 1x1 convolution (`last`), and a classifier of one or two linear layers.

    hidden: numbers between the two; 0 has one.  classes: outputs; 0 returns the maps of strides 4,
    8, 16 and 32, the coarsest of the blocks', instead of logits.  frozen: how many of `parts` are.
    """

    rows: tuple[BlockConfig, ...] = V2_BLOCKS
    stem: int = 32
    last: int = 1280
    hidden: int = 0
    activation: Callable = nn.relu6  # of stem, last and hidden
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False):
        """Logits [B, classes] of images [B, H, W, C], or maps, fine to coarse."""
        moves = [self.moves(train, part) for part in range(len(self.rows) + 2)]
        x = self.convolve(x, self.stem, 3, "stem", stride=2, train=moves[0])
        x = self.border(_activated(self.activation, x, "stem"), 0)
        maps = []
        for i, row in enumerate(self.rows, 1):
            if row.stride > 1:
                maps.append(x)  # the last of its resolution
            x = InvertedResidual(**self.shared(), row=row, name=f"block{i}")(x, moves[i])
            x = self.border(x, i)
        if not self.classes:
            return (*maps[1:], x)  # without that of stride 2
        x = self.convolve(x, self.last, 1, "last", train=moves[-1])
        x = self.border(_activated(self.activation, x, "last"), len(self.rows) + 1)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        if self.hidden:
            x = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x)
            x = _activated(self.activation, x, "hidden")
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)


V2 = MobileNet
V3 = partial(MobileNet, stem=16, activation=nn.hard_swish, epsilon=1e-3)
V3Large = partial(V3, rows=V3_LARGE_BLOCKS, last=960, hidden=1280)
V3Small = partial(V3, rows=V3_SMALL_BLOCKS, last=576, hidden=1024)


def stage_names(rows):
    """How the names of a network's layers begin, from the first on: what `frozen` counts."""
    return ("stem", *(f"block{i + 1}" for i in range(len(rows))))
