"""Convolutions that are fast on a CPU, for the `conv_general_dilated` hook of linen.

    nn.Conv(64, (3, 3), conv_general_dilated=conv.conv_general_dilated)

Arguments and results are as in `lax.conv_general_dilated`.  For some convolutions (depthwise,
1x1, strided, on maps of a few pixels) XLA on a CPU is up to 100 times slower than necessary; `auto`
chooses another algorithm for them, separately for the output and for each of the two gradients.  A
gradient is computed by the transpose of an algorithm, which need not be the algorithm of the
output.  On GPUs and TPUs, for dtypes other than float32 and for layouts other than NHWC, `auto` is
`lax`.

Algorithms, which all compute the same function of x [B, H, W, C] and kernel
[h, w, C / groups, D]:
- lax: XLA's own algorithm
- dot: for 1x1 kernels, a matrix product over channels
- im2col: the pixels under all taps of the kernel are copied side by side, then one matrix product
- shift: for depthwise kernels, the sum over taps of a shifted image times a weight per channel
- pairs: `shift`, but the kernel gradient adds images in pairs before it sums over pixels
- mirror: `shift`, but the image gradient is a sum of shifted images again
- blocks: for strides, space-to-depth: blocks of stride x stride pixels become channels, and the
  kernel, padded to a multiple of the stride, becomes a smaller one of stride 1

`python -m benchmarks.layers` measures the algorithms.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxdet.kernels import conv_algorithms
from jaxdet.kernels.conv_algorithms import Algorithm, Geometry

Impl = Literal["auto", Algorithm]

SMALL_MAP = 4  # pixels per side: XLA's CPU is slow for maps up to this size
FEW_CHANNELS = 4  # XLA's CPU is slow for strided kernels over so few channels

_default_impl: ContextVar[Impl | None] = ContextVar("default_impl", default=None)


class Plan(NamedTuple):
    """Algorithm of the output, and the algorithms whose transposes compute the gradients."""

    output: Algorithm
    image_grad: Algorithm
    kernel_grad: Algorithm


@contextmanager
def default_impl(impl: Impl) -> Iterator[None]:
    """A context in which `auto` stands for the algorithm `impl`.

    Operations are counted in the context of `lax`; a vmapped sweep on a CPU runs in the context of
    `im2col`.  Functions that were traced before are not affected.
    """
    token = _default_impl.set(impl)
    try:
        yield
    finally:
        _default_impl.reset(token)


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    impl: Impl = "auto",
) -> jax.Array:
    """`lax.conv_general_dilated`, computed by the algorithm `impl`; equal up to rounding.

    Where the algorithm does not apply, `lax` is used instead; for depthwise kernels, `shift` is
    used instead of `im2col`.
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
    undilated = lhs_dilation is None or set(lhs_dilation) == {1}
    if not (plain and undilated and _is_nhwc(x, kernel, dimension_numbers)):
        return native()
    dilation = tuple(rhs_dilation or (1, 1))
    pads = _explicit_padding(x.shape, kernel.shape, window_strides, padding, dilation)
    geometry = Geometry(tuple(window_strides), pads, dilation, feature_group_count, precision)
    plan = choose_plan(x.shape, kernel.shape, geometry, impl, x.dtype)
    return native() if set(plan) == {"lax"} else _convolve(geometry, plan, x, kernel)


def auto_enabled(dtype: Any = jnp.float32) -> bool:
    """Whether `auto` may differ from `lax`: on a CPU, in float32, outside `default_impl("lax")`."""
    return jax.default_backend() == "cpu" and dtype == jnp.float32 and not uses_lax()


def uses_lax() -> bool:
    """Whether the context `default_impl("lax")` is active."""
    return _default_impl.get() == "lax"


def choose_plan(
    image: Sequence[int],
    kernel: Sequence[int],
    geometry: Geometry,
    impl: Impl = "auto",
    dtype: Any = jnp.float32,
) -> Plan:
    """The `Plan` for an image of shape (B, H, W, C) and a kernel of (h, w, C / groups, D)."""
    impl = _default_impl.get() or impl if impl == "auto" else impl
    if impl == "auto":
        fastest = auto_enabled(dtype)
        return _fastest_on_cpu(image, kernel, geometry) if fastest else Plan("lax", "lax", "lax")
    fits = partial(conv_algorithms.supports, image=image, kernel=kernel, geometry=geometry)
    fallback = "shift" if impl == "im2col" and fits("shift") else "lax"  # depthwise has no patches
    algorithm = impl if fits(impl) else fallback
    return Plan(algorithm, algorithm, algorithm)


def _fastest_on_cpu(image, kernel, geometry) -> Plan:
    """The fastest algorithms for these shapes, as measured by `benchmarks.layers`."""
    _, *sides, channels = image
    fits = partial(conv_algorithms.supports, image=image, kernel=kernel, geometry=geometry)
    if fits("dot"):
        return Plan("dot", "dot", "dot")
    if fits("shift"):
        return Plan("shift", "mirror", "pairs")
    if fits("im2col") and max(sides) <= SMALL_MAP:
        return Plan("im2col", "im2col", "lax")
    if fits("im2col") and max(conv_algorithms.output_shape(image, kernel, geometry)) == 1:
        return Plan("im2col", "im2col", "im2col")
    if fits("blocks") and channels <= FEW_CHANNELS:
        return Plan("blocks", "blocks", "lax")
    if fits("blocks") and all(k % s == 0 for k, s in zip(kernel, geometry.strides, strict=False)):
        return Plan("lax", "blocks", "blocks")
    return Plan("lax", "lax", "lax")


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(geometry, plan, x, kernel):
    return conv_algorithms.ALGORITHMS[plan.output](geometry, x, kernel)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(geometry, plan, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    out, terms = _convolve(geometry, plan, x, kernel), []
    if not isinstance(dx, SymbolicZero):
        terms.append(conv_algorithms.ALGORITHMS[plan.image_grad](geometry, dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(conv_algorithms.ALGORITHMS[plan.kernel_grad](geometry, x, dkernel))
    if not terms:
        return out, jnp.zeros_like(out)
    tangent = sum(terms[1:], terms[0])
    if conv_algorithms.SLICE_SUMS & {*plan}:
        return conv_algorithms.compute_once(out), conv_algorithms.compute_once(tangent)
    return out, tangent


def _explicit_padding(image, kernel, strides, padding, dilation):
    """Padding as (low, high) pixels per axis; names such as SAME are resolved."""
    if not isinstance(padding, str):
        return tuple(tuple(map(int, pair)) for pair in padding)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel[:2], dilation, strict=True)]
    return tuple(lax.padtype_to_pads(image[1:3], extent, strides, padding))


def _is_nhwc(x, kernel, dimension_numbers) -> bool:
    """Whether images are [B, H, W, C] and kernels [h, w, C, D], none of them empty."""
    if x.ndim != 4 or 0 in (*x.shape, *kernel.shape):
        return False
    numbers = partial(lax.conv_dimension_numbers, x.shape, kernel.shape)
    return numbers(dimension_numbers) == numbers(conv_algorithms.LAYOUT)
