"""EfficientNets (Tan and Le 2019, arXiv:1905.11946) and their Lite form, as TensorFlow builds them.

    logits = Lite0().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = Lite0(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32
    *_, last = Lite0(classes=0, head=True).apply(variables, images)  # [B, H/32, W/32, 1280]

Convolutions pad as TensorFlow does: to size / stride rounded up, the odd pixel at the end.  Lite0
has 4,652,008 parameters and, on 224 x 224 pixels, 0.385 G multiply-adds; `torch_name` finds its
trained weights.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from flax import linen as nn

from jaxdet.models import layers


class Stage(NamedTuple):
    """Blocks in a row: how many, and their fields; the stride is that of the first."""

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
STAGE_NAMES = (
    "stem",
    *(f"stage{i + 1}" for i in range(len(STAGES))),
    "head",
)  # what `frozen` counts
STEM, HEAD = 32, 1280  # channels
HEADS = ("_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2.")  # what follows, in files of weights
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
IN_TORCH = {
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
IN_TIMM = {
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
FIRST_IN_TIMM = {  # in blocks that expand nothing
    "block/depthwise_norm": "bn1",
    "block/project": "conv_pw",
    "block/project_norm": "bn2",
}


class EfficientNetModule(layers.ConvModule):
    """What the modules of an EfficientNet share: how they convolve, normalise and activate."""

    activation: Callable = nn.swish

    @nn.nowrap
    def shared(self):
        """These fields, to hand on to a part."""
        return {**super().shared(), "activation": self.activation}

    @nn.nowrap
    def plain(self, x, width, kernel, name, *, stride=1, groups=1, bias=True):
        """A convolution alone; its initial values see the fan out of a group."""
        return nn.Conv(
            width,
            kernel_size=(kernel, kernel),
            strides=stride,
            padding="SAME",
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal"),
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)

    @nn.nowrap
    def convolve(self, x, width, kernel, name, *, stride=1, groups=1, train=False):
        """A convolution of x [B, H, W, C] and its batch norm: `name` and `name_norm`."""
        shape = {"stride": stride, "groups": groups, "bias": not self.norm}
        x = self.plain(x, width, kernel, name, **shape)
        if not self.norm:
            return x
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=f"{name}_norm",
        )(x)

    @nn.nowrap
    def activate(self, x, name):
        """The activation of x, called `name_activation`."""
        with jax.named_scope(f"{name}_activation"):
            return self.activation(x)


class SqueezeExcite(EfficientNetModule):
    """Channels weighed by what the whole image shows (Hu et al. 2017, arXiv:1709.01507)."""

    width: int = 4

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to the same, by way of `width` numbers an image."""
        with jax.named_scope("pool"):
            y = x.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
        y = self.activate(self.plain(y, self.width, 1, "reduce"), "reduce")
        y = self.plain(y, x.shape[-1], 1, "expand")
        with jax.named_scope("gate"):
            return x * nn.sigmoid(y)


