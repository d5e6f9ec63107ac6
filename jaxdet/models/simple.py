"""The first network of seed 000: three convolutions, each pooled 4x4, and two small branches.

At 224 x 224 pixels the last map is 3 x 3 x 64; 94,583 parameters with three classes.
"""

from functools import partial

from jaxdet.models.localizer import Localizer
from jaxdet.models.plain import Plain

LAYOUT = "32 M4 64 M4 64 M4"


def simple(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(Plain, layout=LAYOUT, dtype=dtype, **part)
    return Localizer(features, classes, hidden=(32, 16), rates=(0.5, 0.5), side=3, dtype=dtype)
