"""Networks of inverted bottlenecks with transitions between them, as seed 004 varies them.

    net = Bottlenecks(widths=(32, 64, 128, 256, 512), strides=(1, 1, 2, 2, 2), classes=7001)
    maps = net.clone(classes=0).apply(variables, images)  # a map a stage

Blocks after Sandler et al. 2018, arXiv:1801.04381.  Convolutions and linear layers begin with
Kaiming's normal numbers (He et al. 2015, arXiv:1502.01852).
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from jaxdet.models import cifar, efficientnet, layers


class InvertedResidual(cifar.CifarModule):
    """1x1 to more channels, 3x3, squeeze-excite, 1x1 to as many as before; the sum with x.

    expand: times as many channels within.  depthwise: whether the 3x3 convolves each channel alone.
    dilation: pixels between the taps of the 3x3.  squeeze: channels are weighed by what the whole
    image shows, by way of this share of x's channels; 0 leaves it out.
    """

    expand: int = 4
    depthwise: bool = True
    dilation: int = 1
    squeeze: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """[B, H, W, C] to the same; `drop` is for blocks that drop something."""
        channels = x.shape[-1]
        wide = self.expand * channels
        y = self.activate(self.convolve(x, wide, 1, "expand", train=train), "expand")
        name, groups = ("depthwise", wide) if self.depthwise else ("conv", 1)
        how = {"groups": groups, "dilation": self.dilation, "train": train}
        y = self.activate(self.convolve(y, wide, 3, name, **how), name)
        if self.squeeze:
            y = squeeze_excite(self, y, self.squeeze * channels)
        y = self.convolve(y, channels, 1, "project", train=train)
        with jax.named_scope("add"):
            return x + y


def squeeze_excite(block, x, width):
    """x [B, H, W, C] with channels weighed by way of about `width` numbers, in a block."""
    how = {**layers.ConvModule.shared(block), "activation": nn.relu, "width": max(1, int(width))}
    return efficientnet.SqueezeExcite(**how, name="squeeze")(x)


class InvertedResidualNet(cifar.CifarModule, layers.Freezable):
    """A 7x7 stem with a max pool, then stages: a 3x3 transition, blocks, dropout.

    Stem and pool halve the map each.  Of each stage, `widths`: channels, `strides`: of its
    transition, `blocks`: how many it has, or all have, `squeezes` and `dilations`: of these, see
    `Inverted`, `rates`: of dropout after it; () is none.
    block: makes one, given the fields that all parts share, and `squeeze` and `dilation` where
    there are any.
    classes: outputs; 0 returns the stages' maps instead of logits.
    frozen: how many of stem and stages are.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 1, 2, 2, 2)
    blocks: int | tuple[int, ...] = 1
    squeezes: tuple[float, ...] = ()
    dilations: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    block: Callable[..., nn.Module] = InvertedResidual
    activation: Callable = nn.relu6
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C], or the stages' maps, fine to coarse.

        `drop` multiplies the dropout rates.
        """
        x = self.convolve(x, self.widths[0], 7, "stem", stride=2, train=self.moves(train, 0))
        x = self.activate(x, "stem")
        x = layers.max_pool(x, "stem_pool", kernel=3, stride=2, padding=1)
        x, maps = self.border(x, 0), []
        for i, (width, stride, count, extra, rate) in enumerate(self._stages(), 1):
            moves, name = self.moves(train, i), f"stage{i}"
            x = self.convolve(x, width, 3, f"{name}_transition", stride=stride, train=moves)
            x = self.activate(x, f"{name}_transition")
            for j in range(1, count + 1):
                x = self.block(**self.shared(), **extra, name=f"{name}_block{j}")(x, moves, drop)
            x = layers.Dropout(rate, name=f"{name}_drop")(x, drop, train)
            x = self.border(x, i)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(
            self.classes, kernel_init=layers.KAIMING_FAN_IN, dtype=self.dtype, name="logits"
        )(x)

    @nn.nowrap
    def _stages(self):
        """(channels, stride, blocks, fields of these, dropout) of each stage."""
        none = (0,) * len(self.widths)
        extras = block_fields(self.squeezes or none, self.dilations or none)
        one = isinstance(self.blocks, int)
        counts = (self.blocks,) * len(none) if one else self.blocks
        return zip(self.widths, self.strides, counts, extras, self.rates or none, strict=True)


def block_fields(squeezes, dilations):
    """Of each stage, the fields of its blocks that squeeze or are dilated; {} for others."""
    return [
        {**({"squeeze": share} if share else {}), **({"dilation": wide} if wide > 1 else {})}
        for share, wide in zip(squeezes, dilations, strict=True)
    ]


def stage_names(widths):
    """How the names of a network's layers begin, from the first on: what `frozen` counts."""
    return ("stem", *(f"stage{i + 1}" for i in range(len(widths))))
