"""Layers that several architectures share.

Layers without parameters have names too: every name is a row of `jaxdet describe`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet.kernels import pool
from jaxdet.kernels.conv import conv_general_dilated
from jaxdet.models import folding
from jaxdet.types import Array

# He et al. 2015, arXiv:1502.01852: by fan-out for convolutions, as in torchvision, and by fan-in
# for linear layers.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

Activation = Callable[[Array], Array]


def layer_options(*, bfloat16: bool = False, conv: str = "auto") -> dict[str, Any]:
    """Fields of a `ConvModule` that select precision and convolution algorithm.

    conv: "auto" computes a convolution on a CPU by the fastest algorithm for its shape, "lax" by
    XLA's own algorithm; see `jaxdet.kernels.conv`.
    """
    return {
        "conv_general_dilated": partial(conv_general_dilated, impl=conv),
        "dtype": jnp.bfloat16 if bfloat16 else None,
    }


class ConvModule(nn.Module):
    """Base of convolutional modules, with their common fields and methods that add layers.

    axis_name: device axis over which batch norm averages in training; None on one device.
    dtype: data type of the computation; None uses the promoted type of inputs and parameters.
      Parameters are float32 in any case.
    conv_general_dilated: function in place of `jax.lax.conv_general_dilated`, such as the one in
      `jaxdet.kernels.conv`.
    norm: whether convolutions are batch-normalized; without norms they have a bias.
    epsilon: added to the variance in norms.
    momentum: decay of the running statistics.
    activation: activation of hidden layers.
    kernel_init: initializer of convolution kernels.
    """

    axis_name: str | None = None
    dtype: Any = None
    conv_general_dilated: Callable[..., Array] | None = None
    norm: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    activation: Activation = nn.relu
    kernel_init: Callable[..., Array] = KAIMING_FAN_OUT

    @nn.nowrap
    def shared_fields(self) -> dict[str, Any]:
        """The common fields, by name, to be passed on to submodules."""
        return {name: getattr(self, name) for name in SHARED_FIELDS}

    @nn.nowrap
    def conv(
        self,
        x: Array,
        channels: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        padding: int | str | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        kernel_init: Callable[..., Array] | None = None,
    ) -> Array:
        """Convolve x [B, H, W, C] with a square kernel to [B, h, w, channels].

        padding: pixels on each side, or "SAME" or "VALID"; None is `dilation * (kernel // 2)`, as
          PyTorch's models pad.
        kernel_init: initializer of the kernel; None is the module's field `kernel_init`.
        """
        if padding is None:
            padding = dilation * (kernel // 2)
        return nn.Conv(
            channels,
            kernel_size=(kernel, kernel),
            strides=stride,
            padding=padding if isinstance(padding, str) else (padding,) * 2,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=kernel_init or self.kernel_init,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)

    @nn.nowrap
    def conv_norm(
        self,
        x: Array,
        channels: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
        train: bool = False,
    ) -> Array:
        """Apply `conv` and, if the field `norm` is set, batch norm.

        The layers are named `{name}` and `{name}_norm`.  Without variables of the norm, it is
        folded into the convolution, see `models.folding`.
        """
        norm = self.norm and not folding.is_folded(self, name, self.epsilon)
        options = {"stride": stride, "groups": groups, "dilation": dilation}
        x = self.conv(x, channels, kernel, name, bias=bias or not norm, **options)
        return self.batch_norm(x, f"{name}_norm", train) if norm else x

    @nn.nowrap
    def conv_norm_act(
        self, x: Array, channels: int, kernel: int, name: str, **options: Any
    ) -> Array:
        """Apply `conv_norm` with these options, and the activation."""
        return self.activate(self.conv_norm(x, channels, kernel, name, **options), name)

    @nn.nowrap
    def conv_3x3(
        self, x: Array, channels: int, name: str, *, depthwise: bool, **options: Any
    ) -> Array:
        """Apply `conv_norm_act` with a 3x3 kernel and these options.

        depthwise: whether a 3x3 depthwise and a 1x1 convolution, each with norm and activation,
          replace the convolution; they are named `{name}_depthwise` and `{name}_pointwise`.
        """
        if not depthwise:
            return self.conv_norm_act(x, channels, 3, name, **options)
        count = x.shape[-1]
        x = self.conv_norm_act(x, count, 3, f"{name}_depthwise", groups=count, **options)
        train = options.get("train", False)
        return self.conv_norm_act(x, channels, 1, f"{name}_pointwise", train=train)

    @nn.nowrap
    def batch_norm(self, x: Array, name: str, train: bool) -> Array:
        """Normalize x [..., C] by batch statistics in training, else by running statistics."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
        )(x)

    @nn.nowrap
    def layer_norm(self, x: Array, name: str) -> Array:
        """Normalize x [..., C] over channels (Ba et al. 2016, arXiv:1607.06450)."""
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)

    @nn.nowrap
    def activate(self, x: Array, name: str) -> Array:
        """Apply the activation to x, under a layer name such as `conv1_relu`."""
        own = getattr(self.activation, "__name__", "activation")
        return apply_activation(self.activation, x, f"{name}_{own}")


