"""ResNets for 32 x 32 pixels, and what the networks of CIFAR-10 share (seed 003).

    logits = ResNet20().apply(variables, images)  # [B, 10] of [B, 32, 32, 3]

Shortcuts that change shape are 1x1 convolutions with batch norm, as in pytorchcv: ResNet20 has
272,474 parameters and 40,813,184 multiply-adds.  Narrow, with 248,778, stays below 250,000.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import layers
from jaxdet.models.resnet import BasicBlock


class CifarModule(layers.ConvModule):
    """What modules with an activation of choice share: nn.relu, nn.gelu, nn.tanh and so on."""

    activation: Callable = nn.relu

    @nn.nowrap
    def shared(self):
        """These fields, to hand on to a part."""
        return {**super().shared(), "activation": self.activation}

    @nn.nowrap
    def activate(self, x, name):
        """The activation of x of any shape, called by both names: `conv1_relu`."""
        with jax.named_scope(f"{name}_{getattr(self.activation, '__name__', 'activation')}"):
            return self.activation(x)

    @nn.nowrap
    def plain(self, x, width, kernel, name, *, padding="SAME", groups=1, dilation=1, bias=True):
        """A convolution of x [B, H, W, C] alone."""
        return nn.Conv(
            width,
            kernel_size=(kernel, kernel),
            padding=padding,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)

    @nn.nowrap
    def active(self, x, width, kernel, name, *, padding="SAME", pool=1, train=False):
        """A convolution of x [B, H, W, C], a max pool, batch norm and the activation.

        pool: side and stride; 1 is none.  Where it is more, norm and activation come cheaper.
        """
        x = self.plain(x, width, kernel, name, padding=padding, bias=not self.norm)
        if pool > 1:
            x = layers.max_pool(x, f"{name}_pool", kernel=pool, stride=pool)
        if self.norm:
            x = self.batch_norm(x, f"{name}_norm", train)
        return self.activate(x, name)


class CifarResNet(layers.ConvModule):
    """A 3x3 stem, stages of basic blocks, of which all but the first halve the map, a linear layer.

    He et al. 2015, arXiv:1512.03385, section 4.2: 6 x `blocks` + 2 layers, and the shortcuts.
    blocks: in each stage.  widths: channels of each stage; the stem has those of the first.
    classes: outputs.  rate: of dropout before the linear layer.
    """

    blocks: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; `drop` multiplies the dropout rate."""
        x = layers.relu(self.convolve(x, self.widths[0], 3, "stem", train=train), "stem_relu")
        for i, width in enumerate(self.widths, 1):
            for j in range(1, self.blocks + 1):
                how = {"width": width, "stride": 2 if i > 1 and j == 1 else 1}
                x = BasicBlock(**self.shared(), **how, name=f"stage{i}_block{j}")(x, train)
        return classifier_head(self, x, train, drop)


ResNet20 = CifarResNet
Narrow = partial(CifarResNet, widths=(16, 32, 60))


def classifier_head(net, x, train, drop, pool=jnp.mean):
    """Logits [B, classes] of a map [B, h, w, C]: pooled whole, dropout, a linear layer.

    net: the module that is called, with `classes`, `rate` and `dtype`.  pool: jnp.mean or jnp.max.
    """
    check_not_empty(x, "logits")
    with jax.named_scope("pool"):
        x = pool(x, (1, 2))  # [B, C]
    x = layers.Dropout(net.rate, name="drop")(x, drop, train)
    return nn.Dense(net.classes, dtype=net.dtype, name="logits")(x)


def check_not_empty(x, name):
    """Raise InputError if what the layer of a name is given, x, has no numbers."""
    if 0 in x.shape:
        given = "x".join(map(str, x.shape))
        raise InputError(f"layer {name} is given {given}: take a larger --input or fewer pools")


MIXERS = {"depthwise3": (3, 1), "depthwise7": (7, 1), "dilated7": (7, 2)}  # pixels, dilation


class TiniestModule(CifarModule):
    """What the modules of `Tiniest` share: `norm` is of channels at a pixel, not of a batch."""

    @nn.nowrap
    def normal(self, x, name):
        """Layer norm of x [B, H, W, C] over channels (Ba et al. 2016, arXiv:1607.06450)."""
        if not self.norm:
            return x
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)


