"""Command line, memory measurement and result records of the benchmarks.

Times come from `jaxdet.profiling.timing`, tables from `benchmarks.lib.units`.
"""

import ctypes
import datetime
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdet import files
from jaxdet.cli import flags, process
from jaxdet.errors import InputError
from jaxdet.kernels import compiler
from jaxdet.profiling.timing import timed
from jaxdet.training import run_dir

PROC_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO, CGROUP_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "can't allocate memory", "out of memory", "Out of memory")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Files of a benchmark's results."""

    json: Path | None = None
    """JSON file for the measured rows, with versions, devices, flags and options; by default
    none"""
    markdown: Path | None = None
    """Markdown file for the printed tables; by default none"""


class FirstCall(NamedTuple):
    """The result, time and memory of the first call of a function."""

    value: Any
    seconds: float
    peak: int | None  # peak of memory in bytes, less the bytes in use before; None if unknown
    peak_source: str  # how the peak was measured


def run_command(
    name: str, options: type, argv: Sequence[str] | None, run: Callable[[Any], int | None]
) -> int:
    """Parse the options of a benchmark and run it; returns the exit code, like `cli.main`.

    `run(options)` returns an exit code, or None for 0. An InputError is printed as one line and
    gives exit code 2. Without `argv`, the arguments of the process are parsed, after large pages
    are set up; JAX then does not preallocate GPU memory, since PyTorch and other processes need
    some.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        process.restart_with_large_pages()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen = flags.parse(f"python -m benchmarks.{name}", words, options) if words else options()
    try:
        return run(chosen) or 0
    except (InputError, OSError) as error:
        print(f"benchmarks.{name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def require_positive(options: Any, *names: str) -> None:
    """Raise InputError if one of the options called `names` is less than 1."""
    for name in names:
        value = getattr(options, name)
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def require_known(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError if one of `names`, given with `option`, is not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{option} must be among {', '.join(known)}, got {', '.join(unknown)}")


def torch_unavailable(requested: bool = True) -> str | None:
    """The reason why PyTorch cannot be timed on JAX's device; None if it can."""
    if not requested:
        return "not asked for"
    if find_spec("torch") is None:
        return "not installed"
    if jax.default_backend() == "cpu":
        return None
    import torch

    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def compile_call(fn: Callable, *args: Any) -> tuple[Any, float]:
    """(`compiler.jit(fn)` compiled for arguments like these, seconds to trace and compile)."""
    return timed(lambda: compiler.jit(fn).lower(*args).compile())


def first_call(call: Callable[[], Any]) -> FirstCall:
    """Call a function once, and measure its time and memory."""
    gc.collect()
    before, source = _start_peak()
    value, seconds = timed(call)
    peak = None if before is None else max(0, _peak() - before)
    return FirstCall(value, seconds, peak, source)


def within_memory(fn: Callable, *args: Any) -> Any:
    """`fn(*args)`, or None if memory runs out."""
    try:
        return fn(*args)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return None


def require_memory(size: int, device: jax.Device) -> None:
    """Raise MemoryError if fewer than `size` bytes are free.

    Call it before a large allocation: Linux grants more memory than it has and kills the process
    later.
    """
    free = available_memory(device)
    if free is not None and size > free:
        raise MemoryError(f"{size:,} bytes are needed and {free:,} are free")


def available_memory(device: jax.Device) -> int | None:
    """Free bytes of a device, or of the host for a CPU; None if unknown."""
    stats = device.memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    free = [_proc_field(MEMINFO, "MemAvailable")] if MEMINFO.is_file() else []
    if limit != "max":
        free.append(int(limit) - _proc_field(PROC_STATUS, "VmRSS"))
    return min(free, default=None)


def publish(
    name: str,
    options: OutputOptions,
    render: Callable[[dict[str, Any]], str],
    rows: Sequence[dict[str, Any]],
    **extra: Any,
) -> None:
    """Print the tables of a benchmark, and write the files that its options ask for.

    render: makes Markdown of a record, `{"rows": rows, **extra}`.
    """
    write_tables(render({"rows": rows, **extra}), options.markdown)
    if options.json:
        write_record(name, rows, options.json, options=options, **extra)


def write_tables(text: str, path: Path | None = None) -> None:
    """Print a text, and write it to a file if a path is given."""
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, f"{text}\n")


def write_record(
    name: str, rows: Sequence[dict[str, Any]], path: Path, *, options: Any, **extra: Any
) -> None:
    """Write rows as JSON with date, load, versions, devices, flags and options."""
    values = json.loads(json.dumps(vars(options), default=str))
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": run_dir.environment(jax.devices()),
        "compilation_cache": jax.config.jax_compilation_cache_dir,
        "load": os.getloadavg(),
        "options": values,
        **extra,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of Python, jax or PyTorch says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _start_peak() -> tuple[int | None, str]:
    """Reset the peak of memory; returns (bytes in use, method by which the peak is measured)."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"], "device, largest so far in this process"
    try:
        # Give freed memory back to the system where the C library can: its reuse would hide a peak.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        CLEAR_REFS.write_text("5")  # resets the largest resident size, see man proc
    except OSError:
        return None, "unknown"
    return _proc_field(PROC_STATUS, "VmRSS"), "process, largest resident size"


def _peak() -> int:
    """Peak of bytes in use since `_start_peak`; on a GPU, since the start of the process."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else _proc_field(PROC_STATUS, "VmHWM")


def _proc_field(path: Path, name: str) -> int:
    """A size field of a file in /proc, converted from kB to bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == f"{name}:")
