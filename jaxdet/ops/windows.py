"""Sliding windows: which pixels each output of a chain of convolutions and pools looks at.

A `chain` is a tuple of layers.  With kernels k_i, strides s_i, paddings p_i, and
S_i = s_1 ... s_i the stride so far, output i of a chain of n layers looks at the pixels from
`offset + i * stride` to `offset + i * stride + window`, where

    window = 1 + sum (k_i - 1) S_(i-1)      stride = S_n      offset = - sum p_i S_(i-1)

and a side of H pixels has floor((H - 2 offset - window) / stride) + 1 outputs: the floors that the
layers take one after the other fold into this one.  Dumoulin & Visin 2016, arXiv:1603.07285;
Araujo et al. 2019, doi:10.23915/distill.00021.

Everything about a chain is a Python integer, known before compilation.  Windows and layers are
square.
"""

import re
from typing import NamedTuple

import chex
import jax.numpy as jnp

from jaxdet.errors import InputError
from jaxdet.ops import boxes


class Layer(NamedTuple):
    """Geometry of one layer, in pixels of its own input."""

    kind: str  # "conv" or "pool"
    kernel: int
    stride: int = 1
    padding: int = 0


class ReceptiveField(NamedTuple):
    """What the outputs of a chain look at, in pixels of the image; padding counts as pixels."""

    window: int
    stride: int
    offset: int  # of the first window; negative where the chain pads


class Grid(NamedTuple):
    """Windows of a chain on one image, rows x columns of them, in pixels.

    Plain integers: close over a grid, or give it to `jax.vmap` with `in_axes=None`; under
    `jax.jit` it is a static argument.
    """

    window: int
    stride: int
    rows: int
    columns: int
    offset: int = 0


def conv(kernel, stride=1, padding=0):
    """A convolution, valid unless padded."""
    return Layer("conv", kernel, stride, padding)


def pool(kernel=2, stride=None, padding=0):
    """A pool; its stride is its kernel unless given."""
    return Layer("pool", kernel, stride or kernel, padding)


def parse(text):
    """Chain from words like `c5,p2,c3s2p1`: c or p, kernel, then s stride and p padding if need be.

    Raises InputError, a ValueError, that names the first word it cannot read.
    """
    return tuple(_parse_word(word.strip()) for word in text.split(","))


def head_layer(features, window):
    """The convolution that a first dense layer turns into: as wide as the features of one window.

    Raises InputError if the chain `features` leaves nothing of a window of this many pixels.
    """
    kernel = output_size(features, window)
    if kernel == 0:
        raise InputError(f"a window of {window} pixels is too small: no features are left of it")
    return conv(kernel)


def receptive_field(chain):
    """Window, stride and offset of a chain, by the formulas on top of this page."""
    window, stride, offset = 1, 1, 0
    for layer in chain:
        window += (layer.kernel - 1) * stride
        offset -= layer.padding * stride
        stride *= layer.stride
    return ReceptiveField(window, stride, offset)


def output_size(chain, size):
    """Outputs a side that a chain makes of `size` pixels, layer by layer; 0 if it does not fit.

    What does not fit in one layer is gone: padding of a later one does not bring it back.
    """
    for _, kernel, stride, padding in chain:
        room = size + 2 * padding - kernel
        size = room // stride + 1 if size > 0 and room >= 0 else 0
    return size


