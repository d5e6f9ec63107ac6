from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.training import evaluator, host_init, parallel
from jaxdet.training import state as training_state
from jaxdet.training.step import train_step
from tests import tiny
from tests.marks import long_for


@pytest.fixture(scope="module", params=long_for(["sum", "mean"], {"mean"}))
def histories(request):
    """The states after 0 to 3 steps of the tiny locator, on one device and on four."""
    return [history(devices, reduction=request.param) for devices in (1, 4)]


def history(devices, **changes):
    options = {"optimizer": "sgd", "lr": 1e-4, "ema": 0.9, "clip": 10.0, "fc_widths": ()}
    experiment = tiny.experiment(devices=devices, **options, **changes)
    step = compiled(experiment)
    state = host_init.initialize(training_state.init_fn(experiment))
    states = [parallel.replicate(state, experiment.devices)]
    data = parallel.replicate(experiment.splits["train"].arrays, experiment.devices)
    for i in range(3):
        before = states[-1]
        states[-1] = jax.device_get(jax.tree.map(jnp.copy, before.replace(key=0)))  # no views
        states.append(jax.block_until_ready(step(before, data, np.arange(16) + i)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # donated
    return states


def compiled(experiment):
    step = partial(
        train_step,
        task=experiment.task,
        optimizer=experiment.optimizer,
        plan=experiment.plan,
    )
    return parallel.compile_step(step, experiment.devices, replicated=2, donate=(0,))


def leaves(state):
    return jax.tree.leaves_with_path(state.replace(key=0))


def test_four_devices_give_the_states_of_one(histories):
    one, four = histories
    for a, b in zip(one, four, strict=True):
        for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6, err_msg=str(path))


def test_every_parameter_and_statistic_changes(histories):
    for states in histories:
        first, last = ({"p": s.params, "s": s.stats, "e": s.ema} for s in (states[0], states[-1]))
        changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, first, jax.device_get(last))
        assert all(jax.tree.leaves(changed))


def test_loss_is_summed_once_over_devices(histories):
    (_, one, *_), (_, four, *_) = histories
    assert float(four.bookkeeping["sums"]["loss"]) == pytest.approx(
        float(one.bookkeeping["sums"]["loss"])
    )


def test_evaluation_on_four_devices_gives_the_scores_of_one():
    one, four = (tiny.experiment(rows=21, fc_widths=(), eval_batch=8, devices=n) for n in (1, 4))
    variables = training_state.variables_of(host_init.initialize(training_state.init_fn(one)))
    one, four = (evaluator.Evaluator(e, "val")(variables, 0) for e in (one, four))
    assert one.keys() == four.keys()
    for name in one:
        assert one[name] == pytest.approx(four[name], rel=1e-5)


@pytest.mark.parametrize("histories", ["sum"], indirect=True)
def test_shard_map_gives_the_bits_of_pmap(histories, monkeypatch):
    monkeypatch.setattr(parallel, "_compile_on_devices", parallel.compile_shard_map)
    _, four = histories
    found = history(4, reduction="sum")
    for a, b in zip(four, found, strict=True):
        for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=str(path))


def test_rows_come_back_by_device_in_both_forms(monkeypatch):
    def step(scale, rows, *, axis):
        return parallel.psum(rows.sum(), axis), {"scaled": rows * scale}

    devices = parallel.local_devices(4)
    for form in (parallel.compile_pmap, parallel.compile_shard_map):
        monkeypatch.setattr(parallel, "_compile_on_devices", form)
        run = parallel.compile_step(step, devices, replicated=1, out_axes=(None, 0))
        total, rows = run(np.float32(2), np.arange(8.0, dtype=np.float32))
        assert float(total) == 28
        assert rows["scaled"].shape == (4, 2)
        np.testing.assert_array_equal(
            parallel.unshard(jax.device_get(rows), 4)["scaled"], np.arange(8) * 2
        )


def test_unshard_inverts_shard():
    rows = {"a": np.arange(24).reshape(8, 3)}
    back = parallel.unshard(parallel.shard(rows, 4), 4)
    np.testing.assert_array_equal(back["a"], rows["a"])
    assert parallel.unshard(rows, 1) is rows


@pytest.mark.parametrize("count", [-1, 99])
def test_more_devices_than_available_are_refused(count):
    with pytest.raises(InputError, match=f"--devices must be .* got {count}"):
        parallel.local_devices(count)


@pytest.mark.parametrize("batch", [0, -4, 6])
def test_a_batch_that_devices_cannot_share_is_refused(batch):
    with pytest.raises(InputError, match="multiple of 4"):
        parallel.check_batch(batch, parallel.local_devices(4))
