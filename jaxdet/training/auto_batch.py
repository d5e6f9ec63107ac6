"""The largest batch that fits into memory, by XLA's memory analysis of the training step.

Nothing is executed: the step is compiled for a few batch sizes, XLA reports the memory that each
program needs, and each batch size to try is extrapolated from the last two.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet.errors import DeviceMemoryError
from jaxdet.kernels import compiler
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.step import train_step
from jaxdet.types import Device

USED = 0.9  # fraction of the memory that a step may need; the rest is a reserve
MAX_COMPILATIONS = 6
GROWTH = 8  # largest factor from one batch size to the next
GIGABYTE = 10**9


def largest_batch(
    experiment: Experiment, limit: float = 0, show: Callable[[str], Any] = lambda line: None
) -> int:
    """The largest batch over all devices whose training step fits.

    It is a multiple of the number of devices, and of the images per identity of PK sampling, and at
    most the number of training images.

    limit: bytes that a step may need on each device; 0: the fraction `USED` of `device_memory`.
    show: called with a line about the result.

    Raises DeviceMemoryError if not even one image per device fits.
    """
    devices = experiment.devices
    unit = math.lcm(len(devices), getattr(experiment.config, "samples_per_class", 0) or 1)
    limit = limit or USED * device_memory(devices)
    needed: dict[int, int] = {}

    def measure(units: int) -> int:
        needed[units] = step_bytes(experiment, units * unit // len(devices))
        return needed[units]

    most = max(len(experiment.splits["train"]) // unit, 1)
    units = largest_fitting(measure, limit, most)
    if not units:
        raise DeviceMemoryError(
            f"no batch fits: with --batch {unit}, a step needs {_gigabytes(needed[1])} per device, "
            f"and {_gigabytes(limit)} may be used; lower --size, or use --bfloat16"
        )
    batch = units * unit
    show(
        f"--batch {batch}: a step needs {_gigabytes(needed[units])} of memory per device, and "
        f"{_gigabytes(limit)} may be used"
    )
    return batch


def largest_fitting(measure: Callable[[int], float], limit: float, most: int) -> int:
    """The largest n from 1 to `most` with `measure(n) <= limit`, 0 if there is none.

    `measure` is assumed to grow, about linearly, and is called at most `MAX_COMPILATIONS` times;
    the result is always an n for which it was called.
    """
    fits, fails, known = 0, most + 1, {}
    number = 1
    while fits < number < fails and len(known) < MAX_COMPILATIONS:
        known[number] = measure(number)
        if known[number] <= limit:
            fits = number
        else:
            fails = number
        number = min(_predicted(known, limit, most), most)
        if number >= fails:
            number = (fits + fails) // 2
    return fits


def step_bytes(experiment: Experiment, batch: int) -> int:
    """Bytes that a training step on one device needs for `batch` images, with its data."""
    source = experiment.splits["train"]
    data = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), source.arrays)
    rows: Any = jax.ShapeDtypeStruct((batch,), np.int32)
    if not data:
        rows = {
            name: jax.ShapeDtypeStruct((batch, *column.shape[1:]), column.dtype)
            for name, column in source.first(1).arrays.items()
        }
    step = partial(
        train_step,
        task=experiment.task,
        optimizer=experiment.optimizer,
        plan=experiment.plan,
        axis=None,
        scale=max(experiment.scales),
    )
    state = jax.eval_shape(training_state.init_fn(experiment))
    lowered = compiler.jit(step, donate_argnums=(0,)).lower(state, data, rows)
    found: Any = lowered.compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


def device_memory(devices: list[Device]) -> float:
    """Bytes of memory that each of the devices of this machine may use.

    For a GPU it is the memory that JAX may allocate; for a CPU it is the free memory of the machine
    or, if smaller, of the control group, divided by the number of devices.
    """
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    own = sum(device.process_index == jax.process_index() for device in devices)
    return min(_free_memory(), _control_group()) / max(own, 1)


def _predicted(known: dict[int, float], limit: float, most: int) -> int:
    """The largest number that fits if memory grows as between the last two known numbers.

    It is at most `GROWTH` times the last one, since memory need not grow linearly.
    """
    *_, (number, needed) = known.items()
    if len(known) == 1:
        return GROWTH // 2 * number if needed <= limit else 0
    *_, (before, needed_before), _ = known.items()
    slope = (needed - needed_before) / (number - before)
    if slope <= 0:
        return min(most, GROWTH * number)
    return min(int(number + (limit - needed) // slope), GROWTH * number)


def _free_memory() -> float:
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _control_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that are left to the control group of this process; infinite without a limit."""
    try:
        most = (folder / "memory.max").read_text().strip()
        used = float((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if most == "max" else max(float(most) - used, 0)


def _gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:.3g} GB"
