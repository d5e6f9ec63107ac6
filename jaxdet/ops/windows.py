"""Sliding windows: the receptive fields of a chain of convolutions and pools.

A chain is a tuple of `Layer`s.  Along one axis, output number j of a chain of n layers sees the
pixels from `offset + j * stride` up to, but excluding, `offset + j * stride + window`.  With the
kernels k_i, strides s_i and paddings p_i of the layers, and the cumulative strides
S_i = s_1 ... s_i,

    window = 1 + sum (k_i - 1) S_(i-1)      stride = S_n      offset = - sum p_i S_(i-1)

A side of H pixels has floor((H - 2 offset - window) / stride) + 1 outputs: rounding down once gives
the same number as rounding down in each layer.  Dumoulin & Visin 2016, arXiv:1603.07285; Araujo et
al. 2019, doi:10.23915/distill.00021.

The geometry consists of Python integers, known before compilation.  Windows and layers are square.
"""

import re
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdet.errors import InputError
from jaxdet.ops import boxes
from jaxdet.types import Array


class Layer(NamedTuple):
    """Geometry of one layer; lengths are in pixels of its input."""

    kind: Literal["conv", "pool"]
    kernel: int
    stride: int = 1
    padding: int = 0


Chain = tuple[Layer, ...]


class ReceptiveField(NamedTuple):
    """Receptive fields of the outputs of a chain, in pixels of the image, including padding."""

    window: int  # side of a receptive field
    stride: int  # distance of neighboring receptive fields
    offset: int  # start of the first receptive field; negative if the chain pads


class Grid(NamedTuple):
    """A grid of rows x columns windows over one image.

    Its fields are Python integers: a jitted function may close over a grid or take it as a static
    argument; `jax.vmap` takes it with `in_axes=None`.
    """

    window: int  # side of a window in pixels
    stride: int  # distance of neighboring windows in pixels
    rows: int
    columns: int
    offset: int = 0  # first pixel of the first window, along both axes


def conv(kernel: int, stride: int = 1, padding: int = 0) -> Layer:
    """A convolution layer."""
    return Layer("conv", kernel, stride, padding)


def pool(kernel: int = 2, stride: int | None = None, padding: int = 0) -> Layer:
    """A pooling layer; its stride defaults to its kernel."""
    return Layer("pool", kernel, stride or kernel, padding)


_WORD = re.compile(r"[cp](?P<kernel>[1-9]\d*)(s(?P<stride>[1-9]\d*))?(p(?P<padding>\d+))?")


def parse(text: str) -> Chain:
    """The chain that words such as `c5,p2,c3s2p1` describe.

    A word is c for a convolution or p for a pool, the kernel size and, optionally, s with the
    stride and p with the padding.  The stride of a pool is its kernel size by default.

    Raises InputError, which names the first invalid word.
    """
    chain = []
    for word in map(str.strip, text.split(",")):
        match = _WORD.fullmatch(word)
        if not match:
            raise InputError(f"layers must be words such as c5, p2 or c3s2p1, got {word!r}")
        layer = conv if word.startswith("c") else pool
        numbers = {name: int(number) for name, number in match.groupdict().items() if number}
        chain.append(layer(**numbers))
    return tuple(chain)


def head_layer(features: Chain, window: int) -> Layer:
    """The convolution that replaces the first dense layer; its kernel covers a window's features.

    Raises InputError if `features` has no output for a window of this many pixels.
    """
    kernel = output_size(features, window)
    if kernel == 0:
        raise InputError(
            f"--window must be larger, got {window} pixels, for which the layers have no output"
        )
    return conv(kernel)


def receptive_field(chain: Chain) -> ReceptiveField:
    """Window, stride and offset of a chain, by the formulas of the module docstring."""
    window, stride, offset = 1, 1, 0
    for layer in chain:
        window += (layer.kernel - 1) * stride
        offset -= layer.padding * stride
        stride *= layer.stride
    return ReceptiveField(window, stride, offset)


def output_size(chain: Chain, size: int) -> int:
    """Number of outputs of a chain along a side of `size` pixels, computed layer by layer.

    It is 0 if any layer has no output, even if a later layer pads.
    """
    for _, kernel, stride, padding in chain:
        room = size + 2 * padding - kernel
        size = room // stride + 1 if size > 0 and room >= 0 else 0
    return size