class TiniestBlock(TiniestModule):
    """Depthwise convolutions on three quarters, layer norm and a gated MLP, beside the identity."""

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to the same; C is a multiple of 4."""
        width = x.shape[-1]
        same, *quarters = jnp.split(x, 4, -1)
        for i, (name, (kernel, dilation)) in enumerate(MIXERS.items()):
            how = {"groups": width // 4, "dilation": dilation}
            quarters[i] = self.plain(quarters[i], width // 4, kernel, name, **how)
        y = self.normal(layers.concatenate(same, *quarters), "norm")
        values, gates = jnp.split(self.plain(y, 2 * width, 1, "expand"), 2, -1)
        gates = self.activate(gates, "gate")
        with jax.named_scope("gate"):
            y = values * gates
        y = self.plain(y, width, 1, "project")
        with jax.named_scope("add"):
            return x + y


class Tiniest(TiniestModule):
    """A 3x3 stem, stages of blocks with a max pool and a 1x1 convolution between, a linear layer.

    widths: channels of each stage, multiples of 4.  depth: blocks in each stage.
    classes: outputs.  rate: of dropout before the linear layer.
    """

    widths: tuple[int, ...] = (48, 80)
    depth: tuple[int, ...] = (3, 3)
    activation: Callable = nn.gelu
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; `drop` multiplies the dropout rate."""
        for i, (width, count) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            if i == 1:
                x = self.plain(x, width, 3, "stem")
            else:
                x = layers.max_pool(x, f"stage{i}_pool", kernel=2, stride=2)
                x = self.plain(x, width, 1, f"stage{i}")
            x = self.normal(x, f"stage{i}_norm")
            for j in range(1, count + 1):
                x = TiniestBlock(**self.shared(), name=f"stage{i}_block{j}")(x)
        return classifier_head(self, self.normal(x, "last_norm"), train, drop)


class TinyBlock(CifarModule):
    """Two 3x3 convolutions, or 1x1 to `middle` channels, 3x3 and 1x1 back, beside the identity.

    The activation comes before the sum, so that nothing is lost on the way around.
    """

    middle: int = 0

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to the same."""
        y, width = x, x.shape[-1]
        narrow = ((self.middle, 1), (self.middle, 3), (width, 1))
        for i, (channels, kernel) in enumerate(narrow if self.middle else ((width, 3),) * 2, 1):
            y = self.active(y, channels, kernel, f"conv{i}", train=train)
        with jax.named_scope("add"):
            return x + y


class Tiny(CifarModule):
    """A 3x3 stem, stages of a pooled convolution and residual blocks, and a scaled linear layer.

    stem: channels.  widths: channels of each stage, whose map has half the sides of the one before.
    entry: pixels a side of each stage's first convolution.  depth: blocks in each stage.
    middle: channels within a block as a share of its own; 0 has no 1x1 convolutions.
    pool: of the last map, jnp.max or jnp.mean.  scale: of the logits.
    classes: outputs.  rate: of dropout before the linear layer.
    """

    stem: int = 16
    widths: tuple[int, ...] = (32, 64, 64)
    entry: int = 3
    depth: tuple[int, ...] = (1, 1, 1)
    middle: float = 0.0
    activation: Callable = nn.gelu
    pool: Callable = jnp.max
    scale: float = 0.125
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; `drop` multiplies the dropout rate."""
        x = self.active(x, self.stem, 3, "stem", train=train)
        for i, (width, blocks) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            x = self.active(x, width, self.entry, f"stage{i}", pool=2, train=train)
            for j in range(1, blocks + 1):
                part = {"middle": round(self.middle * width), "name": f"stage{i}_block{j}"}
                x = TinyBlock(**self.shared(), **part)(x, train)
        logits = classifier_head(self, x, train, drop, self.pool)
        with jax.named_scope("scale"):
            return self.scale * logits


Deep = partial(Tiny, stem=24, widths=(48, 96, 128), entry=1, depth=(3, 3, 2), middle=0.5)
