"""What `benchmarks.startup` runs in a process of its own: a training until its second step.

    python -m benchmarks.lib.startup_stages '{"epochs": 2}'

takes the fields in which the configuration of `digits` differs, as JSON, and prints one line of
JSON: seconds of each stage, and the times of day at the first line of this file and after the first
step.  The stages are those of `jaxdet train digits`; nothing is imported before the clock runs.
"""

import json
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib import import_module

BEGUN = time.time()
PARTS = (
    "jaxdet.configs",
    "jaxdet.configs.base",
    "jaxdet.training.loop",
    "jaxdet.training.progress",
)


class Stages:
    """Seconds of the stages of a process, by name, in order."""

    def __init__(self):
        self.seconds, self.first = {}, None

    @contextmanager
    def stage(self, name):
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run(fields, folder):
    """The `Stages` of a training on one device; `folder` is an empty one for the run."""
    found = Stages()
    with found.stage("import the command line"):
        cli = import_module("jaxdet.cli.main")
    cli.prepare(cli.options.Train())
    with found.stage("import jax"):
        jax = import_module("jax")
    with found.stage("import jaxdet's parts"):
        import_module("jaxdet.cli.train")
        configs, base, fit, progress = map(import_module, PARTS)
    with found.stage("find the devices"):
        jax.devices()
    with found.stage("build: data, network"):
        config = base.from_json(configs.config("digits"), {**fields, "devices": 1})
        system = configs.build("digits", config)
    with found.stage("init: state, data to the device"):
        show = progress.Progress(quiet=True)
        programs = fit.Programs(system, config)
        loop = fit.Loop(programs, system, config, folder, show, stop=lambda: False)
        jax.block_until_ready((loop.state, programs.data))
    steps(found, loop, jax.block_until_ready)
    return found


def steps(found, loop, wait):
    """Trace, compile and run the step of a `fit.Loop`; then once more."""
    (rows, *_), data = loop.rows(), loop.programs.data
    with found.stage("step: trace"):
        lowered = loop.programs.steps[0].lower(loop.state, data, rows)
    with found.stage("step: compile"):
        step = lowered.compile()
    with found.stage("first step"):
        state = wait(step(loop.state, data, rows))
    found.first = time.time()
    with found.stage("second step"):
        wait(step(state, data, rows))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = run(json.loads(sys.argv[1]) if sys.argv[1:] else {}, place)
    print(json.dumps({"begun": BEGUN, "first": made.first, "seconds": made.seconds}))
