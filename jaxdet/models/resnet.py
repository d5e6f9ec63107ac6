"""Residual networks (He et al. 2015, arXiv:1512.03385), as torchvision builds them.

    net = ResNet18(classes=1000)
    logits = net.apply(variables, images)  # [B, 1000]
    stages = ResNet18(classes=0).apply(variables, images)  # four feature maps, fine to coarse

The 3x3 convolution of a block carries its stride.  ResNet18 has 11,689,512 parameters and, on 224 x
224 pixels, 1.814 G multiply-adds.
"""

from functools import partial

import jax
from flax import linen as nn

from jaxdet.models import layers
from jaxdet.models.layers import ConvModule

STAGE_NAMES = (
    "stem",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
)  # how the names of their layers begin


class BasicBlock(ConvModule):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where shapes change."""

    width: int = 64
    stride: int = 1
    expansion = 1

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        y = self.convolve(x, self.width, 3, "conv1", stride=self.stride, train=train)
        y = layers.relu(y, "conv1_relu")
        y = self.convolve(y, self.width, 3, "conv2", train=train)
        return add_shortcut(self, x, y, train)


class Bottleneck(ConvModule):
    """1x1, 3x3 and 1x1 convolutions; the last is four times as wide."""

    width: int = 64
    stride: int = 1
    expansion = 4

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H / stride, W / stride, 4 width]."""
        y = layers.relu(self.convolve(x, self.width, 1, "conv1", train=train), "conv1_relu")
        y = self.convolve(y, self.width, 3, "conv2", stride=self.stride, train=train)
        y = self.convolve(layers.relu(y, "conv2_relu"), 4 * self.width, 1, "conv3", train=train)
        return add_shortcut(self, x, y, train)


class ResNet(layers.Freezable):
    """A stem, four stages of blocks that halve the map and double the width, and a linear layer.

    stages: blocks in each stage.  block: `Basic` or `Bottleneck`.  width: channels of the stem.
    classes: outputs; 0 returns the four stages' maps [B, H/4 .. H/32, ...] instead of logits.
    frozen: how many of `PARTS` are.
    """

    stages: tuple[int, ...] = (2, 2, 2, 2)
    block: type = BasicBlock
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False):
        """Logits [B, classes] of images [B, H, W, C], or the stages' maps, fine to coarse."""
        x = self.convolve(x, self.width, 7, "stem", stride=2, train=self.moves(train, 0))
        x = layers.relu(x, "stem_relu")
        x = layers.max_pool(x, "stem_pool", kernel=3, stride=2, padding=1)
        x, maps = self.border(x, 0), []
        for i, count in enumerate(self.stages):
            moves = self.moves(train, i + 1)
            for j in range(count):
                width, stride = self.width * 2**i, 2 if i and not j else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = self.block(**self.shared(), width=width, stride=stride, name=name)(x, moves)
            x = self.border(x, i + 1)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)


def add_shortcut(block, x, y, train):
    """The block's sum with what went around it, and its activation."""
    if x.shape != y.shape:
        x = block.convolve(x, y.shape[-1], 1, "around", stride=block.stride, train=train)
    with jax.named_scope("add"):
        y = x + y
    return layers.relu(y, "relu")


ResNet18 = partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)
