"""Networks for images of 32 x 32 pixels, each with fewer than 275,000 parameters.

    logits = ResNet20().apply(variables, images)  # [B, 10] of [B, 32, 32, 3]

| network | parameters | multiply-adds | |
|---|---|---|---|
| ResNet20 | 272,474 | 40.8 M | He et al. 2015, with projection shortcuts as in pytorchcv |
| Narrow | 248,778 | 40.1 M | the same with a narrower last stage |
| Tiny | 227,866 | 22.9 M | residual; trains fast on two CPU cores |
| Deep | 242,146 | 17.0 M | Tiny with 29 instead of 11 trainable layers |
| Tiniest | 97,306 | 43.9 M | depthwise |

Tiny follows github.com/KellerJordan/cifar10-airbench: outputs of convolutions are pooled before
they are normalized, the last map is max-pooled, and the logits are scaled down.  Tiniest follows
the description of xvel/cifar10-tiniest (97,530 parameters, accuracy 94.4% after 200 epochs).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import folding, layers
from jaxdet.models.resnet import BasicBlock
from jaxdet.types import Array

LECUN_NORMAL = nn.initializers.lecun_normal()
MIXERS = {"depthwise3": (3, 1), "depthwise7": (7, 1), "dilated7": (7, 2)}  # kernel, dilation


class CifarModule(layers.ConvModule):
    """Base of the modules in this file: Flax's default initializer, and pools before norms."""

    kernel_init: Callable[..., Array] = LECUN_NORMAL

    @nn.nowrap
    def conv_pool_norm_act(
        self,
        x: Array,
        channels: int,
        kernel: int,
        name: str,
        *,
        padding: str = "SAME",
        pool: int = 1,
        train: bool = False,
    ) -> Array:
        """Apply a convolution, a max pool, batch norm and the activation to x [B, H, W, C].

        pool: side and stride of the max pool; 1 leaves it out.
        """
        # A norm after a pool is not folded: maxima and a negative scale do not commute.
        norm = self.norm and not (pool == 1 and folding.is_folded(self, name, self.epsilon))
        x = self.conv(x, channels, kernel, name, padding=padding, bias=not norm)
        if pool > 1:
            x = layers.max_pool(x, f"{name}_pool", kernel=pool, stride=pool)
        if norm:
            x = self.batch_norm(x, f"{name}_norm", train)
        return self.activate(x, name)


class CifarResNet(layers.ConvModule):
    """A 3x3 stem, stages of basic blocks, and a linear layer; the map is halved between stages.

    He et al. 2015, arXiv:1512.03385, section 4.2, but with projection shortcuts; a network of three
    stages has 6 * blocks + 2 layers.
    blocks: blocks per stage.
    widths: channels of each stage; the stem has as many as the first stage.
    classes: number of classes.
    rate: dropout rate before the linear layer.
    """

    blocks: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Logits [B, classes] of images [B, H, W, C]; `dropout_scale` multiplies the rate."""
        x = self.conv_norm_act(x, self.widths[0], 3, "stem", train=train)
        for i, width in enumerate(self.widths, 1):
            for j in range(1, self.blocks + 1):
                fields = {"width": width, "stride": 2 if i > 1 and j == 1 else 1}
                block = BasicBlock(**self.shared_fields(), **fields, name=f"stage{i}_block{j}")
                x = block(x, train)
        return classifier_head(self, x, train, dropout_scale)


ResNet20 = CifarResNet
Narrow = partial(CifarResNet, widths=(16, 32, 60))


class TinyBlock(CifarModule):
    """A residual block of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 convolutions.

    The last activation comes before the sum, so that the shortcut passes x on unchanged.
    middle: channels between the 1x1 convolutions; 0 for a block of two 3x3 convolutions.
    """

    middle: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to the same shape."""
        y, width = x, x.shape[-1]
        plain, bottleneck = ((width, 3),) * 2, ((self.middle, 1), (self.middle, 3), (width, 1))
        for i, (channels, kernel) in enumerate(bottleneck if self.middle else plain, 1):
            y = self.conv_pool_norm_act(y, channels, kernel, f"conv{i}", train=train)
        with jax.named_scope("add"):
            return x + y


