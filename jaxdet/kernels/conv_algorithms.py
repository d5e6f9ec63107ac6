"""Ways to compute a convolution of x [B, H, W, C] and a kernel [h, w, C / groups, D].

All are the same map, linear in x and in the kernel, of `lax` operations: what the transpose of one
costs can differ much from what it costs itself.  `ops.conv` chooses.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

Algorithm = Literal["lax", "dot", "im2col", "shift", "pairs", "mirror", "blocks"]

LAYOUT = ("NHWC", "HWIO", "NHWC")
NONE = ((0, 0), (0, 0))  # no padding
SLICE_SUMS = frozenset(("shift", "pairs", "mirror"))  # sums of slices, whose results want `once`


class Geometry(NamedTuple):
    """The static side of a convolution of x [B, H, W, C]."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]  # of the kernel
    groups: int
    precision: lax.Precision | None


def supports(impl, image, kernel, geometry):
    """Whether a way can take images [B, H, W, C] and kernels [h, w, C / groups, D]."""
    alone = geometry.groups == 1
    match impl:
        case "dot":
            return alone and kernel[:2] == (1, 1)
        case "im2col":
            return alone
        case "shift" | "pairs" | "mirror":
            return geometry.groups == image[-1] and kernel[2] == 1
        case "blocks":
            return alone and max(geometry.strides) > 1 and geometry.dilation == (1, 1)
    return impl == "lax"


def _lax(geometry, x, kernel):
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _dot(geometry, x, kernel):
    rows, columns = geometry.strides
    return _product(geometry, _padded(geometry, x)[:, ::rows, ::columns], kernel[0, 0])


def _im2col(geometry, x, kernel):
    patches = jnp.concatenate(list(_taps(geometry, x, kernel)), axis=-1)  # [B, rows, columns, hwC]
    return _product(geometry, patches, kernel.reshape(-1, kernel.shape[-1]))


def _product(geometry, x, matrix):
    """x [B, H, W, C] times a matrix [C, D]; on a CPU faster as one of two axes than of four."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix, precision=geometry.precision)
    return flat.reshape(*x.shape[:3], -1)


def _shift(geometry, x, kernel):
    return _sum_of_taps(geometry, x, kernel, lambda weight, _: weight[None, None])


def _pairs(geometry, x, kernel):
    return _sum_of_taps(geometry, x, kernel, _doubled)


def _sum_of_taps(geometry, x, kernel, spread):
    """Each tap's view of x times its weights [columns D], which `spread` gives [B, rows] of."""
    rows, columns = output_shape(x.shape, kernel.shape, geometry)
    weights = jnp.tile(kernel.reshape(-1, kernel.shape[-1]), (1, columns))  # [taps, columns D]
    x = lax.optimization_barrier(_padded(geometry, x))  # padded once
    several = kernel.shape[-1] // x.shape[-1]  # outputs of each channel, side by side
    x = x if several == 1 else jnp.repeat(x, several, axis=-1)
    taps = zip(_flat_taps(geometry, x, kernel, rows, columns), weights, strict=True)
    made = sum(tap * spread(weight, tap.shape) for tap, weight in taps)
    return made.reshape(len(x), rows, columns, -1)


def _flat_taps(geometry, x, kernel, rows, columns):
    """What each tap sees of x, padded already: [B, rows, columns D], columns and channels as one.

    Without a stride along columns a tap is then one piece of each row.
    """
    if geometry.strides[1] > 1:
        for tap in _taps(geometry._replace(padding=NONE), x, kernel):
            yield tap.reshape(len(x), rows, -1)
        return
    (stride, _), (down, right), width = geometry.strides, geometry.dilation, x.shape[-1]
    flat = x.reshape(*x.shape[:2], -1)
    for i, j in np.ndindex(kernel.shape[:2]):
        piece = slice(j * right * width, (j * right + columns) * width)
        yield flat[:, i * down : i * down + stride * (rows - 1) + 1 : stride, piece]


