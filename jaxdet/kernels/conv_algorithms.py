"""Convolution algorithms for x [B, H, W, C] and kernel [h, w, C / groups, D].

All compute the same function, which is linear in x and in the kernel.  The transpose of an
algorithm, which computes a gradient, can be much slower or faster than the algorithm itself, so
`kernels.conv` chooses an algorithm for the output and for each gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdet.types import Array

Algorithm = Literal["lax", "dot", "im2col", "shift", "pairs", "mirror", "blocks"]

LAYOUT = ("NHWC", "HWIO", "NHWC")
NO_PADDING = ((0, 0), (0, 0))
SLICE_SUMS = frozenset(("shift", "pairs", "mirror"))  # sums of slices, which need `compute_once`


class Geometry(NamedTuple):
    """Static arguments of a convolution."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, ...], ...]  # (low, high) for rows and columns
    dilation: tuple[int, ...]  # of the kernel
    groups: int
    precision: lax.Precision | None


def supports(
    algorithm: Algorithm, image: Sequence[int], kernel: Sequence[int], geometry: Geometry
) -> bool:
    """Whether an algorithm applies to the shapes of an image and a kernel.

    image: (B, H, W, C).
    kernel: (h, w, C / groups, D).
    """
    ungrouped = geometry.groups == 1
    match algorithm:
        case "dot":
            return ungrouped and tuple(kernel[:2]) == (1, 1)
        case "im2col":
            return ungrouped
        case "shift" | "pairs" | "mirror":
            return geometry.groups == image[-1] and kernel[2] == 1
        case "blocks":
            return ungrouped and max(geometry.strides) > 1 and geometry.dilation == (1, 1)
    return algorithm == "lax"


