"""ConvNeXts (Liu et al. 2022, arXiv:2201.03545): ResNets brought near to vision transformers.

    logits = Tiny().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = Tiny(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32

Tiny has 28,589,128 parameters and, on 224 x 224 pixels, 4.456 G multiply-adds, as torchvision's.
`torch_name` finds the names of trained weights.
"""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import inverted_residual, layers

KERNEL_INIT = nn.initializers.truncated_normal(0.02)  # the paper's
STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4")  # what `frozen` counts
PAPER = {  # names in files of github.com/facebookresearch/ConvNeXt
    "stem": "downsample_layers.0.0",
    "stem_norm": "downsample_layers.0.1",
    "reduce_norm": "downsample_layers.{stage}.0",
    "reduce": "downsample_layers.{stage}.1",
    "block": "stages.{stage}.{block}.",
    "block/depthwise": "dwconv",
    "block/expand": "pwconv1",
    "block/project": "pwconv2",
    "logits": "head",
}
TIMM = {  # and of timm, such as hf:timm/convnext_tiny.fb_in1k
    "stem": "stem.0",
    "stem_norm": "stem.1",
    "reduce_norm": "stages.{stage}.downsample.0",
    "reduce": "stages.{stage}.downsample.1",
    "block": "stages.{stage}.blocks.{block}.",
    "block/depthwise": "conv_dw",
    "block/expand": "mlp.fc1",
    "block/project": "mlp.fc2",
    "norm": "head.norm",
    "logits": "head.fc",
}


