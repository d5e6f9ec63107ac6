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

LINEAR = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # Kaiming's, of a linear layer


class Inverted(cifar.Part):
    """1x1 to more channels, 3x3, squeeze-excite, 1x1 to as many as before; the sum with x.

    expand: times as many channels within.  depthwise: whether the 3x3 convolves each channel alone.
    squeeze: whether channels are weighed by what the whole image shows, by way of a quarter of x's.
    """

    expand: int = 4
    depthwise: bool = True
    squeeze: bool = False

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """[B, H, W, C] to the same; `drop` is for blocks that drop something."""
        channels = x.shape[-1]
        wide = self.expand * channels
        y = self.activate(self.convolve(x, wide, 1, "expand", train=train), "expand")
        name, groups = ("depthwise", wide) if self.depthwise else ("conv", 1)
        y = self.activate(self.convolve(y, wide, 3, name, groups=groups, train=train), name)
        if self.squeeze:
            how = {**self.shared(), "activation": nn.relu, "width": max(1, channels // 4)}
            y = efficientnet.Squeeze(**how, name="squeeze")(y)
        y = self.convolve(y, channels, 1, "project", train=train)
        with jax.named_scope("add"):
            return x + y


class Bottlenecks(cifar.Part, layers.Freezable):
    """A 7x7 stem with a max pool, then stages: a 3x3 transition, blocks, dropout.

    Stem and pool halve the map each.  Of each stage, `widths`: channels, `strides`: of its
    transition, `squeezes`: whether its blocks squeeze, `rates`: of dropout after it; () is none.
    blocks: in each stage.  block: makes one, given the fields that all parts share, and `squeeze`
    where that is true.
    classes: outputs; 0 returns the stages' maps instead of logits.
    frozen: how many of stem and stages are.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 1, 2, 2, 2)
    squeezes: tuple[bool, ...] = ()
    rates: tuple[float, ...] = ()
    blocks: int = 1
    block: Callable[..., nn.Module] = Inverted
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
        x, maps, none = self.border(x, 0), [], (0,) * len(self.widths)
        stages = zip(
            *(self.widths, self.strides, self.squeezes or none, self.rates or none), strict=True
        )
        for i, (width, stride, squeeze, rate) in enumerate(stages, 1):
            moves, name = self.moves(train, i), f"stage{i}"
            x = self.convolve(x, width, 3, f"{name}_transition", stride=stride, train=moves)
            x = self.activate(x, f"{name}_transition")
            how = {**self.shared(), **({"squeeze": True} if squeeze else {})}
            for j in range(1, self.blocks + 1):
                x = self.block(**how, name=f"{name}_block{j}")(x, moves, drop)
            x = layers.Dropout(rate, name=f"{name}_drop")(x, drop, train)
            x = self.border(x, i)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, kernel_init=LINEAR, dtype=self.dtype, name="logits")(x)


def parts(widths):
    """How the names of a network's layers begin, from the first on: what `frozen` counts."""
    return ("stem", *(f"stage{i + 1}" for i in range(len(widths))))
