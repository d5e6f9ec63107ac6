import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

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
from jaxdet.types import StepContext
from tests import tiny
from tests.reference import schedules as reference


def constant_task(fail_at=None):
    """A model of one number w; the loss is the mean of (w - x)^2 over real rows."""

    def loss(variables, batch, key, context):
        error = jnp.square(variables["params"]["w"] - batch["x"]) * batch["real"]
        if fail_at is not None:
            error = jnp.where((context.step == fail_at) & context.train, jnp.nan, error)
        mean = error.sum() / jnp.maximum(batch["real"].sum(), 1)
        return mean, ({}, {"loss": mean, "accuracy": -mean})

    return tiny.FunctionTask(
        init=lambda key, batch: {"params": {"w": jnp.zeros(())}},
        augment=lambda keys, batch, context: batch | {"image": batch["x"]},
        loss=loss,
        predict=lambda variables, images: jnp.broadcast_to(variables["params"]["w"], images.shape),
        measure=lambda predictions, batch: {"error": jnp.abs(predictions - batch["x"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def constant_experiment(values, fail_at=None, **options):
    """The experiment that fits one number to values; `fail_at` is an update with a NaN loss."""
    values = np.asarray(values, np.float32)
    source = ArraySource({"x": values, "id": np.arange(len(values), dtype=np.int32)})
    defaults = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "batch": 4, "lr": 0.1}
    config = replace(tiny.CONFIG, **{**defaults, "best": "accuracy", **options})
    splits = {"train": source, "val": source}
    return Experiment(constant_task(fail_at), splits, {}, {}, config)


def compiled_step(experiment):
    """The compiled step of an experiment."""
    step = partial(
        train_step,
        task=experiment.task,
        optimizer=experiment.optimizer,
        plan=experiment.plan,
        axis=None,
    )
    return jax.jit(step)


def take_steps(values, batches, **options):
    """States before and after a step on each of the batches of row indices."""
    experiment = constant_experiment(values, **options)
    states = [host_init.initialize(training_state.init_fn(experiment))]
    step, data = compiled_step(experiment), jax.device_put(experiment.splits["train"].arrays)
    for rows in batches:
        states.append(step(states[-1], data, np.asarray(rows)))
    return states


def train(folder, values, **options):
    """Train `constant_experiment` in a folder; True if the run is complete."""
    experiment = constant_experiment(values, **options)
    return training_loop.train(experiment, folder, show=Progress(quiet=True))


def test_one_step_is_gradient_descent():
    before, after = take_steps([1.0, 2.0, 3.0, 4.0], [[0, 1, 2, 3]])
    assert float(after.params["w"]) == pytest.approx(0.1 * 2 * 2.5)
    assert int(after.step) == 1
    assert int(before.step) == 0


def test_accumulated_steps_equal_one_step_on_a_large_batch():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    large = take_steps(values, [range(8)], batch=8)
    small = take_steps(values, [range(4), range(4, 8)], batch=4, accumulate=2)
    assert float(small[1].params["w"]) == 0.0
    assert float(small[2].params["w"]) == pytest.approx(float(large[1].params["w"]))


@pytest.mark.parametrize("accumulate, updates", [(2, [2, 3]), (3, [3]), (5, [3])])
def test_steps_that_remain_at_the_end_of_a_run_make_an_update(accumulate, updates):
    """Three steps with gradients 2 (w - x), of batches with x = 1, 2 and 4."""
    values, batches = [1.0] * 4 + [2.0] * 4 + [4.0] * 4, np.arange(12).reshape(3, 4)
    states = take_steps(values, batches, epochs=1, accumulate=accumulate, ema=0.9)
    expected, average, x = 0.0, 0.0, np.array([1.0, 2.0, 4.0])
    for number, (begin, end) in enumerate(zip([0, *updates], updates, strict=False), 1):
        expected -= 0.1 * 2 * (expected - x[begin:end].mean())
        average += (1 - (1 + number) / (10 + number)) * (expected - average)
    assert float(states[-1].params["w"]) == pytest.approx(expected)
    assert float(states[-1].ema["params"]["w"]) == pytest.approx(average)
    changed = [float(a.params["w"]) != float(b.params["w"]) for a, b in pairwise(states)]
    assert [n for n, one in enumerate(changed, 1) if one] == updates


def test_moving_averages_follow_their_formula_once_per_update():
    states = take_steps([1.0] * 4, [range(4)] * 6, ema=0.99, accumulate=2)
    average = 0.0
    for n, state in enumerate(states[1:], 1):
        if n % 2 == 0:
            decay = min(0.99, (1 + n // 2) / (10 + n // 2))
            average = decay * average + (1 - decay) * float(state.params["w"])
        assert float(state.ema["params"]["w"]) == pytest.approx(average, abs=1e-6)


def test_without_ema_no_averages_are_kept():
    assert take_steps([1.0] * 4, [range(4)])[-1].ema == {}


def test_a_step_that_is_not_finite_is_skipped_and_recorded():
    values, batches = [1.0, 1.0, 1.0, 1.0, math.nan], [[4, 1, 2, 3], [0, 1, 2, 3]]
    good, bad, later = take_steps(values, batches, ema=0.9)
    assert float(bad.params["w"]) == float(good.params["w"])
    assert int(bad.bookkeeping["bad_step"]) == 0
    assert float(later.params["w"]) > 0
    assert int(later.bookkeeping["bad_step"]) == 0


def test_divergence_stops_the_run_and_names_step_term_and_checkpoint(tmp_path):
    with pytest.raises(training_loop.DivergedError, match=r"step 3: accuracy .* checkpoint 2 of"):
        train(tmp_path, [1.0] * 8, epochs=3, fail_at=3)
    assert checkpoint.steps(tmp_path)[-1] == 2


def test_every_evaluation_is_logged_and_the_one_before_training(tmp_path):
    assert train(tmp_path, [1.0, 2.0, 3.0], epochs=3, batch=2, eval_batch=2)
    lines = run_dir.read_metrics(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (2, 1), (4, 2), (6, 3)]
    assert lines[0]["train"] is None
    assert lines[0]["val"]["loss"] == pytest.approx((1 + 4 + 9) / 3)
    assert set(lines[1]["time"]) == {"train", "eval"}
    assert (tmp_path / "plots" / "convergence.png").is_file()


def test_no_evaluation_before_training_without_eval_first(tmp_path):
    train(tmp_path, [1.0] * 4, epochs=1, eval_first=False)
    assert [line["epoch"] for line in run_dir.read_metrics(tmp_path)] == [1]


def test_training_stops_when_patience_is_exhausted(tmp_path):
    train(tmp_path, [1.0] * 4, epochs=50, lr=0.5, patience=2)
    assert [line["step"] for line in run_dir.read_metrics(tmp_path)] == [
        0,
        1,
        2,
        3,
    ]  # exact after step 1
    assert checkpoint.best(tmp_path) == 1


def learning_rates(folder):
    return [line["lr"] for line in run_dir.read_metrics(folder)]


def test_plateau_of_the_loss_lowers_the_learning_rate_of_steps(tmp_path):
    """With a rate of 1, w jumps from 0 to 2 and back; with .5 it is 1 after one step."""
    options = {"schedule": "plateau", "lr_decay": 0.5, "plateau_patience": 1}
    train(tmp_path, [1.0] * 4, epochs=5, lr=1.0, **options)
    losses = [line["val"]["loss"] for line in run_dir.read_metrics(tmp_path)]
    assert losses == [1, 1, 0, 0, 0, 0]
    assert learning_rates(tmp_path) == [1, 0.5, 0.5, 0.25, 0.125, 0.0625]


def test_plateau_of_the_score_lowers_the_learning_rate(tmp_path):
    options = {"schedule": "plateau", "lr_decay": 0.5, "plateau_patience": 2}
    train(
        tmp_path, [1.0] * 4, epochs=5, lr=0.5, plateau_metric="score", **options
    )  # exact after step 1
    assert learning_rates(tmp_path) == [0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_restart_period_is_in_epochs():
    options = {"schedule": "restarts", "restart_period": 2, "restart_factor": 2}
    experiment = constant_experiment([0.0] * 16, accumulate=2, epochs=6, **options)
    rate = experiment.learning_rate()  # two updates per epoch
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
def test_best_is_the_highest_score_then_the_lowest_loss(history, best):
    book = jax.device_get(training_state._bookkeeping({"loss": 0.0}))
    for step, (score, loss) in enumerate(history):
        book = training_loop._after_evaluation(book, step, (np.float32(score), np.float32(loss)))
    assert int(book["best_step"]) == best
    assert int(book["waited"]) == len(history) - 1 - best


def test_training_on_digits_lowers_the_loss(tmp_path):
    experiment = tiny.experiment(epochs=3, lr=3e-3, mask_loss_by="truth")  # a sum of fixed terms
    training_loop.train(experiment, tmp_path, show=Progress(quiet=True))
    losses = [line["val"]["loss"] for line in run_dir.read_metrics(tmp_path)]
    first = run_dir.read_metrics(tmp_path)[1]["train"]["loss"]
    assert run_dir.read_metrics(tmp_path)[-1]["train"]["loss"] < first
    assert all(map(math.isfinite, losses))


def test_learning_rate_counts_updates_not_steps():
    experiment = constant_experiment([0.0] * 16, schedule="cosine", accumulate=2, epochs=4)
    assert experiment.plan.steps == 16
    assert float(experiment.learning_rate()(8)) == pytest.approx(0.0, abs=1e-7)
    optimizer = experiment.optimizer(experiment.initial_hparams)
    assert isinstance(optimizer, optax.GradientTransformation)


def test_context_counts_updates_and_epochs():
    seen = []
    task = constant_task()._replace(
        augment=lambda keys, batch, context: (
            jax.debug.callback(
                lambda s, e: seen.append((int(s), int(e))), context.step, context.epoch
            ),
            batch,
        )[1]
    )
    experiment = replace(constant_experiment([1.0] * 8, accumulate=2, batch=2), task=task)
    state = host_init.initialize(training_state.init_fn(experiment))
    step = compiled_step(experiment)
    for _ in range(6):
        state = step(state, experiment.splits["train"].arrays, np.arange(2))
    jax.effects_barrier()
    assert sorted(seen) == [(0, 0), (0, 0), (1, 0), (1, 0), (2, 1), (2, 1)]


def test_context_has_no_device_axis_by_default():
    assert StepContext(True, 0, 0, {}).axis is None
