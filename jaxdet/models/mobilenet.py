"""MobileNets V2 and V3, as torchvision builds them.

    logits = V3Large().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = V2(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244.  V2 has 3,504,872
parameters, V3 5,483,032 (large) and 2,542,856 (small).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxdet.models import layers, pretrained
from jaxdet.types import Array


class BlockConfig(NamedTuple):
    """Sizes of an inverted residual block, as in a row of tables 1 and 2 of V3's paper."""

    kernel: int
    expand: int  # hidden channels
    width: int  # output channels
    squeeze: bool
    activation: layers.Activation
    stride: int


def _v2_blocks() -> tuple[BlockConfig, ...]:
    # factor of the hidden channels, output channels, blocks, stride of the first block
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    stages += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    channels, blocks = 32, []
    for factor, width, count, stride in stages:
        for i in range(count):
            hidden, own_stride = factor * channels, 1 if i else stride
            blocks.append(BlockConfig(3, hidden, width, False, nn.relu6, own_stride))
            channels = width
    return tuple(blocks)


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


class MobileNetModule(layers.ConvModule):
    """Base of the modules; it determines the layer names of activations."""

    @nn.nowrap
    def activate(self, x: Array, name: str) -> Array:
        """Apply the activation to x, under the layer name `{name}_activation`."""
        return layers.apply_activation(self.activation, x, f"{name}_activation")


class InvertedResidual(MobileNetModule):
    """An inverted residual block.

    A 1x1 convolution to more channels, a depthwise convolution, squeeze-and-excitation, and a 1x1
    convolution to fewer channels, with a shortcut.

    config: sizes of the block, and which of these layers it has.
    activation: must be `config.activation`.
    """

    config: BlockConfig = V2_BLOCKS[0]

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, width], sides rounded up.

        x is added if the stride is 1 and C is `width`.
        """
        config, y = self.config, x
        if config.expand != x.shape[-1]:
            y = self.conv_norm_act(y, config.expand, 1, "expand", train=train)
        depthwise = {"stride": config.stride, "groups": config.expand, "train": train}
        y = self.conv_norm_act(y, config.expand, config.kernel, "depthwise", **depthwise)
        if config.squeeze:
            width = layers.round_to_8(config.expand // 4)
            own = {"activation": nn.relu, "gate": nn.hard_sigmoid, "name": "squeeze"}
            y = layers.SqueezeExcite(**{**self.shared_fields(), **own}, width=width)(y)
        y = self.conv_norm(y, config.width, 1, "project", train=train)
        if config.stride > 1 or config.width != x.shape[-1]:
            return y
        with jax.named_scope("add"):
            return x + y


class MobileNet(MobileNetModule, layers.Freezable):
    """A stem, inverted residual blocks, a 1x1 convolution (`last`), and one or two linear layers.

    blocks: sizes of each block.
    stem, last: output channels of these convolutions.
    hidden: outputs of the first of two linear layers; 0 leaves this layer out.
    activation: activation after the layers stem, last and hidden.
    classes: number of classes; 0 returns the maps of strides 4, 8, 16 and 32 instead of logits; the
      coarsest map is the output of the last block.
    """

    blocks: tuple[BlockConfig, ...] = V2_BLOCKS
    stem: int = 32
    last: int = 1280
    hidden: int = 0
    activation: layers.Activation = nn.relu6
    classes: int = 1000

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `block1`, `block2`, ..., and `last` unless `classes` is 0."""
        last = ("last",) if self.classes else ()
        return ("stem", *(f"block{i}" for i in range(1, len(self.blocks) + 1)), *last)

    @nn.nowrap
    def first_stages(self, count: int) -> dict[str, Any]:
        """Fields for a copy that ends after the first `count` stages; the stem is a stage."""
        return {"blocks": self.blocks[: count - 1]}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """Logits [B, classes] of images [B, H, W, C]; if `classes` is 0, maps, fine to coarse."""
        stem = {"stride": 2, "train": self.stage_train(train, 0)}
        x = self.stop_frozen_gradient(self.conv_norm_act(x, self.stem, 3, "stem", **stem), 0, train)
        maps = []
        for i, config in enumerate(self.blocks, 1):
            if config.stride > 1:
                maps.append(x)  # the last of its resolution
            fields = {**self.shared_fields(), "activation": config.activation, "config": config}
            x = InvertedResidual(**fields, name=f"block{i}")(x, self.stage_train(train, i))
            x = self.stop_frozen_gradient(x, i, train)
        if not self.classes:
            return (*maps[1:], x)  # without stride 2
        last = len(self.blocks) + 1
        x = self.conv_norm_act(x, self.last, 1, "last", train=self.stage_train(train, last))
        x = self.stop_frozen_gradient(x, last, train)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        if self.hidden:
            x = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x)
            x = self.activate(x, "hidden")
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)


V2 = MobileNet
V3 = partial(MobileNet, stem=16, activation=nn.hard_swish, epsilon=1e-3)
V3Large = partial(V3, blocks=V3_LARGE_BLOCKS, last=960, hidden=1280)
V3Small = partial(V3, blocks=V3_SMALL_BLOCKS, last=576, hidden=1024)


def torch_name(path: str, net: MobileNet) -> str:
    """Name of a variable of `net` in torchvision's weights.

    `batch_stats/block1/depthwise_norm/mean` is `features.1.conv.0.1.running_mean` (V2) or
    `features.1.block.0.1.running_mean` (V3).
    """
    _, first, *rest, leaf = path.split("/")
    leaf = pretrained.TORCH_LEAVES[leaf]
    if first in ("hidden", "logits"):
        numbers = {"hidden": 0, "logits": 3} if net.hidden else {"logits": 1}
        return f"classifier.{numbers[first]}.{leaf}"
    norm = int(first.endswith("_norm"))
    if first.removesuffix("_norm") in ("stem", "last"):
        place = 0 if first.startswith("stem") else len(net.blocks) + 1
        return f"features.{place}.{norm}.{leaf}"
    number = int(first.removeprefix("block"))
    sequence = "block" if net.hidden else "conv"
    return f"features.{number}.{sequence}.{_torch_block_place(net, number, rest)}.{leaf}"


def _torch_block_place(net: MobileNet, number: int, modules: list[str]) -> str:
    """Place of a module in torchvision's block `number`, such as 0.1 or 2.fc1."""
    config = net.blocks[number - 1]
    channels = net.blocks[number - 2].width if number > 1 else net.stem
    first, norm = modules[0].removesuffix("_norm"), int(modules[0].endswith("_norm"))
    layer_names = ["expand"] * (config.expand != channels) + ["depthwise"]
    place = [*layer_names, *["squeeze"] * config.squeeze, "project"].index(first)
    if first == "squeeze":
        return f"{place}.{ {'reduce': 'fc1', 'expand': 'fc2'}[modules[1]] }"
    if first == "project" and not net.hidden:  # V2 does not nest its projection and norm
        return f"{place + norm}"
    return f"{place}.{norm}"


def weight_map(net: MobileNet, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """Weight map of torchvision's files."""
    head = f"features.{len(net.blocks) + 1}."
    return pretrained.WeightMap(partial(torch_name, net=net), (head,))
