"""Networks of inverted residual blocks, with a 3x3 convolution (transition) before each stage.

    net = InvertedResidualNet(widths=(32, 64, 128, 256, 512), strides=(1, 1, 2, 2, 2), classes=7001)
    maps = net.clone(classes=0).apply(variables, images)  # one map per stage

The blocks follow Sandler et al. 2018, arXiv:1801.04381.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn

from jaxdet.models import layers
from jaxdet.types import Array


class InvertedResidual(layers.ConvModule):
    """An inverted residual block, with as many output as input channels.

    A 1x1 convolution to more channels, a 3x3 convolution, squeeze-and-excitation, and a 1x1
    convolution back to C channels, with an identity shortcut.

    expand: hidden channels as a multiple of C.
    depthwise, dilation: whether the 3x3 convolution is depthwise, and its dilation.
    squeeze: hidden channels of squeeze-and-excitation as a fraction of C; 0 leaves it out.
    """

    expand: int = 4
    depthwise: bool = True
    dilation: int = 1
    squeeze: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Map x [B, H, W, C] to the same shape.

        `dropout_scale`, which other types of blocks use, is ignored.
        """
        channels = x.shape[-1]
        hidden = self.expand * channels
        y = self.conv_norm_act(x, hidden, 1, "expand", train=train)
        name, groups = ("depthwise", hidden) if self.depthwise else ("conv", 1)
        spatial = {"groups": groups, "dilation": self.dilation, "train": train}
        y = self.conv_norm_act(y, hidden, 3, name, **spatial)
        if self.squeeze:
            y = squeeze_excite(self, y, self.squeeze * channels)
        y = self.conv_norm(y, channels, 1, "project", train=train)
        with jax.named_scope("add"):
            return x + y


def squeeze_excite(block: layers.ConvModule, x: Array, width: float) -> Array:
    """Squeeze-and-excitation of x [B, H, W, C] with `width` hidden channels, inside a block."""
    own = {"activation": nn.relu, "kernel_init": layers.KAIMING_FAN_OUT, "name": "squeeze"}
    fields = {**block.shared_fields(), **own}
    return layers.SqueezeExcite(**fields, width=max(1, int(width)))(x)


class InvertedResidualNet(layers.Freezable):
    """A 7x7 stem with a max pool, then stages of a 3x3 transition, blocks and dropout.

    Stem and pool each halve the map.

    widths, strides: channels of each stage, and stride of its transition.
    blocks: number of blocks, one for all stages or one for each.
    squeezes, dilations: `squeeze` and `dilation` of the blocks in each stage; () keeps their
      defaults.
    rates: dropout rate after each stage; () means no dropout.
    block: constructor of a block, called with the fields of a `ConvModule`, with `squeeze` unless
      it is 0, and with `dilation` unless it is 1.
    classes: number of classes; 0 returns the maps of the stages instead of logits.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 1, 2, 2, 2)
    blocks: int | tuple[int, ...] = 1
    squeezes: tuple[float, ...] = ()
    dilations: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    block: Callable[..., nn.Module] = InvertedResidual
    activation: layers.Activation = nn.relu6
    classes: int = 1000

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `stage1`, `stage2`, ..."""
        return layers.numbered_stages(len(self.widths))

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0
    ) -> Array | tuple[Array, ...]:
        """Logits [B, classes] of images [B, H, W, C]; if `classes` is 0, maps, fine to coarse.

        `dropout_scale` multiplies the dropout rates.
        """
        stem = {"stride": 2, "train": self.stage_train(train, 0)}
        x = self.conv_norm_act(x, self.widths[0], 7, "stem", **stem)
        x = layers.max_pool(x, "stem_pool", kernel=3, stride=2, padding=1)
        x, maps = self.stop_frozen_gradient(x, 0, train), []
        for i, (width, stride, blocks, fields, rate) in enumerate(self._stages(), 1):
            batch_stats, name = self.stage_train(train, i), f"stage{i}"
            transition = {"stride": stride, "train": batch_stats}
            x = self.conv_norm_act(x, width, 3, f"{name}_transition", **transition)
            for j in range(1, blocks + 1):
                block = self.block(**self.shared_fields(), **fields, name=f"{name}_block{j}")
                x = block(x, batch_stats, dropout_scale)
            x = layers.Dropout(rate, name=f"{name}_drop")(x, dropout_scale, train)
            x = self.stop_frozen_gradient(x, i, train)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        dense = {"kernel_init": layers.KAIMING_FAN_IN, "dtype": self.dtype, "name": "logits"}
        return nn.Dense(self.classes, **dense)(x)

    @nn.nowrap
    def _stages(self) -> Iterator[tuple[int, int, int, dict[str, Any], float]]:
        """Per stage: channels, stride, number of blocks, fields of the blocks, and dropout rate."""
        none = (0,) * len(self.widths)
        fields = block_fields(self.squeezes or none, self.dilations or none)
        blocks = (self.blocks,) * len(none) if isinstance(self.blocks, int) else self.blocks
        return zip(self.widths, self.strides, blocks, fields, self.rates or none, strict=True)


def block_fields(squeezes: tuple[float, ...], dilations: tuple[int, ...]) -> list[dict[str, Any]]:
    """For each stage, the fields `squeeze` (unless 0) and `dilation` (unless 1) of its blocks."""
    return [
        {**({"squeeze": squeeze} if squeeze else {}), **({"dilation": d} if d > 1 else {})}
        for squeeze, d in zip(squeezes, dilations, strict=True)
    ]
