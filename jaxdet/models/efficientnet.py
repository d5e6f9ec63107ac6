"""EfficientNets (Tan and Le 2019, arXiv:1905.11946) and EfficientNet-Lite.

    logits = Lite0().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = Lite0(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32
    *_, last = Lite0(classes=0, head=True).apply(variables, images)  # [B, H/32, W/32, 1280]

Convolutions pad as in TensorFlow: outputs have ceil(size / stride) pixels per side, and if the
number of padding pixels is odd, the extra one is at the bottom or right.  Lite0 has 4,652,008
parameters and, at 224 x 224 pixels, 0.385 G multiply-adds.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxdet.models import layers, pretrained
from jaxdet.types import Array


class Stage(NamedTuple):
    """A stage: its number of blocks, and their fields; only the first block has the stride."""

    blocks: int
    width: int
    kernel: int = 3
    stride: int = 1
    expand: int = 6


STAGES = (  # table 1 of the paper
    Stage(1, 16, expand=1),
    Stage(2, 24, stride=2),
    Stage(2, 40, kernel=5, stride=2),
    Stage(3, 80, stride=2),
    Stage(3, 112, kernel=5),
    Stage(4, 192, kernel=5, stride=2),
    Stage(1, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class EfficientNetModule(layers.ConvModule):
    """Base of the modules, with padding, batch norm and initial values as in TensorFlow."""

    epsilon: float = 1e-3
    momentum: float = 0.99
    activation: layers.Activation = nn.swish

    @nn.nowrap
    def conv(self, x: Array, channels: int, kernel: int, name: str, **options: Any) -> Array:
        """`ConvModule.conv` with padding "SAME"; initial values use the fan-out of one group."""
        scale = 2.0 * options.get("groups", 1)
        kernel_init = nn.initializers.variance_scaling(scale, "fan_out", "normal")
        options = {"padding": "SAME", "kernel_init": kernel_init, **options}
        return super().conv(x, channels, kernel, name, **options)

    @nn.nowrap
    def activate(self, x: Array, name: str) -> Array:
        """Apply the activation to x, under the layer name `{name}_activation`."""
        return layers.apply_activation(self.activation, x, f"{name}_activation")


class MBConv(EfficientNetModule):
    """An inverted residual block with squeeze-and-excitation.

    A 1x1 convolution to more channels, a depthwise convolution, squeeze-and-excitation, and a 1x1
    convolution to fewer channels, with a shortcut.

    width: output channels.
    kernel, stride: kernel size and stride of the depthwise convolution.
    expand: hidden channels as a multiple of C; 1 leaves the first convolution out.
    squeeze: hidden channels of squeeze-and-excitation as a fraction of C; 0 leaves it out.
    """

    width: int = 16
    kernel: int = 3
    stride: int = 1
    expand: int = 6
    squeeze: float = 0.25

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H / stride, W / stride, width], sides rounded up.

        x is added if the stride is 1 and C is `width`.
        """
        y, channels = x, x.shape[-1]
        hidden = self.expand * channels
        if self.expand > 1:
            y = self.conv_norm_act(y, hidden, 1, "expand", train=train)
        depthwise = {"stride": self.stride, "groups": hidden, "train": train}
        y = self.conv_norm_act(y, hidden, self.kernel, "depthwise", **depthwise)
        if self.squeeze:
            width = max(1, int(self.squeeze * channels))
            y = layers.SqueezeExcite(**self.shared_fields(), width=width, name="squeeze")(y)
        y = self.conv_norm(y, self.width, 1, "project", train=train)
        if self.stride > 1 or self.width != channels:
            return y
        with jax.named_scope("add"):
            return x + y


