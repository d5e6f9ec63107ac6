"""Runs trained together equal the same runs trained alone."""

import itertools
import json
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.config import task_hparams
from jaxdet.configs.digits import Config
from jaxdet.data.sources import ArraySource
from jaxdet.training import checkpoint, run_dir, sweep
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress
from tests import tiny

VARIED = (
    {"lr": 1e-2},
    {"lr": 4e-2, "weight_decay": 0.1, "momentum": 0.5},
    {"seed": 3, "box_weight": 5.0, "fraction": 0.5},
)
QUIET = Progress(quiet=True)


@dataclass(frozen=True)
class SubsetConfig(Config):
    """A configuration with the fraction of the training set that is used."""

    SUBSET_FIELDS: ClassVar = ("fraction",)

    fraction: float = 1.0


CHANGES = {"batch": 4, "eval_batch": 4, "warmup": 2, "best": "accuracy", "clip": 1.0, "epochs": 3}
CONFIG = SubsetConfig(**vars(tiny.CONFIG) | CHANGES)


def line_task():
    """Linear regression w x + b of noisy points."""

    def loss(variables, batch, key, context):
        error = jnp.square(predict(variables, batch["image"]) - batch["y"]) * batch["real"][:, None]
        rows = jnp.maximum(batch["real"].sum(), 1)
        mean = context.hparams["box_weight"] * error.sum() / rows
        return mean, ({}, {"loss": mean, "accuracy": -mean})

    def predict(variables, x):
        return x @ variables["params"]["kernel"] + variables["params"]["bias"]

    def init(key, batch):
        return {"params": {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.zeros((1, 1))}}

    return tiny.FunctionTask(
        init=init,
        augment=lambda keys, batch, context: batch | {"image": batch["x"]},
        loss=loss,
        predict=predict,
        measure=lambda found, batch: {"error": jnp.abs(found - batch["y"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line_experiment():
    """The experiment of the line, with 20 points."""
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]]) + 0.1 * x[:, :1] ** 2
    source = ArraySource({"x": x, "y": y, "id": np.arange(20, dtype=np.int32)})
    splits = {"train": source, "val": source}
    whole = Experiment(line_task(), splits, task_hparams(CONFIG), {}, CONFIG)

    def subset(config):
        train = source.first(int(20 * config.fraction))
        return replace(whole, splits={**splits, "train": train})

    return replace(whole, subset=subset)


@cache
def compiled_steps():
    """The program of one run, which all sweeps share."""
    config = replace(CONFIG, **VARIED[0])
    return training_loop.CompiledSteps(replace(line_experiment(), config=config))


def make_runs(folder, stop=lambda: False, varied=VARIED, spent=0.0):
    """Runs with varied options in `folder/0`, `folder/1` and so on."""
    configs = [replace(CONFIG, **options) for options in varied]
    folders = [folder / str(i) for i in range(len(configs))]
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
    shared = {"compiled": compiled_steps(), "spent": spent}
    return sweep.VmappedRuns(line_experiment(), configs, folders, QUIET, stop, **shared)


def last_state(folder, index):
    """The last state of the run with the options `VARIED[index]` in a folder."""
    experiment = sweep.with_config(line_experiment(), replace(CONFIG, **VARIED[index]))
    like = jax.eval_shape(training_state.init_fn(experiment))
    return checkpoint.restore(folder / str(index), like, "last")[1]


def assert_close(a, b, **tolerance):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, last states) of the runs of `VARIED`, each trained alone."""
    folder = tmp_path_factory.mktemp("alone")
    for i, options in enumerate(VARIED):
        (folder / str(i)).mkdir()
        experiment = sweep.with_config(line_experiment(), replace(CONFIG, **options))
        training_loop.train(experiment, folder / str(i), show=QUIET)
    return folder, [last_state(folder, i) for i in range(len(VARIED))]


@pytest.mark.parametrize("together, tolerance", [(True, 1e-5), (False, 0.0)])
def test_each_run_equals_the_run_trained_alone(alone, tmp_path, together, tolerance):
    runs = make_runs(tmp_path)
    assert runs.run(together=together)
    for i in range(len(VARIED)):
        found = last_state(tmp_path, i)
        assert_close(found.params, alone[1][i].params, rtol=tolerance, atol=tolerance)
        ours, theirs = (run_dir.read_metrics(folder / str(i)) for folder in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_runs_do_not_count_the_seconds_of_the_others(tmp_path, monkeypatch, together):
    """Each evaluation costs the other runs a minute."""
    runs = make_runs(tmp_path)
    evaluate = training_loop.Loop.evaluate

    def slow(loop):
        for other in runs.loops:
            other.began -= 60.0 * (other is not loop)
        evaluate(loop)

    monkeypatch.setattr(training_loop.Loop, "evaluate", slow)
    assert runs.run(together=together)
    for loop in runs.loops:
        first, *others = run_dir.read_metrics(loop.folder)
        assert first["time"]["train"] == 0
        assert all(0 < line["time"]["train"] < 50 for line in others)


def test_seconds_of_runs_trained_together_add_up_to_the_time_that_passed(tmp_path, monkeypatch):
    """The steps of an epoch of both runs take ten seconds, everything else almost nothing."""
    now, take_steps = [100.0], training_loop.take_steps

    def slow(*args, **kwargs):
        now[0] += 10.0
        take_steps(*args, **kwargs)

    def monotonic():
        now[0] += 1e-6
        return now[0]

    for module in (sweep, training_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(training_loop, "take_steps", slow)
    two = [{"lr": lr, "time_budget": 1e3} for lr in (1e-2, 4e-2)]
    for _ in range(2):  # the second time all are complete, and nothing is counted
        runs = make_runs(tmp_path, varied=two, spent=7.0)
        assert runs.run(together=True)
    for loop in runs.loops:
        lines = run_dir.read_metrics(loop.folder)
        assert [round(line["time"]["train"], 2) for line in lines] == [0, 5, 5, 5]
        assert [line.get("together") for line in lines] == [None, 2, 2, 2]
        assert run_dir.read_seconds(loop.folder) == pytest.approx(7 + 15, abs=0.1)


def test_seconds_spent_before_count_against_the_budget_of_each_run(tmp_path, ticking):
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    runs = make_runs(tmp_path, varied=late, spent=6.5)
    assert runs.run(together=False)
    assert [loop.step for loop in runs.loops] == [0, 0, 0] and len(runs.failed) == 3


def test_runs_with_different_options_differ(alone):
    one, *others = (jax.tree.leaves(state.params) for state in alone[1])
    for other in others:
        assert any(not np.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_a_stopped_sweep_resumes_to_the_same_result(alone, tmp_path):
    answers = iter([False] * 17 + [True] * 100)  # 15 batches of evaluations, 2 steps
    runs = make_runs(tmp_path, stop=lambda: next(answers))
    assert not runs.run(together=True)
    runs = make_runs(tmp_path)
    assert 0 < runs.loops[0].step < runs.compiled.plan.steps
    assert runs.run(together=True)
    for i in range(len(VARIED)):
        found = last_state(tmp_path, i)
        assert_close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)
        ours, theirs = (run_dir.read_metrics(folder / str(i)) for folder in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by a second whenever a sweep reads it."""
    ticks = itertools.count()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.mark.parametrize("together, steps", [(True, [2, 2, 0]), (False, [1, 1, 1])])
