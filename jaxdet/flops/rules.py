"""Cost of each JAX primitive, in additions, multiplications, maxima and so on, from its shapes.

A rule maps an equation of a jaxpr to its `OpCounts`.  A dot product of K numbers is K
multiplications and K - 1 additions; a sum or maximum of K numbers is K - 1 operations.
Subtractions and negations count as additions; absolute values, signs and rounding count as
comparisons; sorting n numbers counts as n ceil(log2 n) comparisons, an estimate.  Moving,
reshaping, selecting and converting numbers is free; bitwise operations are free, too.  An operation
on complex numbers counts as the operations on their real and imaginary parts: a product as four
multiplications and two additions.

Primitives without a rule are reported by name: random bits, collectives, and Fourier transforms and
matrix factorizations, whose cost depends on the algorithm and, for some, on the values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

Padding = Literal["full", "valid"]
Taps = Literal["full", "valid", "transposed"]  # see `window_taps`
Rule = Callable[[Any, Taps], "OpCounts"]


@dataclass(frozen=True)
class OpCounts:
    """Number of operations of each kind.

    `multiply_adds` counts the products in dot products and convolutions.  The same products are
    also counted in `multiplications`, and the additions of their sums in `additions`.
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
        """The sums of the counts of each kind."""
        return OpCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, repeats: int) -> "OpCounts":
        """The counts times `repeats`."""
        return OpCounts(*(number * repeats for number in astuple(self)))

    def total(self, convention: Literal["flop", "mac"] = "flop") -> int:
        """Number of all operations (`flop`), or of the multiply-adds alone (`mac`)."""
        return self.multiply_adds if convention == "mac" else sum(astuple(self)[:-1])


def count_operations(eqn: Any, taps: Taps) -> OpCounts:
    """Operations of one equation, whose primitive must be in `RULES`."""
    counts = RULES[eqn.primitive.name](eqn, taps)
    return _complex(counts) if _is_complex(eqn.outvars[0]) else counts


def window_taps(
    outputs: int,
    size: int,
    window: int,
    stride: int,
    low: int,
    base: int,
    dilation: int,
    taps: Taps = "full",
) -> tuple[int, int]:
    """(number of taps, number of outputs with a tap) of a sliding window along one axis.

    The number of taps is the sum over all outputs.

    low: padding before the first of `size` inputs.
    base: spacing of the inputs (lhs dilation).
    dilation: spacing of the taps (rhs dilation).
    taps: "valid" counts the taps that fall on an input; "full" also counts the taps on padding, but
      no taps between spaced inputs.  "transposed" is for the gradient of a convolution with respect
      to its input: it counts all taps of that convolution, including the taps on its padding.
    """
    if taps == "transposed":
        low = (window - 1) * dilation - low
        position = np.arange(size)[:, None] * base + np.arange(window) * dilation - low
        reached = position[position % stride == 0]
        return reached.size, np.unique(reached).size
    position = np.arange(outputs)[:, None] * stride + np.arange(window) * dilation - low
    counts = position % base == 0
    if taps == "valid":
        counts &= (position >= 0) & (position <= (size - 1) * base)
    return int(counts.sum()), int(counts.any(1).sum())


def _complex(counts: OpCounts) -> OpCounts:
    """Convert counts of complex operations to counts of real ones, in part an estimate."""
    # A quotient is a product with the conjugate, divided by a squared norm.  Any other operation
    # becomes two, one per part.
    products, quotients = counts.multiplications, counts.divisions
    return OpCounts(
        additions=2 * counts.additions + 2 * products + 3 * quotients,
        multiplications=4 * products + 6 * quotients,
        maxima=2 * counts.maxima,
        minima=2 * counts.minima,
        comparisons=2 * counts.comparisons,
        divisions=2 * quotients,
        transcendentals=2 * counts.transcendentals,
        multiply_adds=4 * counts.multiply_adds,
    )


def _is_complex(var) -> bool:
    return getattr(getattr(var.aval, "dtype", None), "kind", None) == "c"


def _shape(var) -> tuple[int, ...]:
    return var.aval.shape


def _size(var) -> int:
    return math.prod(_shape(var))


def _elementwise(kind: str, eqn, taps: Taps) -> OpCounts:
    return OpCounts(**{kind: sum(map(_size, eqn.outvars))})


def _free(eqn, taps: Taps) -> OpCounts:
    return OpCounts()


def _one_minus_square(eqn, taps: Taps) -> OpCounts:
    """The operation 1 - x^2, counted as (1 - x) (1 + x)."""
    size = _size(eqn.outvars[0])
    return OpCounts(additions=2 * size, multiplications=size)


def _abs(eqn, taps: Taps) -> OpCounts:
    size = _size(eqn.outvars[0])
    if _is_complex(eqn.invars[0]):  # the root of a sum of two squares
        return OpCounts(additions=size, multiplications=2 * size, transcendentals=size)
    return OpCounts(comparisons=size)


def _compare(eqn, taps: Taps) -> OpCounts:
    parts = 2 if _is_complex(eqn.invars[0]) else 1
    return OpCounts(comparisons=parts * _size(eqn.outvars[0]))


def _clamp(eqn, taps: Taps) -> OpCounts:
    size = _size(eqn.outvars[0])
    return OpCounts(maxima=size, minima=size)


