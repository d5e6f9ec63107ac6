"""Cost of each JAX primitive: additions, multiplications, maxima and so on, from its shapes.

A rule maps an equation of a jaxpr to its `OpCounts`.  A dot product of K numbers is K
multiplications and K - 1 additions; a sum or maximum of K numbers is K - 1 operations.
Subtractions and negations count as additions; absolute values, signs and rounding as comparisons;
sorting n numbers as n ceil(log2 n) comparisons, an estimate.  Moving, reshaping, selecting and
converting numbers is free, and so are bitwise operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

Padding = Literal["full", "valid"]
Rule = Callable[[Any, Padding], "OpCounts"]


@dataclass(frozen=True)
class OpCounts:
    """Numbers of operations by kind.

    `multiply_adds` counts the products of sums of products, which are in `multiplications` and
    `additions` as well.
    """

    additions: int = 0
    multiplications: int = 0
    maxima: int = 0
    minima: int = 0
    comparisons: int = 0
    divisions: int = 0
    transcendentals: int = 0
    multiply_adds: int = 0

    def __add__(self, other: "OpCounts") -> "OpCounts":
        """Operations of both."""
        return OpCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, repeats: int) -> "OpCounts":
        """Operations of so many repeats."""
        return OpCounts(*(number * repeats for number in astuple(self)))

    def total(self, convention: Literal["flop", "mac"] = "flop") -> int:
        """All operations (`flop`), or the multiply-adds alone, one per pair (`mac`)."""
        return self.multiply_adds if convention == "mac" else sum(astuple(self)[:-1])


def window_taps(
    outputs: int,
    size: int,
    window: int,
    stride: int,
    low: int,
    base: int,
    dilation: int,
    padding: Padding = "full",
) -> tuple[int, int]:
    """(taps over all outputs, outputs with at least one tap) of a sliding window along one axis.

    low: padding before the first of `size` inputs; base: their spacing; dilation: that of the taps.
    Taps on the holes between spaced inputs never count, taps on padding only if `full`.
    """
    position = np.arange(outputs)[:, None] * stride + np.arange(window) * dilation - low
    counts = position % base == 0
    if padding == "valid":
        counts &= (position >= 0) & (position <= (size - 1) * base)
    return int(counts.sum()), int(counts.any(1).sum())


def _shape(var) -> tuple[int, ...]:
    return var.aval.shape


def _size(var) -> int:
    return math.prod(_shape(var))


def _elementwise(kind: str, eqn, padding: Padding) -> OpCounts:
    return OpCounts(**{kind: sum(map(_size, eqn.outvars))})


def _free(eqn, padding: Padding) -> OpCounts:
    return OpCounts()


def _clamp(eqn, padding: Padding) -> OpCounts:
    size = _size(eqn.outvars[0])
    return OpCounts(maxima=size, minima=size)


def _integer_pow(eqn, padding: Padding) -> OpCounts:
    """Exponentiation by squaring: a product per bit after the first and per further set bit."""
    power, size = abs(eqn.params["y"]), _size(eqn.outvars[0])
    products = max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0)
    inverse = size if eqn.params["y"] < 0 else 0
    return OpCounts(multiplications=products * size, divisions=inverse)


def _dot(eqn, padding: Padding) -> OpCounts:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return _sums_of_products(depth * _size(eqn.outvars[0]), _size(eqn.outvars[0]))


def _conv(eqn, padding: Padding) -> OpCounts:
    """A convolution in any layout: grouped, strided, dilated, or the gradient of one."""
    numbers = eqn.params["dimension_numbers"]
    inputs, kernel, outputs = (  # batch or features first, then channels, then spatial axes
        [_shape(var)[axis] for axis in spec]
        for var, spec in zip(
            (*eqn.invars, *eqn.outvars),
            (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec),
            strict=True,
        )
    )
    taps, reached = _windows(
        outputs[2:],
        inputs[2:],
        kernel[2:],
        eqn.params["window_strides"],
        eqn.params["padding"],
        eqn.params["lhs_dilation"],
        eqn.params["rhs_dilation"],
        padding,
    )
    maps = outputs[0] * outputs[1]  # images times channels; kernel[1] is input channels per group
    return _sums_of_products(maps * kernel[1] * taps, maps * reached)


def _sums_of_products(products: int, outputs: int) -> OpCounts:
    additions = max(products - outputs, 0)
    return OpCounts(additions=additions, multiplications=products, multiply_adds=products)


def _windows(
    outputs: Sequence[int],
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    bases: Sequence[int],
    dilations: Sequence[int],
    padding: Padding,
) -> tuple[int, int]:
    """`window_taps` over all spatial axes, whose counts multiply."""
    lows = [low for low, _ in pads]
    axes = zip(outputs, sizes, windows, strides, lows, bases, dilations, strict=True)
    taps, reached = zip(*(window_taps(*axis, padding=padding) for axis in axes), strict=True)
    return math.prod(taps), math.prod(reached)


def _reduce(kind: str, eqn, padding: Padding) -> OpCounts:
    return OpCounts(**{kind: max(_size(eqn.invars[0]) - _size(eqn.outvars[0]), 0)})


def _cumulative(kind: str, eqn, padding: Padding) -> OpCounts:
    size, length = _size(eqn.outvars[0]), _shape(eqn.outvars[0])[eqn.params["axis"]]
    return OpCounts(**{kind: size - size // max(length, 1)})


def _sort(axis_name: str, eqn, padding: Padding) -> OpCounts:
    length = _shape(eqn.invars[0])[eqn.params[axis_name]]
    return OpCounts(comparisons=_size(eqn.invars[0]) * max(length - 1, 0).bit_length())


def _reduce_window(kind: str, eqn, padding: Padding) -> OpCounts:
    sizes = _shape(eqn.invars[0])
    taps, reached = _pool_windows(eqn.params, _shape(eqn.outvars[0]), sizes, padding)
    return OpCounts(**{kind: taps - reached})


def _select_and_scatter_add(eqn, padding: Padding) -> OpCounts:
    """Gradient of a max pool: find the maximum of each window again, add one number there."""
    source, operand = eqn.invars
    taps, reached = _pool_windows(eqn.params, _shape(source), _shape(operand), padding)
    return OpCounts(additions=_size(source), comparisons=taps - reached)


def _pool_windows(params, outputs, sizes, padding: Padding) -> tuple[int, int]:
    ones = (1,) * len(sizes)
    return _windows(
        outputs,
        sizes,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", ones),
        params.get("window_dilation", ones),
        padding,
    )


def _scatter(kind: str, eqn, padding: Padding) -> OpCounts:
    return OpCounts(**{kind: _size(eqn.invars[2])})


FREE = """
    and or not xor shift_left shift_right_logical shift_right_arithmetic population_count clz
    bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy copy_p
    device_put dynamic_slice dynamic_update_slice empty expand_dims gather iota pad
    reduce_precision reshape rev scatter select_n slice split squeeze stop_gradient transpose
    reduce_and reduce_or reduce_xor axis_index optimization_barrier sharding_constraint real
    imag complex conj name pvary tile random_wrap random_unwrap
