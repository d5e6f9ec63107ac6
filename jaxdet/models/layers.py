"""Layers without parameters, named so that each is a row of the operation table."""

import jax
from flax import linen as nn


def relu(x, name):
    """ReLU of x of any shape, called `name`."""
    with jax.named_scope(name):
        return nn.relu(x)


def max_pool(x, name, *, kernel, stride, padding=0):
    """Maxima of x [B, H, W, C] over squares of `kernel` pixels, called `name`."""
    with jax.named_scope(name):
        return nn.max_pool(
            x,
            window_shape=(kernel,) * 2,
            strides=(stride,) * 2,
            padding=((padding,) * 2,) * 2,
        )