def _mirror(geometry, x, kernel):
    """What `_shift` gives, made so that its transpose is a sum of slices and no sum of pads.

    Each phase of the strides is a convolution without strides: its taps, weighed, are laid on one
    canvas, larger by the kernel, which is then cut.
    """
    rows, columns = output_shape(x.shape, kernel.shape, geometry)
    x = jnp.repeat(_padded(geometry, x), kernel.shape[-1] // x.shape[-1], axis=-1)
    phases = {}
    for i, j in np.ndindex(kernel.shape[:2]):
        places = [n * d for n, d in zip((i, j), geometry.dilation, strict=True)]
        (down, top), (right, left) = (
            divmod(at, stride) for at, stride in zip(places, geometry.strides, strict=True)
        )
        phases.setdefault((top, left), []).append((down, right, kernel[i, j, 0]))
    out = sum(
        _canvas(x[:, top :: geometry.strides[0], left :: geometry.strides[1]], taps, rows, columns)
        for (top, left), taps in phases.items()
    )
    return out.reshape(len(x), rows, columns, -1)


def _canvas(x, taps, rows, columns):
    """[B, rows, columns D] of x [B, H, W, D], whose pixel (0, 0) tap (0, 0) sees first."""
    width = x.shape[-1]
    down, right = (max(tap[axis] for tap in taps) for axis in (0, 1))
    flat, weights = x.reshape(*x.shape[:2], -1), x.shape[2]
    laid = 0
    for i, j, weight in taps:
        room = ((0, 0, 0), (down - i, i, 0), ((right - j) * width, j * width, 0))
        laid += lax.pad(flat * jnp.tile(weight, weights)[None, None], np.float32(0), room)
    laid = lax.optimization_barrier(laid)  # its gradient is padded once
    start = right * width
    out = laid[:, down : down + rows, start : start + columns * width]
    missing = rows - out.shape[1], columns * width - out.shape[2]
    return jnp.pad(out, ((0, 0), (0, missing[0]), (0, missing[1])))


def _doubled(weight, shape):
    """Weights [N] as [B, rows, N] by doubling: its transpose sums images in pairs, then rows.

    XLA's CPU is slow at sums over all pixels of several images, and quick at adding two halves.
    """
    images, rows, _ = shape
    spread = lax.optimization_barrier(jnp.broadcast_to(weight[None, None], (1, rows, len(weight))))
    while len(spread) < images:
        spread = jnp.concatenate([spread, spread[: images - len(spread)]])
    return spread


def _blocks(geometry, x, kernel):
    rows, columns = geometry.strides
    made = output_shape(x.shape, kernel.shape, geometry)
    kernel = jnp.pad(kernel, ((0, -len(kernel) % rows), (0, -kernel.shape[1] % columns), *NONE))
    sides = zip(made, kernel.shape, (rows, columns), strict=False)
    x = _padded(geometry, x, [(n - 1) * stride + k for n, k, stride in sides])
    x, kernel = (
        _to_channels(x[..., None], rows, columns)[..., 0],
        _to_channels(kernel, rows, columns),
    )
    whole = Geometry((1, 1), NONE, (1, 1), 1, geometry.precision)
    return (_dot if kernel.shape[:2] == (1, 1) else _lax)(whole, x, kernel)


ALGORITHMS = {
    "lax": _lax,
    "dot": _dot,
    "im2col": _im2col,
    "shift": _shift,
    "pairs": _pairs,
    "mirror": _mirror,
    "blocks": _blocks,
}


def _to_channels(x, rows, columns):
    """[..., H, W, C, D] to [..., H / rows, W / columns, rows columns C, D]."""
    *lead, height, width, channels, out = x.shape
    x = x.reshape(*lead, height // rows, rows, width // columns, columns, channels, out)
    x = jnp.moveaxis(x, -5, -4)
    return x.reshape(*lead, height // rows, width // columns, rows * columns * channels, out)


def _taps(geometry, x, kernel):
    """What each tap of the kernel sees, [B, rows, columns, C] each, in the kernel's order."""
    made = output_shape(x.shape, kernel.shape, geometry)
    x = _padded(geometry, x)
    reach = [(n - 1) * stride + 1 for n, stride in zip(made, geometry.strides, strict=True)]
    rows, columns = geometry.strides
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * geometry.dilation[0], j * geometry.dilation[1]
            yield x[:, top : top + reach[0] : rows, left : left + reach[1] : columns]


def _padded(geometry, x, sizes=None):
    """x with its padding; cut or padded further to `sizes` at the bottom and the right."""
    (top, bottom), (left, right) = geometry.padding
    if sizes:
        bottom, right = sizes[0] - x.shape[1] - top, sizes[1] - x.shape[2] - left
    if not any((top, bottom, left, right)):
        return x
    low = ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), low)


def compute_once(x):
    """x, computed once; under differentiation its gradient too.

    XLA's CPU writes a sum of slices into everything that reads it, and computes all of it in each:
    with batch norm after it a depthwise 5x5 was computed 25 times in its own gradient.  What comes
    out of a conditional is not written so; the barrier hides that there is nothing to decide.
    """
    true = lax.optimization_barrier(jnp.array(True))
    return lax.cond(true, lambda x: x, jnp.zeros_like, x)


def output_shape(image, kernel, geometry):
    """Rows and columns of the output."""
    sides = zip(
        image[1:3],
        kernel[:2],
        geometry.strides,
        geometry.padding,
        geometry.dilation,
        strict=True,
    )
    return tuple((n + sum(p) - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in sides)
