"""ConvNeXts (Liu et al. 2022, arXiv:2201.03545): ResNets modernized like vision transformers.

    logits = Tiny().apply(variables, images)  # [B, 1000]
    c2, c3, c4, c5 = Tiny(classes=0).apply(variables, images)  # strides 4, 8, 16 and 32

Tiny has 28,589,128 parameters and, at 224 x 224 pixels, 4.456 G multiply-adds, the numbers of
torchvision's convnext_tiny.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import inverted_residual, layers, pretrained
from jaxdet.types import Array

KERNEL_INIT = nn.initializers.truncated_normal(0.02)
GELU = partial(nn.gelu, approximate=False)


class Block(layers.ConvModule):
    """A residual block of a 7x7 convolution, layer norm, and an MLP with 4 C hidden units.

    depthwise: whether the 7x7 convolution is depthwise.
    dilation: dilation of this convolution.
    activation: activation of the MLP.
    squeeze: hidden channels of squeeze-and-excitation after the activation, as a fraction of C; 0,
      as in the paper, leaves squeeze-and-excitation out.
    scale: initial value of the trainable factor of each channel of the residual branch (layer
      scale, Touvron et al. 2021, arXiv:2103.17239); 0 leaves the factors out.
    rate: probability that an image skips the residual branch in training (stochastic depth, Huang
      et al. 2016, arXiv:1603.09382).
    """

    epsilon: float = 1e-6
    activation: layers.Activation = GELU
    kernel_init: Callable[..., Array] = KERNEL_INIT
    depthwise: bool = True
    dilation: int = 1
    squeeze: float = 0.0
    scale: float = 1e-6
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Map x [B, H, W, C] to the same shape; `dropout_scale` multiplies the rate."""
        width = x.shape[-1]
        dense = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        name, groups = ("depthwise", width) if self.depthwise else ("conv", 1)
        y = self.conv(x, width, 7, name, groups=groups, dilation=self.dilation)
        y = self.layer_norm(y, "norm")
        y = nn.Dense(4 * width, name="expand", **dense)(y)
        with jax.named_scope("activation"):
            y = self.activation(y)
        if self.squeeze:
            y = inverted_residual.squeeze_excite(self, y, self.squeeze * width)
        y = nn.Dense(width, name="project", **dense)(y)
        if self.scale:
            gamma = self.param("gamma", nn.initializers.constant(self.scale), (width,))
            with jax.named_scope("scale"):
                y = y * gamma.astype(y.dtype).reshape(1, 1, 1, -1)
        if self.rate and train:
            ones = jnp.ones((len(y), 1, 1, 1), y.dtype)
            y = y * layers.Dropout(self.rate, name="drop")(ones, dropout_scale, train)
        with jax.named_scope("add"):
            return x + y


