"""What each primitive of JAX costs: additions, multiplications, maxima and so on, from its shapes.

A function of an equation of a jaxpr and of whether taps on padding count gives its `Count`.  A
product of K numbers with K numbers is K multiplications and K - 1 additions; a sum, a maximum, a
window of K numbers is K - 1 operations.  Subtractions and sign changes are additions; absolute
values, signs and rounding are comparisons; sorting is n ceil(log2 n) comparisons, an estimate.
What moves, reshapes, selects or converts numbers is free, and so is logic on bits.
"""

import math
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np


@dataclass(frozen=True)
class OpCounts:
    """Numbers of operations; `multiply_adds` of the first two come in pairs, in products."""

    additions: int = 0
    multiplications: int = 0
    maxima: int = 0
    minima: int = 0
    comparisons: int = 0
    divisions: int = 0
    transcendentals: int = 0
    multiply_adds: int = 0

    def __add__(self, other):
        """Operations of both, one after the other."""
        return OpCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times):
        """Operations of so many repeats."""
        return OpCounts(*(number * times for number in astuple(self)))

    def total(self, convention="flop"):
        """All operations under `flop`; only the multiply-adds, one for each pair, under `mac`."""
        return self.multiply_adds if convention == "mac" else sum(astuple(self)[:-1])


ELEMENTWISE = {
    "additions": "add sub neg add_any",
    "multiplications": "mul square",
    "maxima": "max",
    "minima": "min",
    "comparisons": "eq ne lt le gt ge eq_to lt_to le_to abs sign floor ceil round is_finite",
    "divisions": "div rem",
    "transcendentals": (
        "exp exp2 log log1p expm1 logistic pow sqrt rsqrt cbrt tanh sin cos tan asin acos atan "
        "atan2 sinh cosh asinh acosh atanh erf erfc erf_inv lgamma digamma"
    ),
}
FREE = """
    and or not xor shift_left shift_right_logical shift_right_arithmetic population_count clz
    bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy copy_p
    device_put dynamic_slice dynamic_update_slice empty expand_dims gather iota pad
    reduce_precision reshape rev scatter select_n slice split squeeze stop_gradient transpose
    reduce_and reduce_or reduce_xor axis_index optimization_barrier sharding_constraint real
    imag complex conj name pvary tile random_wrap random_unwrap
"""


def window_taps(outputs, size, window, stride, low, base, dilation, padding="full"):
    """(pairs of an output and a tap, outputs with any tap) along one axis.

    `low` is the padding before the first of `size` numbers, `base` their spacing and `dilation`
    that of the taps.  The holes that `base` leaves never count; taps on padding count if `full`.
    """
    place = np.arange(outputs)[:, None] * stride + np.arange(window) * dilation - low
    counts = place % base == 0
    if padding == "valid":
        counts &= (place >= 0) & (place <= (size - 1) * base)
    return int(counts.sum()), int(counts.any(1).sum())


def _shape(var):
    return var.aval.shape


def _size(var):
    return math.prod(_shape(var))


def _elementwise(kind, eqn, padding):
    return OpCounts(**{kind: sum(map(_size, eqn.outvars))})


def _free(eqn, padding):
    return OpCounts()


def _clamp(eqn, padding):
    size = _size(eqn.outvars[0])
    return OpCounts(maxima=size, minima=size)


def _integer_pow(eqn, padding):
    """Powers by squaring: one product a bit after the first, one more a further set bit."""
    power, size = abs(eqn.params["y"]), _size(eqn.outvars[0])
    products = max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0)
    inverse = size if eqn.params["y"] < 0 else 0
    return OpCounts(multiplications=products * size, divisions=inverse)


def _dot(eqn, padding):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return _products(depth * _size(eqn.outvars[0]), _size(eqn.outvars[0]))


def _products(taps, outputs):
    """Sums of products: so many taps in all, over so many outputs."""
    return OpCounts(additions=max(taps - outputs, 0), multiplications=taps, multiply_adds=taps)