class MBConv(EfficientNetModule):
    """An inverted residual: 1x1 to more channels, depthwise, squeeze-excite, 1x1 to fewer.

    expand: times as many channels within; at 1 without the first convolution.  squeeze: numbers in
    the middle of `Squeeze`, as a share of the block's channels; 0 leaves it out.
    """

    width: int = 16
    kernel: int = 3
    stride: int = 1
    expand: int = 6
    squeeze: float = 0.25

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H / stride, W / stride, width]; added to x where shapes agree."""
        y, channels = x, x.shape[-1]
        wide = self.expand * channels
        if self.expand > 1:
            y = self.activate(self.convolve(y, wide, 1, "expand", train=train), "expand")
        how = {"stride": self.stride, "groups": wide, "train": train}
        y = self.activate(self.convolve(y, wide, self.kernel, "depthwise", **how), "depthwise")
        if self.squeeze:
            width = max(1, int(self.squeeze * channels))
            y = SqueezeExcite(**self.shared(), width=width, name="squeeze")(y)
        y = self.convolve(y, self.width, 1, "project", train=train)
        if self.stride > 1 or self.width != channels:
            return y
        with jax.named_scope("add"):
            return x + y


class EfficientNet(EfficientNetModule, layers.Freezable):
    """A stem, stages of inverted residuals, a 1x1 convolution (the head) and a linear layer.

    stages: at multipliers of 1.  width, depth: multipliers of their channels and of their blocks.
    fixed_ends: whether stem and head keep their widths, the first and last stage their blocks.
    activation, squeeze: of the blocks.
    classes: outputs; 0 returns the maps of strides 4, 8, 16 and 32 instead of logits.
    head: whether the last of these maps is the head's instead of the last stage's.
    frozen: how many of `PARTS` are.
    """

    stages: tuple[Stage, ...] = STAGES
    width: float = 1.0
    depth: float = 1.0
    fixed_ends: bool = False
    squeeze: float = 0.25
    classes: int = 1000
    head: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        """Logits [B, classes] of images [B, H, W, C], or maps, fine to coarse."""
        moves = [self.moves(train, part) for part in range(len(self.stages) + 2)]
        stem, head = (
            n if self.fixed_ends else layers.divisible(n * self.width) for n in (STEM, HEAD)
        )
        x = self.activate(self.convolve(x, stem, 3, "stem", stride=2, train=moves[0]), "stem")
        x = self.border(x, 0)
        maps = []
        for i, stage in enumerate(self.scaled(), 1):
            if stage.stride > 1:
                maps.append(x)  # the last of its resolution
            for j in range(stage.blocks):
                x = self._block(stage, i, j)(x, moves[i])
            x = self.border(x, i)
        if self.classes or self.head:
            x = self.activate(self.convolve(x, head, 1, "head", train=moves[-1]), "head")
            x = self.border(x, len(self.stages) + 1)
        if not self.classes:
            return (*maps[1:], x)  # without that of stride 2
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def scaled(self):
        """The stages, multiplied."""
        ends = (0, len(self.stages) - 1) if self.fixed_ends else ()
        return tuple(
            stage._replace(
                blocks=stage.blocks if i in ends else math.ceil(self.depth * stage.blocks),
                width=layers.divisible(self.width * stage.width),
            )
            for i, stage in enumerate(self.stages)
        )

    @nn.nowrap
    def _block(self, stage, i, j):
        """Block j, from 0, of stage i, from 1."""
        return MBConv(
            **self.shared(),
            width=stage.width,
            kernel=stage.kernel,
            stride=1 if j else stage.stride,
            expand=stage.expand,
            squeeze=self.squeeze,
            name=_block_name(i, j),
        )


B0 = partial(EfficientNet, width=1.0, depth=1.0)
B1 = partial(EfficientNet, width=1.0, depth=1.1)
B2 = partial(EfficientNet, width=1.1, depth=1.2)
B3 = partial(EfficientNet, width=1.2, depth=1.4)
Lite0 = partial(EfficientNet, activation=nn.relu6, squeeze=0, fixed_ends=True)


def _block_name(i, j):
    """Name of block j, from 0, of stage i, from 1."""
    return f"stage{i}_block{j + 1}"


def torch_name(path, stages=STAGES):
    """Name of a variable in the weights of github.com/lukemelas/EfficientNet-PyTorch.

    path: collection, modules and leaf: `batch_stats/stage1_block1/depthwise_norm/mean`, which is
      `_blocks.0._bn1.running_mean` there.
    stages: the network's, from `EfficientNet.scaled`; as they stand, those of B0 and Lite0.
    A convolution's kernel [h, w, C, D] is [D, C, h, w] there, a linear layer's [C, D] is [D, C].
    KeyError where the network has no such module.
    """
    place, (number, _, _), module, leaf = _placed(path, stages)
    return f"{place and f'_blocks.{number}.'}{IN_TORCH[module]}.{LEAVES[leaf]}"


def timm_name(path, stages=STAGES):
    """Name of a variable in timm's weights, as `torch_name` has it.

    Those called tf_ pad and normalise as here; the others do so symmetrically, with an epsilon of
    1e-5, and are a beginning only.
    """
    place, (_, i, j), module, leaf = _placed(path, stages)
    plain = place and stages[i].expand == 1
    name = (FIRST_IN_TIMM if plain else {}).get(module, IN_TIMM[module])
    return f"{place and f'blocks.{i}.{j}.'}{name}.{LEAVES[leaf]}"


def _placed(path, stages):
    """(name of its block or "", (number of all, stage, number in it), module, leaf) of a path."""
    _, first, *rest, leaf = path.split("/")
    each = [(i, j) for i, stage in enumerate(stages) for j in range(stage.blocks)]
    blocks = {_block_name(i + 1, j): (n, i, j) for n, (i, j) in enumerate(each)}
    inner = "block" if first in blocks else first
    place = first if first in blocks else ""
    return place, blocks.get(first, (0, 0, 0)), "/".join((inner, *rest)), leaf
