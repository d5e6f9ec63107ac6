import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.configs.cifar10 import Config
from jaxdet.data.sources import ArraySource
from jaxdet.training import optim
from jaxdet.training.experiment import Experiment
from tests.reference import optimizers
from tests.reference import schedules as reference


def test_warmup_is_linear_and_cosine_falls_to_zero():
    rate = optim.schedule("cosine", rate=0.4, steps=14, warmup=4)
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    expected = [0.2 * (1 + np.cos(np.pi * i / 10)) for i in range(11)]
    np.testing.assert_allclose([rate(4 + i) for i in range(11)], expected, atol=1e-7)


def test_piecewise_decays_at_fractions_of_the_run():
    rate = optim.schedule("piecewise", rate=0.01, steps=8, decay_at=(0.5, 0.75), decay=0.1)
    values = [float(rate(i)) for i in range(8)]
    np.testing.assert_allclose(values, [0.01] * 4 + [0.001] * 2 + [0.0001] * 2, rtol=1e-5)


@pytest.mark.parametrize("epochs", [4, 12, 40])
def test_default_decays_divide_any_number_of_epochs(epochs):
    """`--schedule piecewise --lr .01`: half, a quarter and a quarter of the updates."""
    config = Config(schedule="piecewise", lr=0.01, batch=10, epochs=epochs)
    source = ArraySource({"id": np.arange(50)})
    experiment = Experiment(None, {"train": source}, {}, {}, config)
    plan, rate = experiment.plan, experiment.learning_rate()
    found = np.array([rate(i) for i in range(plan.steps)])
    assert plan.steps == 5 * epochs
    fractions = [np.isclose(found, value).mean() for value in (0.01, 0.001, 0.0001)]
    assert fractions == [0.5, 0.25, 0.25] and (np.diff(found) <= 0).all()


def test_piecewise_decays_at_the_same_updates_after_a_warmup():
    rate = optim.schedule("piecewise", rate=1.0, steps=8, warmup=2, decay_at=(0.5,), decay=0.1)
    assert [round(float(rate(i)), 3) for i in range(8)] == [0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]


def test_constant_does_not_change():
    rate = optim.schedule("constant", rate=0.3, steps=5)
    assert {round(float(rate(i)), 6) for i in (0, 3, 1000)} == {0.3}


@pytest.mark.parametrize("period, growth", [(5, 1), (7, 1), (3, 2), (2, 3), (1, 4)])
def test_restarts_equal_reference(period, growth):
    rate = jax.jit(optim.schedule("restarts", rate=0.4, steps=60, period=period, growth=growth))
    expected = reference.cosine_restarts(0.4, period, growth, 60)
    np.testing.assert_allclose([rate(i) for i in range(60)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("epochs", [5, 20, 50, 60, 100, 150, 200])
def test_restarts_begin_at_multiples_of_the_period(epochs):
    """In epochs of 547 updates, 70,010 images in batches of 128; with and without warm-up."""
    for warmup in (0, 300):
        period = jnp.int32(547 * epochs)
        rate = optim.schedule("restarts", rate=1.0, steps=1, warmup=warmup, period=period)
        rate = jax.jit(rate)
        for number in (1, 2, 9):
            start = 547 * epochs * number
            assert float(rate(start)) == 1 and float(rate(start - 1)) < 1e-6


def test_only_the_first_cosine_has_a_warmup():
    rate = optim.schedule("restarts", rate=1.0, steps=20, warmup=2, period=5)
    found = [float(rate(i)) for i in range(10)]
    np.testing.assert_allclose(found[:2], [0.5, 1])
    np.testing.assert_allclose(found[2:], reference.cosine_restarts(1.0, 5, 1, 10)[2:], rtol=1e-5)


@pytest.mark.parametrize("patience", [1, 3])
def test_plateau_equals_reference(patience):
    random = np.random.default_rng(patience)
    values = np.float32(1 / (1 + np.arange(40) // 6) + 0.1 * random.integers(0, 3, 40))
    rule, zero = optim.plateau(0.5, patience), jnp.float32(0)
    state, found = rule.init(zero), []
    for value in [*values, np.nan]:
        _, state = rule.update(zero, state, value=np.float32(value))
        found.append(float(state.scale))
    assert found == reference.reduce_on_plateau([*values, np.nan], 0.5, patience)
    assert found[-1] < 0.5


def test_the_plateau_schedule_is_constant():
    rate = optim.schedule("plateau", rate=0.3, steps=5)
    assert {round(float(rate(i)), 6) for i in (0, 3, 1000)} == {0.3}


def update(transform, params, grads):
    return transform.update(grads, transform.init(params), params)[0]


def test_adamw_equals_optax():
    params, grads = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), 0.3)}
    ours = update(optim.optimizer("adamw", 0.1, weight_decay=0.02), params, grads)
    theirs = update(optax.adamw(0.1, weight_decay=0.02), params, grads)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "momentum", "rmsprop"])
