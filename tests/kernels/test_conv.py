from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxdet import flops
from jaxdet.kernels import conv, conv_algorithms

IMPLS = ("auto", "lax", "dot", "im2col", "shift", "pairs", "mirror", "blocks")
CASES = {  # batch, rows, columns, channels, out, kernel, stride, padding, dilation, groups
    "same": (2, 9, 9, 3, 5, (3, 3), 1, "SAME", 1, 1),
    "even strides": (2, 12, 10, 4, 6, (4, 4), 2, "VALID", 1, 1),
    "few channels": (2, 12, 12, 2, 6, (6, 6), 2, ((1, 2), (0, 3)), 1, 1),
    "cut": (1, 11, 11, 2, 3, (2, 2), 2, "VALID", 1, 1),
    "patches": (2, 8, 8, 3, 7, (4, 4), 4, "VALID", 1, 1),
    "small map": (2, 4, 4, 8, 8, (3, 3), 1, "SAME", 1, 1),
    "small strided": (2, 2, 2, 8, 8, (3, 3), 2, "SAME", 1, 1),
    "head": (2, 7, 7, 4, 5, (7, 7), 1, "VALID", 1, 1),
    "pixel": (2, 9, 9, 6, 8, (1, 1), 1, "VALID", 1, 1),
    "pixel strided": (2, 9, 9, 6, 8, (1, 1), 2, ((1, 0), (0, 1)), 1, 1),
    "depthwise": (2, 9, 9, 6, 6, (3, 3), 1, "SAME", 1, 6),
    "depthwise wide": (2, 9, 9, 6, 12, (3, 3), 2, "SAME", 2, 6),
    "grouped": (2, 6, 6, 4, 8, (3, 3), 1, "SAME", 1, 2),
    "flat kernel": (2, 8, 8, 3, 4, (1, 3), 1, "SAME", 1, 1),
}


def inputs(case):
    """(x, kernel, options of the convolution) for a case."""
    count, rows, columns, channels, out, kernel, stride, padding, dilation, groups = case
    draw = np.random.default_rng(0)
    x = draw.normal(size=(count, rows, columns, channels)).astype(np.float32)
    weights = draw.normal(size=(*kernel, channels // groups, out)).astype(np.float32)
    options = {
        "window_strides": (stride, stride),
        "padding": padding,
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": conv_algorithms.LAYOUT,
        "feature_group_count": groups,
    }
    return x, weights, options


def derivatives(convolve, x, kernel):
    """Output, gradients, and a directional derivative."""
    out, vjp = jax.vjp(convolve, x, kernel)
    tangents = (jnp.cos(x), jnp.sin(kernel))
    return out, vjp(jnp.cos(out)), jax.jvp(convolve, (x, kernel), tangents)[1]


def assert_equal(x, kernel, options, impls):
    """Check output, gradients and directional derivative against `lax`, to 1e-5."""
    named = [partial(conv.conv_general_dilated, impl=impl, **options) for impl in impls]

    @jax.jit
    def run(x, kernel):
        each = [partial(lax.conv_general_dilated, **options), *named]
        return [jax.tree.leaves(derivatives(convolve, x, kernel)) for convolve in each]

    native, *others = jax.device_get(run(x, kernel))
    for expected, *found in zip(native, *others, strict=True):
        largest = np.abs(expected).max() or 1.0
        for actual in found:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_algorithm_equals_lax(case):
    """Algorithms that do not apply fall back to `lax` and need no comparison."""
    plans = {impl: planned(case, impl) for impl in IMPLS}
    assert set(plans["lax"]) == {"lax"}
    other = [
        impl
        for impl, plan in plans.items()
        if set(plan) != {"lax"} and (impl == "auto" or plan != plans["auto"])
    ]
    if other:
        assert_equal(*inputs(case), other)


@st.composite
def cases(draw):
    side = st.integers(1, 3)
    kernel = draw(st.tuples(side, side))
    dilation, stride = draw(side), draw(side)
    extent = (max(kernel) - 1) * dilation + 1
    size = st.integers(extent, extent + 4)
    rows, columns = draw(size), draw(size)
    groups = draw(st.integers(1, 3))
    channels, out = groups * draw(side), groups * draw(side)
    some = st.integers(0, 2)
    pads = st.tuples(st.tuples(some, some), st.tuples(some, some))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), pads))
    return (draw(side), rows, columns, channels, out, kernel, stride, padding, dilation, groups)


@settings(max_examples=5, deadline=None)
@given(cases(), st.sampled_from(IMPLS))
def test_any_shape_equals_lax(case, impl):
    assert_equal(*inputs(case), [impl])


