"""Runs that differ in numbers only, trained together in one compiled program.

The runs may differ in the traced hyper-parameters, the seed, and the fraction of the training set
that they use: smaller sets are the first rows of the largest.  Each run has its own folder, and
equals the run trained alone up to rounding.  A run that has used up its time budget is saved, and
the other runs continue.

The time of steps that several runs take together is divided equally among them; the time of an
evaluation belongs to its run.  Over all runs the seconds add up to the elapsed time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.config import TrainConfig
from jaxdet.kernels import compiler, conv
from jaxdet.profiling import timing
from jaxdet.training import checkpoint, evaluator, progress, run_dir, time_budget
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.step import completed_epochs
from jaxdet.types import Tree


class StepTimes(NamedTuple):
    """Seconds of one step of all runs."""

    together: float  # if they share one program
    in_turn: float  # if they take the step one after the other


class TimeBudgetExceeded(Exception):
    """The runs that are training have used up their time budget."""


def with_config(experiment: Experiment, config: TrainConfig) -> Experiment:
    """The experiment of one of the runs: the same task and data, and the numbers of `config`."""
    part = experiment.subset(config) if experiment.subset else experiment
    hparams = {name: getattr(config, name) for name in part.hparams}
    return replace(part, hparams=hparams, config=config)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of equal structure as one tree with a leading axis of runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Tree, count: int) -> list[Tree]:
    """The `count` trees of a stacked tree."""
    return [jax.tree.map(itemgetter(i), tree) for i in range(count)]


def evaluate_trained(
    experiment: Experiment, folder: Path, trained: Path, show: progress.Progress
) -> dict[str, int]:
    """Make a run from a trained run that differs only in options that affect evaluation.

    The checkpoints of the run in `trained` are copied to `folder`, and the best one is evaluated
    with the options of `experiment`, see `TrainConfig.EVAL_ONLY`.  Returns the cost, see
    `VmappedRuns.cost`.
    """
    checkpoint.copy(trained, folder)
    like = jax.eval_shape(training_state.init_fn(experiment))
    step, state = checkpoint.restore(folder, like, "best", show.line)
    scorers = {split: evaluator.Evaluator(experiment, split) for split in experiment.scored_splits}
    variables = training_state.variables_of(state)
    if not run_dir.read_metrics(folder):
        (line,) = (line for line in run_dir.read_metrics(trained) if line["step"] == step)
        epochs = completed_epochs(state)
        scores = {split: scorer(variables, epochs) for split, scorer in scorers.items()}
        run_dir.append_metrics(folder, {**line, **scores})
    return _cost(scorers, variables)


def _cost(scorers: dict[str, evaluator.Evaluator], variables: Tree) -> dict[str, int]:
    """Numbers of operations per image, and of parameters of the network."""
    scorer = next(iter(scorers.values()))
    operations = scorer.operations(variables).total()
    return {"operations": operations, "parameters": time_budget.count_parameters(variables)}


class VmappedRuns:
    """Several runs in progress on one device.

    experiment: an experiment with all the data that any of the runs uses.
    compiled: the compiled steps of the first configuration, if they exist already.
    spent: seconds used before, which count against the time budget of each run.
    callbacks: of each run, called as in `training.loop.train`.
    """

    def __init__(
        self,
        experiment: Experiment,
        configs: Sequence[TrainConfig],
        folders: Sequence[Path],
        show: progress.Progress,
        stop: Callable[[], bool],
        compiled: training_loop.CompiledSteps | None = None,
        spent: float = 0.0,
        callbacks: Sequence[Sequence[progress.Callback]] = (),
    ):
        first = replace(experiment, config=configs[0])
        self.compiled = compiled or training_loop.CompiledSteps(first)
        self.show, self.stop = show, stop
        self.loops = [
            training_loop.Loop(
                self.compiled,
                with_config(experiment, config),
                folder,
                progress.Named(show, Path(folder).name),
                self._should_stop,
                of_run,
            )
            for config, folder, of_run in zip(
                configs, folders, callbacks or [()] * len(folders), strict=True
            )
        ]
        self.budget, self.deadline = configs[0].time_budget, float("inf")
        # On a CPU, a convolution with one kernel per run is fastest as a matrix product.
        self.conv_impl: conv.Impl = "im2col" if jax.default_backend() == "cpu" else "auto"
        self.vmapped, self.vmapped_loop = (
            compiler.jit(jax.vmap(partial(pure, axis=None), in_axes=axes), donate_argnums=0)
            for pure, axes in (
                (self.compiled.pure, (0, None, 0)),
                (self.compiled.pure_steps, (0, None, None, 0)),
            )
        )
        self.failed: dict[Path, str] = {}  # folder of a run that diverged or ran out of time -> why
        self.before = {loop.folder: _unrecorded_seconds(loop, spent) for loop in self.loops}

    def can_train_together(self) -> bool:
        """Whether the runs can share a program now.

        All must be at the start of an epoch, and have data on the device and images of one size.
        """
        if not self.compiled.data or len(self.compiled.steps) > 1:
            return False
        return all(
            loop.step < loop.plan.steps and loop.step % loop.plan.epoch_steps == 0
            for loop in self.loops
        )

    def measure_steps(self, *, seconds: float = 0.0, repeats: int = 3) -> StepTimes:
        """Median seconds of a step of all runs, in one program and one after the other.

        seconds, repeats: see `timing.measure`.  The states of the runs do not change.
        """
        rows = np.stack([loop.batch_indices()[0] for loop in self.loops])
        data, step = self.compiled.data, self.compiled.steps[0]
        single = jax.tree.map(jnp.copy, self.loops[0].state)
        stacked = stack([loop.state for loop in self.loops])

        def in_turn():
            nonlocal single
            single = step(single, data, rows[0])
            return single.step

        def together():
            nonlocal stacked
            stacked = self.step_together(stacked, rows)
            return stacked.step

        one, every = timing.measure_interleaved(in_turn, together, seconds=seconds, repeats=repeats)
        return StepTimes(together=every.median, in_turn=one.median * len(rows))

    def cost(self) -> dict[str, int]:
        """Numbers of operations per image and of parameters of the network, equal for all runs."""
        variables = training_state.variables_of(self.loops[0].state)
        return _cost(self.compiled.evaluators, variables)

    def run(self, *, together: bool) -> bool:
        """Train all runs to their end; return False if they were asked to stop earlier.

        together: whether the runs share one program; otherwise they are trained one by one.
        A run that diverges or uses up its time budget ends early and is recorded in `failed`.
        """
        batch = self.loops[0].config.batch
        done = sum(loop.step for loop in self.loops)
        self.show.begin(done * batch, sum(loop.plan.steps for loop in self.loops) * batch)
        try:
            if together:
                for loops in self._by_epoch_length():
                    self._start_clock(loops)
                    self._catch_up(loops)
                    while self._live(loops):
                        self._run_epoch(loops)
            for loop in self._live(self.loops):
                self._start_clock([loop])
                loop.together = 1
                while self._live([loop]):
                    self._guard(loop, loop.run_epoch)
        except training_loop.StopRequested:
            for loop in self._live(self.loops):
                self._guard(loop, partial(loop.save, None))
            return False
        finally:
            for loop in self.loops:
                loop.saver.wait()
            self.show.close()
        for loop in self.loops:
            training_loop.draw_curves(loop.folder)
        return True

    def step_together(self, states: Tree, rows: np.ndarray) -> Tree:
        """The states after one step of all runs, on rows [runs, B] of the training set."""
        with conv.default_impl(self.conv_impl):
            return self.vmapped(states, self.compiled.data, rows)

    def call_together(self, states: Tree, batches: Sequence[np.ndarray]) -> Tree:
        """The states after a step of all runs on each of the batches [runs, B]."""
        if self.compiled.looped:
            count, rows = self.compiled.stack(batches, axis=2)
            with conv.default_impl(self.conv_impl):
                return self.vmapped_loop(states, self.compiled.data, count, rows)
        for rows in batches:
            states = self.step_together(states, rows)
        return states

    def _by_epoch_length(self) -> list[list[training_loop.Loop]]:
        groups: dict[int, list[training_loop.Loop]] = {}
        for loop in self.loops:
            groups.setdefault(loop.plan.epoch_steps, []).append(loop)
        return list(groups.values())

    def _start_clock(self, loops: list[training_loop.Loop]) -> None:
        """Set the deadline of these runs: now plus the sum of their remaining time budgets."""
        left = sum(self.budget - self._record_seconds(loop) for loop in loops)
        self.deadline = time.monotonic() + left if self.budget else float("inf")

    def _record_seconds(self, loop: training_loop.Loop) -> float:
        """Write the seconds of all processes of a run to its folder, and return them."""
        used = self.before[loop.folder] + _recorded_seconds(loop.folder)
        run_dir.write_seconds(loop.folder, used)
        return used

    def _should_stop(self) -> bool:
        """Whether all runs must stop; raises TimeBudgetExceeded after the deadline."""
        if self.stop():
            return True
        if time.monotonic() > self.deadline:
            raise TimeBudgetExceeded
        return False

    def _live(self, loops: Sequence[training_loop.Loop]) -> list[training_loop.Loop]:
        return [x for x in loops if x.folder not in self.failed and not x.is_complete()]

    def _catch_up(self, loops: list[training_loop.Loop]) -> None:
        """Train the runs that stopped at an earlier step until all runs are at the latest step."""
        furthest = max(loop.step for loop in loops)
        for loop in loops:
            while loop.step < furthest and loop.folder not in self.failed:
                self._guard(loop, loop.run_epoch)

    def _run_epoch(self, loops: list[training_loop.Loop]) -> None:
        """Train all live runs to the end of their epoch, and evaluate them."""
        for loop in self._live(loops):
            if loop.evaluation_is_due():
                self._guard(loop, loop.evaluate)
        live = [loop for loop in self._live(loops) if loop.step < loop.plan.steps]
        if not live:
            return
        begun = time.monotonic()
        batches = np.stack([loop.batch_indices() for loop in live], 1)
        try:
            training_loop.take_steps(
                self.compiled.by_call(batches),
                _Stacked(self, live),
                pause=self._pause,
                after=self._after_call,
            )
        except TimeBudgetExceeded:
            for loop in live:
                self._leave_behind(loop)
            return
        share = (time.monotonic() - begun) / len(live)
        for loop in live:
            loop.together = len(live)
            loop.began = time.monotonic() - share  # without the evaluations of the others
            self._guard(loop, loop.evaluate)

    def _pause(self) -> None:
        if self._should_stop():
            raise training_loop.StopRequested

    def _after_call(self, batches: Sequence[np.ndarray]) -> None:
        self.show.advance(sum(rows.size for rows in batches))

    def _guard(self, loop: training_loop.Loop, call: Callable[[], Any]) -> None:
        """Call a method of a run; record the run as failed if it diverges or exceeds its time."""
        try:
            call()
        except training_loop.DivergedError as error:
            self._fail(loop, str(error))
        except TimeBudgetExceeded:
            self._leave_behind(loop)
        self._record_seconds(loop)

    def _leave_behind(self, loop: training_loop.Loop) -> None:
        self._guard(loop, partial(loop.save, None))
        if loop.folder not in self.failed:
            end = f"step {loop.step} of {loop.plan.steps}"
            self._fail(loop, f"its --time-budget of {self.budget:g} s is used up at {end}")

    def _fail(self, loop: training_loop.Loop, why: str) -> None:
        self.failed[loop.folder] = why
        loop.show.line(why)


class _Stacked:
    """The `Stepper` of several runs in one program."""

    def __init__(self, runs: VmappedRuns, live: list[training_loop.Loop]):
        self.runs, self.live, self.taken = runs, live, 0
        self.states = stack([loop.state for loop in live])

    def step(self, batches: Sequence[np.ndarray]) -> None:
        """Dispatch one call of all runs, with a step for each of the batches [runs, B]."""
        runs, states = self.runs, self.states
        self.states = runs.compiled.timed(lambda: runs.call_together(states, batches))
        self.taken += len(batches)

    def sync(self) -> None:
        """Wait for the steps, and store the state of each run."""
        states = unstack(jax.block_until_ready(self.states), len(self.live))
        for loop, state in zip(self.live, states, strict=True):
            loop.state, loop.step = state, loop.step + self.taken


def _recorded_seconds(folder: Path) -> float:
    return run_dir.total_seconds(run_dir.read_metrics(folder))


def _unrecorded_seconds(loop: training_loop.Loop, spent: float) -> float:
    """Seconds of a run that are not in its metrics: rest of earlier processes, and `spent`."""
    earlier = run_dir.read_seconds(loop.folder) - _recorded_seconds(loop.folder)
    return earlier if loop.is_complete() else earlier + spent
