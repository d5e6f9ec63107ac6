"""Images in the forms that `Run.predict` accepts."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxdet.errors import InputError


def as_list(images: Any) -> tuple[bool, list[Any]]:
    """Return (whether `images` is a single image, list of the images)."""
    if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
        return False, list(np.asarray(images))
    if isinstance(images, list | tuple):
        return False, list(images)
    return True, [images]


def readable(image: Any) -> str | Path | bytes | Image.Image:
    """Convert an image array to a PIL image; InputError for other types, shapes or values."""
    if isinstance(image, str | Path | bytes | Image.Image):
        return image
    if not isinstance(image, np.ndarray | jax.Array):
        kind = type(image).__name__
        raise InputError(f"an image must be a path, bytes, a PIL image or an array, got {kind}")
    pixels = np.asarray(image)
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and shape[2] not in (3, 4)) or 0 in shape:
        raise InputError(
            f"an image array must be [H, W], or [H, W, C] with C of 1, 3 or 4, got {shape}"
        )
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(
                f"a float image array must have values in [0, 1], got values from "
                f"{pixels.min():g} to {pixels.max():g}; pass uint8 for 0..255"
            )
        pixels = np.uint8(np.rint(pixels * 255))
    if pixels.dtype != np.uint8:
        raise InputError(
            f"an image array must be uint8 (0..255) or float (0..1), got {pixels.dtype}; convert it"
        )
    return Image.fromarray(pixels)
