from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import flops
from jaxdet.models import layers
from jaxdet.models.layers import ConvModule, Dropout
from jaxdet.training import host_init
from tests.reference import layers as reference

BOUND = 5  # standard deviations of a measured fraction from its expectation, at most


pool = jax.jit(layers.adaptive_avg_pool, static_argnames=("name", "side"))
convolve = jax.jit(lambda net, *args: net.apply(*args), static_argnums=0)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_adaptive_avg_pool_agrees_with_torch(side):
    torch = pytest.importorskip("torch")
    expected = torch.nn.AdaptiveAvgPool2d(side)
    sizes = [(1, 1), (2, 9), (3, 4), (5, 13), (6, 3), (7, 7), (8, 14)]
    maps = [drawn(2, *size, 3) for size in sizes]
    pools = jax.jit(lambda maps: [layers.adaptive_avg_pool(x, "pool", side=side) for x in maps])
    for x, found in zip(maps, pools(maps), strict=True):
        wanted = expected(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=str(x.shape))


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_adaptive_avg_pool_equals_the_loop(height, width, side):
    x = drawn(2, height, width, 2)
    found = pool(x, "pool", side=side)
    np.testing.assert_allclose(found, reference.adaptive_average_pool(x, side), atol=1e-6)


def test_adaptive_avg_pool_to_the_same_size_is_the_identity():
    x = drawn(2, 4, 4, 3)
    np.testing.assert_array_equal(pool(x, "pool", side=4), x)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_adaptive_avg_pool_keeps_constants_and_the_dtype(side):
    x = jnp.full((1, 4, 7, 2), 3.0, jnp.bfloat16)
    found = pool(x, "pool", side=side)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 3, rtol=0.01)


def test_layers_without_parameters_are_rows_of_the_operation_table():
    def net(x):
        x = layers.max_pool(layers.relu(x, "bend"), "halve", kernel=2, stride=2)
        return layers.adaptive_avg_pool(x, "thirds", side=3)

    rows = flops.count(net, jax.ShapeDtypeStruct((1, 10, 10, 2), jnp.float32)).by_layer
    assert {path for path, _ in rows} == {"bend", "halve", "thirds"}


def drop(rate, x, factor=1.0, seed=0, train=True):
    return dropped(rate, x, factor, seed, train)


@partial(jax.jit, static_argnums=(0, 4))
def dropped(rate, x, factor, seed, train):
    return Dropout(rate).apply({}, x, factor, train, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate, factor", [(0.5, 1.0), (0.2, 1.0), (0.5, 0.4), (0.3, 2.0)])
def test_dropout_zeroes_the_given_fraction_and_scales_the_rest(rate, factor):
    x = np.ones((100, 200), np.float32)
    out, fraction = np.asarray(drop(rate, x, factor)), rate * factor
    bound = BOUND * (fraction * (1 - fraction) / x.size) ** 0.5
    assert abs(float((out == 0).mean()) - fraction) < bound
    np.testing.assert_allclose(out[out != 0], 1 / (1 - fraction), rtol=1e-6)
    assert abs(float(out.mean()) - 1) < bound / (1 - fraction)


@pytest.mark.parametrize(
    "rate, factor, train", [(0.5, 1.0, False), (0.0, 1.0, True), (0.5, 0, True)]
)
def test_without_training_rate_or_factor_nothing_is_dropped(rate, factor, train):
    x = drawn(100, 200)
    np.testing.assert_array_equal(drop(rate, x, factor, train=train), x)


def test_evaluation_and_rate_zero_need_no_key():
    x = drawn(3, 4)
    assert Dropout(0.5).apply({}, x) is x
    assert Dropout(0.0).apply({}, x, train=True) is x


def test_dropout_depends_on_its_key():
    x = np.ones((100, 200), np.float32)
    first, again, other = drop(0.5, x, seed=1), drop(0.5, x, seed=1), drop(0.5, x, seed=2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_traced_dropout_factor_equals_a_constant_one():
    x, factors = drawn(100, 200), np.float32([0.0, 0.5, 1.0, 1.9])
    swept = np.asarray(jax.jit(jax.vmap(lambda factor: drop(0.5, x, factor)))(factors))
    plain = np.stack([drop(0.5, x, float(factor)) for factor in factors])
    chex.assert_trees_all_close(swept, plain, rtol=1e-5)
    zeros = [int((each == 0).sum()) for each in swept]
    assert zeros[0] == 0 and zeros == sorted(
        set(zeros)
    )  # one key: more drop, and what dropped stays
    assert (swept[2][swept[1] == 0] == 0).all()


def test_the_gradient_of_dropout_is_its_mask():
    x = drawn(100, 200)
    slope = np.asarray(jax.jit(jax.grad(lambda x: drop(0.5, x).sum()))(x))
    np.testing.assert_allclose(slope * x, drop(0.5, x), rtol=1e-6)
    assert 0 < (slope == 0).mean() < 1


def test_dropout_keeps_the_dtype():
    x = jnp.ones((4, 4), jnp.bfloat16)
    assert drop(0.5, x, 1.0).dtype == jnp.bfloat16


class SingleConv(ConvModule):
    """One convolution."""

    kernel: int = 3
    stride: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        options = {"stride": self.stride, "bias": self.bias, "train": train}
        return self.conv_norm(x, 4, self.kernel, "conv", **options)


@pytest.mark.parametrize(
    "fields, parts",
    [
        ({}, {"conv": {"kernel"}, "conv_norm": {"scale", "bias"}}),
        ({"bias": True}, {"conv": {"kernel", "bias"}, "conv_norm": {"scale", "bias"}}),
        ({"norm": False}, {"conv": {"kernel", "bias"}}),
    ],
)
def test_a_convolution_has_a_norm_or_a_bias(fields, parts):
    variables = jax.eval_shape(SingleConv(**fields).init, jax.random.key(0), jnp.ones((1, 5, 5, 3)))
    assert {name: set(leaves) for name, leaves in variables["params"].items()} == parts
    assert ("batch_stats" in variables) == ("conv_norm" in parts)
    assert variables["params"]["conv"]["kernel"].shape == (3, 3, 3, 4)


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (1, 2), (7, 2), (5, 3)])
def test_a_convolution_pads_as_in_torch(kernel, stride):
    torch = pytest.importorskip("torch")
    for sides in ((8, 8), (9, 7)):
        x, net = drawn(2, *sides, 3), SingleConv(kernel=kernel, stride=stride, norm=False)
        conv = {"kernel": drawn(kernel, kernel, 3, 4, seed=1), "bias": drawn(4, seed=2)}
        weight = torch.from_numpy(conv["kernel"]).permute(3, 2, 0, 1)
        wanted = torch.nn.functional.conv2d(
            *(torch.from_numpy(x).permute(0, 3, 1, 2), weight, torch.from_numpy(conv["bias"])),
            stride=stride,
            padding=kernel // 2,
        )
        found = convolve(net, {"params": {"conv": conv}}, x)
        np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 1), atol=1e-4)


