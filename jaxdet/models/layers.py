"""What several architectures are built of; layers without parameters have names too.

Every name is a row of the operation table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet.kernels import pool

KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # arXiv:1502.01852


class ConvModule(nn.Module):
    """What convolutional modules share: how they convolve and normalise."""

    axis_name: str | None = None  # of the devices over which batch norm goes in training
    dtype: Any = None  # of the computation; parameters stay float32
    conv_general_dilated: Callable | None = None  # how a convolution is computed
    norm: bool = True  # batch norm; without it convolutions have a bias
    epsilon: float = 1e-5  # what batch norm adds to the variance

    @nn.nowrap
    def shared(self):
        """These fields, to hand on to a part."""
        return {
            "axis_name": self.axis_name,
            "dtype": self.dtype,
            "conv_general_dilated": self.conv_general_dilated,
            "norm": self.norm,
            "epsilon": self.epsilon,
        }

    @nn.nowrap
    def convolve(
        self, x, width, kernel, name, *, stride=1, groups=1, dilation=1, bias=False, train=False
    ):
        """A convolution of x [B, H, W, C] and its batch norm: `name` and `name_norm`."""
        x = nn.Conv(
            width,
            kernel_size=(kernel, kernel),
            strides=stride,
            padding=(dilation * (kernel // 2),) * 2,  # as PyTorch pads
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias or not self.norm,
            kernel_init=KAIMING_FAN_OUT,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)
        return self.batch_norm(x, f"{name}_norm", train) if self.norm else x

    @nn.nowrap
    def batch_norm(self, x, name, train):
        """x [B, H, W, C], normalised by the batch in training, else by the running statistics."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
        )(x)


class Freezable(ConvModule):
    """A network in parts, some of which may be frozen.

    frozen: how many parts, from the first, do not learn: they normalise by their running statistics
      also in training, and no gradient is computed in them.
    fixed_norm: all parts normalise so.
    """

    frozen: int = 0
    fixed_norm: bool = False

    @nn.nowrap
    def moves(self, train, part):
        """Whether the statistics of a part, counted from 0, are those of the batch."""
        return train and not self.fixed_norm and part >= self.frozen

    @nn.nowrap
    def border(self, x, part):
        """What leaves a part: no gradient goes back into one that is frozen."""
        return jax.lax.stop_gradient(x) if part < self.frozen else x


def divisible(width):
    """The multiple of 8 nearest to a number of channels, at least 8 and 9/10 of it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


def relu(x, name):
    """ReLU of x of any shape, called `name`."""
    with jax.named_scope(name):
        return nn.relu(x)


def max_pool(x, name, *, kernel, stride, padding=0):
    """Maxima of x [B, H, W, C] over squares of `kernel` pixels, called `name`."""
    with jax.named_scope(name):
        return pool.max_pool(x, kernel=kernel, stride=stride, padding=padding)


def adaptive_avg_pool(x, name, *, side):
    """Means of x [B, H, W, C] over side x side parts of the map, which overlap where they must.

    Part i of n goes from pixel floor(i H / n) to ceil((i + 1) H / n), as in PyTorch.
    """
    with jax.named_scope(name):
        if x.shape[1] != side:
            x = _mean(x, 1, side)
        if x.shape[2] != side:
            x = _mean(x, 2, side)
        return x


def _mean(x, axis, count):
    """Means of x over `count` parts of an axis; einsum would add rows to the table."""
    parts = _parts(x.shape[axis], count, x.dtype)
    return jnp.moveaxis(jnp.tensordot(parts, x, (1, axis)), 0, axis)


def _parts(length, count, dtype):
    """Weights [count, length] of the means over `count` parts of `length` pixels."""
    i, at = np.arange(count)[:, None], np.arange(length)[None]
    inside = (at >= i * length // count) & (at < -((i + 1) * -length // count))
    return (inside / inside.sum(1, keepdims=True)).astype(dtype)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the numbers in training and scales the rest; a factor may be traced.

    Srivastava et al. 2014.  linen's own takes no traced rate, which a sweep over rates needs.
    """

    rate: float

    @nn.compact
    def __call__(self, x, factor=1.0, train=False):
        """x of any shape; `factor` multiplies the rate."""
        if not train or not self.rate:
            return x
        keep = 1 - self.rate * factor
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


def concatenate(*maps):
    """Maps [B, H, W, ...] side by side in channels."""
    with jax.named_scope("join"):
        return jnp.concatenate(maps, -1)


KAIMING_FAN_IN = nn.initializers.variance_scaling(
    2.0, "fan_in", "normal"
)  # Kaiming's, of a linear layer