def apply_activation(activation: Activation, x: Array, name: str) -> Array:
    """Apply an activation to x, under the layer name `name`."""
    with jax.named_scope(name):
        return activation(x)


def numbered_stages(count: int) -> tuple[str, ...]:
    """The names `stem`, `stage1`, ..., of a network with `count` stages after its stem."""
    return ("stem", *(f"stage{i}" for i in range(1, count + 1)))


SHARED_FIELDS = tuple(name for name in ConvModule.__annotations__ if name not in ("name", "parent"))


class Freezable(ConvModule):
    """A network in stages, of which the first ones may be frozen.

    frozen_stages: number of frozen stages, counted from the first: in training no gradient is
      computed inside them, and their batch norms use running statistics.
    freeze_bn: whether the batch norms of all stages use running statistics in training.
    """

    frozen_stages: int = 0
    freeze_bn: bool = False

    @nn.nowrap
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages; the layer `stage1_block2` belongs to the stage `stage1`."""
        return ()

    @nn.nowrap
    def first_stages(self, count: int) -> dict[str, Any]:
        """Fields for a copy that ends after the first `count` stages; the stem is a stage.

        Raises NotImplementedError for a network that cannot be cut, always in this base class.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be cut after a stage")

    @nn.nowrap
    def stage_train(self, train: bool, stage: int) -> bool:
        """Whether the batch norms of stage number `stage`, from 0, use batch statistics."""
        return train and not self.freeze_bn and stage >= self.frozen_stages

    @nn.nowrap
    def stop_frozen_gradient(self, x: Array, stage: int, train: bool) -> Array:
        """Return x, the output of stage number `stage` (from 0).

        In training, its gradient is stopped if the stage is frozen.
        """
        return jax.lax.stop_gradient(x) if train and stage < self.frozen_stages else x


class SqueezeExcite(ConvModule):
    """Squeeze-and-excitation: scale channels by weights computed from their global averages.

    Hu et al. 2017, arXiv:1709.01507.

    width: hidden channels.
    gate: activation that computes the weights.
    """

    width: int = 4
    gate: Activation = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to the same shape."""
        with jax.named_scope("pool"):
            y = x.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
        y = self.conv(y, self.width, 1, "reduce")
        with jax.named_scope("reduce_activation"):
            y = self.activation(y)
        y = self.conv(y, x.shape[-1], 1, "expand")
        with jax.named_scope("gate"):
            return x * self.gate(y)


class Dropout(nn.Module):
    """Dropout whose rate may be scaled by a traced factor (Srivastava et al. 2014).

    A sweep over dropout rates needs such a factor; the rate of Flax's Dropout cannot be traced.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, factor: float | Array = 1.0, train: bool = False) -> Array:
        """In training, zero entries of x with probability p = `rate * factor`.

        The other entries are divided by 1 - p.
        """
        if not train or not self.rate:
            return x
        keep = 1 - self.rate * factor
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


def round_to_8(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, but at least 8 and at least 0.9 * channels."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def relu(x: Array, name: str) -> Array:
    """ReLU under the layer name `name`."""
    with jax.named_scope(name):
        return nn.relu(x)


def concatenate(*maps: Array) -> Array:
    """Concatenate maps [B, H, W, C], whose C may differ, along channels."""
    with jax.named_scope("join"):
        return jnp.concatenate(maps, -1)


def max_pool(x: Array, name: str, *, kernel: int, stride: int, padding: int = 0) -> Array:
    """Max pool of x [B, H, W, C] over kernel x kernel pixels, under the layer name `name`."""
    with jax.named_scope(name):
        return pool.max_pool(x, kernel=kernel, stride=stride, padding=padding)


def adaptive_avg_pool(x: Array, name: str, *, side: int) -> Array:
    """Average x [B, H, W, C] to [B, side, side, C], under the layer name `name`.

    As in PyTorch, output i of n averages the pixels from floor(i H / n) up to, but excluding,
    ceil((i + 1) H / n), so that neighbors overlap where n does not divide H.
    """
    with jax.named_scope(name):
        for axis in (1, 2):
            if x.shape[axis] != side:
                weights = _cell_weights(x.shape[axis], side, x.dtype)
                # einsum would add layer names
                x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis)), 0, axis)
        return x


def _cell_weights(length: int, count: int, dtype: Any) -> np.ndarray:
    """Weights [count, length] that average `length` pixels over `count` cells."""
    i, pixel = np.arange(count)[:, None], np.arange(length)[None]
    inside = (pixel >= i * length // count) & (pixel < -((i + 1) * -length // count))
    return (inside / inside.sum(1, keepdims=True)).astype(dtype)
