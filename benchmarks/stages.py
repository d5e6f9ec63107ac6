"""What `benchmarks.startup` runs in a process of its own: a training until its second step.

    python -m benchmarks.stages '{"epochs": 2}'

takes the fields in which the configuration of `digits` differs, as JSON, and prints one line of
JSON: seconds of each stage, and the times of day at the first line of this file and after the first
step.  The stages are those of `jaxdet train digits`; nothing is imported before the clock runs.
"""

import json
import sys
import time
from contextlib import contextmanager
from importlib import import_module

BEGUN = time.time()
PARTS = ("jaxdet.configs.base", "jaxdet.configs", "jaxdet.parallel", "jaxdet.train")


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


def run(fields):
    """The `Stages` of a training on one device."""
    found = Stages()
    with found.stage("import the command line"):
        cli = import_module("jaxdet.cli")
    cli.prepare(cli.Train())
    with found.stage("import jax"):
        jax = import_module("jax")
    with found.stage("import jaxdet's parts"):
        import_module("jaxdet.commands")
        base, configs, parallel, train = map(import_module, PARTS)
    with found.stage("find the devices"):
        among = parallel.devices(1)
    with found.stage("build: data, network"):
        config = base.from_json(configs.config("digits"), {**fields, "devices": 1})
        system = configs.build("digits", config)
    with found.stage("init: trace, compile, run"):
        state = jax.block_until_ready(jax.jit(train.maker(system, config))())
    steps(found, system, config, parallel.put(state, among))
    return found


def steps(found, system, config, state):
    """Trace, compile and run the step of training, as `fit` does; then once more."""
    from functools import partial

    import jax

    from jaxdet import parallel, train
    from jaxdet.data import batches

    source, among = system.splits["train"], parallel.devices(1)
    plan = train.plan(config, len(source))
    chosen = train.optimizer(config, plan)
    whole = partial(train.train_step, task=system.task, optimizer=chosen, plan=plan)
    jitted = parallel.compiled(whole, among, whole=2, donate=(0,))
    data = parallel.put(source.arrays, among)
    rows = batches.order(config.seed, 0, len(source), config.batch)[0]
    with found.stage("step: trace"):
        lowered = jitted.lower(state, data, rows)
    with found.stage("step: compile"):
        step = lowered.compile()
    with found.stage("first step"):
        state = jax.block_until_ready(step(state, data, rows))
    found.first = time.time()
    with found.stage("second step"):
        jax.block_until_ready(step(state, data, rows))


if __name__ == "__main__":
    made = run(json.loads(sys.argv[1]) if sys.argv[1:] else {})
    print(json.dumps({"begun": BEGUN, "first": made.first, "seconds": made.seconds}))