def test_optimizers_with_an_l2_penalty_take_the_steps_of_pytorch(name):
    """With traced numbers; a bias is not decayed."""
    random = np.random.default_rng(0)
    start, *gradients = (
        {"w": random.normal(size=(2, 3)), "b": random.normal(size=3)} for _ in range(5)
    )
    numbers = {"momentum": 0.8, "beta2": 0.95, "weight_decay": 0.1}

    @jax.jit
    def ours(numbers):
        transform = optim.optimizer(name, 0.1, **numbers)
        params = jax.tree.map(jnp.float32, start)
        state = transform.init(params)
        for each in gradients:
            moved, state = transform.update(jax.tree.map(jnp.float32, each), state, params)
            params = optax.apply_updates(params, moved)
        return params

    found = ours(numbers)
    for key, decay in {"w": 0.1, "b": 0.0}.items():
        own = [each[key] for each in gradients]
        options = numbers | {"weight_decay": decay}
        expected = optimizers.steps(name, start[key], own, lr=0.1, **options)
        np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-5)


def test_sgd_has_nesterov_momentum():
    params, grads = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), 0.3)}
    ours = update(optim.optimizer("sgd", 0.1, momentum=0.9), params, grads)
    np.testing.assert_allclose(ours["w"], -0.1 * 0.3 * 1.9, rtol=1e-6)


def test_weight_decay_does_not_apply_to_biases():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zero = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    moved = update(optim.optimizer("sgd", 0.1, weight_decay=0.5), params, zero)
    np.testing.assert_allclose(moved["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(moved["b"], 0)


def test_the_global_norm_is_the_norm_of_all_numbers():
    draw = np.random.default_rng(0)
    sizes = (1, 7, optim.SMALL_ARRAY - 1, optim.SMALL_ARRAY)
    tree = {str(size): draw.normal(size=size).astype(np.float32) for size in sizes}
    expected = np.linalg.norm(np.concatenate([*tree.values()]).astype(float))
    assert float(optim.global_norm(tree)) == pytest.approx(expected, rel=1e-5)
    assert optim.global_norm({"a": np.float32([[3], [4]])}) == 5
    assert not np.isfinite(optim.global_norm(tree | {"b": np.float32(np.nan)}))


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (0.0, 6.0), (100.0, 6.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, expected):
    params = {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}
    grads = {"w": jnp.full((3, 3), np.sqrt(3)), "b": jnp.full(3, np.sqrt(3))}
    moved = update(optim.optimizer("sgd", 1.0, momentum=0.0, clip=clip), params, grads)
    assert float(optax.tree.norm(moved)) == pytest.approx(expected, rel=1e-5)


def test_lr_multiplier_scales_updates_by_path():
    params = {"a": {"w": jnp.ones((2, 2))}, "b": {"w": jnp.ones((2, 2))}, "c": jnp.ones((2, 2))}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    factors = {"a/w": 0.0, "b/w": 0.25, "c": True}
    optimizer = optim.optimizer("sgd", 0.1, momentum=0.0, lr_multiplier=factors.get)
    state = optimizer.init(params)
    moved, _ = optimizer.update(grads, state, params)
    np.testing.assert_array_equal(moved["a"]["w"], 0)
    np.testing.assert_allclose(moved["b"]["w"], -0.1 * 0.5 * 0.25, rtol=1e-6)
    np.testing.assert_allclose(moved["c"], -0.1 * 0.5, rtol=1e-6)
    state = optim.optimizer("adamw", 0.1, lr_multiplier=factors.get).init(params)
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert len(moments) == 4  # two of each trainable parameter, none of the frozen one