def _conv(eqn, padding):
    """A convolution in any layout, grouped, strided, dilated, or the gradient of one."""
    numbers = eqn.params["dimension_numbers"]
    image, kernel, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    sizes, taps, made = (
        [_shape(var)[axis] for axis in spec]
        for var, spec in zip((*eqn.invars, *eqn.outvars), (image, kernel, out), strict=True)
    )
    pairs, seen = _windows(
        made[2:],
        sizes[2:],
        taps[2:],
        eqn.params["window_strides"],
        eqn.params["padding"],
        eqn.params["lhs_dilation"],
        eqn.params["rhs_dilation"],
        padding,
    )
    outputs = made[0] * made[1]  # images and channels; a kernel has its inputs per group
    return _products(outputs * taps[1] * pairs, outputs * seen)


def _windows(outputs, sizes, windows, strides, pads, bases, dilations, padding):
    """`window_taps` over all axes: pairs and outputs multiply."""
    lows = [low for low, _ in pads]
    along = zip(outputs, sizes, windows, strides, lows, bases, dilations, strict=True)
    pairs, seen = zip(*(window_taps(*axis, padding) for axis in along), strict=True)
    return math.prod(pairs), math.prod(seen)


def _reduce(kind, eqn, padding):
    return OpCounts(**{kind: max(_size(eqn.invars[0]) - _size(eqn.outvars[0]), 0)})


def _cumulative(kind, eqn, padding):
    size, length = _size(eqn.outvars[0]), _shape(eqn.outvars[0])[eqn.params["axis"]]
    return OpCounts(**{kind: size - size // max(length, 1)})


def _sort(axis_name, eqn, padding):
    length = _shape(eqn.invars[0])[eqn.params[axis_name]]
    return OpCounts(comparisons=_size(eqn.invars[0]) * max(length - 1, 0).bit_length())


def _reduce_window(kind, eqn, padding):
    params, sizes = eqn.params, _shape(eqn.invars[0])
    ones = (1,) * len(sizes)
    pairs, seen = _windows(
        _shape(eqn.outvars[0]),
        sizes,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", ones),
        params.get("window_dilation", ones),
        padding,
    )
    return OpCounts(**{kind: pairs - seen})


def _select_and_scatter_add(eqn, padding):
    """Gradient of a max pool: find the maximum of each window again, add one number there."""
    source, operand = eqn.invars
    params, ones = eqn.params, (1,) * len(_shape(operand))
    pairs, seen = _windows(
        _shape(source),
        _shape(operand),
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        ones,
        ones,
        padding,
    )
    return OpCounts(additions=_size(source), comparisons=pairs - seen)


def _scatter(kind, eqn, padding):
    return OpCounts(**{kind: _size(eqn.invars[2])})


def _spread(rule, names):
    """One entry a name: {name of a primitive suffix: rule of its kind}."""
    return {name: partial(rule, kind) for name, kind in names.items()}


RULES = {
    **{
        name: partial(_elementwise, kind)
        for kind, names in ELEMENTWISE.items()
        for name in names.split()
    },
    **dict.fromkeys(FREE.split(), _free),
    "clamp": _clamp,
    "integer_pow": _integer_pow,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    **_spread(
        _reduce,
        {
            "reduce_sum": "additions",
            "reduce_prod": "multiplications",
            "reduce_max": "maxima",
            "reduce_min": "minima",
            "argmax": "comparisons",
            "argmin": "comparisons",
        },
    ),
    **_spread(
        _cumulative,
        {
            "cumsum": "additions",
            "cumprod": "multiplications",
            "cummax": "maxima",
            "cummin": "minima",
        },
    ),
    **_spread(
        _reduce_window,
        {
            "reduce_window_sum": "additions",
            "reduce_window_max": "maxima",
            "reduce_window_min": "minima",
            "select_and_gather_add": "comparisons",
        },
    ),
    **_spread(
        _scatter,
        {
            "scatter-add": "additions",
            "scatter_add": "additions",
            "scatter-sub": "additions",
            "scatter-mul": "multiplications",
            "scatter_mul": "multiplications",
            "scatter-max": "maxima",
            "scatter_max": "maxima",
            "scatter-min": "minima",
            "scatter_min": "minima",
        },
    ),
    "select_and_scatter_add": _select_and_scatter_add,
    "sort": partial(_sort, "dimension"),
    "top_k": partial(_sort, "axis"),
}
