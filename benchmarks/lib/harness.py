"""What all benchmarks share: peak memory, running out of it, records, flags, the door.

`jaxdet.profiling.timing` has the clock, `jaxdet.tables` the tables.
"""

import ctypes
import datetime
import gc
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdet import files
from jaxdet.cli import flags, process
from jaxdet.cli import main as cli
from jaxdet.errors import InputError
from jaxdet.profiling.timing import timed
from jaxdet.training import run_dir

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FREE, LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
EXHAUSTED = ("RESOURCE_EXHAUSTED", "can't allocate memory", "out of memory", "Out of memory")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Options of a benchmark that say where its figures are kept."""

    json: Path | None = None
    """file for the rows and what they depend on"""
    markdown: Path | None = None
    """file for what is printed"""


class First(NamedTuple):
    """What the first run of a call gave and took."""

    value: Any
    seconds: float
    peak: int | None  # bytes held at most, less those held before; None where nothing tells
    source: str  # of `peak`


def compiled(fn, *args):
    """(program, seconds it took to trace and compile) of `jax.jit(fn)` for arguments like these."""
    return timed(lambda: jax.jit(fn).lower(*args).compile())


def first(call):
    """The first run of a call, with the memory it took beyond what was held before it."""
    gc.collect()
    before, source = _held()
    value, seconds = timed(call)
    peak = None if before is None else max(0, _peak() - before)
    return First(value, seconds, peak, source)


def within_memory(fn, *args):
    """`fn(*args)`, or None where the memory does not suffice."""
    try:
        return fn(*args)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def out_of_memory(error):
    """Whether an exception of Python, jax or PyTorch says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in EXHAUSTED)


def need(size, device):
    """Raise MemoryError before `size` bytes are asked for that are not there.

    Linux hands out more than it has and ends the process later, so asking does not tell.
    """
    free = available(device)
    if free is not None and size > free:
        raise MemoryError(f"{size:,} bytes are needed and {free:,} are free")


def available(device):
    """Bytes that can still be had on a device, or on the host for the CPU; None if unknown."""
    stats = device.memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    free = [_field(FREE, "MemAvailable")] if FREE.is_file() else []
    if limit != "max":
        free.append(int(limit) - _field(STATUS, "VmRSS"))
    return min(free, default=None)


def show(text, out=None):
    """Print a text, and keep it where `out` is given."""
    print(text)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(out, f"{text}\n")


def write(name, rows, out, devices, *, options=None, **more):
    """Keep rows as JSON, with the date, the machine's load and what else the figures depend on.

    options: the dataclass that the benchmark ran with.
    """
    chosen = {name: _plain(value) for name, value in vars(options).items()} if options else {}
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": run_dir.environment(devices),
        "compilation_cache": jax.config.jax_compilation_cache_dir,
        "load": os.getloadavg(),
        "options": chosen,
        **more,
        "rows": rows,
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out, record)


def door(name, kind, argv, run):
    """Read options of class `kind` from words and run; returns the exit code, as `cli.main` does.

    `run(options)` gives an exit code, or None for 0; what the user can mend is one line and code 2.
    Without `argv` the words are those of a command, which sets its process up: see `quicken`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        process.begin_again()
        quicken()
    options = flags.parse(f"python -m benchmarks.{name}", words, kind) if words else kind()
    try:
        return run(options) or 0
    except (InputError, OSError) as error:
        print(f"benchmarks.{name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def quicken():
    """Set the flag of jaxdet's command line unless XLA_FLAGS is set, if only to nothing.

    XLA reads its flags when the first device is asked for, not when jax is imported, so that this
    is in time as long as nothing was computed.
    """
    if "XLA_FLAGS" not in os.environ and (flag := cli.quicker("")):
        os.environ["XLA_FLAGS"] = flag


def _plain(value):
    """An option as JSON can keep it."""
    return str(value) if isinstance(value, Path) else value


def _held():
    """(bytes held now, how their peak will be known); from here on a new peak counts."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"], "device, largest so far in this process"
    try:
        _trim()
        CLEAR.write_text("5")  # forgets the largest resident size, see man proc
    except OSError:
        return None, "unknown"
    return _field(STATUS, "VmRSS"), "process, largest resident size"


def _trim():
    """Give freed memory back to the system, where the C library can: else reuse hides a peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _peak():
    """Bytes held at most since `_held`; on a GPU, whose peak cannot be reset, since the start."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else _field(STATUS, "VmHWM")


def _field(path, name):
    """A size in kB from a file of /proc, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == f"{name}:")


def torch_unavailable(wanted):
    """Why PyTorch is not compared, or None if it is."""
    if not wanted:
        return "not asked for"
    if find_spec("torch") is None:
        return "not installed"
    return None if jax.default_backend() == "cpu" else "compared on the CPU only"
