"""Overhead of a call on several devices: `pmap` against `shard_map`, with almost no work.

    python -m benchmarks.devices --json FILE

The step is compiled by `training.parallel`.  It has a replicated state of 100 small arrays, rows
that are split over the devices, and a sum over all devices.  On a CPU the devices are virtual and
share its cores; NPROC (16 by default) is the number of threads, of which collectives need one per
device at the same time.  `pmap`, `shard_map`, and `jit` on one device take turns; each call is
timed until its result is ready.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import harness, units
from jaxdet.errors import InputError
from jaxdet.profiling import timing
from jaxdet.training import parallel

NAME = "devices"
ARRAYS = 100  # arrays in the state, as many as parameters and optimizer of a small network have
COLUMNS = {
    "implementation": "implementation",
    "devices": "devices",
    "compile_s": ("first call", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "time / pmap",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Calls on several devices by pmap and by shard_map."""

    devices: int = 4
    """number of devices, virtual ones on a CPU"""
    seconds: float = 3.0
    """seconds for which each implementation is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None:
        os.environ.setdefault("NPROC", "16")  # read when the CPU is first used
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    if options.devices < 2:
        raise InputError(f"--devices must be at least 2, got {options.devices}")
    with suppress(RuntimeError):  # of a process that has used its devices already
        jax.config.update("jax_num_cpu_devices", options.devices)
    harness.publish(
        NAME, options, render, compare(parallel.local_devices(options.devices), options)
    )


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(devices: Sequence[Any], options: Options) -> list[dict[str, Any]]:
    calls = {
        "jit, one device": make_call(parallel.compile_step, devices[:1]),
        "pmap": make_call(parallel.compile_pmap, devices),
        "shard_map": make_call(parallel.compile_shard_map, devices),
    }
    timings = timing.measure_interleaved(*calls.values(), seconds=options.seconds)
    pmap_s = timings[1].median
    counts = (1, len(devices), len(devices))
    return [
        {
            "implementation": name,
            "devices": count,
            **found._asdict(),
            "ratio": found.median / pmap_s,
        }
        for name, count, found in zip(calls, counts, timings, strict=True)
    ]


def make_call(compile_step: Callable, devices: Sequence[Any]) -> Callable[[], Any]:
    """A function that takes one step from the state that its previous call returned."""
    run = compile_step(step, devices, replicated=1, out_axes=None, donate=(0,))
    state = parallel.replicate([np.zeros(16, np.float32)] * ARRAYS, devices)
    rows = np.ones((8 * len(devices), 16), np.float32)

    def call():
        nonlocal state
        state = run(state, rows)
        return state

    return call


def step(state: list[jax.Array], rows: jax.Array, *, axis: str | None) -> list[jax.Array]:
    """Add the mean of the rows of all devices to each array of a state."""
    total, count = parallel.psum((rows.sum(0), jnp.float32(len(rows))), axis)
    return [array + total / count for array in state]


if __name__ == "__main__":
    sys.exit(main())
