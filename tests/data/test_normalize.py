"""Normalization against the constants that published weights were trained with."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.normalize import BGR_255, CENTERED, EFFICIENTNET_LITE, IMAGENET, normalize


@pytest.mark.parametrize(
    "normalization, expected",
    [
        (IMAGENET, [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
        (EFFICIENTNET_LITE, [(51 - 127) / 128] * 3),
        (CENTERED, [2 * 0.2 - 1] * 3),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), (1, 1, 1, 3)])
def test_pixels_are_normalized_as_for_the_published_weights(normalization, expected, shape):
    """torchvision for ImageNet; 8-bit (x - 127) / 128 for EfficientNet-Lite."""
    pixel = normalize(jnp.full(shape, 51 / 255), normalization)
    assert pixel.shape == shape and pixel.dtype == np.float32
    np.testing.assert_allclose(pixel.reshape(3), expected, rtol=1e-5)


def test_channels_are_reversed_for_networks_that_take_bgr():
    pixel = normalize(jnp.array([10.0, 20.0, 30.0]) / 255, BGR_255)
    np.testing.assert_allclose(pixel, [30, 20, 10], rtol=1e-6)
    assert "BGR" in BGR_255.formula and "BGR" not in IMAGENET.formula
