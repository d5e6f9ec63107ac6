"""How a convolution is computed: one map, several ways, for linen's `conv_general_dilated` hook.

    nn.Conv(64, (3, 3), conv_general_dilated=conv.conv)

Parameters, names and outputs are those of `lax.conv_general_dilated`.  XLA's CPU is up to 100 times
slower than it need be at some shapes (depthwise, 1x1, maps of a few pixels, strides); `auto` takes
another way there, and for each of the two gradients as well: a gradient is the transpose of a way,
not always of the one that the outputs took.  On a GPU or TPU, in other number formats than float32
and in other layouts than NHWC, `auto` is `lax`.

ways, all of the same x [B, H, W, C] and kernel [h, w, C / groups, D]:
- lax: XLA's own.
- dot: kernels of one pixel: a matrix product over channels.
- im2col: patches of all taps, then one matrix product.
- shift: depthwise: a shifted copy of the image for each tap, times a number a channel.
- images: `shift`, one image after the other: its kernel gradient stays in the cache.
- blocks: strides that divide the kernel: squares of stride x stride pixels become channels, and the
  kernel a smaller one without stride.
`benchmarks/layers.py` has the times.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Impl = Literal["auto", "lax", "dot", "im2col", "shift", "images", "blocks"]

LAYOUT = ("NHWC", "HWIO", "NHWC")
SMALL = 4  # pixels a side: XLA's CPU is slow at maps up to this size
FEW = 4  # channels: XLA's CPU is slow at strided kernels over so few

_forced = ContextVar("forced", default=None)


class Geometry(NamedTuple):
    """The static side of a convolution of x [B, H, W, C]."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]  # of the kernel
    groups: int
    precision: lax.Precision | None


class Plan(NamedTuple):
    """The way of the outputs, and those whose transposes are the gradients."""

    forward: Impl
    by_image: Impl
    by_kernel: Impl


@contextmanager
def using(impl):
    """What `auto` means for what is traced inside: `lax` to count, `im2col` under a sweep's vmap.

    Functions that were jitted and traced before keep what they have.
    """
    token = _forced.set(impl)
    try:
        yield
    finally:
        _forced.reset(token)


def conv(
    x,
    kernel,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    *,
    impl: Impl = "auto",
):
    """`lax.conv_general_dilated`, computed as `impl` says; equal up to rounding.

    What a way cannot take is computed by `lax`.
    """
    native = partial(
        lax.conv_general_dilated,
        x,
        kernel,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    plain = batch_group_count == 1 and not preferred_element_type and x.dtype == kernel.dtype
    if not (plain and _undilated(lhs_dilation) and _is_nhwc(x, kernel, dimension_numbers)):
        return native()
    dilation = tuple(rhs_dilation or (1, 1))
    pads = _pads(x.shape, kernel.shape, window_strides, padding, dilation)
    geometry = Geometry(tuple(window_strides), pads, dilation, feature_group_count, precision)
    plan = choose(x.shape, kernel.shape, geometry, impl, x.dtype)
    return native() if set(plan) == {"lax"} else _planned(geometry, plan, x, kernel)


def choose(image, kernel, geometry, impl="auto", dtype=jnp.float32):
    """The `Plan` for shapes [B, H, W, C] and [h, w, C / groups, D]."""
    impl = _forced.get() or impl if impl == "auto" else impl
    if impl == "auto":
        slow = jax.default_backend() == "cpu" and dtype == jnp.float32
        return _fastest(image, kernel, geometry) if slow else Plan(*["lax"] * 3)
    return Plan(*[impl if _able(impl, image, kernel, geometry) else "lax"] * 3)


def _fastest(image, kernel, geometry):
    """What was measured to be fastest on a CPU."""
    _, *sides, channels = image
    able = partial(_able, image=image, kernel=kernel, geometry=geometry)
    if able("dot"):
        return Plan("dot", "dot", "dot")
    if able("shift"):
        return Plan("shift", "shift", "images")
    if able("im2col") and max(sides) <= SMALL:
        return Plan("im2col", "im2col", "lax")
    if able("im2col") and max(_outputs(image, kernel, geometry)) == 1:
        return Plan("im2col", "im2col", "im2col")
    if able("blocks"):
        few = channels <= FEW
        return Plan("blocks" if few else "lax", "blocks", "lax" if few else "blocks")
    return Plan("lax", "lax", "lax")


def _able(impl, image, kernel, geometry):
    """Whether a way can take these shapes."""
    alone = geometry.groups == 1
    match impl:
        case "dot":
            return alone and kernel[:2] == (1, 1)
        case "im2col":
            return alone
        case "shift" | "images":
            return geometry.groups == image[-1] and kernel[2] == 1
        case "blocks":
            fits = all(k % s == 0 for k, s in zip(kernel, geometry.strides, strict=False))
            return alone and fits and max(geometry.strides) > 1 and geometry.dilation == (1, 1)
    return impl == "lax"


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _planned(geometry, plan, x, kernel):
    return WAYS[plan.forward](geometry, x, kernel)


@partial(_planned.defjvp, symbolic_zeros=True)
def _planned_jvp(geometry, plan, primals, tangents):
    (x, kernel), (by_image, by_kernel) = primals, tangents
    out = _planned(geometry, plan, x, kernel)
    parts = []
    if not isinstance(by_image, SymbolicZero):
        parts.append(WAYS[plan.by_image](geometry, by_image, kernel))
    if not isinstance(by_kernel, SymbolicZero):
        parts.append(WAYS[plan.by_kernel](geometry, x, by_kernel))
    return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)


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
    x = _padded(geometry, x)[:, ::rows, ::columns]
    return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision=geometry.precision)


