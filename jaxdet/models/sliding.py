"""Window networks, applied to one window at a time or convolved with the whole image.

A window network consists of convolutions and pools, then dense layers, and takes windows of one
size.  If its first dense layer is replaced by a convolution as large as the features of a window,
and the other dense layers by 1x1 convolutions, it takes any larger image, and each of its outputs
belongs to one window (OverFeat, Sermanet et al. 2013, arXiv:1312.6229).  `ops.windows` computes the
window of each output, and `ops.windows.differences` explains why the two forms may disagree.

    net = NgSlidingNet(form="sequential")
    variables = net.init(key, jnp.zeros((1, 14, 14, 3)))
    convolutional = net.clone(form="convolutional")
    convolutional.apply(to_convolutional(net, variables), images)  # [B, rows, columns, 4]
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.errors import InputError
from jaxdet.models import folding, layers
from jaxdet.ops import windows
from jaxdet.types import Array, Tree

EPSILON = 1e-5  # of batch norm


class LayerSpec(NamedTuple):
    """A layer of a window network; a dense layer is described by the equivalent convolution."""

    name: str
    layer: windows.Layer
    channels: int = 0  # of the output; 0 for a pool
    dense: bool = False


class SlidingNet(nn.Module):
    """A network for windows of window x window pixels, in one of two forms.

    stages: convolutions and pools before the first dense layer, see `windows.parse`.
    channels: number of output channels of each convolution in `stages`.
    fc_widths: widths of the hidden dense layers; one more layer gives `outputs` numbers per window.
    form: "sequential" maps windows [B, window, window, C] to [B, outputs]; "convolutional" maps
      images [B, H, W, C], at least as large as a window, to [B, rows, columns, outputs].
    activation: applied after each convolution and each hidden dense layer; None for no activation.
    softmax: whether the outputs of each window are probabilities, a softmax of the last layer.
    norm: whether batch norm precedes each activation; `axis_name` is the device axis over which it
      averages in training.
    mask_channel: whether the mask x > 0 is appended to the channels of the input, which separates
      faint pixels from background.
    dtype: data type of the computation; None uses the promoted type of inputs and parameters.
      Parameters are float32 in any case.
    conv_general_dilated: function in place of `jax.lax.conv_general_dilated`, such as the one in
      `jaxdet.kernels.conv`.

    Both forms name their layers alike: conv1, conv1_norm, pool1, dense1, and so on.
    """

    stages: windows.Chain
    channels: tuple[int, ...]
    fc_widths: tuple[int, ...]
    outputs: int
    window: int
    form: Literal["sequential", "convolutional"] = "convolutional"
    activation: layers.Activation | None = nn.relu
    softmax: bool = False
    norm: bool = False
    axis_name: str | None = None
    mask_channel: bool = False
    dtype: Any = None
    conv_general_dilated: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Outputs for x [B, H, W, C]; raises InputError for a size that the form cannot take."""
        chex.assert_rank(x, 4)
        self._check_size(*x.shape[1:3])
        if self.mask_channel:
            x = jnp.concatenate([x, (x > 0).astype(x.dtype)], axis=-1)  # [B, H, W, 2C]
        *hidden, last = self.plan()
        for spec in hidden:
            if spec.channels:
                x = self._hidden(x, spec, train)
            else:
                _, kernel, stride, padding = spec.layer
                pool = {"kernel": kernel, "stride": stride, "padding": padding}
                x = layers.max_pool(x, spec.name, **pool)
        x = self._linear(x, last)
        with jax.named_scope("softmax"):
            return nn.softmax(x) if self.softmax else x

    @nn.nowrap
    def plan(self) -> tuple[LayerSpec, ...]:
        """The layers of the network, in order."""
        dense = (
            windows.head_layer(self.stages, self.window),
            *[windows.conv(1)] * len(self.fc_widths),
        )
        widths = (*self.fc_widths, self.outputs)
        return (
            *_number(self.stages, self.channels),
            *(spec._replace(dense=True) for spec in _number(dense, widths, "dense")),
        )

    @nn.nowrap
    def chain(self) -> windows.Chain:
        """Geometry of the convolutional form, from which `windows.grid` computes its windows."""
        return tuple(spec.layer for spec in self.plan())

    @nn.nowrap
    def _check_size(self, height: int, width: int) -> None:
        if self.form == "sequential":
            fits, limit = height == width == self.window, "exactly"
        else:
            fits, limit = min(height, width) >= self.window, "at least"
        if not fits:
            raise InputError(
                f"input of the {self.form} form must be {limit} one window of {self.window} x "
                f"{self.window} pixels, got {height} x {width}"
            )

    @nn.nowrap
    def _hidden(self, x: Array, spec: LayerSpec, train: bool) -> Array:
        """Apply a layer, its norm (which replaces the bias) and its activation."""
        norm = self.norm and not folding.is_folded(self, spec.name, EPSILON)
        x = self._linear(x, spec, use_bias=not norm)
        if norm:
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=EPSILON,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"{spec.name}_norm",
            )(x)
        with jax.named_scope(f"{spec.name}_activation"):
            return self.activation(x) if self.activation else x

    @nn.nowrap
    def _linear(self, x: Array, spec: LayerSpec, use_bias: bool = True) -> Array:
        """Apply the convolution of a spec or, in the sequential form, its dense layer."""
        options = {"use_bias": use_bias, "dtype": self.dtype, "name": spec.name}
        if spec.dense and self.form == "sequential":
            x = x.reshape(x.shape[0], -1)  # [B, h * w * C], in that order
            return nn.Dense(spec.channels, **options)(x)
        return nn.Conv(
            spec.channels,
            kernel_size=(spec.layer.kernel,) * 2,
            strides=spec.layer.stride,
            padding=spec.layer.padding,
            conv_general_dilated=self.conv_general_dilated,
            **options,
        )(x)


