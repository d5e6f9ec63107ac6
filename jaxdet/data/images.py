"""Image files as arrays, the way the networks take them."""

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxdet.types import InputError


def grey(path):
    """An image file as grey levels [H, W, 1] float32 in [0, 1]; colours are weighed (ITU-R 601).

    InputError for a file that is missing or no image.
    """
    try:
        with Image.open(path) as image:
            levels = np.asarray(image.convert("L"), np.float32)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None
    return levels[..., None] / 255
