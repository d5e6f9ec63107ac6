"""Budgets of a run: how many parameters may learn, and how many seconds there are."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import tables
from jaxdet.data import sampler
from jaxdet.errors import InputError
from jaxdet.profiling import summary, timing
from jaxdet.training import evaluator, host_init, parallel, progress, run_dir
from jaxdet.training import state as training_state

TRIED = 0.03  # share of the seconds, at most, that steps are tried for
SPARED = 0.04  # share that no epoch is planned for
CLOSING = 0.005  # share that is left for the last checkpoint and the end of the process
KEPT = 30  # seconds after which the seconds that are used are kept again


def check_parameters(net, shape, most):
    """Refuse a network for inputs of `shape` with more than `most` parameters that learn.

    0 takes any.  InputError has the table of the layers that have them.
    """
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    count = parameters(jax.eval_shape(net.init, jax.random.key(0), images))
    if not most or count <= most:
        return
    layers = [layer for layer in summary.summarize(net, images).layers if layer.parameters]
    rows = [{"layer": layer.path, "parameters": layer.parameters} for layer in layers]
    raise InputError(
        f"the network has {count} parameters that learn, {most} (--max-params) are wanted at most;"
        f" take another --model or smaller sizes\n{tables.to_markdown(rows, ['layer', 'parameters'])}"
    )


def parameters(variables):
    """How many numbers of flax `variables` learn: those of `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def planned(programs, system, config, spent):
    """`config` with as many epochs as `config.time_budget` seconds allow, `spent` of them gone.

    Every epoch has its evaluation.  Steps and one evaluation are measured with `programs`, a
    `fit.Programs`, on a state that is thrown away.  InputError where not even one epoch fits.
    """
    begun, epoch_steps = time.monotonic(), programs.plan.epoch_steps
    step, state = _step_seconds(programs, system, config)
    kept = evaluator.variables(state)
    programs.evaluator.prepare(kept)
    _, judging = timing.timed(lambda: programs.evaluator(kept, 0))
    first = judging if config.eval_first else 0.0
    left = config.time_budget * (1 - SPARED) - spent - (time.monotonic() - begun) - first
    each = step * epoch_steps + judging
    if left < each:
        raise InputError(
            f"--time-budget {config.time_budget:g}: {max(left, 0):.0f} s are left after the start, "
            f"one epoch and its evaluation take {each:.0f} s"
        )
    return replace(config, epochs=int(left / each))


def _step_seconds(programs, system, config):
    """(mean seconds of a step, a state after some steps)."""
    state = parallel.put(host_init.evaluate(training_state.maker(system, config)), programs.among)
    source = system.splits["train"]
    index = (system.order or sampler.shuffled_batches)(config.seed, 0, len(source), config.batch)
    times, begun = [], None
    for row in source.batches(index):
        before = time.monotonic()
        state = jax.block_until_ready(programs.steps[0](state, programs.data, row))
        if begun is None:
            begun = time.monotonic()  # the first step was compiled
            continue
        times.append(time.monotonic() - before)
        if len(times) > 2 and time.monotonic() - begun > TRIED * config.time_budget:
            break
    return (float(np.mean(times)) if times else 0.0), state


class Clock:
    """The seconds that a run has used, in all of its processes, against its budget.

    The run folder keeps them, and again while the run goes on: a process that is killed loses few.
    A run without a budget keeps nothing.
    """

    def __init__(self, folder, config):
        self.folder, self.most = folder, config.time_budget
        self.before = self.kept = run_dir.read_seconds(folder) if self.most else 0.0

    def used(self):
        """Seconds of the processes before this one, and of this one from its very start."""
        return self.before + (progress.since_start() or 0.0)

    def late(self):
        """Whether the seconds are over, but for those of the closing."""
        if not self.most:
            return False
        used = self.used()
        if used - self.kept >= KEPT:
            self.keep()
        return used > self.most * (1 - CLOSING)

    def keep(self):
        """Write the seconds down, for the next process of the run."""
        if self.most:
            self.kept = self.used()
            run_dir.write_seconds(self.folder, self.kept)
