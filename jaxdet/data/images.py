"""Image files as arrays, the way the networks take them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxdet.types import InputError

SUFFIXES = tuple(sorted(Image.registered_extensions()))
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


def grey(path):
    """An image file as grey levels [H, W, 1] float32 in [0, 1], and its (height, width).

    Colours are weighed (ITU-R 601).  InputError for a file that is missing or no image.
    """
    image = np.asarray(_opened(path, "L"), np.float32)[..., None] / 255
    return image, image.shape[:2]


def levels(path, side):
    """What `colour` gives, as levels [side, side, 3] float32 in [0, 1]."""
    image, size = colour(path, side)
    return image / np.float32(255), size


def colour(path, side):
    """An image file as [side, side, 3] uint8, and its own (height, width).

    Upright as its EXIF data say, grey levels as three equal colours, stretched to a square by area
    averages and bilinear interpolation.  InputError for a file that is missing or no image.
    """
    image = _opened(path, "RGB")
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small), (image.height, image.width)


def whole(path):
    """An image file as levels [H, W, 3] float32 in [0, 1], as large as it is."""
    return np.asarray(_opened(path, "RGB"), np.float32) / 255


def within(folder):
    """The image files of a folder and those below it, sorted; InputError when there are none."""
    every = (path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in every if path.is_file())
    if not found:
        raise InputError(f"{folder}: no image files in it")
    return found


def _opened(path, mode):
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable image ({error})") from None