def grid(chain: Chain, height: int, width: int) -> Grid:
    """The windows of a chain on an image of height x width pixels, in closed form.

    The chain `(conv(window, stride),)` of one layer gives a plain sliding window.
    Raises InputError if the image, with the padding of the chain, is smaller than the window.
    """
    window, stride, offset = receptive_field(chain)
    if output_size(chain, min(height, width)) == 0:
        raise InputError(
            f"an image of {height} x {width} pixels is smaller than the {window} x {window} window;"
            " use a larger image, or layers with a smaller window"
        )
    rows, columns = ((size - 2 * offset - window) // stride + 1 for size in (height, width))
    return Grid(window, stride, rows, columns, offset)


def differences(
    features: Chain, window: int, size: int, stride: int | None = None
) -> tuple[str, ...]:
    """Reasons why a dense pass over an image differs from sliding the network; () if it does not.

    features: the chain before the first dense layer, which becomes `head_layer(features, window)`.
    window, size: sides of the window and of the image, in pixels.
    stride: step of the sliding window in pixels; by default the stride of the chain.

    The answer is exact for layers without padding.  With padding, every image larger than the
    window is reported, even if the results happen to agree.  Batch statistics and global pooling
    also make a difference, but are not part of a chain.
    Raises InputError as `head_layer` does.  Sermanet et al. 2013 (OverFeat), arXiv:1312.6229.
    """
    chain = (*features, head_layer(features, window))
    field = receptive_field(chain)
    stride = stride or field.stride
    dense, sliding = output_size(chain, size), output_size((conv(window, stride),), size)
    padded = window - 2 * field.offset
    checks = (
        (
            size > window and field.offset < 0,
            f"padding: {-field.offset} pixels surround the image in the dense pass, but each "
            "window in the sliding pass",
        ),
        (
            stride != field.stride and max(dense, sliding) > 1,
            f"stride: the window steps by {stride} pixels, but the strides of the layers multiply "
            f"to {field.stride}",
        ),
        (
            field.window < padded and dense != sliding,
            f"floor: the layers use {field.window} of the {padded} pixels along a side of a window",
        ),
        (
            dense != sliding,
            f"count: along {size} pixels the dense pass has {dense} windows, sliding {sliding}",
        ),
    )
    return tuple(reason for differs, reason in checks if differs)


def window_boxes(grid: Grid) -> jax.Array:
    """Corner boxes [rows, columns, 4], float32, of the windows of a grid, in pixels."""
    y, x = jnp.meshgrid(*_starts(grid), indexing="ij")  # [rows, columns]
    return jnp.stack([x, y, x + grid.window, y + grid.window], axis=-1).astype(jnp.float32)


def extract(image: Array, grid: Grid) -> jax.Array:
    """Windows [rows, columns, window, window, C] of one image [H, W, C].

    Pixels beyond the border are zeros.  The result holds about (window / stride)^2 times as many
    pixels as the image.
    """
    chex.assert_rank(image, 3)
    margin = -grid.offset
    image = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    rows, columns = (
        start[:, None] + margin + jnp.arange(grid.window)[None] for start in _starts(grid)
    )  # [rows, window], [columns, window]
    return image[rows[:, None, :, None], columns[None, :, None, :]]


def to_window(box: Array, window: Array) -> Array:
    """Boxes [..., 4] in units of windows [..., 4], broadcasting: 0 is a window's start, 1 its end.

    Arguments are in pixels of the image.  Coordinates of a box that extends beyond its window are
    outside [0, 1].
    """
    origin, size = _frame(window)
    return (box - origin) / size


def from_window(box: Array, window: Array) -> Array:
    """Boxes [..., 4] in pixels of the image from boxes in window units; inverse of `to_window`."""
    origin, size = _frame(window)
    return box * size + origin


def encode_targets(box: Array, label: Array, grid: Grid) -> jax.Array:
    """Targets [rows, columns, 6], float32, of a sliding-window network for one object.

    A window that overlaps the box [4] (in pixels of the image) gets 1, the label [] and the box in
    window units; any other window gets zeros.  Boxes are half-open: windows that only touch do not
    overlap the box, and an empty box overlaps no window.
    """
    chex.assert_shape(box, (4,))
    chex.assert_rank(label, 0)
    windows, box = window_boxes(grid), box[None, None]
    overlaps = boxes.intersection(box, windows) > 0  # [rows, columns]
    object_label = jnp.broadcast_to(jnp.stack([1, label]), (*overlaps.shape, 2))
    target = jnp.concatenate([object_label, to_window(box, windows)], axis=-1)
    return jnp.where(overlaps[..., None], target, 0).astype(jnp.float32)


def _starts(grid):
    """First row of each row of windows [rows], and first column of each column [columns]."""
    return tuple(grid.offset + grid.stride * jnp.arange(n) for n in (grid.rows, grid.columns))


def _frame(window):
    """Origin (x, y, x, y) and size (w, h, w, h) of windows, [..., 4] each."""
    origin = jnp.concatenate([window[..., :2]] * 2, axis=-1)
    return origin, jnp.concatenate([window[..., 2:]] * 2, axis=-1) - origin