def grid(chain, height, width):
    """Windows that a chain sees on an image of height x width pixels, by the closed formula.

    Sliding a window at a stride is the chain of one layer `(conv(window, stride),)`.
    Raises InputError if the image is smaller than the window.
    """
    window, stride, offset = receptive_field(chain)
    if output_size(chain, min(height, width)) == 0:
        raise InputError(
            f"an image of {height} x {width} pixels is smaller than the {window} x {window} window"
        )
    rows, columns = ((size - 2 * offset - window) // stride + 1 for size in (height, width))
    return Grid(window, stride, rows, columns, offset)


def differences(features, window, size, stride=None):
    """Why a dense pass over an image is not the same as sliding the network: reasons, () if it is.

    features: the chain before the first dense layer, which becomes `head(features, window)`.
    window, size, stride: of the sliding, a side in pixels; stride is the chain's own unless given.

    Without padding the answer is exact.  With padding it is on the safe side: it names every padded
    chain on an image larger than its window.  Batch statistics and pooling over the whole image
    break the agreement too, and no chain shows them.  Raises InputError as `head` does.
    Dense passes: Sermanet et al. 2013 (OverFeat), arXiv:1312.6229.
    """
    chain = (*features, head_layer(features, window))
    seen = receptive_field(chain)
    stride = stride or seen.stride
    dense, slid = output_size(chain, size), output_size((conv(window, stride),), size)
    padded = window - 2 * seen.offset
    checks = (
        (
            size > window and seen.offset < 0,
            f"padding: the {-seen.offset} pixels of it lie around the image in the dense pass, "
            "around every window in sliding",
        ),
        (
            stride != seen.stride and max(dense, slid) > 1,
            f"stride: sliding steps by {stride} pixels, the strides of the layers multiply to "
            f"{seen.stride}",
        ),
        (
            seen.window < padded and dense != slid,
            f"floor: the layers use {seen.window} of the {padded} pixels a side of a window",
        ),
        (
            dense != slid,
            f"count: over {size} pixels a side the dense pass has {dense} windows, sliding {slid}",
        ),
    )
    return tuple(reason for differs, reason in checks if differs)


def window_boxes(grid):
    """Corner boxes [rows, columns, 4], float32, of a grid of windows, in pixels of the image."""
    y, x = jnp.meshgrid(*_starts(grid), indexing="ij")  # [rows, columns]
    return jnp.stack([x, y, x + grid.window, y + grid.window], axis=-1).astype(jnp.float32)


def extract(image, grid):
    """The windows of one image [H, W, C], [rows, columns, window, window, C].

    Where a padded chain looks past the border there are zeros.  The copy holds
    (window / stride)^2 times as many pixels as the image.
    """
    chex.assert_rank(image, 3)
    margin = -grid.offset
    image = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    rows, columns = (
        start[:, None] + margin + jnp.arange(grid.window)[None] for start in _starts(grid)
    )  # [rows, window], [columns, window]
    return image[rows[:, None, :, None], columns[None, :, None, :]]


def to_window(box, window):
    """Boxes [..., 4] in units of windows [..., 4], broadcasting: 0 is its start and 1 its end.

    Both come in pixels of the image.  A box that sticks out leaves [0, 1].
    """
    origin, size = _frame(window)
    return (box - origin) / size


def from_window(box, window):
    """Boxes [..., 4] in units of windows [..., 4] back in pixels of the image (see `to_window`)."""
    origin, size = _frame(window)
    return box * size + origin


def encode_targets(box, label, grid):
    """What a window network should answer for one object: targets [rows, columns, 6], float32.

    A window that meets the box [4] (in pixels of the image) gets 1, the label [] and the box in
    window units, x0 y0 x1 y1; any other gets zeros.  Both rectangles are half-open, so to touch is
    not to meet, and an empty box meets no window.
    """
    chex.assert_shape(box, (4,))
    chex.assert_rank(label, 0)
    windows, box = window_boxes(grid), box[None, None]
    met = boxes.intersection(box, windows) > 0  # [rows, columns]
    what = jnp.broadcast_to(jnp.stack([1, label]), (*met.shape, 2))
    target = jnp.concatenate([what, to_window(box, windows)], axis=-1)
    return jnp.where(met[..., None], target, 0).astype(jnp.float32)


_WORD = re.compile(r"[cp](?P<kernel>[1-9]\d*)(s(?P<stride>[1-9]\d*))?(p(?P<padding>\d+))?")


def _parse_word(word):
    """One layer of `parse`."""
    match = _WORD.fullmatch(word)
    if not match:
        raise InputError(f"cannot read layer {word!r}: want words like c5, p2, c3s2p1")
    layer = conv if word.startswith("c") else pool
    return layer(**{name: int(number) for name, number in match.groupdict().items() if number})


def _starts(grid):
    """First pixel of each window: down [rows] and across [columns]."""
    return tuple(grid.offset + grid.stride * jnp.arange(n) for n in (grid.rows, grid.columns))


def _frame(window):
    """Origin and size [..., 4] of the axes of a window: x y x y."""
    origin = jnp.concatenate([window[..., :2]] * 2, axis=-1)
    return origin, jnp.concatenate([window[..., 2:]] * 2, axis=-1) - origin