def test_a_run_over_its_time_budget_is_left_behind_and_can_be_resumed(
    alone, tmp_path, ticking, together, steps
):
    """An evaluation takes 5 seconds, a step 1; together, two runs have 13 and one has 6.5."""
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    runs = make_runs(tmp_path, varied=late)
    assert runs.run(together=together)
    assert [loop.step for loop in runs.loops] == steps
    for loop, (folder, why) in zip(runs.loops, runs.failed.items(), strict=True):
        assert folder == loop.folder and checkpoint.steps(folder)[-1] == loop.step
        end = f"step {loop.step} of {loop.plan.steps}"
        assert why == f"its --time-budget of 6.5 s is used up at {end}"
    runs = make_runs(tmp_path)
    assert runs.run(together=False)
    for i in range(len(VARIED)):
        found = last_state(tmp_path, i)
        assert_close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_has_the_rest_of_its_time_budget(tmp_path):
    runs = make_runs(tmp_path, varied=VARIED[:1])
    QUIET.begin(0, 1)
    for _ in range(3):  # before the first epoch, the epoch, after it
        runs.loops[0].run_epoch()
    runs.loops[0].saver.wait()
    metrics = tmp_path / "0" / "metrics.jsonl"
    line, other = map(json.loads, metrics.read_text().splitlines())
    line["time"]["train"] = 99.0
    metrics.write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    for seconds, ends in ((90.0, 5), (900.0, 15)):
        runs = make_runs(tmp_path, varied=[{**VARIED[0], "time_budget": seconds}])
        assert runs.run(together=False)
        assert runs.loops[0].step == ends and bool(runs.failed) == (ends == 5)


def test_measuring_steps_does_not_change_the_runs(alone, tmp_path):
    runs = make_runs(tmp_path)
    before = jax.device_get([loop.state.params for loop in runs.loops])
    times = runs.measure_steps(repeats=2)
    assert min(times) > 0 and [loop.step for loop in runs.loops] == [0, 0, 0]
    for params, loop in zip(before, runs.loops, strict=True):
        assert_close(params, loop.state.params, rtol=0)
    assert runs.run(together=True)
    found = last_state(tmp_path, 0)
    assert_close(found.params, alone[1][0].params, rtol=1e-5, atol=1e-5)


def test_runs_behind_the_others_catch_up(tmp_path):
    runs = make_runs(tmp_path)
    QUIET.begin(0, 1)
    for _ in range(2):  # its evaluation, and its steps
        runs.loops[1].run_epoch()
    assert [loop.step for loop in runs.loops] == [0, runs.loops[1].plan.epoch_steps, 0]
    assert runs.run(together=True)
    assert [loop.step for loop in runs.loops] == [15, 15, 9]


def test_a_run_that_diverges_does_not_affect_the_others(tmp_path):
    varied = ({"lr": 1e-3}, {"lr": float("inf")})
    runs = make_runs(tmp_path, varied=varied)
    assert runs.run(together=True)
    assert list(runs.failed) == [tmp_path / "1"]
    assert "not finite" in runs.failed[tmp_path / "1"]
    assert runs.loops[0].is_complete()


def test_unstack_inverts_stack():
    trees = [{"a": jnp.full((2,), i), "key": jax.random.key(i)} for i in range(3)]
    for tree, back in zip(trees, sweep.unstack(sweep.stack(trees), 3), strict=True):
        np.testing.assert_array_equal(tree["a"], back["a"])
        assert (tree["key"] == back["key"]).all()