"""


def _by_kind(rule: Callable[..., OpCounts], **primitives: str) -> dict[str, Rule]:
    """{primitive: its rule} from the primitives of each kind of operation."""
    return {
        name: partial(rule, kind) for kind, names in primitives.items() for name in names.split()
    }


RULES: dict[str, Rule] = {
    **dict.fromkeys(FREE.split(), _free),
    **_by_kind(
        _elementwise,
        additions="add sub neg add_any",
        multiplications="mul square",
        maxima="max",
        minima="min",
        comparisons="eq ne lt le gt ge eq_to lt_to le_to abs sign floor ceil round is_finite",
        divisions="div rem",
        transcendentals="""
            exp exp2 log log1p expm1 logistic pow sqrt rsqrt cbrt tanh sin cos tan asin acos atan
            atan2 sinh cosh asinh acosh atanh erf erfc erf_inv lgamma digamma
        """,
    ),
    **_by_kind(
        _reduce,
        additions="reduce_sum",
        multiplications="reduce_prod",
        maxima="reduce_max",
        minima="reduce_min",
        comparisons="argmax argmin",
    ),
    **_by_kind(
        _cumulative,
        additions="cumsum",
        multiplications="cumprod",
        maxima="cummax",
        minima="cummin",
    ),
    **_by_kind(
        _reduce_window,
        additions="reduce_window_sum",
        maxima="reduce_window_max",
        minima="reduce_window_min",
        comparisons="select_and_gather_add",
    ),
    **_by_kind(
        _scatter,
        additions="scatter-add scatter_add scatter-sub",
        multiplications="scatter-mul scatter_mul",
        maxima="scatter-max scatter_max",
        minima="scatter-min scatter_min",
    ),
    "clamp": _clamp,
    "integer_pow": _integer_pow,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "select_and_scatter_add": _select_and_scatter_add,
    "sort": partial(_sort, "dimension"),
    "top_k": partial(_sort, "axis"),
}