# Andrew Ng's lecture on convolutional sliding windows (deeplearning.ai C4W3L04): a linear map of
# windows of 14 x 14 pixels to 4 numbers, 441,600 multiply-adds for 3 channels.  The lecture ends it
# with a softmax: `NgSlidingNet(softmax=True)`.
NgSlidingNet = partial(
    SlidingNet,
    stages=windows.parse("c5,p2"),
    channels=(16,),
    fc_widths=(400, 400),
    outputs=4,
    window=14,
    activation=None,
)
NgWindowNet = partial(NgSlidingNet, form="sequential")


def to_convolutional(net: SlidingNet, variables: Tree) -> Tree:
    """The variables of the sequential form of a network, converted to its convolutional form.

    Dense kernels [k * k * C, D] are reshaped to [k, k, C, D], the order in which the sequential
    form flattens its features; all other variables stay as they are.  Variables of the
    convolutional form are returned unchanged.
    """
    params = dict(variables["params"])
    for name, layer, channels, dense in net.plan():
        if dense:
            shape = (layer.kernel, layer.kernel, -1, channels)
            params[name] = {**params[name], "kernel": params[name]["kernel"].reshape(shape)}
    return {**variables, "params": params}


def multiply_adds(net: SlidingNet, height: int, width: int, channels: int = 3) -> int:
    """Number of multiply-adds of a network on one image of height x width pixels.

    The convolutional form is applied once.  The sequential form is applied to each window, at the
    stride of the layers.  Convolutions (products with padding included) and dense layers are
    counted; biases, norms, pools and activations are not.
    """
    count = 1
    if net.form == "sequential":
        sliding = windows.conv(net.window, windows.receptive_field(net.chain()).stride)
        grid = windows.grid((sliding,), height, width)
        count, height, width = grid.rows * grid.columns, net.window, net.window
    total, channels = 0, channels * (2 if net.mask_channel else 1)
    for spec in net.plan():
        height, width = (windows.output_size((spec.layer,), side) for side in (height, width))
        if spec.channels:
            total += height * width * spec.layer.kernel**2 * channels * spec.channels
            channels = spec.channels
    return count * total


def _number(
    chain: Sequence[windows.Layer], channels: tuple[int, ...], name: str | None = None
) -> Iterator[LayerSpec]:
    """Number the layers of each kind from 1; InputError if `channels` do not fit."""
    convolutions = sum(layer.kind == "conv" for layer in chain)
    if convolutions != len(channels):
        raise InputError(
            f"--channels must be one value for each of {convolutions} convolutions, got "
            f"{' '.join(map(str, channels)) or 'none'}"
        )
    count, left = Counter(), iter(channels)
    for layer in chain:
        count[layer.kind] += 1
        width = next(left) if layer.kind == "conv" else 0
        yield LayerSpec(f"{name or layer.kind}{count[layer.kind]}", layer, width)
