"""The start of a training or of a prediction, stage by stage: run by `benchmarks.startup`.

    python -m benchmarks.lib.startup_stages '{"system": "digits", "fields": {"epochs": 2}}'
    python -m benchmarks.lib.startup_stages '{"run": "runs/detect", "image": "photo.jpg"}'

The argument is a JSON object: a system and fields of its configuration to change, to train until
the second step; or a run folder and an image to predict twice. Prints one line of JSON: the seconds
of each stage, and the times of day at the start of this module and after the first step or
prediction. The stages are the same as in `jaxdet train` and `jaxdet predict`; only the standard
library is imported before the clock starts.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

START_TIME = time.time()
EVENTS = {
    "jaxpr_trace_duration": "trace",
    "jaxpr_to_mlir_module_duration": "trace",
    "backend_compile_duration": "compile",
}
TRAINING = ("jaxdet.training.loop", "jaxdet.training.progress")


class StageTimer:
    """Seconds of the stages of a process, by name, in order.

    first_result_time: time of day, as from `time.time`, after the first training step or
      prediction.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.first_result_time = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def split(self, name: str, parts: Mapping[str, float]) -> None:
        """Turn `parts` of the last stage, `name`, into stages before it; `name` keeps the rest."""
        rest = self.seconds.pop(name) - sum(parts.values())
        self.seconds |= {**parts, name: rest}


def run_training(system: str, fields: Mapping[str, Any], folder: str) -> StageTimer:
    """Time the stages of a training on one device; `folder`, which must be empty, gets the run."""
    timer = StageTimer()
    jax = _import(timer)
    with timer.stage("import jaxdet"):
        import_module("jaxdet.cli.train")
        base, configs = map(import_module, ("jaxdet.config", "jaxdet.configs"))
        training_loop, progress = map(import_module, TRAINING)
    with timer.stage("find the devices"):
        jax.devices()
    with timer.stage("build: data, network"):
        config = base.from_json(configs.config(system), {**fields, "devices": 1})
        experiment = configs.build(system, config)
    with timer.stage("init: state, data to the device"):
        compiled = training_loop.CompiledSteps(experiment)
        loop = training_loop.Loop(compiled, experiment, Path(folder), progress.Progress(quiet=True))
        jax.block_until_ready((loop.state, compiled.data))
    _run_steps(timer, loop, jax.block_until_ready)
    return timer


def run_prediction(folder: str, image: str) -> StageTimer:
    """Time the stages of a prediction for an image file by the run in `folder`."""
    timer = StageTimer()
    jax = _import(timer)
    with timer.stage("import jaxdet"):
        import_module("jaxdet.cli.predict")
        api = import_module("jaxdet.api")
    import_module("jaxdet.kernels.program_cache").enable()  # as `jaxdet.cli.main.enter` does
    with timer.stage("find the devices"):
        jax.devices()
    with timer.stage("restore"):
        run = api.load(folder)
    with timer.stage("decode the image"):
        prepared = run.prepare(image)
    parts: dict[str, float] = {}
    import_module("jax.monitoring").register_event_duration_secs_listener(partial(_add, parts))
    with timer.stage("first prediction"):
        run.predict_arrays([prepared.image], 1)
    timer.first_result_time = time.time()
    timer.split("first prediction", parts)
    with timer.stage("second prediction"):
        run.predict_arrays([prepared.image], 1)
    return timer


def _add(parts: dict[str, float], event: str, seconds: float, **_: Any) -> None:
    """Add the seconds of an event of JAX to the part that it belongs to."""
    if name := EVENTS.get(event.rpartition("/")[2]):
        parts[name] = parts.get(name, 0.0) + seconds


def _import(timer: StageTimer) -> Any:
    """Import the command line and jax, with the settings of the command line; returns jax."""
    with timer.stage("import the command line"):
        import_module("jaxdet.cli.main")
        process, options = map(import_module, ("jaxdet.cli.process", "jaxdet.cli.options"))
    process.prepare(options.Train())
    with timer.stage("import jax"):
        return import_module("jax")


def _run_steps(timer: StageTimer, loop: Any, wait: Callable) -> None:
    """Trace, compile and run the step of a loop; then run it once more."""
    (rows, *_), data = loop.batch_indices(), loop.compiled.data
    with timer.stage("trace"):
        lowered = loop.compiled.steps[0].lower(loop.state, data, rows)
    with timer.stage("compile"):
        step = lowered.compile()
    with timer.stage("first step"):
        state = wait(step(loop.state, data, rows))
    timer.first_result_time = time.time()
    with timer.stage("second step"):
        wait(step(state, data, rows))


def main(given: dict[str, Any]) -> None:
    """Time what a JSON object describes, and print the times."""
    with tempfile.TemporaryDirectory() as folder:
        if "run" in given:
            timer = run_prediction(given["run"], given["image"])
        else:
            timer = run_training(given["system"], given.get("fields", {}), folder)
    times = {"begun": START_TIME, "first": timer.first_result_time, "seconds": timer.seconds}
    print(json.dumps(times))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
