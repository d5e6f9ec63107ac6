"""A training until its second step, stage by stage: run by `benchmarks.startup` as a process.

    python -m benchmarks.lib.startup_stages '{"epochs": 2}'

The argument is a JSON object of fields of the `digits` config to change. Prints one line of JSON:
the seconds of each stage, and the times of day at the start of this module and after the first
step. The stages are the same as in `jaxdet train digits`; only the standard library is imported
before the clock starts.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

START_TIME = time.time()
TRAINING = ("jaxdet.training.loop", "jaxdet.training.progress")


class StageTimer:
    """Seconds of the stages of a process, by name, in order.

    first_step_time: time of day, as from `time.time`, after the first training step.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.first_step_time = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run_stages(fields: Mapping[str, Any], folder: str) -> StageTimer:
    """Time the stages of a training on one device; `folder`, which must be empty, gets the run."""
    timer = StageTimer()
    with timer.stage("import the command line"):
        import_module("jaxdet.cli.main")
        process, options = map(import_module, ("jaxdet.cli.process", "jaxdet.cli.options"))
    process.prepare(options.Train())
    with timer.stage("import jax"):
        jax = import_module("jax")
    with timer.stage("import jaxdet"):
        import_module("jaxdet.cli.train")
        base, configs = map(import_module, ("jaxdet.config", "jaxdet.configs"))
        training_loop, progress = map(import_module, TRAINING)
    with timer.stage("find the devices"):
        jax.devices()
    with timer.stage("build: data, network"):
        config = base.from_json(configs.config("digits"), {**fields, "devices": 1})
        experiment = configs.build("digits", config)
    with timer.stage("init: state, data to the device"):
        compiled = training_loop.CompiledSteps(experiment)
        loop = training_loop.Loop(compiled, experiment, Path(folder), progress.Progress(quiet=True))
        jax.block_until_ready((loop.state, compiled.data))
    _run_steps(timer, loop, jax.block_until_ready)
    return timer


def _run_steps(timer: StageTimer, loop: Any, wait: Callable) -> None:
    """Trace, compile and run the step of a loop; then run it once more."""
    (rows, *_), data = loop.batch_indices(), loop.compiled.data
    with timer.stage("step: trace"):
        lowered = loop.compiled.steps[0].lower(loop.state, data, rows)
    with timer.stage("step: compile"):
        step = lowered.compile()
    with timer.stage("first step"):
        state = wait(step(loop.state, data, rows))
    timer.first_step_time = time.time()
    with timer.stage("second step"):
        wait(step(state, data, rows))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as run_folder:
        timed = run_stages(json.loads(sys.argv[1]) if sys.argv[1:] else {}, run_folder)
    print(
        json.dumps({"begun": START_TIME, "first": timed.first_step_time, "seconds": timed.seconds})
    )
