"""Residual networks (He et al. 2015, arXiv:1512.03385), as torchvision builds them.

    logits = ResNet18(classes=1000).apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = ResNet18(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32

In a bottleneck block the 3x3 convolution has the stride (ResNet v1.5), in a basic block the first
convolution.  ResNet18 has 11,689,512 parameters and, at 224 x 224 pixels, 1.814 G multiply-adds.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxdet.models import layers, pretrained
from jaxdet.types import Array


class BasicBlock(layers.ConvModule):
    """A residual block of two 3x3 convolutions."""

    width: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, width], sides rounded up."""
        y = self.conv_norm_act(x, self.width, 3, "conv1", stride=self.stride, train=train)
        y = self.conv_norm(y, self.width, 3, "conv2", train=train)
        return add_shortcut(self, x, y, train)


class Bottleneck(layers.ConvModule):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, the last with 4 * width channels."""

    width: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, 4 width], sides rounded up."""
        y = self.conv_norm_act(x, self.width, 1, "conv1", train=train)
        y = self.conv_norm_act(y, self.width, 3, "conv2", stride=self.stride, train=train)
        y = self.conv_norm(y, 4 * self.width, 1, "conv3", train=train)
        return add_shortcut(self, x, y, train)


def add_shortcut(block: Any, x: Array, y: Array, train: bool) -> Array:
    """ReLU of x + y, the input and output [B, H, W, C] of a block's convolutions.

    If x and y differ in shape, a 1x1 convolution projects x.
    """
    if x.shape != y.shape:
        x = block.conv_norm(x, y.shape[-1], 1, "around", stride=block.stride, train=train)
    with jax.named_scope("add"):
        y = x + y
    return layers.relu(y, "relu")


class ResNet(layers.Freezable):
    """A stem, stages of blocks, and a linear layer.

    Each stage after the first halves the map and doubles the width.

    stages: blocks per stage.
    block: `BasicBlock` or `Bottleneck`.
    width: channels of the stem.
    classes: number of classes; 0 returns the maps of the stages, of strides 4, 8, 16 and 32,
      instead of logits.
    """

    stages: tuple[int, ...] = (2, 2, 2, 2)
    block: type[nn.Module] = BasicBlock
    width: int = 64
    classes: int = 1000

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `stage1`, `stage2`, ..."""
        return layers.numbered_stages(len(self.stages))

    @nn.nowrap
    def first_stages(self, count: int) -> dict[str, Any]:
        """Fields for a copy that ends after the first `count` stages; the stem is a stage."""
        return {"stages": self.stages[: count - 1]}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """Logits [B, classes] of images [B, H, W, C]; if `classes` is 0, maps, fine to coarse."""
        stem = {"stride": 2, "train": self.stage_train(train, 0)}
        x = self.conv_norm_act(x, self.width, 7, "stem", **stem)
        x = layers.max_pool(x, "stem_pool", kernel=3, stride=2, padding=1)
        x, maps = self.stop_frozen_gradient(x, 0, train), []
        for i, blocks in enumerate(self.stages, 1):
            for j in range(1, blocks + 1):
                block = self.block(
                    **self.shared_fields(),
                    width=self.width * 2 ** (i - 1),
                    stride=2 if i > 1 and j == 1 else 1,
                    name=f"stage{i}_block{j}",
                )
                x = block(x, self.stage_train(train, i))
            x = self.stop_frozen_gradient(x, i, train)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)


ResNet18 = partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)

TORCH_MODULES = {
    "stem": "conv1",
    "stem_norm": "bn1",
    "around": "downsample.0",
    "around_norm": "downsample.1",
    "logits": "fc",
}


def torch_name(path: str) -> str:
    """Name of a variable in the weights of torchvision's and timm's ResNets.

    `params/stage1_block1/conv1/kernel` is `layer1.0.conv1.weight`.
    """
    _, *modules, leaf = path.split("/")
    return ".".join([*map(_torch_module, modules), pretrained.TORCH_LEAVES[leaf]])


def _torch_module(module: str) -> str:
    if block := re.fullmatch(r"stage(\d+)_block(\d+)", module):
        return f"layer{block[1]}.{int(block[2]) - 1}"
    return TORCH_MODULES.get(module) or re.sub(r"^conv(\d+)_norm$", r"bn\1", module)


def weight_map(net: ResNet, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """Weight map of torchvision's and timm's ResNets."""
    return pretrained.WeightMap(torch_name)
