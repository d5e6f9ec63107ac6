import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.resnet import ResNet18
from jaxdet.training import host_init
from jaxdet.training import state as training_state
from tests import tiny

SAMPLERS = {
    "normal": lambda key: jax.random.normal(key, (20000,)),
    "truncated": lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (20000,)),
    "uniform": lambda key: jax.random.uniform(key, (20000,), minval=-1.0),
    "bernoulli": lambda key: jax.random.bernoulli(key, 0.3, (200, 100)).mean(1),
    "exponential": lambda key: jax.random.exponential(key, (20000,)),
    "half": lambda key: jax.random.normal(key, (20000,), jnp.bfloat16),
}


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_samples_have_the_distribution_of_jax(sample):
    found, expected = host_init.initialize(sample, jax.random.key(0)), sample(jax.random.key(0))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    quantiles = np.linspace(0.02, 0.98, 25)
    ours, theirs = (np.quantile(np.asarray(v, np.float64), quantiles) for v in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=0.06)


def test_values_depend_on_the_key_alone():
    sample = SAMPLERS["normal"]
    first, again, other = (host_init.initialize(sample, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_deterministic_functions_equal_jax():
    def fn(x):
        tree = {"a": jnp.cumsum(x * 2 - 1), "b": jnp.zeros((2, 3), jnp.int32)}
        return tree, jnp.where(x > 1, x / 3, jnp.exp(x)).reshape(3, 1).T

    x = jnp.array([0.5, 1.5, 2.5])
    for found, expected in zip(
        jax.tree.leaves(host_init.initialize(fn, x)), jax.tree.leaves(fn(x)), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_initial_state_has_the_traced_structure_and_distribution():
    init = training_state.init_fn(tiny.experiment(ema=0.9))
    found, expected = host_init.initialize(init), jax.eval_shape(init)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    for ours, theirs in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(jax.jit(init)().params), strict=True
    ):
        assert np.std(ours) == pytest.approx(float(np.std(theirs)), rel=0.15, abs=1e-6)


def test_a_large_network_is_not_compiled(monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *args, **kwargs: pytest.fail("compiled"))
    net = ResNet18()
    images = np.zeros((1, 64, 64, 3), np.float32)
    params = host_init.initialize(net.init, jax.random.key(0), images)["params"]
    kernel = params["stage4_block2"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)  # He et al. 2015
    assert abs(np.mean(kernel)) < 1e-4
