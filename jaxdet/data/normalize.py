"""Per-channel normalization of images."""

from typing import NamedTuple

import numpy as np

from jaxdet.types import Array


class Normalization(NamedTuple):
    """Mean and standard deviation per channel of pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as in torchvision
EFFICIENTNET_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)  # of the published weights
CENTERED = Normalization((0.5,) * 3, (0.5,) * 3)  # maps [0, 1] to [-1, 1]


def normalize(images: Array, normalization: Normalization) -> Array:
    """Compute `(images - mean) / std` for images [..., C] with pixel values in [0, 1]."""
    channels = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (np.array(values, np.float32).reshape(channels) for values in normalization)
    return (images - mean) / std
