import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxdet import flops
from jaxdet.flops.rules import RULES, OpCounts
from tests.reference import layers as reference

laws = settings(deadline=None, max_examples=60)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(fn, *shapes, padding="full"):
    """`OpCounts` of a function of arrays of these shapes, which uses only known primitives."""
    found = flops.count(fn, *(shaped(*shape) for shape in shapes), padding=padding)
    assert not found.unknown
    return found.sum()


def products(taps, outputs):
    return OpCounts(additions=taps - outputs, multiplications=taps, multiply_adds=taps)


def pairs_of(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def gradient(fn, argnum, *shapes, padding="full"):
    """`OpCounts` of the gradient of a sum; what only the value needs is dead code."""
    return counted(jax.grad(lambda *args: fn(*args).sum(), argnum), *shapes, padding=padding)


def conv(x, kernel, stride=1, padding="VALID", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, **options
    )


def test_counts_add_and_multiply():
    one = OpCounts(additions=1, multiplications=2, divisions=3, multiply_adds=2)
    assert one + one == one * 2
    assert (one * 3).total() == 18
    assert (one * 3).total("mac") == 6


# Primitives whose equations the counter replaces by those of their bodies.
CALLS = """
    call closed_call cond custom_jvp_call custom_vjp_call eval_jaxpr jit reduce reduce_window remat2
    scan select_and_scatter while
"""
# Primitives that a report names as unknown.
UNCOUNTED = {
    "collectives": "all_gather all_to_all pmax pmin ppermute psum ragged_all_to_all",
    "random bits": """
        random_bits random_fold_in random_gamma random_seed random_split rng_bit_generator
        rng_uniform threefry2x32
    """,
    "Fourier transforms, factorizations and solvers": """
        cholesky cholesky_update custom_linear_solve eig eigh fft hessenberg householder_product lu
        ormqr qr schur svd symmetric_product triangular_solve tridiagonal tridiagonal_solve
    """,
    "of transformations and references, which traced functions do not hold": """
        custom_lin dce_sink get stage swap
    """,
    "rare": "cumlogsumexp",
}


def test_every_primitive_of_the_installed_jax_has_a_rule_or_is_known_to_have_none():
    exported = {
        value.name
        for module in (lax, lax.linalg, primitives)
        for value in vars(module).values()
        if isinstance(value, core.Primitive)
    }
    assert len(exported) > 150
    without = set(" ".join([CALLS, *UNCOUNTED.values()]).split())
    assert not without & RULES.keys()
    assert not sorted(exported - RULES.keys() - without), "give them a rule in jaxdet.flops.rules"


SOFTMAX = {"maxima": 5 * 6 + 5, "transcendentals": 35}
WINDOW = (2, 2), (1, 1), "VALID"


def times(a, b):
    return a * b


@pytest.mark.parametrize(
    "fn, expected",
    [  # for a 5 x 7 matrix
        (lambda x: x + x - (-x), {"additions": 3 * 35}),
        (lambda x: x * x, {"multiplications": 35}),
        (lambda x: x / x, {"divisions": 35}),
        (jax.nn.relu, {"maxima": 35}),
        (lambda x: jnp.minimum(x, 1), {"minima": 35}),
        (lambda x: lax.clamp(0.0, x, 1.0), {"maxima": 35, "minima": 35}),
        (lambda x: jnp.where(x > 0, x, jnp.abs(x)), {"comparisons": 2 * 35}),
        (lambda x: jnp.exp(x).T, {"transcendentals": 35}),
        (lambda x: x**2, {"multiplications": 35}),
        (lambda x: x**5, {"multiplications": 3 * 35}),
        (lambda x: x**8, {"multiplications": 3 * 35}),
        (lambda x: x**-2, {"multiplications": 35, "divisions": 35}),
        (jnp.sum, {"additions": 34}),
        (lambda x: x.sum(1), {"additions": 5 * 6}),
        (lambda x: x.mean(0), {"additions": 7 * 4, "divisions": 7}),
        (lambda x: x.max(1), {"maxima": 5 * 6}),
        (lambda x: x.min(1), {"minima": 5 * 6}),
        (lambda x: x.argmax(1), {"comparisons": 5 * 6}),
        (lambda x: x.argmin(0), {"comparisons": 7 * 4}),
        (lambda x: x.cumsum(0), {"additions": 7 * 4}),
        (lambda x: x.cumprod(1), {"multiplications": 5 * 6}),
        (lambda x: lax.cummax(x, 1), {"maxima": 5 * 6}),
        (lambda x: lax.sort(x, dimension=0), {"comparisons": 35 * 3}),  # of 5: ceil(log2 5) = 3
        (lambda x: lax.top_k(x, 2), {"comparisons": 35 * 3}),
        (lambda x: lax.reduce(x, 0.0, times, (0,)), {"multiplications": 7 * 4}),
        (lambda x: lax.reduce_window(x, 1.0, times, *WINDOW), {"multiplications": 4 * 6 * 3}),
        (jax.nn.softmax, SOFTMAX | {"additions": 35 + 5 * 6, "divisions": 35}),
        (jax.nn.log_softmax, SOFTMAX | {"additions": 2 * 35 + 5 * 6, "transcendentals": 35 + 5}),
        (lambda x: jnp.tile(jnp.concatenate([x, x[::-1]])[1:].reshape(-1), 2), {}),
        (lambda x: jnp.pad(x.astype(jnp.bfloat16).T, 1)[None], {}),
    ],
)
def test_counts_match_closed_forms(fn, expected):
    assert counted(fn, (5, 7)) == OpCounts(**expected)


@pytest.mark.parametrize(
    "fn, expected",
    [  # for a complex 5 x 7 matrix
        (lambda x: x + x, {"additions": 70}),
        (lambda x: x * x, {"multiplications": 140, "additions": 70}),
        (lambda x: x**3, {"multiplications": 280, "additions": 140}),
        (lambda x: x / x, {"multiplications": 210, "additions": 105, "divisions": 70}),
        (jnp.abs, {"multiplications": 70, "additions": 35, "transcendentals": 35}),
        (lambda x: x == x.T.T, {"comparisons": 70}),
        (jnp.exp, {"transcendentals": 70}),
        (jnp.sum, {"additions": 68}),
        (lambda x: x.real + x.imag, {"additions": 35}),
        (jnp.conj, {}),
    ],
)
def test_operations_on_complex_numbers_are_those_on_their_parts(fn, expected):
    found = flops.count(fn, jax.ShapeDtypeStruct((5, 7), jnp.complex64))
    assert (found.sum(), found.unknown) == (OpCounts(**expected), {})


def test_complex_products_are_four_real_ones():
    def by_parts(x, y):
        real = x.real @ y.real - x.imag @ y.imag
        return real, x.real @ y.imag + x.imag @ y.real

    given = [jax.ShapeDtypeStruct(shape, jnp.complex64) for shape in ((3, 5), (5, 7))]
    found, parts = (flops.count(fn, *given).sum() for fn in (jnp.matmul, by_parts))
    assert found == parts == products(4 * 3 * 5 * 7, 2 * 3 * 7)
    given = [jax.ShapeDtypeStruct(shape, jnp.complex64) for shape in ((1, 9, 9, 2), (3, 3, 2, 4))]
    assert flops.count(conv, *given).sum() == products(4 * 7 * 7 * 9 * 2 * 4, 2 * 7 * 7 * 4)


@pytest.mark.parametrize("fn", [jnp.tanh, jax.nn.gelu])
def test_derivatives_of_tanh_have_a_rule(fn):
    """1 - tanh^2 is a primitive from jax 0.11.2 on."""
    found = flops.count(jax.grad(lambda x: fn(x).sum()), shaped(5, 7))
    assert not found.unknown
    assert found.sum().multiplications >= 35


def test_one_minus_square():
    if hasattr(lax, "one_minus_square"):
        assert counted(lax.one_minus_square, (5, 7)) == OpCounts(additions=70, multiplications=35)


@pytest.mark.parametrize("method", ["add", "subtract", "multiply", "max", "min"])
def test_scatters_cost_one_operation_per_update(method):
    kind = {"max": "maxima", "min": "minima", "multiply": "multiplications"}.get(
        method, "additions"
    )
    rows = jnp.array([0, 3], jnp.uint32)  # unsigned: no negative indices to wrap
    found = counted(lambda x, y: getattr(x.at[rows], method)(y), (5, 7), (2, 7))
    assert found == OpCounts(**{kind: 2 * 7})


def norm(module, train, size=(4, 6)):
    """`OpCounts` of a normalization layer and its new statistics on inputs [4, 6]."""
    variables = jax.eval_shape(module.init, jax.random.key(0), shaped(*size))
    apply = partial(module.apply, mutable=["batch_stats"] if train else False)
    return flops.count(apply, variables, shaped(*size)).sum()


def test_normalization_layers():
    n, rows, columns = 24, 4, 6
    evaluating = norm(nn.BatchNorm(use_running_average=True), train=False)
    assert evaluating == OpCounts(
        additions=2 * n + columns, multiplications=n + columns, transcendentals=columns
    )
    training = norm(nn.BatchNorm(use_running_average=False), train=True)
    assert training == OpCounts(
        additions=2 * (n - columns) + columns + 2 * n + columns + 2 * columns,
        multiplications=n + columns + 4 * columns + columns + n,
        maxima=columns,
        divisions=2 * columns,
        transcendentals=columns,
    )
    assert norm(nn.LayerNorm(), train=False) == OpCounts(
        additions=2 * (n - rows) + rows + 2 * n + rows,
        multiplications=n + rows + 2 * n,
        maxima=rows,
        divisions=2 * rows,
        transcendentals=rows,
    )


def test_matrix_products():
    assert counted(jnp.matmul, (3, 5), (5, 7)) == products(3 * 5 * 7, 3 * 7)
    assert counted(jnp.matmul, (2, 3, 5), (2, 5, 7)) == products(2 * 3 * 5 * 7, 2 * 3 * 7)
    assert counted(jnp.dot, (5,), (5,)) == products(5, 1)
    assert counted(jnp.outer, (3,), (4,)).total() == 12
    assert counted(partial(jnp.einsum, "bij,bij->b"), (2, 3, 5), (2, 3, 5)) == products(30, 2)
    assert counted(jnp.matmul, (3, 0), (0, 7)) == OpCounts()


@pytest.mark.parametrize(
    "size, kernel, options, taps, outputs",
    [  # taps and output pixels along one side; taps on padding count
        (9, 3, {}, 7 * 3, 7),
        (9, 3, {"stride": 2}, 4 * 3, 4),
        (9, 3, {"padding": "SAME"}, 9 * 3, 9),
        (9, 3, {"padding": "SAME", "stride": 2}, 5 * 3, 5),
        (9, 3, {"rhs_dilation": (2, 2)}, 5 * 3, 5),
        (
            5,
            3,
            {"padding": [(0, 0)] * 2, "lhs_dilation": (2, 2)},
            4 * 2 + 3 * 1,
            7,
        ),  # pixels alternate with holes
    ],
)
def test_convolutions(size, kernel, options, taps, outputs):
    found = counted(partial(conv, **options), (2, size, size, 3), (kernel, kernel, 3, 5))
    assert found == products(2 * 3 * 5 * taps**2, 2 * 5 * outputs**2)


def test_taps_on_padding_count_only_if_padding_is_full():
    same = partial(conv, padding="SAME")
    shapes = (1, 9, 12, 3), (3, 3, 3, 5)
    assert counted(same, *shapes).multiplications == 3 * 5 * (3 * 9) * (3 * 12)
    valid = counted(same, *shapes, padding="valid")
    assert valid.multiplications == 3 * 5 * (3 * 9 - 2) * (3 * 12 - 2)
    lone = partial(conv, padding=[(2, 2), (2, 2)])
    found = counted(lone, (1, 1, 1, 3), (2, 2, 3, 5), padding="valid")
    assert found == products(3 * 5 * 4, 5 * 4)  # the other 12 outputs see only padding


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_feature_groups_divide_the_products(groups):
    found = counted(
        partial(conv, feature_group_count=groups), (2, 9, 9, 8), (3, 3, 8 // groups, 16)
    )
    assert found == products(2 * 7 * 7 * 16 * 9 * 8 // groups, 2 * 7 * 7 * 16)


def test_batch_groups_divide_the_images():
    found = counted(partial(conv, batch_group_count=2), (4, 9, 9, 8), (3, 3, 8, 16))
    assert found == products(2 * 7 * 7 * 16 * 9 * 8, 2 * 7 * 7 * 16)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions_multiply_every_pixel_by_every_tap(stride):
    net = nn.ConvTranspose(4, (3, 3), strides=(stride,) * 2, padding="VALID", use_bias=False)
    params = {"params": {"kernel": shaped(3, 3, 2, 4)}}
    for padding in ("full", "valid"):
        found = flops.count(net.apply, params, shaped(1, 6, 5, 2), padding=padding).sum()
        assert found.multiplications == 6 * 5 * 3 * 3 * 2 * 4


transposed = st.fixed_dictionaries(
    {
        "strides": pairs_of(1, 3),
        "padding": st.sampled_from(["SAME", "VALID"]),
        "rhs_dilation": pairs_of(1, 2),
    }
)


@settings(laws, max_examples=25)
@given(pairs_of(1, 6), pairs_of(1, 4), transposed)
def test_transposed_convolutions_and_their_gradients_multiply_equally_often(sizes, window, given):
    """JAX adds the padding, so that none of it counts."""
    fn = partial(lax.conv_transpose, dimension_numbers=("NHWC", "HWIO", "NHWC"), **given)
    shapes = (2, *sizes, 3), (*window, 3, 4)
    forward = counted(fn, *shapes).multiplications
    assert forward == counted(fn, *shapes, padding="valid").multiplications
    if given["padding"] == "VALID":
        assert forward == 2 * 3 * 4 * math.prod((*sizes, *window))
    for argnum in (0, 1):
        assert gradient(fn, argnum, *shapes).multiplications == forward


def test_gradients_of_a_convolution_without_padding():
    shapes = (2, 9, 9, 3), (3, 3, 3, 5)
    taps = 2 * 7 * 7 * 5 * 9 * 3
    assert counted(conv, *shapes).multiplications == taps
    assert gradient(conv, 1, *shapes) == products(taps, 3 * 3 * 3 * 5)
    assert gradient(conv, 0, *shapes, padding="valid") == products(taps, 2 * 9 * 9 * 3)
    assert gradient(conv, 0, *shapes) == products(taps, 2 * 9 * 9 * 3)


def over_examples(fn):
    """fn for one image at a time, with a batch axis of one."""
    return jax.vmap(lambda x, kernel: fn(x[None], kernel)[0], (0, None))


convolutions = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 3),
        "padding": st.sampled_from(["SAME", "VALID", [(2, 1), (0, 2)]]),
        "rhs_dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "feature_group_count": st.sampled_from([1, 2]),
    }
)