def output_shape(
    image: Sequence[int], kernel: Sequence[int], geometry: Geometry
) -> tuple[int, ...]:
    """Numbers of rows and columns of the output; arguments as in `supports`."""
    sides = zip(
        image[1:3],
        kernel[:2],
        geometry.strides,
        geometry.padding,
        geometry.dilation,
        strict=True,
    )
    return tuple((n + sum(p) - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in sides)


def compute_once(x: Array) -> jax.Array:
    """Make XLA compute x, and its gradient, only once even if several operations use it.

    XLA on a CPU fuses a sum of slices into every consumer and recomputes it there: a depthwise 5x5
    with batch norm after it was computed 25 times in its own gradient.  The result of a conditional
    is not fused, and the barrier hides that the condition is constant.
    """
    true = lax.optimization_barrier(jnp.array(True))
    return lax.cond(true, lambda x: x, jnp.zeros_like, x)


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
    return _matmul(geometry, _pad(geometry, x)[:, ::rows, ::columns], kernel[0, 0])


def _im2col(geometry, x, kernel):
    patches = jnp.concatenate(list(_taps(geometry, x, kernel)), axis=-1)  # [B, rows, columns, hwC]
    return _matmul(geometry, patches, kernel.reshape(-1, kernel.shape[-1]))


def _shift(geometry, x, kernel):
    return _sum_of_taps(geometry, x, kernel, lambda weight, _: weight[None, None])


def _pairs(geometry, x, kernel):
    return _sum_of_taps(geometry, x, kernel, _broadcast_by_doubling)


def _mirror(geometry, x, kernel):
    """`_shift` written so that its transpose is a sum of slices and not of pads."""
    # Each phase of the strides is a convolution of stride 1: its weighted taps are added on a
    # canvas larger than the output by the kernel's extent, and the canvas is cropped.
    rows, columns = output_shape(x.shape, kernel.shape, geometry)
    x = jnp.repeat(_pad(geometry, x), kernel.shape[-1] // x.shape[-1], axis=-1)
    phases = {}
    for i, j in np.ndindex(kernel.shape[:2]):
        positions = [n * d for n, d in zip((i, j), geometry.dilation, strict=True)]
        (down, top), (right, left) = (
            divmod(position, stride)
            for position, stride in zip(positions, geometry.strides, strict=True)
        )
        phases.setdefault((top, left), []).append((down, right, kernel[i, j, 0]))
    out: Any = sum(
        _sum_on_canvas(
            x[:, top :: geometry.strides[0], left :: geometry.strides[1]], taps, rows, columns
        )
        for (top, left), taps in phases.items()
    )
    return out.reshape(len(x), rows, columns, -1)


def _blocks(geometry, x, kernel):
    rows, columns = geometry.strides
    out = output_shape(x.shape, kernel.shape, geometry)
    kernel = jnp.pad(
        kernel, ((0, -len(kernel) % rows), (0, -kernel.shape[1] % columns), *NO_PADDING)
    )
    sides = zip(out, kernel.shape, (rows, columns), strict=False)
    x = _pad(geometry, x, [(n - 1) * stride + k for n, k, stride in sides])
    x = _space_to_depth(x[..., None], rows, columns)[..., 0]
    kernel = _space_to_depth(kernel, rows, columns)
    unstrided = Geometry((1, 1), NO_PADDING, (1, 1), 1, geometry.precision)
    return (_dot if kernel.shape[:2] == (1, 1) else _lax)(unstrided, x, kernel)


ALGORITHMS: dict[str, Callable] = {
    "lax": _lax,
    "dot": _dot,
    "im2col": _im2col,
    "shift": _shift,
    "pairs": _pairs,
    "mirror": _mirror,
    "blocks": _blocks,
}


def _matmul(geometry, x, matrix):
    """x [B, H, W, C] times a matrix [C, D], with x flattened to two axes: faster on a CPU."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix, precision=geometry.precision)
    return flat.reshape(*x.shape[:3], -1)


def _sum_of_taps(geometry, x, kernel, broadcast):
    """Sum over taps of the shifted x times the weights of the tap, broadcast by `broadcast`."""
    rows, columns = output_shape(x.shape, kernel.shape, geometry)
    weights = jnp.tile(kernel.reshape(-1, kernel.shape[-1]), (1, columns))  # [taps, columns * D]
    x = lax.optimization_barrier(_pad(geometry, x))  # padded once
    multiplier = kernel.shape[-1] // x.shape[-1]
    x = x if multiplier == 1 else jnp.repeat(x, multiplier, axis=-1)
    taps = zip(_flat_taps(geometry, x, kernel, rows, columns), weights, strict=True)
    out: Any = sum(tap * broadcast(weight, tap.shape) for tap, weight in taps)
    return out.reshape(len(x), rows, columns, -1)


def _broadcast_by_doubling(weights, shape):
    """Broadcast weights [N] to [B, rows, N] by doubling; its transpose sums images in pairs."""
    # XLA on a CPU is slow at summing over all pixels of several images, and fast at adding halves.
    images, rows, _ = shape
    out = jnp.broadcast_to(weights[None, None], (1, rows, len(weights)))
    out = lax.optimization_barrier(out)
    while len(out) < images:
        out = jnp.concatenate([out, out[: images - len(out)]])
    return out


def _flat_taps(geometry, x, kernel, rows, columns):
    """Pixels of padded x under each tap, [B, rows, columns * D]: columns and channels merged."""
    # With a column stride of 1 a tap is then one slice of each row.
    if geometry.strides[1] > 1:
        for tap in _taps(geometry._replace(padding=NO_PADDING), x, kernel):
            yield tap.reshape(len(x), rows, -1)
        return
    (stride, _), (down, right), width = geometry.strides, geometry.dilation, x.shape[-1]
    flat = x.reshape(*x.shape[:2], -1)
    for i, j in np.ndindex(kernel.shape[:2]):
        piece = slice(j * right * width, (j * right + columns) * width)
        yield flat[:, i * down : i * down + stride * (rows - 1) + 1 : stride, piece]


def _sum_on_canvas(x, taps, rows, columns):
    """Sum [B, rows, columns * D] of x [B, H, W, D] under taps [(row, column, weights [D])]."""
    width = x.shape[-1]
    down, right = (max(tap[axis] for tap in taps) for axis in (0, 1))
    flat, repeats = x.reshape(*x.shape[:2], -1), x.shape[2]
    canvas = 0
    for i, j, weight in taps:
        room = ((0, 0, 0), (down - i, i, 0), ((right - j) * width, j * width, 0))
        canvas += lax.pad(flat * jnp.tile(weight, repeats)[None, None], np.float32(0), room)
    canvas = lax.optimization_barrier(canvas)  # its gradient is padded once
    start = right * width
    out = canvas[:, down : down + rows, start : start + columns * width]
    missing = rows - out.shape[1], columns * width - out.shape[2]
    return jnp.pad(out, ((0, 0), (0, missing[0]), (0, missing[1])))


def _space_to_depth(x, rows, columns):
    """Reshape x [..., H, W, C, D] to [..., H / rows, W / columns, rows * columns * C, D]."""
    *lead, height, width, channels, out = x.shape
    x = x.reshape(*lead, height // rows, rows, width // columns, columns, channels, out)
    x = jnp.moveaxis(x, -5, -4)
    return x.reshape(*lead, height // rows, width // columns, rows * columns * channels, out)


def _taps(geometry, x, kernel) -> Iterator[Array]:
    """Pixels of x under each tap of the kernel, [B, rows, columns, C], in the kernel's order."""
    sides = output_shape(x.shape, kernel.shape, geometry)
    x = _pad(geometry, x)
    extent = [(n - 1) * stride + 1 for n, stride in zip(sides, geometry.strides, strict=True)]
    rows, columns = geometry.strides
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * geometry.dilation[0], j * geometry.dilation[1]
            yield x[:, top : top + extent[0] : rows, left : left + extent[1] : columns]


def _pad(geometry, x, sizes=None):
    """x with its padding; with `sizes`, cropped or padded to this size at bottom and right."""
    (top, bottom), (left, right) = geometry.padding
    if sizes:
        bottom, right = sizes[0] - x.shape[1] - top, sizes[1] - x.shape[2] - left
    if not any((top, bottom, left, right)):
        return x
    config = ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)