def planned(case, impl="auto"):
    """The plan for a case."""
    x, kernel, options = inputs(case)
    seen = {}
    choose = conv.choose_plan

    def spy(*args):
        seen["plan"] = choose(*args)
        return seen["plan"]

    conv.choose_plan = spy
    try:
        jax.eval_shape(partial(conv.conv_general_dilated, impl=impl, **options), x, kernel)
    finally:
        conv.choose_plan = choose
    return seen["plan"]


@pytest.mark.parametrize(
    "name, output",
    [
        ("pixel", "dot"),
        ("depthwise", "shift"),
        ("small map", "im2col"),
        ("head", "im2col"),
        ("few channels", "blocks"),
        ("same", "lax"),
        ("grouped", "lax"),
    ],
)
def test_auto_chooses_by_shape(name, output):
    assert planned(CASES[name]).output == output


def test_auto_is_lax_on_other_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert set(planned(CASES["depthwise"])) == {"lax"}
    assert set(planned(CASES["depthwise"], "shift")) == {"shift"}  # an explicit choice stands


def test_auto_is_lax_for_other_dtypes_and_layouts():
    x, kernel, options = inputs(CASES["pixel"])
    halved = jax.make_jaxpr(partial(conv.conv_general_dilated, **options))(
        x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    )
    assert [eqn.primitive.name for eqn in halved.eqns] == ["conv_general_dilated"]
    options |= {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    np.testing.assert_allclose(
        conv.conv_general_dilated(x, kernel, **options),
        lax.conv_general_dilated(x, kernel, **options),
        rtol=1e-5,
    )


def test_default_impl_overrides_auto_alone():
    x, kernel, options = inputs(CASES["pixel"])
    with conv.default_impl("lax"):
        assert set(planned(CASES["depthwise"])) == {"lax"}
        assert set(planned(CASES["pixel"], "dot")) == {"dot"}
    assert planned(CASES["depthwise"]).output == "shift"


def test_im2col_under_vmap_over_kernels_is_a_batched_matrix_product():
    x, kernel, options = inputs(CASES["same"])
    kernels = jnp.stack([kernel, 2 * kernel])
    with conv.default_impl("im2col"):
        run = jax.vmap(partial(conv.conv_general_dilated, **options), in_axes=(None, 0))
        names = {s.eqn.primitive.name for s in flops.walk(jax.make_jaxpr(run)(x, kernels))}
        found = run(x, kernels)
    assert "dot_general" in names and "conv_general_dilated" not in names
    expected = lax.conv_general_dilated(x, kernel, **options)
    np.testing.assert_allclose(found[1], 2 * expected, rtol=1e-4, atol=1e-5)


def test_operation_counts_equal_those_of_lax():
    x, kernel, options = inputs(CASES["depthwise"])
    assert (
        flops.count(partial(conv.conv_general_dilated, **options), x, kernel).by_layer
        == flops.count(partial(lax.conv_general_dilated, **options), x, kernel).by_layer
    )


def test_the_linen_hook_keeps_parameters_and_names():
    x = jnp.ones((2, 9, 9, 3))
    plain = nn.Conv(4, (3, 3), strides=2)
    hooked = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=conv.conv_general_dilated)
    variables = plain.init(jax.random.key(0), x)
    np.testing.assert_allclose(plain.apply(variables, x), hooked.apply(variables, x), rtol=1e-5)
    transposed = nn.ConvTranspose(4, (3, 3), strides=(2, 2))
    assert transposed.init(jax.random.key(0), x)


def test_the_image_gradient_is_not_computed_unless_needed():
    x, kernel, options = inputs(CASES["pixel"])
    by_kernel = jax.grad(lambda k: conv.conv_general_dilated(x, k, **options).sum())
    steps = [s.eqn.primitive.name for s in flops.walk(jax.make_jaxpr(by_kernel)(kernel))]
    assert steps.count("dot_general") == 1  # the output is not needed for a linear function


def test_consumers_of_a_sum_of_slices_do_not_recompute_it():
    """XLA counts 1.65 times the theoretical operations, and 2.6 times without `compute_once`."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            hook = partial(conv.conv_general_dilated, impl="auto")
            shape = {"kernel_size": (5, 5), "feature_group_count": x.shape[-1]}
            x = nn.Conv(x.shape[-1], **shape, conv_general_dilated=hook)(x)
            return nn.relu6(nn.BatchNorm(use_running_average=False)(x))

    x = jnp.ones((8, 16, 20, 16))
    net = Normed()
    variables = jax.jit(net.init)(jax.random.key(0), x)

    def loss(variables, x):
        return jnp.square(net.apply(variables, x, mutable=["batch_stats"])[0]).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    counted = gradient.lower(variables, x).compile().cost_analysis()["flops"]
    theoretical = 3 * 2 * 25 * x.size  # output and two gradients, a multiply-add per tap
    assert counted < 2 * theoretical
