"""Window networks: one set of weights, slid over windows one by one or convolved with an image.

A window network is convolutions and pools, then dense layers, made for windows of one size.  Turn
its first dense layer into a convolution as wide as the features of a window, the others into
1x1 convolutions, and it takes an image of any larger size: each output is what the network says of
one window (OverFeat, Sermanet et al. 2013, arXiv:1312.6229).  `ops.windows` says which window, and
`ops.windows.differences` where the two forms part.

    net = Andrew(form="sequential")
    variables = net.init(key, jnp.zeros((1, 14, 14, 3)))
    dense = net.clone(form="convolutional")
    dense.apply(to_convolutional(net, variables), images)  # [B, rows, columns, 4]
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import layers
from jaxdet.ops import windows


class LayerSpec(NamedTuple):
    """One layer of a window network; a dense layer is described as its convolution."""

    name: str
    layer: windows.Layer
    width: int = 0  # output channels; a pool has none of its own
    dense: bool = False


class SlidingNet(nn.Module):
    """A network for windows of `window` x `window` pixels, in one of its two forms.

    stages: convolutions and pools before the first dense layer, as of `windows.parse`.
    widths: output channels of each convolution in `stages`.
    dense: widths of the hidden dense layers; one more layer leads to `outputs` numbers a window.
    form: "sequential" takes windows [B, window, window, C] to [B, outputs]; "convolutional" takes
      images [B, H, W, C], none of them smaller than a window, to [B, rows, columns, outputs].
    activation: after each convolution and each hidden dense layer; None for a linear map.
    norm: batch norm before each activation, over `axis_name` too where that is given.
    ink: append `x > 0` to the channels, so that a network sees where anything was drawn.
    dtype: of the computation; parameters stay float32.
    conv_general_dilated: how a convolution is computed, as linen's `nn.Conv` takes it.

    Both forms name their layers alike: conv1, conv1_norm, pool1, dense1, and so on.
    """

    stages: tuple[windows.Layer, ...]
    widths: tuple[int, ...]
    dense: tuple[int, ...]
    outputs: int
    window: int
    form: Literal["sequential", "convolutional"] = "convolutional"
    activation: Callable | None = nn.relu
    norm: bool = False
    axis_name: str | None = None
    ink: bool = False
    dtype: Any = None
    conv_general_dilated: Callable | None = None

    @nn.compact
    def __call__(self, x, train=False):
        """Outputs for x [B, H, W, C]; `train` normalises by the batch and updates its statistics.

        Raises InputError for a size that the form cannot take.
        """
        chex.assert_rank(x, 4)
        self._check_size(*x.shape[1:3])
        if self.ink:
            x = jnp.concatenate([x, (x > 0).astype(x.dtype)], axis=-1)  # [B, H, W, 2C]
        *hidden, last = self.plan()
        for part in hidden:
            x = self._hidden(x, part, train) if part.width else _pool(x, part)
        return self._linear(x, last)

    @nn.nowrap
    def plan(self):
        """The layers in order, tuple of `Part`."""
        return (*_number(self.stages, self.widths), *self._dense_parts())

    @nn.nowrap
    def chain(self):
        """Geometry of the convolutional form: `windows.grid(net.chain(), H, W)` are its windows."""
        return tuple(part.layer for part in self.plan())

    @nn.nowrap
    def _dense_parts(self):
        """Parts dense1, dense2, ...: the head over the features of a window, then 1x1 layers."""
        widths = (*self.dense, self.outputs)
        layers = (
            windows.head_layer(self.stages, self.window),
            *[windows.conv(1)] * len(self.dense),
        )
        return (part._replace(dense=True) for part in _number(layers, widths, "dense"))

    @nn.nowrap
    def _check_size(self, height, width):
        """Refuse images that this form cannot take."""
        if self.form == "sequential":
            fits = height == width == self.window
        else:
            fits = min(height, width) >= self.window
        if not fits:
            raise InputError(
                f"the {self.form} form has windows of {self.window} x {self.window} pixels and "
                f"cannot take {height} x {width}"
            )

    @nn.nowrap
    def _hidden(self, x, part, train):
        """A layer with what follows it: its norm, which makes a bias pointless, and activation."""
        x = self._linear(x, part, use_bias=not self.norm)
        if self.norm:
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"{part.name}_norm",
            )(x)
        with jax.named_scope(f"{part.name}_activation"):
            return self.activation(x) if self.activation else x

    @nn.nowrap
    def _linear(self, x, part, use_bias=True):
        """The convolution or, in the sequential form, the dense layer of a part."""
        options = {"use_bias": use_bias, "dtype": self.dtype, "name": part.name}
        if part.dense and self.form == "sequential":
            x = x.reshape(len(x), -1)  # [B, rows * columns * C], in that order
            return nn.Dense(part.width, **options)(x)
        return nn.Conv(
            part.width,
            kernel_size=(part.layer.kernel,) * 2,
            strides=part.layer.stride,
            padding=part.layer.padding,
            conv_general_dilated=self.conv_general_dilated,
            **options,
        )(x)


# The network of Andrew Ng's lecture on convolutional sliding windows (deeplearning.ai C4W3L04):
# a linear map of windows of 14 pixels to 4 numbers, 441,600 multiply-adds for 3 channels.
NgSlidingNet = partial(
    SlidingNet,
    stages=windows.parse("c5,p2"),
    widths=(16,),
    dense=(400, 400),
    outputs=4,
    window=14,
    activation=None,
)


def to_convolutional(net, variables):
    """Variables of the convolutional form from those of the sequential form of the same network.

    Nothing is computed: dense kernels [k * k * C, width] become [k, k, C, width], whose order is
    that of flattening rows, columns, channels; everything else, statistics included, is passed on.
    Convolutional variables come back as they are.
    """
    params = dict(variables["params"])
    for name, layer, width, dense in net.plan():
        if dense:
            shape = (layer.kernel, layer.kernel, -1, width)
            params[name] = {**params[name], "kernel": params[name]["kernel"].reshape(shape)}
    return {**variables, "params": params}


def multiply_adds(net, height, width, channels=3):
    """Multiply-adds of a network in its form on one image of height x width pixels and C channels.

    Sequential: windows, at the strides of the layers, times the cost of one.  Convolutions and
    dense layers are counted, padding included; biases, norms, pools and activations are not.
    """
    if net.form == "convolutional":
        return _convolution_cost(net, height, width, channels)
    sliding = windows.conv(net.window, windows.receptive_field(net.chain()).stride)
    seen = windows.grid((sliding,), height, width)
    return seen.rows * seen.columns * _convolution_cost(net, net.window, net.window, channels)


def _convolution_cost(net, height, width, channels):
    """Multiply-adds of the convolutional form, layer after layer."""
    total, channels = 0, channels * (2 if net.ink else 1)
    for part in net.plan():
        height, width = (windows.output_size((part.layer,), side) for side in (height, width))
        if part.width:
            total += height * width * part.layer.kernel**2 * channels * part.width
            channels = part.width
    return total


def _number(layers, widths, name=None):
    """Parts of layers, each kind numbered from 1; each convolution takes the next width."""
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    if len(convolutions) != len(widths):
        raise InputError(f"{len(convolutions)} convolutions need as many widths, not {widths}")
    count, widths = Counter(), iter(widths)
    for layer in layers:
        count[layer.kind] += 1
        width = next(widths) if layer.kind == "conv" else 0
        yield LayerSpec(f"{name or layer.kind}{count[layer.kind]}", layer, width)


def _pool(x, part):
    """Max pool of x [B, H, W, C]."""
    _, kernel, stride, padding = part.layer
    return layers.max_pool(x, part.name, kernel=kernel, stride=stride, padding=padding)
