import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.data.sources import ArraySource
from jaxdet.training import checkpoint, host_init, run_dir
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress
from jaxdet.training.step import train_step
from jaxdet.types import StepContext, Task
from tests import tiny
from tests.reference import schedules as reference

# A task of one number: the loss is the mean of (w - x)^2 over real rows, known in closed form.


def line_task(fail_at=None):
    def loss(variables, batch, key, context):
        error = jnp.square(variables["params"]["w"] - batch["x"]) * batch["real"]
        if fail_at is not None:
            error = jnp.where((context.step == fail_at) & context.train, jnp.nan, error)
        share = error.sum() / jnp.maximum(batch["real"].sum(), 1)
        return share, ({}, {"loss": share, "accuracy": -share})

    return Task(
        init=lambda key, batch: {"params": {"w": jnp.zeros(())}},
        augment=lambda keys, batch, context: batch | {"image": batch["x"]},
        loss=loss,
        predict=lambda variables, images: jnp.broadcast_to(variables["params"]["w"], images.shape),
        measure=lambda predictions, batch: {"error": jnp.abs(predictions - batch["x"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line_system(values, **changes):
    values = np.asarray(values, np.float32)
    source = ArraySource({"x": values, "id": np.arange(len(values), dtype=np.int32)})
    return Experiment(line_task(**changes), {"train": source, "val": source}, {}, {})


def line_config(**changes):
    settings = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "batch": 4, "lr": 0.1}
    settings["best"] = "accuracy"
    return tiny.replace(tiny.CONFIG, **{**settings, **changes})


def stepped(config, values, rows):
    """States before and after each batch of row indices in `rows`."""
    system = line_system(values)
    plan = training_state.plan(config, len(values))
    states = [host_init.initialize(training_state.init_fn(system, config))]
    step = jax.jit(
        lambda s, r: train_step(
            s,
            data,
            r,
            task=system.task,
            optimizer=training_state.optimizer(config, plan),
            plan=plan,
            axis=None,
        )
    )
    data = {name: jnp.asarray(column) for name, column in system.splits["train"].arrays.items()}
    for row in rows:
        states.append(step(states[-1], np.asarray(row)))
    return states


def fitted(tmp_path, values, config, **changes):
    system = line_system(values, **changes)
    return training_loop.train(system, config, tmp_path, show=Progress(quiet=True))


def test_a_step_is_gradient_descent():
    before, after = stepped(line_config(), [1.0, 2.0, 3.0, 4.0], [[0, 1, 2, 3]])
    assert float(after.params["w"]) == pytest.approx(0.1 * 2 * 2.5)
    assert int(after.step) == 1
    assert int(before.step) == 0


def test_accumulated_steps_make_the_update_of_one_large_batch():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    large = stepped(line_config(batch=8), values, [range(8)])
    small = stepped(line_config(batch=4, accumulate=2), values, [range(4), range(4, 8)])
    assert float(small[1].params["w"]) == 0.0
    assert float(small[2].params["w"]) == pytest.approx(float(large[1].params["w"]))


def test_moving_averages_follow_their_formula_and_only_real_updates():
    states = stepped(line_config(ema=0.99, accumulate=2), [1.0] * 4, [range(4)] * 6)
    average = 0.0
    for n, state in enumerate(states[1:], 1):
        if n % 2 == 0:
            decay = min(0.99, (1 + n // 2) / (10 + n // 2))
            average = decay * average + (1 - decay) * float(state.params["w"])
        assert float(state.ema["params"]["w"]) == pytest.approx(average, abs=1e-6)


def test_without_averages_nothing_is_kept():
    assert stepped(line_config(), [1.0] * 4, [range(4)])[-1].ema == {}


def test_a_bad_step_changes_nothing_and_is_remembered():
    config = line_config(ema=0.9)
    good, bad, later = stepped(config, [1.0, 1.0, 1.0, 1.0, math.nan], [[4, 1, 2, 3], [0, 1, 2, 3]])
    assert float(bad.params["w"]) == float(good.params["w"])
    assert int(bad.bookkeeping["bad_step"]) == 0
    assert float(later.params["w"]) > 0
    assert int(later.bookkeeping["bad_step"]) == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_term_and_checkpoint(tmp_path):
    config = line_config(epochs=3)
    with pytest.raises(training_loop.DivergedError, match=r"step 3: accuracy .* checkpoint 2 of"):
        fitted(tmp_path, [1.0] * 8, config, fail_at=3)
    assert checkpoint.steps(tmp_path)[-1] == 2


def test_every_epoch_is_logged_and_the_one_before_training(tmp_path):
    assert fitted(tmp_path, [1.0, 2.0, 3.0], line_config(epochs=3, batch=2, eval_batch=2))
    lines = run_dir.read_metrics(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (2, 1), (4, 2), (6, 3)]
    assert lines[0]["train"] is None
    assert lines[0]["val"]["loss"] == pytest.approx((1 + 4 + 9) / 3)
    assert set(lines[1]["time"]) == {"train", "eval"}
    assert (tmp_path / "plots" / "convergence.png").is_file()


def test_no_evaluation_before_training_when_not_wanted(tmp_path):
    fitted(tmp_path, [1.0] * 4, line_config(epochs=1, eval_first=False))
    assert [line["epoch"] for line in run_dir.read_metrics(tmp_path)] == [1]


def test_training_ends_when_patience_does(tmp_path):
    fitted(tmp_path, [1.0] * 4, line_config(epochs=50, lr=0.5, patience=2))
    assert [line["step"] for line in run_dir.read_metrics(tmp_path)] == [0, 1, 2, 3]  # exact at 1
    assert checkpoint.best(tmp_path) == 1


def rates(folder):
    return [line["lr"] for line in run_dir.read_metrics(folder)]


def test_the_rate_drops_where_the_loss_stays_and_steps_are_by_it(tmp_path):
    """At a rate of 1 w jumps from 0 to 2 and back, at .5 it is 1 at once."""
    config = line_config(epochs=5, lr=1.0, schedule="plateau", drop=0.5, drop_patience=1)
    fitted(tmp_path, [1.0] * 4, config)
    losses = [line["val"]["loss"] for line in run_dir.read_metrics(tmp_path)]
    assert losses == [1, 1, 0, 0, 0, 0]
    assert rates(tmp_path) == [1, 0.5, 0.5, 0.25, 0.125, 0.0625]


def test_the_rate_drops_by_the_score_if_that_is_watched(tmp_path):
    how = {"schedule": "plateau", "drop": 0.5, "drop_patience": 2, "drop_on": "score"}
    fitted(tmp_path, [1.0] * 4, line_config(epochs=5, lr=0.5, **how))  # exact at 1
    assert rates(tmp_path) == [0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_cycles_are_counted_in_epochs():
    config = line_config(schedule="restarts", cycle=2, cycle_factor=2, accumulate=2, epochs=6)
    rate = training_state.learning_rate(
        config, training_state.plan(config, 16)
    )  # two updates an epoch
    found = [float(rate(i)) for i in range(13)]
    np.testing.assert_allclose(
        found, reference.cosine_restarts(0.1, 4, 2, 13), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    ("history", "best"),
    [
        ([(0.5, 1.0), (0.9, 1.0), (0.8, 0.1)], 1),
        ([(0.9, 1.0), (0.9, 0.5), (0.9, 0.7)], 1),  # equal scores: the lower loss
        ([(0.9, 0.5), (0.9, 0.5)], 0),  # equal in both: the earlier
        ([(0.1, math.nan), (0.2, 1.0)], 1),
    ],
)
def test_the_best_is_the_highest_score_then_the_lowest_loss(history, best):
    book = {
        name: np.asarray(value)
        for name, value in training_state._fresh_book(["loss"]).items()
        if name != "sums"
    } | {"sums": {"loss": np.float32(0)}}
    for step, (score, loss) in enumerate(history):
        book = training_loop._scored(book, step, (np.float32(score), np.float32(loss)))
    assert int(book["best_step"]) == best
    assert int(book["waited"]) == len(history) - 1 - best


def test_real_data_loses_loss(tmp_path):
    config, system = tiny.system(epochs=3, lr=3e-3)
    training_loop.train(system, config, tmp_path, show=Progress(quiet=True))
    losses = [line["val"]["loss"] for line in run_dir.read_metrics(tmp_path)]
    first = run_dir.read_metrics(tmp_path)[1]["train"]["loss"]
    assert run_dir.read_metrics(tmp_path)[-1]["train"]["loss"] < first
    assert all(map(math.isfinite, losses))


def test_learning_rate_counts_updates_not_steps():
    config = line_config(schedule="cosine", accumulate=2, epochs=4)
    plan = training_state.plan(config, 16)
    rate = training_state.learning_rate(config, plan)
    assert plan.steps == 16
    assert float(rate(8)) == pytest.approx(0.0, abs=1e-7)
    hparams = training_state.initial_hparams(line_system([0.0]), config)
    assert isinstance(training_state.optimizer(config, plan)(hparams), optax.GradientTransformation)


def test_at_tells_updates_and_epochs():
    seen = []
    task = line_task()._replace(
        augment=lambda keys, batch, context: (
            jax.debug.callback(
                lambda s, e: seen.append((int(s), int(e))), context.step, context.epoch
            ),
            batch,
        )[1]
    )
    config, system = line_config(accumulate=2, batch=2), line_system([1.0] * 8)
    plan = training_state.plan(config, 8)
    state = host_init.initialize(training_state.init_fn(system, config))
    optimizer = training_state.optimizer(config, plan)
    fixed = {"task": task, "optimizer": optimizer, "plan": plan, "axis": None}
    step = jax.jit(partial(train_step, **fixed))
    for _ in range(6):
        state = step(state, system.splits["train"].arrays, np.arange(2))
    jax.effects_barrier()
    assert sorted(seen) == [(0, 0), (0, 0), (1, 0), (1, 0), (2, 1), (2, 1)]


def test_at_is_static_where_it_must_be():
    assert StepContext(True, 0, 0, {}).axis is None
