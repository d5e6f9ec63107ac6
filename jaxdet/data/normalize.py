"""Per-channel normalization of images."""

from typing import NamedTuple

import numpy as np

from jaxdet.types import Array


class Normalization(NamedTuple):
    """Mean and standard deviation per channel of pixel values in [0, 1], and order of channels.

    bgr: whether the network takes the channels in the order blue, green, red.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    @property
    def formula(self) -> str:
        """The normalization in words, for the metadata of a run."""
        order = ", channels in the order BGR" * self.bgr
        return f"(pixel value / 255 - {self.mean}) / {self.std}{order}"


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as in torchvision
EFFICIENTNET_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)  # of the published weights
BGR_255 = Normalization((0.0,) * 3, (1 / 255,) * 3, bgr=True)  # pixel values 0..255, as in OpenCV
CENTERED = Normalization((0.5,) * 3, (0.5,) * 3)  # maps [0, 1] to [-1, 1]


def normalize(images: Array, normalization: Normalization) -> Array:
    """Compute `(images - mean) / std` for RGB images [..., C] with pixel values in [0, 1]."""
    channels = (1,) * (images.ndim - 1) + (-1,)
    constants = normalization.mean, normalization.std
    mean, std = (np.array(values, np.float32).reshape(channels) for values in constants)
    images = images[..., ::-1] if normalization.bgr else images
    return (images - mean) / std
