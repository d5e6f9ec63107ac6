from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.training import evaluator, host_init, parallel
from jaxdet.training import state as training_state
from jaxdet.training.step import train_step
from tests import tiny


@pytest.fixture(scope="module", params=["sum", "mean"])
def histories(request):
    """The states after 0 to 3 steps of the tiny locator, on one device and on four."""
    return [history(devices, reduction=request.param) for devices in (1, 4)]


def history(devices, **changes):
    config, system = tiny.system(
        devices=devices, optimizer="sgd", lr=1e-4, ema=0.9, clip=10.0, dense=(), **changes
    )
    among = parallel.devices(devices)
    step = compiled(config, system, among)
    states = [
        parallel.replicate(host_init.initialize(training_state.init_fn(system, config)), among)
    ]
    data = parallel.replicate(system.splits["train"].arrays, among)
    for i in range(3):
        given = states[-1]
        states[-1] = jax.tree.map(np.array, given.replace(key=0))  # a copy: a view hinders donation
        states.append(jax.block_until_ready(step(given, data, np.arange(16) + i)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))  # donated
    return states


def compiled(config, system, among):
    plan = training_state.plan(config, 48)
    step = partial(
        train_step, task=system.task, optimizer=training_state.optimizer(config, plan), plan=plan
    )
    return parallel.compile_step(step, among, whole=2, donate=(0,))


def leaves(state):
    return jax.tree.leaves_with_path(state.replace(key=0))


def test_four_devices_give_the_numbers_of_one(histories):
    one, four = histories
    for a, b in zip(one, four, strict=True):
        for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6, err_msg=str(path))


def test_every_parameter_and_statistic_moves(histories):
    for states in histories:
        first, last = ({"p": s.params, "s": s.stats, "e": s.ema} for s in (states[0], states[-1]))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, first, jax.device_get(last))
        assert all(jax.tree.leaves(moved))


def test_the_loss_is_counted_once_over_all_devices(histories):
    (_, after, *_), (_, spread, *_) = histories
    assert float(spread.bookkeeping["sums"]["loss"]) == pytest.approx(
        float(after.bookkeeping["sums"]["loss"])
    )


def test_evaluation_on_four_devices_gives_the_scores_of_one():
    config, system = tiny.system(rows=21, dense=())
    kept = evaluator.eval_variables(host_init.initialize(training_state.init_fn(system, config)))
    one, four = (
        evaluator.Evaluator(system, "val", 8, parallel.devices(n))(kept, 0) for n in (1, 4)
    )
    assert one.keys() == four.keys()
    for name in one:
        assert one[name] == pytest.approx(four[name], rel=1e-5)


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
        parallel.check_batch(batch, parallel.devices(4))
