"""The second network of seed 000: ten convolutions, and two branches of five hidden layers.

At 224 x 224 pixels the last map is 7 x 7 x 512; 56,442,919 parameters with three classes.
"""

from functools import partial

from jaxdet.models.localizer import Localizer
from jaxdet.models.plain import Plain

LAYOUT = "32 32 M4 64 64 M4 128 128 M2 256 256 512/1 512"


def deeper(classes, *, dtype=None, **part):
    """A `Localizer`; `part` are fields of its features, such as `norm` and `frozen`."""
    features = partial(Plain, layout=LAYOUT, dtype=dtype, **part)
    return Localizer(
        features,
        classes,
        hidden=(1024, 512, 256, 128, 64),
        rates=(0.5, 0.5, 0.3, 0.3, 0.2),
        side=7,
        dtype=dtype,
    )
