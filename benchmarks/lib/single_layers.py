"""Single layers as networks of one layer, for `benchmarks.layers`."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxdet.models import layers

DIRECTIONS = ("forward", "forward + backward")


class Layer(NamedTuple):
    """A kind of layer at one size."""

    kind: Literal["dense", "conv", "norm", "relu", "max", "mean"]
    shape: tuple[int, ...]  # of an input: H, W, C, or N numbers
    width: int = 0  # channels, or numbers, of the output
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1
    first: bool = False  # has images for input, by which nobody wants a gradient


MAPS = (56, 56, 64)
LAYERS = {
    "dense": Layer("dense", (1024,), 1024),
    "conv3": Layer("conv", MAPS, 64, kernel=3, padding=1),
    "conv3_deep": Layer("conv", (2, 2, 512), 512, kernel=3, padding=1),
    "conv3_stride2": Layer("conv", MAPS, 128, kernel=3, stride=2, padding=1),
    "conv1": Layer("conv", MAPS, 256, kernel=1),
    "depthwise3": Layer("conv", MAPS, 64, kernel=3, padding=1, groups=64),
    "conv7_stride2": Layer("conv", (224, 224, 3), 64, kernel=7, stride=2, padding=3, first=True),
    "conv5_valid": Layer("conv", (32, 32, 16), 32, kernel=5),
    "norm": Layer("norm", MAPS),
    "relu": Layer("relu", MAPS),
    "max_pool": Layer("max", MAPS, kernel=2, stride=2),
    "average_pool": Layer("mean", MAPS, kernel=2, stride=2),
}


class Single(nn.Module):
    """One layer as a network; its parameters are those of `part`."""

    layer: Layer
    convolve: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """The layer's output for x [B, *shape]."""
        layer, side = self.layer, (self.layer.kernel,) * 2
        match layer.kind:
            case "dense":
                return nn.Dense(layer.width, dtype=self.dtype, name="part")(x)
            case "conv":
                return self._convolution(side)(x)
            case "norm":
                settings = {"use_running_average": False, "momentum": 0.9, "dtype": self.dtype}
                return nn.BatchNorm(**settings, name="part")(x)
            case "relu":
                return layers.relu(x, "relu")
            case "max":
                return layers.max_pool(x, "max_pool", kernel=layer.kernel, stride=layer.stride)
            case "mean":
                return nn.avg_pool(x, side, (layer.stride,) * 2)
        raise AssertionError(layer.kind)

    @nn.nowrap
    def _convolution(self, side):
        layer = self.layer
        return nn.Conv(
            layer.width,
            side,
            strides=layer.stride,
            padding=layer.padding,
            feature_group_count=layer.groups,
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=self.convolve,
            name="part",
        )


class Case(NamedTuple):
    """A layer with its numbers, made once for both libraries."""

    layer: Layer
    variables: dict
    x: np.ndarray  # [B, *shape]
    cotangent: np.ndarray  # as the output


def numbers(layer, batch):
    """A layer with random input, parameters and cotangent."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(batch, *layer.shape)).astype(np.float32)
    net = Single(layer)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    out, _ = jax.eval_shape(passes(net, variables, layer.first)[0], variables.get("params", {}), x)
    return Case(layer, variables, x, draw.normal(size=out.shape).astype(np.float32))


def passes(net, variables, first):
    """The two directions: functions (params, x) and (params, x, cotangent).

    They give (output, new statistics), and gradients besides: by the parameters, then by x.
    """
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def forward(params, x):
        return net.apply({**rest, "params": params}, x, mutable=["batch_stats"])

    def both(params, x, cotangent):
        run, by = (partial(forward, x=x), (params,)) if first else (forward, (params, x))
        out, pull, stats = jax.vjp(run, *by, has_aux=True)
        return out, stats, pull(cotangent)

    return forward, both
