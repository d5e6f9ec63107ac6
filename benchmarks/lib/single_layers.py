"""Single layers as networks of one layer, for `benchmarks.layers`."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxdet.models import layers

DIRECTIONS = ("forward", "forward + backward")


class LayerSpec(NamedTuple):
    """A layer and the size of its input."""

    op: Literal["dense", "conv", "norm", "relu", "max", "mean"]
    shape: tuple[int, ...]  # of one input: [H, W, C] or [D]
    width: int = 0  # output channels or features
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1
    first: bool = False  # whether it is the first of a network, so that its input needs no gradient


MAPS = (56, 56, 64)
LAYERS = {
    "dense": LayerSpec("dense", (1024,), 1024),
    "conv3": LayerSpec("conv", MAPS, 64, kernel=3, padding=1),
    "conv3_deep": LayerSpec("conv", (2, 2, 512), 512, kernel=3, padding=1),
    "conv3_stride2": LayerSpec("conv", MAPS, 128, kernel=3, stride=2, padding=1),
    "conv1": LayerSpec("conv", MAPS, 256, kernel=1),
    "depthwise3": LayerSpec("conv", MAPS, 64, kernel=3, padding=1, groups=64),
    "conv7_stride2": LayerSpec(
        "conv", (224, 224, 3), 64, kernel=7, stride=2, padding=3, first=True
    ),
    "conv5_valid": LayerSpec("conv", (32, 32, 16), 32, kernel=5),
    "norm": LayerSpec("norm", MAPS),
    "relu": LayerSpec("relu", MAPS),
    "max_pool": LayerSpec("max", MAPS, kernel=2, stride=2),
    "average_pool": LayerSpec("mean", MAPS, kernel=2, stride=2),
}


class SingleLayer(nn.Module):
    """A network of one layer, named `part`."""

    layer: LayerSpec
    conv_general_dilated: Callable | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """The layer's output for x [B, *shape]."""
        layer, kernel = self.layer, (self.layer.kernel,) * 2
        match layer.op:
            case "dense":
                return nn.Dense(layer.width, dtype=self.dtype, name="part")(x)
            case "conv":
                return nn.Conv(
                    layer.width,
                    kernel,
                    strides=layer.stride,
                    padding=layer.padding,
                    feature_group_count=layer.groups,
                    use_bias=False,
                    dtype=self.dtype,
                    conv_general_dilated=self.conv_general_dilated,
                    name="part",
                )(x)
            case "norm":
                settings = {"use_running_average": False, "momentum": 0.9, "dtype": self.dtype}
                return nn.BatchNorm(**settings, name="part")(x)
            case "relu":
                return layers.relu(x, "relu")
            case "max":
                return layers.max_pool(x, "max_pool", kernel=layer.kernel, stride=layer.stride)
            case "mean":
                return nn.avg_pool(x, kernel, (layer.stride,) * 2)
        raise AssertionError(layer.op)


class LayerCase(NamedTuple):
    """A layer with the arrays that both libraries start from."""

    layer: LayerSpec
    variables: dict
    x: np.ndarray  # [B, *shape]
    cotangent: np.ndarray  # shaped like the output


def random_case(layer: LayerSpec, batch: int) -> LayerCase:
    """A layer with random input, parameters and cotangent."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(batch, *layer.shape)).astype(np.float32)
    net = SingleLayer(layer)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    forward, _ = passes(net, variables)
    out, _ = jax.eval_shape(forward, variables.get("params", {}), x)
    return LayerCase(layer, variables, x, draw.normal(size=out.shape).astype(np.float32))


def passes(net: SingleLayer, variables: dict) -> tuple[Callable, Callable]:
    """(forward pass of (params, x), forward and backward pass of (params, x, cotangent)).

    Both return (output, new statistics); the second also returns the gradients with respect to the
    parameters and, unless the layer is the first of its network, to x.
    """
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def forward(params, x):
        return net.apply({**rest, "params": params}, x, mutable=["batch_stats"])

    def forward_backward(params, x, cotangent):
        first = net.layer.first
        run, inputs = (partial(forward, x=x), (params,)) if first else (forward, (params, x))
        out, pullback, stats = jax.vjp(run, *inputs, has_aux=True)
        return out, stats, pullback(cotangent)

    return forward, forward_backward
