"""Limits of a run: trainable parameters, and seconds over all its processes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet import tables
from jaxdet.config import TrainConfig
from jaxdet.errors import InputError
from jaxdet.profiling import summary, timing
from jaxdet.training import host_init, parallel, progress, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.types import Tree

if TYPE_CHECKING:
    from jaxdet.training.loop import CompiledSteps

TRIAL_FRACTION = 0.03  # largest fraction of the budget that steps are measured for
RESERVE = 0.04  # fraction of the budget that no epoch is planned for
CLOSING = 0.005  # fraction left for the last checkpoint and the end of the process
KEEP_SECONDS = 30  # time between two records of the seconds used


def check_parameters(net: nn.Module, shape: tuple[int, ...], limit: int) -> None:
    """Raise InputError for a network with more than `limit` trainable parameters; 0: no limit.

    shape: of the images, [B, H, W, C].  The error lists the parameters of each layer.
    """
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    count = count_parameters(jax.eval_shape(net.init, jax.random.key(0), images))
    if not limit or count <= limit:
        return
    layers = [layer for layer in summary.summarize(net, images).layers if layer.parameters]
    rows = [{"layer": layer.path, "parameters": layer.parameters} for layer in layers]
    raise InputError(
        f"--max-params is {limit}, but the network has {count} trainable parameters; choose "
        f"another --model or smaller sizes\n{tables.to_markdown(rows, ['layer', 'parameters'])}"
    )


def count_parameters(variables: Tree) -> int:
    """Number of trainable parameters of flax variables: the size of `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def plan_epochs(compiled: "CompiledSteps", experiment: Experiment, spent: float) -> Experiment:
    """The experiment with as many epochs as its time budget allows.

    spent: seconds used before.  Steps and one evaluation are measured with a state that is then
    discarded; every epoch includes an evaluation.  InputError if not even one epoch fits.
    """
    config, begun = experiment.config, time.monotonic()
    step, state = _measure_step(compiled, experiment)
    variables = training_state.variables_of(state)
    compiled.evaluator.compile(variables)
    _, evaluation = timing.timed(lambda: compiled.evaluator(variables, 0))
    first = evaluation if config.eval_first else 0.0
    left = config.time_budget * (1 - RESERVE) - spent - (time.monotonic() - begun) - first
    epoch = step * experiment.plan.epoch_steps + evaluation
    if left < epoch:
        raise InputError(
            f"--time-budget {config.time_budget:g} leaves {max(left, 0):.0f} s after the start, "
            f"but one epoch with its evaluation takes {epoch:.0f} s"
        )
    return replace(experiment, config=replace(config, epochs=int(left / epoch)))


def _measure_step(compiled: "CompiledSteps", experiment: Experiment) -> tuple[float, Any]:
    """(mean seconds of a step, the state after some steps)."""
    config, source = experiment.config, experiment.splits["train"]
    state = host_init.initialize(training_state.init_fn(experiment))
    state = parallel.replicate(state, compiled.devices)
    index = experiment.batch_order(config.seed, 0, len(source), config.batch)
    times, begun = [], None
    for rows in source.batches(index):
        before = time.monotonic()
        state = jax.block_until_ready(compiled.steps[0](state, compiled.data, rows))
        if begun is None:
            begun = time.monotonic()  # the first step included compilation
            continue
        times.append(time.monotonic() - before)
        if len(times) > 2 and time.monotonic() - begun > TRIAL_FRACTION * config.time_budget:
            break
    return (float(np.mean(times)) if times else 0.0), state


class Clock:
    """The seconds that a run has used in all its processes, compared with its time budget.

    They are written to the run folder every half minute, so that few are lost when a process is
    killed.  Without a budget nothing is written.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        self.folder, self.limit = folder, config.time_budget
        self.before = self.kept = run_dir.read_seconds(folder) if self.limit else 0.0

    def used(self) -> float:
        """Seconds of earlier processes, and of this one since its start."""
        return self.before + (progress.since_start() or 0.0)

    def is_over(self) -> bool:
        """Whether the budget is used up, except for the time to close the run."""
        if not self.limit:
            return False
        used = self.used()
        if used - self.kept >= KEEP_SECONDS:
            self.keep()
        return used > self.limit * (1 - CLOSING)

    def keep(self) -> None:
        """Write the used seconds for the next process of the run."""
        if self.limit:
            self.kept = self.used()
            run_dir.write_seconds(self.folder, self.kept)
