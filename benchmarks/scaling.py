"""Training steps on several devices and in two processes, and what to expect of many GPUs.

    python -m benchmarks.scaling --json FILE

`measured`: a step of jaxdet on 1, 2 and 4 devices of one process, and on 4 devices of two
processes that JAX's runtime connects over the loopback (gloo).  The batch is the same.  On a CPU
the devices are virtual and share its cores, so that the table shows what devices and processes
cost, not what they gain; NPROC (16 by default) is the number of threads.

`predicted`: efficiency on many GPUs, not measured.  A step takes the counted operations of the
model's products and convolutions, divided by --gpu-tflops.  Its all-reduce moves 2 (n - 1) / n
times the bytes that the step sums over devices, over --link (within a host of --gpus-per-host) or
--network (beyond).  Efficiency is the time of the step divided by the sum of both times: nothing
is assumed to overlap.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.lib import harness, scaling_worker, train_steps, units
from benchmarks.lib.scaling_worker import Job
from benchmarks.lib.train_steps import StepOptions
from jaxdet import flops
from jaxdet.errors import InputError
from jaxdet.training import parallel

NAME = "scaling"
SETUPS = ((1, 1), (1, 2), (1, 4), (2, 2))  # (processes, devices of each)
GPUS = (8, 64, 256)
TIMEOUT = 600.0  # seconds for one setup
COLLECTIVES = ("psum", "all_gather", "ppermute", "all_to_all", "pmax", "pmin")
MEASURED = {
    "model": "model",
    "batch": "batch",
    "processes": "processes",
    "devices": "devices",
    "compile_s": ("first call", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "steps_per_s": ("steps/s", ""),
    "bytes": ("summed per step", "B"),
    "note": "note",
}
PREDICTED = {
    "model": "model",
    "batch": "batch per GPU",
    "operations": ("operations per GPU", ""),
    "step_s": ("step", "s"),
    "bytes": ("summed per step", "B"),
    **{f"reduce_{n}": (f"all-reduce, {n} GPUs", "s") for n in GPUS},
    **{f"efficiency_{n}": f"efficiency, {n} GPUs" for n in GPUS},
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Training steps on several devices and in two processes."""

    models: tuple[str, ...] = ("digits", "resnet18_64")
    """networks to time"""
    predicted: tuple[str, ...] = ("digits", "resnet18_224", "resnet50_224", "detect_unfrozen")
    """networks whose efficiency on many GPUs is predicted"""
    batch: int = 0
    """images per step, on all devices together (measured) or on each (predicted); 0: each model's
    default"""
    side: int = 0
    """side of the images in pixels; 0: each model's default"""
    repeats: int = 10
    """number of timed steps"""
    gpu_tflops: float = 60.0
    """assumed rate of a GPU in the products and convolutions of a step, in 10^12 operations/s"""
    gpus_per_host: int = 8
    """assumed number of GPUs that a fast link connects"""
    link: float = 300.0
    """assumed speed of this link for each GPU, in 10^9 bytes/s"""
    network: float = 25.0
    """assumed speed of the network between hosts for each GPU, in 10^9 bytes/s"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats", "gpu_tflops", "gpus_per_host", "link", "network")
    for name in ("models", "predicted"):
        harness.require_known(f"--{name}", getattr(options, name), tuple(train_steps.MODELS))
    rows = [row for model in options.models for row in measure(model, options)]
    predicted = [predict(model, options) for model in options.predicted]
    harness.publish(NAME, options, render, rows, predicted=predicted)


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: the measured table and the predicted one."""
    tables = [units.markdown_table(record["rows"], MEASURED)]
    if record["predicted"]:
        tables.append(units.markdown_table(record["predicted"], PREDICTED))
    return "\n\n".join(tables)


def measure(model: str, options: Options) -> Iterator[dict[str, Any]]:
    """A row for each of `SETUPS`; a note instead of times if its devices cannot split the batch."""
    work = train_steps.make_workload(train_steps.MODELS[model], _step_options(options))
    for processes, devices in SETUPS:
        row = {"model": model, "batch": work.batch, "processes": processes}
        row |= {"devices": processes * devices, "bytes": summed_bytes(work, processes * devices)}
        try:
            found = time_setup(model, options, processes, devices)
        except InputError as error:
            yield row | {"note": str(error)}
            continue
        yield row | found | {"steps_per_s": 1 / found["median"]}


def time_setup(model: str, options: Options, processes: int, devices: int) -> dict[str, Any]:
    """The timing of a step in the first of the processes; InputError if a process fails."""
    port = _free_port()
    jobs = [
        Job(
            model=model,
            step_options=_step_options(options)._asdict(),
            devices=devices,
            repeats=options.repeats,
            coordinator=f"127.0.0.1:{port}" if processes > 1 else "",
            processes=processes,
            process=process,
        )
        for process in range(processes)
    ]
    words = [sys.executable, "-m", scaling_worker.__name__]
    environment = {"NPROC": "16", **os.environ}
    workers = [
        subprocess.Popen(
            [*words, json.dumps(job._asdict())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for job in jobs
    ]
    try:
        outputs = [worker.communicate(timeout=TIMEOUT) for worker in workers]
    except subprocess.TimeoutExpired:
        raise InputError(f"took more than {TIMEOUT:g} s") from None
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, error) in zip(workers, outputs, strict=True):
        if worker.returncode:
            lines = error.strip().splitlines() or [f"exit code {worker.returncode}"]
            raise InputError(f"failed: {lines[-1]}")
    return json.loads(outputs[0][0].splitlines()[-1])


def summed_bytes(work: train_steps.Workload, devices: int) -> int:
    """Bytes of the arrays on each device that a step sums or exchanges over the devices."""
    if devices == 1:
        return 0
    init, step = train_steps.pure_step(work)
    trace = jax.make_jaxpr(partial(step, axis=parallel.AXIS), axis_env=[(parallel.AXIS, devices)])
    closed = trace(jax.eval_shape(init), work.data, np.arange(work.batch // devices))
    return sum(
        scoped.repeats * sum(of.aval.size * of.aval.dtype.itemsize for of in scoped.eqn.invars)
        for scoped in flops.walk(closed)
        if scoped.eqn.primitive.name.startswith(COLLECTIVES)
    )


def predict(model: str, options: Options) -> dict[str, Any]:
    """The row of a model in the table `predicted`, by the formulas of the module docstring."""
    work = train_steps.make_workload(train_steps.MODELS[model], _step_options(options))
    operations, size = train_steps.count_operations(work), summed_bytes(work, 2)
    step = operations / (options.gpu_tflops * 1e12)
    row = {"model": model, "batch": work.batch, "operations": operations, "step_s": step}
    row["bytes"] = size
    for count in GPUS:
        row[f"reduce_{count}"] = time = all_reduce_seconds(size, count, options)
        row[f"efficiency_{count}"] = step / (step + time)
    return row


def all_reduce_seconds(size: int, count: int, options: Options) -> float:
    """Seconds of a ring all-reduce of `size` bytes on `count` GPUs, without latencies."""
    speed = options.link if count <= options.gpus_per_host else options.network
    return 2 * (count - 1) / count * size / (speed * 1e9)


def _step_options(options: Options) -> StepOptions:
    return StepOptions(batch=options.batch, side=options.side)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
