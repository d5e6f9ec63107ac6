"""Limits of a run: parameters, and seconds over all its processes."""

import statistics
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet import tables
from jaxdet.config import TrainConfig
from jaxdet.errors import InputError
from jaxdet.profiling import summary, timing
from jaxdet.training import host_init, hosts, parallel, progress, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.types import Tree

if TYPE_CHECKING:
    from jaxdet.training.loop import CompiledSteps

TRIAL_FRACTION = 0.03  # at most this fraction of the budget is used to measure steps
RESERVE = 0.04  # fraction of the budget that is not planned for epochs
REPLAN_RESERVE = 0.015  # the same, once whole epochs have been measured
CLOSING = 0.005  # fraction left for the last checkpoint and the end of the process
KEEP_SECONDS = 30  # the used seconds are written to the run folder at most this often


def check_parameters(net: nn.Module, shape: tuple[int, ...], limit: int) -> None:
    """Raise InputError for a network with more than `limit` parameters; 0: no limit.

    shape: shape [B, H, W, C] of the images.  A note added to the error lists the parameters of each
    layer.
    """
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    count = count_parameters(jax.eval_shape(net.init, jax.random.key(0), images))
    if not limit or count <= limit:
        return
    layers = [layer for layer in summary.summarize(net, images).layers if layer.parameters]
    rows = [{"layer": layer.path, "parameters": layer.parameters} for layer in layers]
    error = InputError(
        f"--max-params must be at least {count}, the number of parameters, got {limit}; "
        f"raise --max-params, or choose another --model or smaller sizes"
    )
    error.add_note(tables.to_markdown(rows, ["layer", "parameters"]))
    raise error


def count_parameters(variables: Tree) -> int:
    """Number of parameters of flax variables, frozen ones included: the size of `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def plan_epochs(compiled: "CompiledSteps", experiment: Experiment, spent: float) -> Experiment:
    """The experiment with as many epochs as its time budget allows.

    spent: seconds used before.  Steps and one evaluation are measured with a state that is then
    discarded; every epoch includes an evaluation.  Raises InputError if not even one epoch fits.
    """
    config, begun = experiment.config, time.monotonic()
    step, state = _measure_step(compiled, experiment)
    variables = training_state.variables_of(state)
    evaluation = 0.0
    for evaluate in compiled.evaluators.values():
        evaluate.compile(variables)
        evaluation += timing.timed(partial(evaluate, variables, 0))[1]
    first = evaluation if config.eval_first else 0.0
    left = config.time_budget * (1 - RESERVE) - spent - (time.monotonic() - begun) - first
    epoch = step * experiment.plan.epoch_steps + evaluation
    epochs = hosts.from_main(lambda: _fitting_epochs(left, epoch, config.time_budget))
    return replace(experiment, config=replace(config, epochs=epochs))


def _fitting_epochs(left: float, epoch: float, budget: float) -> int:
    """Number of epochs of `epoch` seconds in the `left` seconds; InputError if none fits."""
    if left < epoch:
        raise InputError(
            f"--time-budget {budget:g} is too short: one epoch with its evaluation takes "
            f"{epoch:.0f} s, and {max(left, 0):.0f} s are left after the start; raise --time-budget"
        )
    return int(left / epoch)


def _measure_step(compiled: "CompiledSteps", experiment: Experiment) -> tuple[float, Any]:
    """(mean seconds of a step, the state after some steps)."""
    config, source = experiment.config, experiment.splits["train"]
    state = host_init.initialize(training_state.init_fn(experiment))
    state = parallel.replicate(state, compiled.devices)
    index = experiment.batch_order(source)(config.seed, 0, len(source), config.batch)
    begun, count, next_wait = 0.0, 0, 3
    for count, rows in enumerate(source.batches(hosts.own_rows(index))):
        state = compiled.take_steps(state, [rows])
        if count == 0:
            jax.block_until_ready(state)  # the first step includes compilation
            begun = time.monotonic()
        elif count == next_wait:  # rarely, so that the device is never idle
            jax.block_until_ready(state)
            next_wait = 2 * count
            if hosts.agree(time.monotonic() - begun > TRIAL_FRACTION * config.time_budget):
                break
    jax.block_until_ready(state)
    return (time.monotonic() - begun) / count if count else 0.0, state


class Clock:
    """The seconds that a run has used, compared with its time budget if it has one.

    These seconds are wall time, and include earlier processes if the run was resumed.  `is_over`
    writes the seconds to the run folder every half minute, so that few are lost when a process is
    killed.

    before: seconds used so far, by earlier processes and by this one.
    """

    def __init__(self, folder: Path, config: TrainConfig, before: float = 0.0):
        self.folder, self.limit = folder, config.time_budget
        self.before = self.kept = before
        self.begun = _now()
        self.epoch_ends: list[float] = []  # used seconds after each evaluation of this process

    def used(self) -> float:
        """Seconds used before, and since the clock was created."""
        return self.before + _now() - self.begun

    def is_over(self) -> bool:
        """Whether the budget is used up, except for the time to close the run."""
        used = self.used()
        if used - self.kept >= KEEP_SECONDS:
            self.keep()
        return bool(self.limit) and used > self.limit * (1 - CLOSING)

    def keep(self) -> None:
        """Write the used seconds to the run folder, for a process that resumes the run."""
        self.kept = self.used()
        if hosts.is_main():
            run_dir.write_seconds(self.folder, self.kept)

    def plan_epochs(self, done: int, planned: int) -> int:
        """The number of epochs of the run, planned anew after `done` epochs and their evaluation.

        It is `done` plus the number of epochs that still fit into the budget, by the median time of
        the whole epochs of this process with their evaluations and checkpoints.  Without a budget,
        and before the first whole epoch, it stays `planned`.
        """
        self.epoch_ends.append(self.used())
        if not self.limit or len(self.epoch_ends) < 2:
            return planned
        left = self.limit * (1 - REPLAN_RESERVE) - self.epoch_ends[-1]
        epoch = statistics.median_low(b - a for a, b in pairwise(self.epoch_ends))
        return done + max(0, int(left / max(epoch, 1e-9)))


def _now() -> float:
    """Seconds of a monotonic clock, since the start of the process if that is known."""
    since_start = progress.since_start()
    return time.monotonic() if since_start is None else since_start