@settings(laws, max_examples=25)
@given(
    st.integers(5, 9),
    st.integers(5, 9),
    st.integers(1, 3),
    convolutions,
    st.sampled_from(["full", "valid"]),
    st.sampled_from([lambda fn: fn, jax.jit, jax.checkpoint, over_examples]),
)
def test_both_gradients_multiply_as_often_as_the_convolution(
    rows, columns, side, given, padding, wrap
):
    fn = wrap(partial(conv, **given))
    shapes = (2, rows, columns, 4), (side, side, 4 // given["feature_group_count"], 6)
    forward = counted(fn, *shapes, padding=padding).multiplications
    for argnum in (0, 1):
        assert gradient(fn, argnum, *shapes, padding=padding).multiplications == forward


def test_second_derivatives_multiply_as_often_as_the_convolution():
    shapes = (2, 9, 9, 3), (3, 3, 3, 5)
    forward = counted(conv, *shapes).multiply_adds

    def slope(x, kernel):
        return jax.grad(lambda x: (conv(x, kernel) ** 2).sum())(x)

    assert counted(slope, *shapes).multiply_adds == 2 * forward
    assert gradient(slope, 0, *shapes).multiply_adds == 2 * forward  # of both; values are not used


def test_a_kernel_that_the_author_mirrors_changes_no_count():
    """As a convolution in the sense of signal processing does."""
    shapes = (2, 9, 9, 3), (3, 3, 3, 5)
    for argnum in (0, 1):
        found = gradient(lambda x, kernel: conv(x, kernel[::-1, ::-1]), argnum, *shapes)
        assert found == gradient(conv, argnum, *shapes)


geometries = st.tuples(
    pairs_of(1, 7),  # sizes
    pairs_of(1, 4),  # windows
    pairs_of(1, 3),  # strides
    st.tuples(pairs_of(-1, 3), pairs_of(-1, 3)),  # padding
    pairs_of(1, 3),  # spacing of the pixels
    pairs_of(1, 3),  # spacing of the taps
)


def reference_taps(geometry, padding):
    """(taps, outputs with at least one tap) by the slow reference."""
    taps = reference.count_taps(*geometry)
    assume(taps)
    counts = [on + off * (padding == "full") for on, off in taps]
    return sum(counts), sum(count > 0 for count in counts)


@laws
@given(geometries, st.sampled_from(["full", "valid"]))
def test_convolutions_match_the_reference(geometry, padding):
    sizes, windows, strides, pads, bases, dilations = geometry
    taps, outputs = reference_taps(geometry, padding)

    def fn(x, kernel):  # images [B, C, H, W], kernel [outputs, inputs, rows, columns]
        return lax.conv_general_dilated(x, kernel, strides, pads, bases, dilations)

    found = counted(fn, (2, 3, *sizes), (5, 3, *windows), padding=padding)
    assert found == products(2 * 5 * 3 * taps, 2 * 5 * outputs)


@laws
@given(geometries, st.sampled_from(["full", "valid"]))
def test_reduce_windows_match_the_reference(geometry, padding):
    sizes, *window = geometry
    taps, outputs = reference_taps(geometry, padding)
    for kind, init, fn in (("maxima", -jnp.inf, lax.max), ("additions", 0.0, lax.add)):

        def slide(x, init=init, fn=fn):
            return lax.reduce_window(x, init, fn, *window)

        assert counted(slide, sizes, padding=padding) == OpCounts(**{kind: taps - outputs})


def pool(kind, window, stride, padding="VALID"):
    return lambda x: kind(x, (window, window), (stride, stride), padding)


def test_pools_and_their_gradients():
    shape, outputs = (2, 8, 8, 3), 2 * 4 * 4 * 3
    maximum, average = pool(nn.max_pool, 2, 2), pool(nn.avg_pool, 2, 2)
    assert counted(maximum, shape) == OpCounts(maxima=3 * outputs)
    assert counted(average, shape) == OpCounts(additions=3 * outputs, divisions=outputs)
    found = gradient(maximum, 0, shape)
    assert found == OpCounts(additions=outputs, comparisons=3 * outputs)
    found = gradient(average, 0, shape)  # a sum of windows over the zero-dilated gradient
    assert found == OpCounts(additions=3 * 2 * 8 * 8 * 3, divisions=outputs)


def test_overlapping_pools_on_padding():
    shape, outputs = (2, 8, 8, 3), 2 * 4 * 4 * 3
    overlapping = pool(nn.max_pool, 3, 2, ((1, 1), (1, 1)))
    taps = 2 * 3 * (2 + 3 + 3 + 3) ** 2
    assert counted(overlapping, shape) == OpCounts(maxima=8 * outputs)
    assert counted(overlapping, shape, padding="valid") == OpCounts(maxima=taps - outputs)
    assert gradient(overlapping, 0, shape, padding="valid") == OpCounts(
        additions=outputs, comparisons=taps - outputs
    )