class ConvNeXtModule(layers.ConvModule):
    """What the modules of a ConvNeXt share: convolutions with a bias, and layer norm."""

    epsilon: float = 1e-6
    initial: Callable = KERNEL_INIT  # of kernels

    @nn.nowrap
    def shared(self):
        """These fields, to hand on to a part."""
        return {**super().shared(), "initial": self.initial}

    @nn.nowrap
    def plain(self, x, width, kernel, name, *, stride=1, groups=1, dilation=1):
        """A convolution of x [B, H, W, C]: with stride 1 to a map of its size, else unpadded."""
        return nn.Conv(
            width,
            kernel_size=(kernel, kernel),
            strides=stride,
            padding=(dilation * (kernel // 2) if stride == 1 else 0,) * 2,
            kernel_dilation=dilation,
            feature_group_count=groups,
            kernel_init=self.initial,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)

    @nn.nowrap
    def normalise(self, x, name):
        """x [..., C] with mean 0 and variance 1 over channels, scaled and shifted."""
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)


class Block(ConvNeXtModule):
    """7x7 convolution of each channel, layer norm, to four times the channels and back; the sum.

    depthwise: whether channels are convolved one by one.  activation: between the two linear
    layers.  scale: initial factor of each channel of the branch (layer scale, Touvron et al. 2021,
    arXiv:2103.17239); 0 leaves it out.  rate: share of images whose branch is left out in training
    (stochastic depth, Huang et al. 2016, arXiv:1603.09382).  dilation: pixels between the taps of
    the 7x7.  squeeze: after the activation channels are weighed by what the whole image shows, by
    way of this share of x's channels; 0, as in the paper, leaves it out.
    """

    depthwise: bool = True
    activation: Callable = partial(nn.gelu, approximate=False)
    scale: float = 1e-6
    rate: float = 0.0
    dilation: int = 1
    squeeze: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """[B, H, W, C] to the same; `drop` multiplies the rate."""
        width = x.shape[-1]
        how = {"kernel_init": self.initial, "dtype": self.dtype}
        name, groups = ("depthwise", width) if self.depthwise else ("conv", 1)
        y = self.plain(x, width, 7, name, groups=groups, dilation=self.dilation)
        y = self.normalise(y, "norm")
        y = nn.Dense(4 * width, name="expand", **how)(y)
        with jax.named_scope("activation"):
            y = self.activation(y)
        if self.squeeze:
            y = inverted_residual.squeeze_excite(self, y, self.squeeze * width)
        y = nn.Dense(width, name="project", **how)(y)
        if self.scale:
            gamma = self.param("gamma", nn.initializers.constant(self.scale), (width,))
            with jax.named_scope("scale"):
                y = y * gamma.astype(y.dtype).reshape(1, 1, 1, -1)
        if self.rate and train:
            ones = jnp.ones((len(y), 1, 1, 1), y.dtype)
            y = y * layers.Dropout(self.rate, name="drop")(ones, drop, train)
        with jax.named_scope("add"):
            return x + y


class ConvNeXt(ConvNeXtModule, layers.Freezable):
    """A stem of 4x4 patches, stages of blocks, 2x2 patches between them, and a linear layer.

    widths, blocks, strides: channels and blocks of each stage, sides of the patches before it, ()
    is 1 and then 2; squeezes, dilations: of its blocks, see `Block`, () is none.  block: makes one.
    rate: of stochastic depth, of the last block; it rises from 0 in even steps.  rates: instead,
    that of all blocks of each stage.
    classes: outputs; 0 returns the stages' maps [B, H/4 .. H/32, ...] instead of logits.
    frozen: how many of `PARTS` are.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    strides: tuple[int, ...] = ()
    squeezes: tuple[float, ...] = ()
    dilations: tuple[int, ...] = ()
    block: Callable[..., nn.Module] = Block
    rate: float = 0.0
    rates: tuple[float, ...] = ()
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C], or the stages' maps, fine to coarse."""
        x = self.normalise(self.plain(x, self.widths[0], 4, "stem", stride=4), "stem_norm")
        x, maps = self.border(x, 0), []
        for i, (width, stride, rates, extra) in enumerate(self._stages(), 1):
            if i > 1 or stride > 1:
                x = self.normalise(x, f"stage{i}_reduce_norm")
                x = self.plain(x, width, stride, f"stage{i}_reduce", stride=stride)
            for j, rate in enumerate(rates, 1):
                how = {**self.shared(), **extra, "rate": rate, "name": f"stage{i}_block{j}"}
                x = self.block(**how)(x, train and i >= self.frozen, drop)
            x = self.border(x, i)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        x = self.normalise(x, "norm")
        return nn.Dense(self.classes, kernel_init=self.initial, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def _stages(self):
        """(channels, stride, rates of the blocks, their other fields) of each stage."""
        none = (0,) * len(self.widths)
        extras = inverted_residual.block_fields(self.squeezes or none, self.dilations or none)
        each = iter(self.rate * i / max(1, sum(self.blocks) - 1) for i in range(sum(self.blocks)))
        rates = [[next(each) for _ in range(count)] for count in self.blocks]
        if self.rates:
            rates = [[r] * count for r, count in zip(self.rates, self.blocks, strict=True)]
        strides = self.strides or (1, *(2,) * (len(none) - 1))
        return zip(self.widths, strides, rates, extras, strict=True)


Tiny = partial(ConvNeXt, rate=0.1)
Small = partial(ConvNeXt, blocks=(3, 3, 27, 3), rate=0.4)


def torch_name(names, path):
    """Name of a variable in a file of weights whose modules are called `names`: `PAPER` or `TIMM`.

    path: collection, modules and leaf: `params/stage3_block2/expand/kernel`, which is
    `stages.2.1.pwconv1.weight` in the paper's files.
    """
    _, *modules, leaf = path.split("/")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    numbers = {"stage": 0, "block": 0}
    if place := re.fullmatch(r"stage(\d+)_(block)?(.+)", modules[0]):
        within = place[2] or place[3]
        numbers = {"stage": int(place[1]) - 1, "block": int(place[3]) - 1 if place[2] else 0}
        modules = [within, *modules[1:]]
    first, *rest = modules
    begin = names.get(first, first).format(**numbers)
    inner = [names.get(f"{first}/{each}", each) for each in rest]
    return begin + ".".join([*inner, leaf]) if first == "block" else f"{begin}.{leaf}"
