"""Runs trained together are the runs they would be alone."""

import itertools
import json
from dataclasses import dataclass, replace
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
from jaxdet.types import Task
from tests import tiny

VARIED = (
    {"lr": 1e-2},
    {"lr": 4e-2, "weight_decay": 0.1, "momentum": 0.5},
    {"seed": 3, "box_weight": 5.0, "share": 0.5},
)
QUIET = Progress(quiet=True)


@dataclass(frozen=True)
class Shared(Config):
    """A configuration that says how much of the training set is used."""

    SUBSET_FIELDS: ClassVar = ("share",)

    share: float = 1.0


DIFFERENT = {"batch": 4, "eval_batch": 4, "warmup": 2, "best": "accuracy", "clip": 1.0, "epochs": 3}
CONFIG = Shared(**vars(tiny.CONFIG) | DIFFERENT)


def line_task():
    """The task of one line w x + b through noisy points."""

    def loss(variables, batch, key, context):
        error = jnp.square(said(variables, batch["image"]) - batch["y"]) * batch["real"][:, None]
        rows = jnp.maximum(batch["real"].sum(), 1)
        share = context.hparams["box_weight"] * error.sum() / rows
        return share, ({}, {"loss": share, "accuracy": -share})

    def said(variables, x):
        return x @ variables["params"]["kernel"] + variables["params"]["bias"]

    def init(key, batch):
        return {"params": {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.zeros((1, 1))}}

    return Task(
        init=init,
        augment=lambda keys, batch, context: batch | {"image": batch["x"]},
        loss=loss,
        predict=said,
        measure=lambda found, batch: {"error": jnp.abs(found - batch["y"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line_system():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]]) + 0.1 * x[:, :1] ** 2
    source = ArraySource({"x": x, "y": y, "id": np.arange(20, dtype=np.int32)})
    system = Experiment(line_task(), {"train": source, "val": source}, task_hparams(CONFIG), {})

    def part(config):
        return system._replace(
            splits=system.splits | {"train": source.first(int(20 * config.share))}
        )

    return system._replace(part=part)


def lanes(folder, stop=lambda: False, varied=VARIED, spent=0.0):
    system, chosen = line_system(), [replace(CONFIG, **numbers) for numbers in varied]
    folders = [folder / str(i) for i in range(len(chosen))]
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
    return system, chosen, sweep.VmappedRuns(system, chosen, folders, QUIET, stop, spent=spent)


def last(folder, system, config):
    like = jax.eval_shape(training_state.init_fn(system, config))
    return checkpoint.restore(folder, like, "last")[1]


def close(a, b, **tolerance):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The last states of the runs, each trained by itself, by their places in `VARIED`."""
    folder = tmp_path_factory.mktemp("alone")
    states = []
    for i, numbers in enumerate(VARIED):
        (folder / str(i)).mkdir()
        chosen = replace(CONFIG, **numbers)
        own = sweep.with_hparams(line_system(), chosen)
        training_loop.train(own, chosen, folder / str(i), show=QUIET)
        states.append(last(folder / str(i), own, chosen))
    return folder, states


@pytest.mark.parametrize("together, tolerance", [(True, 1e-5), (False, 0.0)])
def test_each_run_is_what_it_is_alone(alone, tmp_path, together, tolerance):
    system, chosen, runner = lanes(tmp_path)
    assert runner.run(together=together)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=tolerance, atol=tolerance)
        ours, theirs = (run_dir.read_metrics(place / str(i)) for place in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_runs_do_not_count_the_seconds_of_the_others(tmp_path, monkeypatch, together):
    """Each evaluation takes the others a minute."""
    _, _, runner = lanes(tmp_path)
    waited = training_loop.Loop.evaluate

    def slow(loop):
        for other in runner.loops:
            other.began -= 60.0 * (other is not loop)
        waited(loop)

    monkeypatch.setattr(training_loop.Loop, "evaluate", slow)
    assert runner.run(together=together)
    for loop in runner.loops:
        first, *others = run_dir.read_metrics(loop.folder)
        assert first["time"]["train"] == 0
        assert all(0 < line["time"]["train"] < 50 for line in others)


def test_seconds_of_runs_trained_together_add_up_to_what_passed(tmp_path, monkeypatch):
    """The steps of an epoch of both take ten seconds, and all else next to nothing."""
    now, steps = [100.0], sweep.VmappedRuns._steps

    def slow(runner, live):
        now[0] += 10.0
        steps(runner, live)

    def look():
        now[0] += 1e-6
        return now[0]

    for module in (sweep, training_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=look))
    monkeypatch.setattr(sweep.VmappedRuns, "_steps", slow)
    two = [{"lr": lr, "time_budget": 1e3} for lr in (1e-2, 4e-2)]
    for _ in range(2):  # the second finds all complete, and counts nothing
        _, _, runner = lanes(tmp_path, varied=two, spent=7.0)
        assert runner.run(together=True)
    for loop in runner.loops:
        lines = run_dir.read_metrics(loop.folder)
        assert [round(line["time"]["train"], 2) for line in lines] == [0, 5, 5, 5]
        assert [line.get("together") for line in lines] == [None, 2, 2, 2]
        assert run_dir.read_seconds(loop.folder) == pytest.approx(7 + 15, abs=0.1)


def test_what_was_spent_before_is_of_the_budget_of_each(tmp_path, ticking):
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    _, _, runner = lanes(tmp_path, varied=late, spent=6.5)
    assert runner.run(together=False)
    assert [loop.at for loop in runner.loops] == [0, 0, 0] and len(runner.failed) == 3


def test_runs_differ_by_their_numbers(alone):
    one, *others = (jax.tree.leaves(state.params) for state in alone[1])
    for other in others:
        assert any(not np.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_a_sweep_that_is_stopped_goes_on_to_the_same_end(alone, tmp_path):
    asked = iter([False] * 17 + [True] * 100)  # 15 batches of evaluations, 2 steps
    _, _, runner = lanes(tmp_path, stop=lambda: next(asked))
    assert not runner.run(together=True)
    system, chosen, runner = lanes(tmp_path)
    assert 0 < runner.loops[0].at < runner.programs.plan.steps
    assert runner.run(together=True)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)
        ours, theirs = (run_dir.read_metrics(place / str(i)) for place in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]


@pytest.fixture
def ticking(monkeypatch):
    """A clock that is a second later whenever a sweep looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.mark.parametrize("together, at", [(True, [2, 2, 0]), (False, [1, 1, 1])])
def test_a_late_run_is_left_behind_and_goes_on_when_it_may(
    alone, tmp_path, ticking, together, context
):
    """An evaluation takes 5 seconds, a step 1; together, two runs have 13 and one has 6.5."""
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    _, _, runner = lanes(tmp_path, varied=late)
    assert runner.run(together=together)
    assert [loop.at for loop in runner.loops] == at
    for loop, (folder, why) in zip(runner.loops, runner.failed.items(), strict=True):
        assert folder == loop.folder and checkpoint.steps(folder)[-1] == loop.at
        end = f"step {loop.at} of {loop.plan.steps}"
        assert why == f"its 6.5 s (--time-budget) are over at {end}"
    system, chosen, runner = lanes(tmp_path)
    assert runner.run(together=False)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)