@pytest.fixture(scope="module")
def normal():
    """A convolution with a norm, its variables, and a batch."""
    x = drawn(8, 6, 6, 3) + 1
    return SingleConv(), host_init.initialize(SingleConv().init, jax.random.key(0), x), x


def bare(variables, x):
    """Output of the convolution before its norm."""
    conv = {**variables["params"]["conv"], "bias": np.zeros(4, np.float32)}
    return np.asarray(convolve(SingleConv(norm=False), {"params": {"conv": conv}}, x))


def test_batch_norm_normalizes_a_training_batch_and_moves_its_statistics_by_a_tenth(normal):
    net, variables, x = normal
    train = jax.jit(partial(net.apply, train=True, mutable="batch_stats"))
    out, updates = jax.device_get(train(variables, x))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    before = bare(variables, x)
    stats = updates["batch_stats"]["conv_norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * before.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * before.var((0, 1, 2)), rtol=1e-4)


def test_evaluation_normalizes_by_the_running_statistics(normal):
    net, variables, x = normal
    wide = {"conv_norm": {"mean": np.ones(4, np.float32), "var": np.full(4, 4, np.float32)}}
    found = convolve(net, {**variables, "batch_stats": wide}, x)
    before = bare(variables, x)
    np.testing.assert_allclose(found, (before - 1) / 2, atol=1e-4)


def test_shared_fields_are_all_fields_of_conv_module():
    def spy(*args, **kwargs):
        return jax.lax.conv_general_dilated(*args, **kwargs)

    given = {
        "axis_name": "devices",
        "dtype": jnp.bfloat16,
        "conv_general_dilated": spy,
        "norm": False,
        "epsilon": 1e-3,
        "momentum": 0.99,
        "activation": nn.gelu,
        "kernel_init": layers.KAIMING_FAN_IN,
    }
    assert SingleConv(kernel=1, **given).shared_fields() == given
    out, variables = jax.eval_shape(
        SingleConv(**given).init_with_output, jax.random.key(0), jnp.ones((1, 3, 3, 2))
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_initial_kernels_preserve_the_variance_of_gradients():
    variables = host_init.initialize(
        SingleConv().init, jax.random.key(0), np.ones((1, 1, 1, 300), np.float32)
    )
    kernel = variables["params"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 4)) ** 0.5, rtol=0.05)
