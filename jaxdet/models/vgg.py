"""The third network of seed 000: VGG11 with 512 instead of 4096 in its dense layers.

Simonyan and Zisserman 2014, arXiv:1409.1556, configuration A, with batch norm by default.  The
convolutions have biases, as in torchvision's files of weights.  At 224 x 224 pixels the last map is
7 x 7 x 512; 35,446,023 parameters with three classes.
"""

from functools import partial

from jaxdet.models.localizer import Localizer
from jaxdet.models.plain import Plain

LAYOUT = "64 M2 128 M2 256 256 M2 512 512 M2 512 512 M2"


def vgg(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(Plain, layout=LAYOUT, dtype=dtype, bias=True, **part)
    return Localizer(features, classes, hidden=(512, 512), rates=(0.5, 0.5), side=7, dtype=dtype)
