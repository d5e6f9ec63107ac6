"""Plain networks: convolutions and max pools one after the other, told as a list.

A list such as `32 32 M4 64 512/1` is convolutions of 3x3 pixels with that many outputs, batch norm
and ReLU; max pools of 4x4 pixels with that stride; and a convolution of 1x1.
"""

from functools import partial

from flax import linen as nn

from jaxdet.models import layers
from jaxdet.models.layers import Freezable
from jaxdet.models.localizer import Localizer


class ConvStack(Freezable):
    """The features of a list; its layers are conv1, conv2, ... and pool1, pool2, ...

    bias: convolutions have one before batch norm too, as torchvision's VGG files do.
    frozen: how many of its convolutions are.
    """

    layout: str = ""
    bias: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        """The last feature map [B, h, w, C] of images [B, H, W, C]."""
        convolutions = pools = 0
        for word in self.layout.split():
            if word.startswith("M"):
                pools += 1
                side = int(word[1:])
                x = layers.max_pool(x, f"pool{pools}", kernel=side, stride=side)
            else:
                convolutions += 1
                x = self._convolution(x, word, convolutions, train)
        return x

    @nn.nowrap
    def _convolution(self, x, word, number, train):
        width, _, kernel = word.partition("/")
        name, part = f"conv{number}", number - 1
        options = {"bias": self.bias, "train": self.moves(train, part)}
        x = self.convolve(x, int(width), int(kernel or 3), name, **options)
        return self.border(layers.relu(x, f"{name}_relu"), part)


def stage_names(layout):
    """How the names of the layers begin that `frozen` counts."""
    count = sum(not word.startswith("M") for word in layout.split())
    return tuple(f"conv{i + 1}" for i in range(count))


DEEPER = "32 32 M4 64 64 M4 128 128 M2 256 256 512/1 512"


def deeper(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(ConvStack, layout=DEEPER, dtype=dtype, **part)
    return Localizer(
        features,
        classes,
        hidden=(1024, 512, 256, 128, 64),
        rates=(0.5, 0.5, 0.3, 0.3, 0.2),
        side=7,
        dtype=dtype,
    )


SIMPLE = "32 M4 64 M4 64 M4"


def simple(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(ConvStack, layout=SIMPLE, dtype=dtype, **part)
    return Localizer(features, classes, hidden=(32, 16), rates=(0.5, 0.5), side=3, dtype=dtype)


VGG = "64 M2 128 M2 256 256 M2 512 512 M2 512 512 M2"


def vgg(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(ConvStack, layout=VGG, dtype=dtype, bias=True, **part)
    return Localizer(features, classes, hidden=(512, 512), rates=(0.5, 0.5), side=7, dtype=dtype)
