"""One of the processes that take a training step for `benchmarks.scaling`.

    python -m benchmarks.lib.scaling_worker JOB

JOB is the JSON of a `Job`.  The process prints the timing of the step, as JSON.
"""

import json
import os
import sys
from typing import Any, NamedTuple, NoReturn

import jax

from benchmarks.lib import train_steps
from benchmarks.lib.train_steps import StepOptions
from jaxdet.profiling import timing
from jaxdet.training import hosts

PEER_TIMEOUT = 120.0  # seconds to wait for another process


class Job(NamedTuple):
    """The training step that a process takes."""

    model: str
    step_options: dict[str, Any]  # fields of `StepOptions`
    devices: int  # of this process
    repeats: int  # number of timed steps, the same in all processes
    coordinator: str = ""
    processes: int = 1
    process: int = 0


def main(text: str) -> int:
    """Take the steps of a job, and print their timing; returns the exit code."""
    job = Job(**json.loads(text))
    jax.config.update("jax_num_cpu_devices", job.devices)
    if job.processes > 1:
        hosts.initialize(
            job.coordinator, job.processes, job.process, timeout=PEER_TIMEOUT, lost=_end
        )
    call = train_steps.jax_step(
        train_steps.MODELS[job.model], StepOptions(**job.step_options), all_devices=True
    )
    found = timing.measure(call, seconds=0, repeats=job.repeats)
    print(json.dumps(found._asdict()), flush=True)
    hosts.barrier()
    return 0


def _end(line: str) -> NoReturn:
    """Print why another process has failed, and end this process."""
    print(line, file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