def _integer_pow(eqn, taps: Taps) -> OpCounts:
    """Exponentiation by squaring: a product for each bit after the first, two if the bit is 1."""
    power, size = abs(eqn.params["y"]), _size(eqn.outvars[0])
    products = max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0)
    inverse = size if eqn.params["y"] < 0 else 0
    return OpCounts(multiplications=products * size, divisions=inverse)


def _dot(eqn, taps: Taps) -> OpCounts:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return _sums_of_products(depth * _size(eqn.outvars[0]), _size(eqn.outvars[0]))


def _conv(eqn, taps: Taps) -> OpCounts:
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
    counted, reached = _windows(
        outputs[2:],
        inputs[2:],
        kernel[2:],
        eqn.params["window_strides"],
        eqn.params["padding"],
        eqn.params["lhs_dilation"],
        eqn.params["rhs_dilation"],
        taps,
    )
    maps = outputs[0] * outputs[1]  # images times channels; kernel[1] is input channels per group
    return _sums_of_products(maps * kernel[1] * counted, maps * reached)


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
    taps: Taps,
) -> tuple[int, int]:
    """`window_taps` of all spatial axes together: the product of their counts."""
    lows = [low for low, _ in pads]
    axes = zip(outputs, sizes, windows, strides, lows, bases, dilations, strict=True)
    counted, reached = zip(*(window_taps(*axis, taps=taps) for axis in axes), strict=True)
    return math.prod(counted), math.prod(reached)


def _reduce(kind: str, eqn, taps: Taps) -> OpCounts:
    return OpCounts(**{kind: max(_size(eqn.invars[0]) - _size(eqn.outvars[0]), 0)})


def _cumulative(kind: str, eqn, taps: Taps) -> OpCounts:
    size, length = _size(eqn.outvars[0]), _shape(eqn.outvars[0])[eqn.params["axis"]]
    return OpCounts(**{kind: size - size // max(length, 1)})


def _polynomial(eqn, taps: Taps) -> OpCounts:
    """A polynomial by Horner's rule: a product and an addition per coefficient after the first."""
    steps = (len(eqn.invars) - 2) * _size(eqn.outvars[0])
    return OpCounts(additions=steps, multiplications=steps)


def _sort(axis_name: str, eqn, taps: Taps) -> OpCounts:
    length = _shape(eqn.invars[0])[eqn.params[axis_name]]
    return OpCounts(comparisons=_size(eqn.invars[0]) * max(length - 1, 0).bit_length())


def _reduce_window(kind: str, eqn, taps: Taps) -> OpCounts:
    sizes = _shape(eqn.invars[0])
    counted, reached = _pool_windows(eqn.params, _shape(eqn.outvars[0]), sizes, taps)
    return OpCounts(**{kind: counted - reached})


def _select_and_scatter_add(eqn, taps: Taps) -> OpCounts:
    """Gradient of a max pool: find the maximum of each window again, and add a number there."""
    source, operand = eqn.invars
    counted, reached = _pool_windows(eqn.params, _shape(source), _shape(operand), taps)
    return OpCounts(additions=_size(source), comparisons=counted - reached)


def _pool_windows(params, outputs, sizes, taps: Taps) -> tuple[int, int]:
    ones = (1,) * len(sizes)
    return _windows(
        outputs,
        sizes,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", ones),
        params.get("window_dilation", ones),
        taps,
    )


def _scatter(kind: str, eqn, taps: Taps) -> OpCounts:
    return OpCounts(**{kind: _size(eqn.invars[2])})


FREE = """
    and or not xor shift_left shift_right_logical shift_right_arithmetic population_count clz
    bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy copy_p
    device_put dynamic_slice dynamic_update_slice empty expand_dims gather iota pad
    reduce_precision reshape rev scatter select_n slice split squeeze stop_gradient transpose
    reduce_and reduce_or reduce_xor axis_index optimization_barrier sharding_constraint real
    imag complex conj name pvary tile random_wrap random_unwrap stack unstack empty2 nextafter
    after_all create_token lu_pivots_to_permutation
"""


def _by_kind(rule: Callable[..., OpCounts], **primitives: str) -> dict[str, Rule]:
    """{primitive: `rule` of its kind}; primitives: {kind: names, separated by spaces}."""
    return {
        name: partial(rule, kind) for kind, names in primitives.items() for name in names.split()
    }


RULES: dict[str, Rule] = {
    **dict.fromkeys(FREE.split(), _free),
    **_by_kind(
        _elementwise,
        additions="add sub neg add_any",
        multiplications="mul mulhi square",
        maxima="max",
        minima="min",
        comparisons="sign floor ceil round is_finite",
        divisions="div rem",
        transcendentals="""
            exp exp2 log log2 log1p expm1 logistic pow sqrt rsqrt cbrt tanh sin cos tan asin acos
            atan atan2 sinh cosh asinh acosh atanh erf erfc erf_inv lgamma digamma polygamma zeta
            igamma igamma_grad_a igammac regularized_incomplete_beta bessel_i0e bessel_i1e
        """,
    ),
    **dict.fromkeys(["eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"], _compare),
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
    "abs": _abs,
    "one_minus_square": _one_minus_square,
    "clamp": _clamp,
    "integer_pow": _integer_pow,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "select_and_scatter_add": _select_and_scatter_add,
    "sort": partial(_sort, "dimension"),
    "top_k": partial(_sort, "axis"),
    "approx_top_k": partial(_sort, "reduction_dimension"),
    "polynomial": _polynomial,
}
