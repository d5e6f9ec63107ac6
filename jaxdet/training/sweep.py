"""Runs that differ in numbers only, trained together: one compiled program, and a folder each.

What may differ is what `train.numbers` has, the seed, and how much of the training set is used:
the first rows of the largest.  Each run is what it would be alone, up to rounding, and its folder
is that of any other run.  Where there is a budget of time, each has it for itself: a run that is
late is saved and left behind, and the others go on.

The seconds of a run are its share of those of the program that trains it beside others, and all of
its evaluations: over all runs they add up to what passed.  With a budget the start of the process
is counted in every run, as in a training of one.
"""

import shutil
import time
from contextlib import nullcontext
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.kernels import conv
from jaxdet.profiling import timing
from jaxdet.training import checkpoint, evaluator, progress, run_dir, time_budget
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state


class Times(NamedTuple):
    """Seconds that one step of all runs takes."""

    together: float  # in one program
    in_turn: float  # one run after the other


def numbered(system, config):
    """The system of one of the runs: the same task and data, with the numbers of `config`."""
    system = system.part(config) if system.part else system
    return system._replace(hyper={name: getattr(config, name) for name in system.hyper})


def stack(trees):
    """Equal trees of arrays as one, with a leading axis of runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree, count):
    """Undoes `stack`: a list of `count` trees."""
    return [jax.tree.map(itemgetter(i), tree) for i in range(count)]


def judge(system, config, folder, trained, show):
    """A run that differs from a trained one only in its judgement; returns its cost.

    The checkpoints of the run in `trained` become those of `folder`, and the best of them is
    evaluated once, unless that was done before.
    """
    if not (folder / "checkpoints").is_dir():
        draft = folder / "checkpoints.partial"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(trained / "checkpoints", draft)
        draft.rename(folder / "checkpoints")
    like = jax.eval_shape(training_state.maker(system, config))
    step, state = checkpoint.restore(folder, like, "best", show.line)
    scorer = evaluator.Evaluator(system, "val", config.eval_batch, training_state.devices(config))
    kept = evaluator.variables(state)
    if not run_dir.read_metrics(folder):
        (line,) = (line for line in run_dir.read_metrics(trained) if line["step"] == step)
        run_dir.append_metrics(folder, {**line, "val": scorer(kept, evaluator.epoch(state))})
    return _cost(scorer, kept)


def _cost(scorer, kept):
    """What an image and the network take: operations and parameters."""
    each = scorer.operations(kept) // scorer.count
    return {"operations": each, "parameters": time_budget.parameters(kept)}


class LateError(Exception):
    """The seconds that runs have, those that train now, are over."""


class Lanes:
    """Several runs on their way, on one device; `system` has all the data that any of them uses.

    `programs` are the `fit.Programs` of the first configuration, if they are made already; `spent`
    are seconds before, which each run counts among its own.
    """

    def __init__(self, system, configs, folders, show, stop, programs=None, spent=0.0):
        self.programs = programs or training_loop.Programs(system, configs[0])
        self.show, self.stop = show, stop
        self.loops = [
            training_loop.Loop(
                *(self.programs, numbered(system, config), config, folder),
                *(progress.Named(show, folder.name), self._asked),
            )
            for config, folder in zip(configs, folders, strict=True)
        ]
        self.budget, self.over = configs[0].time_budget, float("inf")  # seconds; when it is over
        pure = partial(self.programs.pure, axis=None)
        self.step = jax.jit(jax.vmap(pure, in_axes=(0, None, 0)), donate_argnums=0)
        self.failed = {}  # folder of a run that diverged, or is late -> why
        self.before = {loop.folder: _untold(loop, spent) for loop in self.loops}

    def begun(self):
        """Whether all have a next step to take, none of them in the middle of an epoch."""
        if not self.programs.data or len(self.programs.steps) > 1:  # streamed, or of many sizes
            return False
        return all(x.at < x.plan.steps and x.at % x.plan.epoch_steps == 0 for x in self.loops)

    def times(self, *, seconds=0.0, repeats=3):
        """The `Times` of a step, the median of several; both programs are compiled by it.

        seconds: for more repeats of each.  The states of the runs stay what they are.
        """
        rows = np.stack([loop.rows()[0] for loop in self.loops])
        data, step = self.programs.data, self.programs.steps[0]
        one, every = _copy(self.loops[0].state), stack([loop.state for loop in self.loops])

        def alone():
            nonlocal one
            one = step(one, data, rows[0])
            return one.step

        def abreast():
            nonlocal every
            every = self._stepped(every, rows)
            return every.step

        found = timing.measure_interleaved(alone, abreast, seconds=seconds, repeats=repeats)
        return Times(together=found[1].median, in_turn=found[0].median * len(rows))

    def cost(self):
        """What an image and the network of any of the runs take: operations and parameters."""
        return _cost(self.programs.evaluator, evaluator.variables(self.loops[0].state))

    def run(self, *, together):
        """Train all to their ends; returns whether they are complete, False when asked to stop."""
        batch = self.loops[0].config.batch
        done, steps = sum(x.at for x in self.loops), sum(x.plan.steps for x in self.loops)
        self.show.begin(done * batch, steps * batch)
        try:
            if together:
                for alike in self._of_one_length():
                    self._begin(alike)
                    self._abreast(alike)
                    while self._live(alike):
                        self._epoch(alike)
            for loop in self._live(self.loops):
                self._begin([loop])
                self._alone(loop)
        except training_loop.StopRequested:
            for loop in self._live(self.loops):
                self._guarded(loop, partial(loop.save, None))
            return False
        finally:
            self.show.close()
        for loop in self.loops:
            training_loop.draw(loop.folder)
        return True

    def _of_one_length(self):
        """Lists of runs whose epochs have the same number of steps; all lists share one program."""
        found = {}
        for loop in self.loops:
            found.setdefault(loop.plan.epoch_steps, []).append(loop)
        return list(found.values())

    def _begin(self, loops):
        """The seconds of these runs begin, as many as all of them have, less those they had."""
        left = sum(self.budget - self._used(loop) for loop in loops)
        self.over = time.monotonic() + left if self.budget else float("inf")

    def _used(self, loop):
        """Seconds of all processes of a run; where there is a budget its folder keeps them."""
        used = self.before[loop.folder] + _told(loop.folder)
        if self.budget:
            run_dir.write_seconds(loop.folder, used)
        return used

    def _asked(self):
        """What a run asks between two batches: whether all are to stop; LateError where it is."""
        if self.stop():
            return True
        if time.monotonic() > self.over:
            raise LateError
        return False

    def _live(self, among):
        return [x for x in among if x.folder not in self.failed and not x.complete()]

    def _abreast(self, alike):
        """Runs that were killed behind the others catch up."""
        furthest = max(loop.at for loop in alike)
        for loop in alike:
            while loop.at < furthest and loop.folder not in self.failed:
                self._guarded(loop, loop.epoch)

    def _alone(self, loop):
        loop.together = 1
        while self._live([loop]):
            self._guarded(loop, loop.epoch)

    def _guarded(self, loop, call):
        """A run that diverges, or is late, is left behind; the others go on."""
        try:
            call()
        except training_loop.DivergedError as error:
            self._left(loop, str(error))
        except LateError:
            self._late(loop)
        self._used(loop)

    def _late(self, loop):
        self._guarded(loop, partial(loop.save, None))
        if loop.folder not in self.failed:
            end = f"step {loop.at} of {loop.plan.steps}"
            self._left(loop, f"its {self.budget:g} s (--time-budget) are over at {end}")

    def _left(self, loop, why):
        self.failed[loop.folder] = why
        loop.show.line(why)

    def _epoch(self, alike):
        """All of them that live, to the end of their epoch, and their evaluation."""
        live = self._live(alike)
        for loop in live:
            if loop.due():
                self._guarded(loop, loop.evaluate)
        live = [loop for loop in self._live(alike) if loop.at < loop.plan.steps]
        if not live:
            return
        begun = time.monotonic()
        try:
            self._steps(live)
        except LateError:
            for loop in live:
                self._late(loop)
            return
        share = (time.monotonic() - begun) / len(live)
        for loop in live:
            loop.together = len(live)
            loop.began = time.monotonic() - share  # without the evaluations of the others
            self._guarded(loop, loop.evaluate)

    def _steps(self, live):
        """All of them to the end of their epoch."""
        states, rows = stack([loop.state for loop in live]), [loop.rows() for loop in live]
        taken = 0
        try:
            for row in np.stack(rows, 1):
                if self._asked():
                    raise training_loop.StopRequested
                states, taken = self._stepped(states, row), taken + 1
                self.show.advance(row.size)
        except (training_loop.StopRequested, LateError):
            self._moved(live, states, taken)
            raise
        self._moved(live, jax.block_until_ready(states), taken)

    def _moved(self, live, states, steps):
        """The runs after some steps together."""
        for loop, state in zip(live, unstack(states, len(live)), strict=True):
            loop.state, loop.at = state, loop.at + steps

    def _stepped(self, states, rows):
        """One step of all; on a CPU a convolution by several kernels is quickest as a product."""
        cpu = jax.default_backend() == "cpu"
        with conv.default_impl("im2col") if cpu else nullcontext():
            return self.step(states, self.programs.data, rows)


def _told(folder):
    """Seconds that the metrics of a run tell of."""
    return run_dir.total_seconds(run_dir.read_metrics(folder))


def _untold(loop, spent):
    """Seconds that they do not tell of: of earlier processes, and those `spent` in this one."""
    earlier = run_dir.read_seconds(loop.folder) - _told(loop.folder)
    return earlier if loop.complete() else earlier + spent


def _copy(tree):
    """The same numbers, for a program that takes its arguments' memory."""
    return jax.tree.map(jnp.copy, tree)