class Tiny(CifarModule):
    """A 3x3 stem, stages (a pooled convolution, then residual blocks), and a scaled linear layer.

    stem: channels of the stem.
    widths: channels of each stage; each stage halves the map.
    entry: kernel size of each stage's first convolution.
    depth: blocks in each stage.
    middle: `TinyBlock.middle` as a fraction of a stage's channels; 0 for blocks of two 3x3
      convolutions.
    pool: global pool of the last map, jnp.max or jnp.mean.
    scale: factor of the logits.
    classes: number of classes.
    rate: dropout rate before the linear layer.
    """

    stem: int = 16
    widths: tuple[int, ...] = (32, 64, 64)
    entry: int = 3
    depth: tuple[int, ...] = (1, 1, 1)
    middle: float = 0.0
    activation: layers.Activation = nn.gelu
    pool: Callable[..., Array] = jnp.max
    scale: float = 0.125
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Logits [B, classes] of images [B, H, W, C]; `dropout_scale` multiplies the rate."""
        x = self.conv_pool_norm_act(x, self.stem, 3, "stem", train=train)
        for i, (width, blocks) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            x = self.conv_pool_norm_act(x, width, self.entry, f"stage{i}", pool=2, train=train)
            for j in range(1, blocks + 1):
                fields = {"middle": round(self.middle * width), "name": f"stage{i}_block{j}"}
                x = TinyBlock(**self.shared_fields(), **fields)(x, train)
        logits = classifier_head(self, x, train, dropout_scale, pool=self.pool)
        with jax.named_scope("scale"):
            return self.scale * logits


Deep = partial(Tiny, stem=24, widths=(48, 96, 128), entry=1, depth=(3, 3, 2), middle=0.5)


class TiniestBlock(CifarModule):
    """A residual block of three depthwise convolutions, layer norm and a gated MLP.

    The first quarter of the channels stays unchanged; the others go through a 3x3 convolution, a
    7x7 convolution, and a 7x7 convolution with dilation 2 (InceptionNeXt, Yu et al. 2023,
    arXiv:2303.16900).  The MLP is gated as in GEGLU (Shazeer 2020, arXiv:2002.05202).
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to the same shape; C is a multiple of 4."""
        width = x.shape[-1]
        identity, *quarters = jnp.split(x, 4, -1)
        for i, (name, (kernel, dilation)) in enumerate(MIXERS.items()):
            fields = {"groups": width // 4, "dilation": dilation}
            quarters[i] = self.conv(quarters[i], width // 4, kernel, name, **fields)
        y = layers.concatenate(identity, *quarters)
        y = self.layer_norm(y, "norm") if self.norm else y
        values, gates = jnp.split(self.conv(y, 2 * width, 1, "expand"), 2, -1)
        gates = self.activate(gates, "gate")
        with jax.named_scope("gate"):
            y = values * gates
        y = self.conv(y, width, 1, "project")
        with jax.named_scope("add"):
            return x + y


class Tiniest(CifarModule):
    """A 3x3 stem, stages of blocks, and a linear layer.

    A max pool, which halves the map, and a 1x1 convolution come before each stage but the first.

    widths: channels of each stage, multiples of 4.
    depth: blocks in each stage.
    norm: whether there are layer norms.
    classes: number of classes.
    rate: dropout rate before the linear layer.
    """

    widths: tuple[int, ...] = (48, 80)
    depth: tuple[int, ...] = (3, 3)
    activation: layers.Activation = nn.gelu
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0) -> Array:
        """Logits [B, classes] of images [B, H, W, C]; `dropout_scale` multiplies the rate."""
        for i, (width, blocks) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            if i == 1:
                x = self.conv(x, width, 3, "stem")
            else:
                x = layers.max_pool(x, f"stage{i}_pool", kernel=2, stride=2)
                x = self.conv(x, width, 1, f"stage{i}")
            x = self.layer_norm(x, f"stage{i}_norm") if self.norm else x
            for j in range(1, blocks + 1):
                x = TiniestBlock(**self.shared_fields(), name=f"stage{i}_block{j}")(x)
        x = self.layer_norm(x, "last_norm") if self.norm else x
        return classifier_head(self, x, train, dropout_scale)


def classifier_head(
    net: Any,
    x: Array,
    train: bool,
    dropout_scale: float | Array,
    *,
    pool: Callable[..., Array] = jnp.mean,
) -> Array:
    """Logits [B, classes] of a map [B, h, w, C], by a global pool, dropout and a linear layer.

    net: the calling module, with the fields `classes`, `rate` and `dtype`.
    pool: jnp.mean or jnp.max.
    """
    check_not_empty(x, "logits")
    with jax.named_scope("pool"):
        x = pool(x, (1, 2))  # [B, C]
    x = layers.Dropout(net.rate, name="drop")(x, dropout_scale, train)
    return nn.Dense(net.classes, dtype=net.dtype, name="logits")(x)


def check_not_empty(x: Array, layer: str) -> None:
    """Raise InputError if x, the input of a layer, has a dimension of 0."""
    if 0 in x.shape:
        shape = "x".join(map(str, x.shape))
        raise InputError(
            f"layer {layer}: its input is empty, shape {shape}; use a larger --input or fewer pools"
        )