def _im2col(geometry, x, kernel):
    patches = jnp.concatenate(list(_taps(geometry, x, kernel)), axis=-1)  # [B, rows, columns, hwC]
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwk,kd->bhwd", patches, flat, precision=geometry.precision)


def _shift(geometry, x, kernel):
    channels, width = x.shape[-1], kernel.shape[-1]
    weights = kernel.reshape(-1, 1, 1, 1, channels, width // channels)
    taps = _taps(geometry, x, kernel)
    out = sum(tap[..., None] * weight for tap, weight in zip(taps, weights, strict=True))
    return out.reshape(*out.shape[:3], width)


def _images(geometry, x, kernel):
    return lax.map(lambda image: _shift(geometry, image[None], kernel)[0], x)


def _blocks(geometry, x, kernel):
    (rows, columns), (height, width, channels, out) = geometry.strides, kernel.shape
    made = _outputs(x.shape, kernel.shape, geometry)
    sizes = (made[0] * rows + height - rows, made[1] * columns + width - columns)
    x = _padded(geometry, x, sizes)
    x = _to_channels(x, rows, columns)
    kernel = kernel.reshape(height // rows, rows, width // columns, columns, channels, out)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(*kernel.shape[:2], rows * columns * channels, out)
    whole = Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), 1, geometry.precision)
    return (_dot if kernel.shape[:2] == (1, 1) else _lax)(whole, x, kernel)


WAYS = {
    "lax": _lax,
    "dot": _dot,
    "im2col": _im2col,
    "shift": _shift,
    "images": _images,
    "blocks": _blocks,
}


def _to_channels(x, rows, columns):
    """[B, H, W, C] to [B, H / rows, W / columns, rows columns C]."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // rows, rows, width // columns, columns, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], rows * columns * channels)


def _taps(geometry, x, kernel):
    """What each tap of the kernel sees, [B, rows, columns, C] each, in the kernel's order."""
    made = _outputs(x.shape, kernel.shape, geometry)
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


def _outputs(image, kernel, geometry):
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


def _pads(image, kernel, strides, padding, dilation):
    """Padding in pixels, also where it is given by name."""
    if not isinstance(padding, str):
        return tuple(tuple(map(int, pair)) for pair in padding)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel[:2], dilation, strict=True)]
    return tuple(lax.padtype_to_pads(image[1:3], reach, strides, padding))


def _undilated(dilation):
    return dilation is None or set(dilation) == {1}


def _is_nhwc(x, kernel, numbers):
    """Whether images are [B, H, W, C] and kernels [h, w, C, D]."""
    if x.ndim != 4 or 0 in (*x.shape, *kernel.shape):
        return False
    found = lax.conv_dimension_numbers(x.shape, kernel.shape, numbers)
    return found == lax.conv_dimension_numbers(x.shape, kernel.shape, LAYOUT)
