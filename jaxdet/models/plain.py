"""Stacks of convolutions and max pools, and the localizers built on them.

In a layout such as `32 32 M4 64 512/1`, `32` is a 3x3 convolution with 32 output channels, batch
norm and ReLU, `512/1` is such a layer with a 1x1 kernel, and `M4` is a 4x4 max pool with stride 4.
"""

import re
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from typing import Any

from flax import linen as nn

from jaxdet.models import layers, pretrained
from jaxdet.models.localizer import Localizer
from jaxdet.types import Array

SIMPLE = "32 M4 64 M4 64 M4"
DEEPER = "32 32 M4 64 64 M4 128 128 M2 256 256 512/1 512"
VGG = "64 M2 128 M2 256 256 M2 512 512 M2 512 512 M2"


class ConvStack(layers.Freezable):
    """The convolutions conv1, conv2, ... and pools pool1, pool2, ... of a layout.

    Each convolution is a stage that may be frozen.

    layout: see the module docstring.
    bias: whether convolutions before batch norm have a bias too, as in torchvision's VGG files.
    """

    layout: str = ""
    bias: bool = False

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """The names `conv1`, `conv2`, ..."""
        count = sum(not word.startswith("M") for word in self.layout.split())
        return tuple(f"conv{i}" for i in range(1, count + 1))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """The last feature map [B, h, w, C] of images [B, H, W, C]."""
        convolutions = pools = 0
        for word in self.layout.split():
            if word.startswith("M"):
                pools += 1
                side = int(word[1:])
                x = layers.max_pool(x, f"pool{pools}", kernel=side, stride=side)
            else:
                channels, _, kernel = word.partition("/")
                batch_stats = self.stage_train(train, convolutions)
                options = {"bias": self.bias, "train": batch_stats}
                name = f"conv{convolutions + 1}"
                x = self.conv_norm_act(x, int(channels), int(kernel or 3), name, **options)
                x = self.stop_frozen_gradient(x, convolutions, train)
                convolutions += 1
        return x


def simple(classes: int, *, dtype: Any = None, **fields: Any) -> Localizer:
    """Three convolutions, each followed by a 4x4 max pool, and two small branches.

    At 224 x 224 pixels the last map is 3 x 3 x 64, and the network has 94,583 parameters with three
    classes.
    fields: further fields of the `ConvStack`, such as `norm` and `frozen_stages`.
    """
    features = partial(ConvStack, layout=SIMPLE, dtype=dtype, **fields)
    return Localizer(features, classes, hidden=(32, 16), rates=(0.5, 0.5), side=3, dtype=dtype)


def deeper(classes: int, *, dtype: Any = None, **fields: Any) -> Localizer:
    """Ten convolutions, and two branches of five hidden layers.

    At 224 x 224 pixels the last map is 7 x 7 x 512, and the network has 56,442,919 parameters with
    three classes.
    fields: further fields of the `ConvStack`.
    """
    features = partial(ConvStack, layout=DEEPER, dtype=dtype, **fields)
    hidden, rates = (1024, 512, 256, 128, 64), (0.5, 0.5, 0.3, 0.3, 0.2)
    return Localizer(features, classes, hidden=hidden, rates=rates, side=7, dtype=dtype)


def vgg(classes: int, *, dtype: Any = None, **fields: Any) -> Localizer:
    """VGG11 with batch norm, and with dense layers of 512 instead of 4096 units.

    Simonyan and Zisserman 2014, arXiv:1409.1556, configuration A.  At 224 x 224 pixels the last map
    is 7 x 7 x 512, and the network has 35,446,023 parameters with three classes.
    fields: further fields of the `ConvStack`, whose convolutions have biases as in torchvision's
    files.
    """
    features = partial(ConvStack, layout=VGG, dtype=dtype, bias=True, **fields)
    return Localizer(features, classes, hidden=(512, 512), rates=(0.5, 0.5), side=7, dtype=dtype)


def vgg_name(
    path: str, *, norm: bool = False, convolutions: tuple[int, ...] = (1, 1, 2, 2, 2)
) -> str:
    """Name of a variable of a `ConvStack` in the weight files of torchvision's VGGs.

    In these files the numbers of layers also count ReLUs and pools: `params/conv2/kernel` is
    `features.3.weight`.
    norm: whether the file is of a network with batch norm, such as vgg11_bn.
    convolutions: number of convolutions before each pool; by default VGG11's.
    """
    *modules, leaf = path.split("/")
    leaf = pretrained.TORCH_LEAVES[leaf]
    layer = re.fullmatch(r"conv(\d+)(_norm)?", modules[-1])
    if not layer:
        return ".".join([*modules[1:], leaf])
    before = int(layer[1]) - 1
    pools = sum(before >= last for last in accumulate(convolutions))
    number = before * (3 if norm else 2) + pools + bool(layer[2])
    return f"features.{number}.{leaf}"


def vgg_weight_map(net: ConvStack, arrays: Mapping[str, Array]) -> pretrained.WeightMap:
    """Weight map of torchvision's vgg11_bn if `net` has batch norm, else of vgg11."""
    return pretrained.WeightMap(partial(vgg_name, norm=net.norm))
