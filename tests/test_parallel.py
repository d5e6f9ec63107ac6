from functools import partial

import jax
import numpy as np
import pytest

from jaxdet import evaluate, parallel, train
from jaxdet.types import InputError
from tests import tiny


def trained(devices, steps=3, **changes):
    """The state after some steps of the tiny locator on that many devices."""
    config, system = tiny.system(devices=devices, optimizer="sgd", lr=1e-4, **changes)
    plan = train.plan(config, 48)
    among = parallel.devices(devices)
    step = partial(
        train.train_step, task=system.task, optimizer=train.optimizer(config, plan), plan=plan
    )
    step = parallel.compiled(step, among, whole=2, donate=(0,))
    state = parallel.put(jax.jit(train.maker(system, config))(), among)
    data = parallel.put(system.splits["train"].arrays, among)
    for i in range(steps):
        state = jax.block_until_ready(step(state, data, np.arange(16) + i))
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_four_devices_give_the_numbers_of_one(reduction):
    one, four = (trained(n, reduction=reduction, ema=0.9, clip=10.0) for n in (1, 4))
    before = trained(1, steps=0, reduction=reduction, ema=0.9, clip=10.0)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, one.params, before.params)
    assert all(jax.tree.leaves(moved))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_batch_statistics_are_those_of_the_whole_batch():
    one, four = trained(1, steps=1), trained(4, steps=1)
    for a, b in zip(jax.tree.leaves(one.stats), jax.tree.leaves(four.stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_evaluation_on_four_devices_gives_the_scores_of_one():
    config, system = tiny.system(rows=21)
    kept = evaluate.variables(jax.jit(train.maker(system, config))())
    one, four = (
        evaluate.Evaluator(system, "val", 8, parallel.devices(n))(kept) for n in (1, 4)
    )
    assert one.keys() == four.keys()
    for name in one:
        assert one[name] == pytest.approx(four[name], rel=1e-5)


def test_donated_state_is_gone():
    config, system = tiny.system(devices=4)
    plan, among = train.plan(config, 48), parallel.devices(4)
    step = partial(
        train.train_step, task=system.task, optimizer=train.optimizer(config, plan), plan=plan
    )
    step = parallel.compiled(step, among, whole=2, donate=(0,))
    state = parallel.put(jax.jit(train.maker(system, config))(), among)
    data = parallel.put(system.splits["train"].arrays, among)
    jax.block_until_ready(step(state, data, np.arange(16)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_rows_keep_their_order_through_shard_and_unshard():
    rows = {"a": np.arange(24).reshape(8, 3)}
    back = parallel.unshard(parallel.shard(rows, 4), 4)
    np.testing.assert_array_equal(back["a"], rows["a"])
    assert parallel.unshard(rows, 1) is rows


@pytest.mark.parametrize("count", [-1, 99])
def test_devices_that_are_not_there_are_refused(count):
    with pytest.raises(InputError, match=f"--devices {count}"):
        parallel.devices(count)


@pytest.mark.parametrize("batch", [0, -4, 6])
def test_a_batch_that_cannot_be_shared_is_refused(batch):
    with pytest.raises(InputError, match="multiple of 4"):
        parallel.check(batch, parallel.devices(4))
