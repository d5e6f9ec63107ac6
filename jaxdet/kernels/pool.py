"""Max pooling with a gradient that is fast on a CPU, and deterministic on a GPU.

XLA on a CPU scatters the gradient of a max pool pixel by pixel: 300 ms for 3x3 windows of
stride 2 on 16 x 112 x 112 x 64, where the pool itself takes 19 ms.  Here each pixel gathers its
gradient from the windows whose maximum it is: 45 ms.

On a GPU, XLA refuses to scatter if `XLA_FLAGS` require deterministic operations, since the order in
which it adds varies from run to run; then the gathered gradient is used as well.
"""

import os
import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.kernels import conv
from jaxdet.types import Array

DETERMINISTIC = re.compile(
    r"--xla_gpu_(deterministic_ops|exclude_nondeterministic_ops)(=(true|1))?(\s|$)", re.IGNORECASE
)


def max_pool(x: Array, *, kernel: int, stride: int, padding: int = 0) -> jax.Array:
    """Maxima [B, h, w, C] of x [B, H, W, C] over windows of kernel x kernel pixels.

    On a CPU in float32, and on a GPU with deterministic operations, pixels that tie for the maximum
    of a window get equal parts of the window's gradient.  Elsewhere, and within
    `conv.default_impl("lax")`, the first of these pixels gets all of it.
    """
    deterministic = jax.default_backend() == "gpu" and _must_be_deterministic()
    if conv.auto_enabled(x.dtype) or (deterministic and not conv.uses_lax()):
        return _max_pool(kernel, stride, padding, x)
    return _xla_max_pool(x, kernel, stride, padding)


def _must_be_deterministic() -> bool:
    """Whether `XLA_FLAGS` exclude operations whose result varies from run to run on a GPU."""
    return bool(DETERMINISTIC.search(os.environ.get("XLA_FLAGS", "")))


def _xla_max_pool(x, kernel, stride, padding):
    return nn.max_pool(x, (kernel,) * 2, (stride,) * 2, ((padding,) * 2,) * 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(kernel, stride, padding, x):
    return _xla_max_pool(x, kernel, stride, padding)


def _forward(kernel, stride, padding, x):
    x = jax.lax.optimization_barrier(x)  # computed twice, it might round differently
    maxima = _xla_max_pool(x, kernel, stride, padding)
    return maxima, (x, maxima)


def _backward(kernel, stride, padding, residuals, g):
    x, maxima = residuals
    _, height, width, _ = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    edge = ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0))
    x = jnp.pad(x, edge).reshape(x.shape[0], rows, stride, columns, stride, -1)
    shared = g / jnp.maximum(_ties(residuals, kernel, stride, padding), 1)
    maxima, g = (
        _Windows(values, kernel, stride, padding, (rows, columns), fill)
        for values, fill in ((maxima, jnp.inf), (shared, 0))
    )

    def gradient(i, j):
        """Gradient [B, rows, columns, C] of pixel (i, j) of each block of stride x stride."""
        pixel = x[:, :, i, :, j]
        windows = [(maxima.at(a, b), g.at(a, b)) for a in g.over(i) for b in g.over(j)]
        terms = (jnp.where(pixel == maximum, part, 0) for maximum, part in windows)
        return sum(terms, jnp.zeros_like(pixel))

    blocks = [jnp.stack([gradient(i, j) for j in range(stride)], 3) for i in range(stride)]
    whole = jnp.stack(blocks, 2).reshape(x.shape[0], rows * stride, columns * stride, -1)
    return (whole[:, :height, :width],)


_max_pool.defvjp(_forward, _backward)


def _ties(residuals, kernel, stride, padding):
    """Number of pixels that equal the maximum of their window, [B, h, w, C]."""
    x, maxima = residuals
    _, rows, columns, _ = maxima.shape
    around = ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0))
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    taps = [(i, j) for i in range(kernel) for j in range(kernel)]
    ends = (stride * (rows - 1) + 1, stride * (columns - 1) + 1)
    pixels = (x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in taps)
    return sum((pixel == maxima).astype(x.dtype) for pixel in pixels)


class _Windows:
    """Values of windows [B, h, w, C], looked up by the blocks of pixels that they cover."""

    def __init__(self, values, kernel, stride, padding, blocks, fill):
        self.kernel, self.stride, self.padding, self.blocks = kernel, stride, padding, blocks
        reach = [offset for i in range(stride) for offset in self.over(i)]
        self.low, high = max(0, -min(reach)), max(0, max(reach))
        sides = zip(values.shape[1:3], blocks, strict=True)
        margins = [(self.low, max(0, high + n - side)) for side, n in sides]
        self.values = jnp.pad(values, ((0, 0), *margins, (0, 0)), constant_values=fill)

    def over(self, i):
        """Indices of the windows that contain pixel i of a block, minus the index of the block."""
        last = (i + self.padding) // self.stride
        return range(-((self.kernel - 1 - i - self.padding) // self.stride), last + 1)

    def at(self, a, b):
        """For each block, the value of the window a rows below and b columns to the right."""
        rows, columns = self.blocks
        return self.values[:, self.low + a :, self.low + b :][:, :rows, :columns]
