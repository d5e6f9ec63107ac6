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
from jaxdet.models.resnet import Basic


class Part(layers.Part):
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


class ResNet(layers.Part):
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
                x = Basic(**self.shared(), **how, name=f"stage{i}_block{j}")(x, train)
        return classify(self, x, train, drop)


ResNet20 = ResNet
Narrow = partial(ResNet, widths=(16, 32, 60))


def classify(net, x, train, drop, pool=jnp.mean):
    """Logits [B, classes] of a map [B, h, w, C]: pooled whole, dropout, a linear layer.

    net: the module that is called, with `classes`, `rate` and `dtype`.  pool: jnp.mean or jnp.max.
    """
    check(x, "logits")
    with jax.named_scope("pool"):
        x = pool(x, (1, 2))  # [B, C]
    x = layers.Dropout(net.rate, name="drop")(x, drop, train)
    return nn.Dense(net.classes, dtype=net.dtype, name="logits")(x)


def check(x, name):
    """Raise InputError if what the layer of a name is given, x, has no numbers."""
    if 0 in x.shape:
        given = "x".join(map(str, x.shape))
        raise InputError(f"layer {name} is given {given}: take a larger --input or fewer pools")