class ConvNeXt(layers.Freezable):
    """A stem that convolves 4x4 patches, stages of blocks, and a linear layer.

    Before each stage but the first, a convolution of patches makes the map smaller.

    widths, blocks: number of channels, and of blocks, in each stage.
    strides: for each stage, the side of these patches, by which the sides of the map are divided;
      () means 1, 2, 2, ...  A 1 for the first stage adds no convolution.
    squeezes, dilations: `Block.squeeze` and `Block.dilation` in each stage; () keeps the defaults.
    block: constructor of a block.
    rate: rate of stochastic depth in the last block; the rate rises linearly from 0 in the first.
    rates: one rate of stochastic depth for each stage, in place of `rate`; () uses `rate`.
    classes: number of classes; 0 returns the maps of the stages instead of logits.
    """

    epsilon: float = 1e-6
    activation: layers.Activation = GELU
    kernel_init: Callable[..., Array] = KERNEL_INIT
    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    strides: tuple[int, ...] = ()
    squeezes: tuple[float, ...] = ()
    dilations: tuple[int, ...] = ()
    block: Callable[..., nn.Module] = Block
    rate: float = 0.0
    rates: tuple[float, ...] = ()
    classes: int = 1000

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `stem`, `stage1`, `stage2`, ..."""
        return layers.numbered_stages(len(self.widths))

    @nn.nowrap
    def first_stages(self, count: int) -> dict[str, Any]:
        """Fields for a copy that ends after the first `count` stages; the stem is a stage."""
        per_stage = ("widths", "blocks", "strides", "squeezes", "dilations", "rates")
        return {name: getattr(self, name)[: count - 1] for name in per_stage}

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0
    ) -> Array | tuple[Array, ...]:
        """Logits [B, classes] of images [B, H, W, C]; if `classes` is 0, maps, fine to coarse.

        `dropout_scale` multiplies the rates.
        """
        x = self._patches(x, self.widths[0], 4, "stem")
        x = self.layer_norm(x, "stem_norm")
        x, maps = self.stop_frozen_gradient(x, 0, train), []
        for i, (width, stride, rates, fields) in enumerate(self._stages(), 1):
            if i > 1 or stride > 1:
                x = self.layer_norm(x, f"stage{i}_reduce_norm")
                x = self._patches(x, width, stride, f"stage{i}_reduce")
            for j, rate in enumerate(rates, 1):
                name = f"stage{i}_block{j}"
                block = self.block(**self.shared_fields(), **fields, rate=rate, name=name)
                x = block(x, train and i >= self.frozen_stages, dropout_scale)
            x = self.stop_frozen_gradient(x, i, train)
            maps.append(x)
        if not self.classes:
            return tuple(maps)
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        x = self.layer_norm(x, "norm")
        dense = {"kernel_init": self.kernel_init, "dtype": self.dtype, "name": "logits"}
        return nn.Dense(self.classes, **dense)(x)

    @nn.nowrap
    def _patches(self, x: Array, channels: int, side: int, name: str) -> Array:
        return self.conv(x, channels, side, name, stride=side, padding=0)

    @nn.nowrap
    def _stages(self) -> Iterator[tuple[int, int, list[float], dict[str, Any]]]:
        """Per stage: channels, stride, stochastic depth rates, other fields of the blocks."""
        none = (0,) * len(self.widths)
        fields = inverted_residual.block_fields(self.squeezes or none, self.dilations or none)
        total = sum(self.blocks)
        each = iter(self.rate * i / max(1, total - 1) for i in range(total))
        rates = [[next(each) for _ in range(count)] for count in self.blocks]
        if self.rates:
            rates = [[r] * count for r, count in zip(self.rates, self.blocks, strict=True)]
        strides = self.strides or (1, *(2,) * (len(none) - 1))
        return zip(self.widths, strides, rates, fields, strict=True)


Tiny = partial(ConvNeXt, rate=0.1)
Small = partial(ConvNeXt, blocks=(3, 3, 27, 3), rate=0.4)

PAPER_MODULES = {  # of github.com/facebookresearch/ConvNeXt
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
TIMM_MODULES = {  # such as hf:timm/convnext_tiny.fb_in1k
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


def torch_name(path: str, modules: Mapping[str, str]) -> str:
    """Name, in a weight file, of the variable at `path`.

    modules: `PAPER_MODULES` for the paper's files, `TIMM_MODULES` for timm's.
    `params/stage3_block2/expand/kernel` is `stages.2.1.pwconv1.weight` in the paper's files.
    """
    _, *names, leaf = path.split("/")
    leaf = pretrained.TORCH_LEAVES.get(leaf, leaf)
    numbers = {"stage": 0, "block": 0}
    if match := re.fullmatch(r"stage(\d+)_(?:block(\d+)|(.+))", names[0]):
        stage, block, layer = match.groups()
        numbers = {"stage": int(stage) - 1, "block": int(block or 1) - 1}
        names[0] = "block" if block else layer
    first, *rest = names
    prefix = modules.get(first, first).format(**numbers)
    inner = [modules.get(f"{first}/{name}", name) for name in rest]
    return prefix + ".".join([*inner, leaf]) if first == "block" else f"{prefix}.{leaf}"


def weight_map(net: ConvNeXt, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """Weight map of files of the authors or of timm, told apart by the names in `arrays`."""
    paper = "downsample_layers.0.0.weight" in arrays
    names = partial(torch_name, modules=PAPER_MODULES if paper else TIMM_MODULES)
    return pretrained.WeightMap(names, ("norm.",))