class EfficientNet(EfficientNetModule, layers.Freezable):
    """A stem, stages of MBConv blocks, a 1x1 convolution (the head) and a linear layer.

    stages: the stages to which the multipliers are applied.
    width, depth: multipliers of the number of channels, and of blocks.
    fixed_ends: whether multipliers leave the channels of stem and head, and the blocks of the first
      and last stage, as they are.
    squeeze: see `MBConv`.
    classes: number of classes; 0 returns the maps of strides 4, 8, 16 and 32 instead of logits.
    head: whether the coarsest map is the output of the head instead of the last stage.
    """

    stages: tuple[Stage, ...] = STAGES
    width: float = 1.0
    depth: float = 1.0
    fixed_ends: bool = False
    squeeze: float = 0.25
    classes: int = 1000
    head: bool = False

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `stage1`, `stage2`, ..., and `head` if there is one."""
        head = ("head",) if self.classes or self.head else ()
        return ("stem", *(f"stage{i}" for i in range(1, len(self.stages) + 1)), *head)

    @nn.nowrap
    def first_stages(self, count: int) -> dict[str, Any]:
        """Fields for a copy that ends after the first `count` stages; the stem is a stage."""
        if self.fixed_ends:  # before a cut, which changes the last stage
            return {"stages": self.scaled_stages()[: count - 1], "width": 1.0, "depth": 1.0}
        return {"stages": self.stages[: count - 1]}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """Logits [B, classes] of images [B, H, W, C]; if `classes` is 0, maps, fine to coarse."""
        stem, head = (
            n if self.fixed_ends else layers.round_to_8(n * self.width)
            for n in (STEM_CHANNELS, HEAD_CHANNELS)
        )
        x = self.conv_norm_act(x, stem, 3, "stem", stride=2, train=self.stage_train(train, 0))
        x, maps = self.stop_frozen_gradient(x, 0, train), []
        for i, stage in enumerate(self.scaled_stages(), 1):
            if stage.stride > 1:
                maps.append(x)  # the last of its resolution
            for j in range(1, stage.blocks + 1):
                block = MBConv(
                    **self.shared_fields(),
                    width=stage.width,
                    kernel=stage.kernel,
                    stride=stage.stride if j == 1 else 1,
                    expand=stage.expand,
                    squeeze=self.squeeze,
                    name=f"stage{i}_block{j}",
                )
                x = block(x, self.stage_train(train, i))
            x = self.stop_frozen_gradient(x, i, train)
        if self.classes or self.head:
            last = len(self.stages) + 1
            x = self.conv_norm_act(x, head, 1, "head", train=self.stage_train(train, last))
            x = self.stop_frozen_gradient(x, last, train)
        if not self.classes:
            return (*maps[1:], x)  # without stride 2
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def scaled_stages(self) -> tuple[Stage, ...]:
        """The stages, with numbers of blocks scaled by `depth`, and widths scaled by `width`."""
        ends = (0, len(self.stages) - 1) if self.fixed_ends else ()
        return tuple(
            stage._replace(
                blocks=stage.blocks if i in ends else math.ceil(self.depth * stage.blocks),
                width=layers.round_to_8(self.width * stage.width),
            )
            for i, stage in enumerate(self.stages)
        )


B0 = partial(EfficientNet, width=1.0, depth=1.0)
B1 = partial(EfficientNet, width=1.0, depth=1.1)
B2 = partial(EfficientNet, width=1.1, depth=1.2)
B3 = partial(EfficientNet, width=1.2, depth=1.4)
Lite0 = partial(EfficientNet, activation=nn.relu6, squeeze=0, fixed_ends=True)
Lite1 = partial(Lite0, depth=1.1)
Lite2 = partial(Lite0, width=1.1, depth=1.2)

TORCH_MODULES = {  # of github.com/lukemelas/EfficientNet-PyTorch
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "head": "_conv_head",
    "head_norm": "_bn1",
    "logits": "_fc",
    "block/expand": "_expand_conv",
    "block/expand_norm": "_bn0",
    "block/depthwise": "_depthwise_conv",
    "block/depthwise_norm": "_bn1",
    "block/squeeze/reduce": "_se_reduce",
    "block/squeeze/expand": "_se_expand",
    "block/project": "_project_conv",
    "block/project_norm": "_bn2",
}
TIMM_MODULES = {
    "stem": "conv_stem",
    "stem_norm": "bn1",
    "head": "conv_head",
    "head_norm": "bn2",
    "logits": "classifier",
    "block/expand": "conv_pw",
    "block/expand_norm": "bn1",
    "block/depthwise": "conv_dw",
    "block/depthwise_norm": "bn2",
    "block/squeeze/reduce": "se.conv_reduce",
    "block/squeeze/expand": "se.conv_expand",
    "block/project": "conv_pwl",
    "block/project_norm": "bn3",
}
TIMM_UNEXPANDED_MODULES = {  # in blocks without the first convolution
    "block/depthwise_norm": "bn1",
    "block/project": "conv_pw",
    "block/project_norm": "bn2",
}
HEADS = (
    "_conv_head.",
    "_bn1.",
    "_fc.",
    "conv_head.",
    "bn2.",
)  # prefixes of what follows the stages


def torch_name(path: str, stages: tuple[Stage, ...] = STAGES) -> str:
    """Name of a variable in the weights of github.com/lukemelas/EfficientNet-PyTorch.

    `batch_stats/stage1_block1/depthwise_norm/mean` is `_blocks.0._bn1.running_mean`.
    stages: `scaled_stages` of the network; by default the stages of B0 and Lite0.
    Raises KeyError for a variable that the network does not have.
    """
    block, module, leaf = _parse(path, stages)
    place = f"_blocks.{block[0]}." if block else ""
    return f"{place}{TORCH_MODULES[module]}.{pretrained.TORCH_LEAVES[leaf]}"


def timm_name(path: str, stages: tuple[Stage, ...] = STAGES) -> str:
    """Name of a variable in timm's weights, like `torch_name`.

    Weights whose name begins with tf_ match these networks.  Other weights expect symmetric padding
    and an epsilon of 1e-5, and are only a starting point for training.
    """
    block, module, leaf = _parse(path, stages)
    name, place = TIMM_MODULES[module], ""
    if block:
        _, i, j = block
        place = f"blocks.{i}.{j}."
        if stages[i].expand == 1:
            name = TIMM_UNEXPANDED_MODULES.get(module, name)
    return f"{place}{name}.{pretrained.TORCH_LEAVES[leaf]}"


def _parse(path: str, stages: tuple[Stage, ...]) -> tuple[tuple[int, int, int] | None, str, str]:
    """(block, module, leaf); block: None or (index in the network, stage, index in the stage)."""
    _, first, *rest, leaf = path.split("/")
    places = [(i, j) for i, stage in enumerate(stages) for j in range(stage.blocks)]
    blocks = {f"stage{i + 1}_block{j + 1}": (n, i, j) for n, (i, j) in enumerate(places)}
    module = "block" if first in blocks else first
    return blocks.get(first), "/".join((module, *rest)), leaf


def weight_map(net: EfficientNet, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """Weight map of files of EfficientNet-PyTorch or timm, told apart by the names in `arrays`."""
    name = timm_name if "conv_stem.weight" in arrays else torch_name
    return pretrained.WeightMap(partial(name, stages=net.scaled_stages()), HEADS)