def test_a_run_that_goes_on_has_what_is_left_of_its_seconds(tmp_path):
    _, _, runner = lanes(tmp_path, varied=VARIED[:1])
    QUIET.begin(0, 1)
    for _ in range(3):  # before the first epoch, the epoch, after it
        runner.loops[0].epoch()
    metrics = tmp_path / "0" / "metrics.jsonl"
    line, other = map(json.loads, metrics.read_text().splitlines())
    line["time"]["train"] = 99.0
    metrics.write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    for seconds, ends in ((90.0, 5), (900.0, 15)):
        _, _, runner = lanes(tmp_path, varied=[{**VARIED[0], "time_budget": seconds}])
        assert runner.run(together=False)
        assert runner.loops[0].at == ends and bool(runner.failed) == (ends == 5)


def test_timing_a_step_leaves_the_runs_where_they_are(alone, tmp_path):
    system, chosen, runner = lanes(tmp_path)
    before = jax.device_get([loop.state.params for loop in runner.loops])
    times = runner.times(repeats=2)
    assert min(times) > 0 and [loop.at for loop in runner.loops] == [0, 0, 0]
    for params, loop in zip(before, runner.loops, strict=True):
        close(params, loop.state.params, rtol=0)
    assert runner.run(together=True)
    found = last(tmp_path / "0", sweep.with_hparams(system, chosen[0]), chosen[0])
    close(found.params, alone[1][0].params, rtol=1e-5, atol=1e-5)


def test_runs_behind_the_others_catch_up(tmp_path):
    _, _, runner = lanes(tmp_path)
    QUIET.begin(0, 1)
    for _ in range(2):  # its evaluation, and its steps
        runner.loops[1].epoch()
    assert [loop.at for loop in runner.loops] == [0, runner.loops[1].plan.epoch_steps, 0]
    assert runner.run(together=True)
    assert [loop.at for loop in runner.loops] == [15, 15, 9]


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path):
    varied = ({"lr": 1e-3}, {"lr": float("inf")})
    _, _, runner = lanes(tmp_path, varied=varied)
    assert runner.run(together=True)
    assert list(runner.failed) == [tmp_path / "1"]
    assert "not finite" in runner.failed[tmp_path / "1"]
    assert runner.loops[0].complete()


def test_stacked_trees_go_round():
    trees = [{"a": jnp.full((2,), i), "key": jax.random.key(i)} for i in range(3)]
    for tree, back in zip(trees, sweep.unstack(sweep.stack(trees), 3), strict=True):
        np.testing.assert_array_equal(tree["a"], back["a"])
        assert (tree["key"] == back["key"]).all()
