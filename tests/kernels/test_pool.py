"""The gradient of max pooling against XLA's own, and against a plain loop."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.cli import process
from jaxdet.kernels import conv, pool
from tests.reference import layers as reference


def pool_and_gradient(x, g, kernel, stride, padding):
    """Maxima, and the gradient with respect to x for output gradients g(shape)."""

    @jax.jit
    def run(x):
        pooled = partial(pool.max_pool, kernel=kernel, stride=stride, padding=padding)
        out, vjp = jax.vjp(pooled, x)
        return out, vjp(g(out.shape))[0]

    return run(x)


def normal(seed):
    return lambda shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2)
)
def test_any_pool_equals_that_of_xla(height, width, kernel, stride, padding):
    padding = min(padding, kernel // 2)
    if min(height, width) + 2 * padding < kernel:
        return
    distinct = np.random.default_rng(0).permutation(2 * height * width * 3)  # no ties
    x = distinct.reshape(2, height, width, 3).astype(np.float32)
    found = pool_and_gradient(x, normal(1), kernel, stride, padding)
    with conv.default_impl("lax"):
        expected = pool_and_gradient(x, normal(1), kernel, stride, padding)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_ties_share_the_gradient_as_in_the_reference(kernel, stride, padding):
    x = np.round(2 * normal(0)((2, 7, 6, 2)))
    out, found = pool_and_gradient(x, normal(1), kernel, stride, padding)
    expected = reference.max_pool_gradient(x, normal(1)(out.shape), kernel, stride, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_eager_jit_and_vmap_agree():
    x = normal(0)((3, 2, 6, 6, 2))
    pooled = lambda x: (pool.max_pool(x, kernel=3, stride=2, padding=1) ** 2).sum()  # noqa: E731
    plain = np.stack([jax.grad(pooled)(one) for one in x])
    compiled = jax.jit(jax.grad(pooled))
    np.testing.assert_allclose(np.stack([compiled(one) for one in x]), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(pooled)))(x), plain, rtol=1e-6)


def test_the_gradient_sums_to_that_of_the_outputs():
    x = np.zeros((1, 8, 8, 1), np.float32)
    _, found = pool_and_gradient(x, jnp.ones, 3, 2, 1)
    assert found.sum() == pytest.approx(16)


def test_other_dtypes_are_pooled_by_xla():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: pool.max_pool(x, kernel=2, stride=2).sum()))(x))
    assert "select_and_scatter" in jaxpr
    assert nn.max_pool(x, (2, 2), (2, 2)).dtype == x.dtype


def gradient_program(dtype):
    """The traced program of a pool and its gradient."""
    pooled = lambda x: pool.max_pool(x, kernel=3, stride=2, padding=1).sum()  # noqa: E731
    return str(jax.make_jaxpr(jax.grad(pooled))(jnp.ones((1, 6, 6, 1), dtype)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "flags, scatters",
    [
        ("", True),
        ("--xla_gpu_deterministic_ops=false", True),
        ("--xla_gpu_deterministic_ops=true", False),
        ("--xla_gpu_exclude_nondeterministic_ops=1 --xla_gpu_autotune_level=0", False),
        ("--xla_gpu_autotune_level=0 --xla_gpu_exclude_nondeterministic_ops", False),
    ],
)
def test_a_gpu_that_must_be_deterministic_gathers_the_gradient(monkeypatch, dtype, flags, scatters):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert ("select_and_scatter" in gradient_program(dtype)) == scatters
    with conv.default_impl("lax"):
        assert "select_and_scatter" in gradient_program(dtype)


def test_on_a_cpu_the_flag_changes_nothing(monkeypatch):
    before = gradient_program(jnp.float32), gradient_program(jnp.bfloat16)
    monkeypatch.setenv("XLA_FLAGS", process.DETERMINISTIC_FLAG)
    assert (gradient_program(jnp.float32), gradient_program(jnp.bfloat16)) == before


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_both_gradients_on_a_gpu_are_equal(monkeypatch, dtype, kernel, stride, padding):
    """Traced as for a GPU: without ties, and with few windows per pixel, up to one rounding."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 8 * 8).reshape(2, 8, 8, 1), dtype)
    found = {}
    for flags in ("", process.DETERMINISTIC_FLAG):
        monkeypatch.setenv("XLA_FLAGS", flags)
        found[flags] = pool_and_gradient(
            x, lambda s: normal(1)(s).astype(dtype), kernel, stride, padding
        )
    (out, gradient), (gathered_out, gathered) = found.values()
    np.testing.assert_array_equal(out, gathered_out)
    assert gathered.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        gathered.astype(np.float32), gradient.astype(np.float32), rtol=tolerance, atol=tolerance
    )


def test_max_pools_of_the_project_are_these():
    root = Path(pool.__file__).parents[1]
    others = [path for path in root.rglob("*.py") if path != Path(pool.__file__)]
    assert not [
        path for path in others if re.search(r"nn\.max_pool|lax\.reduce_window", path.read_text())
    ]


def test_the_input_is_computed_once():
    """Computed in two fusions, XLA may round it differently, and no pixel equals the maximum."""
    step = jax.grad(lambda x: pool.max_pool(jnp.cos(x), kernel=2, stride=2).sum())
    program = str(jax.make_jaxpr(step)(jnp.ones((1, 4, 4, 1))))
    before, after = program.index("cos"), program.index("reduce_window_max")
    assert before < program.index("optimization_barrier") < after


def test_a_window_whose_maximum_no_pixel_equals_has_a_finite_gradient():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    residuals = jnp.asarray(x), jnp.full((1, 2, 2, 1), 99.0)  # as rounding may produce
    (found,) = pool._backward(2, 2, 0, residuals, jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(found, 0)
