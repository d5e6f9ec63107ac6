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
- pairs: `shift`, whose kernel gradient adds images in pairs before it sums pixels.
- mirror: `shift`, whose image gradient is again a sum of shifted copies.
- blocks: strides: squares of stride x stride pixels become channels, and the kernel, with zeros to
  make it a multiple of the stride, a smaller one without stride.
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

from jaxdet.kernels import conv_algorithms

Impl = Literal["auto", conv_algorithms.Algorithm]

SMALL = 4  # pixels a side: XLA's CPU is slow at maps up to this size
FEW = 4  # channels: XLA's CPU is slow at strided kernels over so few

_forced = ContextVar("forced", default=None)


class Plan(NamedTuple):
    """The way of the outputs, and those whose transposes are the gradients."""

    forward: conv_algorithms.Algorithm
    by_image: conv_algorithms.Algorithm
    by_kernel: conv_algorithms.Algorithm


@contextmanager
def default_impl(impl):
    """What `auto` means for what is traced inside: `lax` to count, `im2col` under a sweep's vmap.

    Functions that were jitted and traced before keep what they have.
    """
    token = _forced.set(impl)
    try:
        yield
    finally:
        _forced.reset(token)


def conv_general_dilated(
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

    What a way cannot take is computed by `lax`, but depthwise convolutions under `im2col`: `shift`.
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
    geometry = conv_algorithms.Geometry(
        tuple(window_strides), pads, dilation, feature_group_count, precision
    )
    plan = choose_plan(x.shape, kernel.shape, geometry, impl, x.dtype)
    return native() if set(plan) == {"lax"} else _planned(geometry, plan, x, kernel)


def auto_enabled(dtype=jnp.float32):
    """Whether `auto` may leave `lax`: on a CPU, in float32, and not within `using("lax")`."""
    return jax.default_backend() == "cpu" and dtype == jnp.float32 and _forced.get() != "lax"


def choose_plan(image, kernel, geometry, impl="auto", dtype=jnp.float32):
    """The `Plan` for shapes [B, H, W, C] and [h, w, C / groups, D]."""
    impl = _forced.get() or impl if impl == "auto" else impl
    if impl == "auto":
        return _fastest(image, kernel, geometry) if auto_enabled(dtype) else Plan(*["lax"] * 3)
    fits = partial(conv_algorithms.supports, image=image, kernel=kernel, geometry=geometry)
    other = "shift" if impl == "im2col" and fits("shift") else "lax"  # the patches of depthwise
    return Plan(*[impl if fits(impl) else other] * 3)


def _fastest(image, kernel, geometry):
    """What was measured to be fastest on a CPU."""
    _, *sides, channels = image
    fits = partial(conv_algorithms.supports, image=image, kernel=kernel, geometry=geometry)
    if fits("dot"):
        return Plan("dot", "dot", "dot")
    if fits("shift"):
        return Plan("shift", "mirror", "pairs")
    if fits("im2col") and max(sides) <= SMALL:
        return Plan("im2col", "im2col", "lax")
    if fits("im2col") and max(conv_algorithms.output_shape(image, kernel, geometry)) == 1:
        return Plan("im2col", "im2col", "im2col")
    if fits("blocks") and channels <= FEW:
        return Plan("blocks", "blocks", "lax")
    if fits("blocks") and all(k % s == 0 for k, s in zip(kernel, geometry.strides, strict=False)):
        return Plan("lax", "blocks", "blocks")
    return Plan("lax", "lax", "lax")


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _planned(geometry, plan, x, kernel):
    return conv_algorithms.ALGORITHMS[plan.forward](geometry, x, kernel)


@partial(_planned.defjvp, symbolic_zeros=True)
def _planned_jvp(geometry, plan, primals, tangents):
    (x, kernel), (by_image, by_kernel) = primals, tangents
    out, parts = _planned(geometry, plan, x, kernel), []
    if not isinstance(by_image, SymbolicZero):
        parts.append(conv_algorithms.ALGORITHMS[plan.by_image](geometry, by_image, kernel))
    if not isinstance(by_kernel, SymbolicZero):
        parts.append(conv_algorithms.ALGORITHMS[plan.by_kernel](geometry, x, by_kernel))
    if not parts:
        return out, jnp.zeros_like(out)
    tangent = sum(parts[1:], parts[0])
    return (
        (conv_algorithms.compute_once(out), conv_algorithms.compute_once(tangent))
        if conv_algorithms.SLICE_SUMS & {*plan}
        else (out, tangent)
    )


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
    return found == lax.conv_dimension_numbers(x.shape, kernel.shape, conv_algorithms.LAYOUT)
