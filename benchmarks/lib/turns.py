"""Calls timed in turns, each in a process of its own.

In one process, libraries wait for each other's threads and share one allocator: on a CPU this
favors PyTorch by 20 to 35%, and on a GPU the libraries may load different versions of cuDNN. All
processes live as long as the comparison, one of them works at a time, and their turns alternate,
since the speed of a machine drifts.
"""

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from benchmarks.lib import harness
from jaxdet.profiling import timing

TURNS = 7  # number of turns of each process in a comparison
DISTURBED = 0.05  # processors that other processes may keep busy during a comparison
JOIN_SECONDS = 10.0
PROC_STAT = Path("/proc/stat")


class WorkerError(Exception):
    """The call of a worker failed, or its process ended; the message is one line."""


class Worker:
    """A process that runs functions, which must be importable, and times calls that they build.

    platform: platform of JAX in the process, such as "cpu"; by default as in this process.
    """

    def __init__(self, platform: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, platform), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)` in the process; WorkerError if it fails."""
        return self._ask("run", function, args)

    def build(self, builder: Callable[..., Callable[[], Any]], *args: Any) -> float:
        """Build the call `builder(*args)`, replacing an earlier one.

        Returns the seconds of its first run.
        """
        return self._ask("build", builder, args)

    def sample(self, seconds: float) -> list[float]:
        """Repeat the call for `seconds`, at least once; returns the seconds of each repetition.

        An uncounted call before the first repetition warms up.
        """
        return self._ask("sample", seconds)

    def peak(self) -> int | None:
        """Run the call once; returns the peak of its memory in bytes, see `harness.FirstCall`."""
        return self._ask("peak")

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(JOIN_SECONDS)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, *message: Any) -> Any:
        try:
            self._connection.send(message)
            value, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(JOIN_SECONDS)
            raise WorkerError(f"its process ended with code {self._process.exitcode}") from None
        if error:
            raise WorkerError(error)
        return value


def measure(
    workers: Mapping[str, Worker], first: Mapping[str, float], *, seconds: float
) -> dict[str, dict[str, Any]]:
    """Time the call that each worker has built; returns the cells of a row for each.

    first: seconds of the first run of each call.
    seconds: seconds for which each call is timed, over all turns.

    The cells are the fields of `Timing`, and `others`, the number of processors that other
    processes kept busy meanwhile. A `note` says that a call failed, which then has no time, or that
    other processes disturbed the comparison.
    """
    samples: dict[str, list[float]] = {name: [] for name in workers}
    errors: dict[str, WorkerError] = {}
    start = time.monotonic(), _busy_elsewhere(workers.values())
    for _ in range(TURNS):
        for name, worker in workers.items():
            if name not in errors:
                try:
                    samples[name] += worker.sample(seconds / TURNS)
                except WorkerError as error:
                    errors[name] = error
    end = time.monotonic(), _busy_elsewhere(workers.values())
    load: dict[str, Any] = {}
    if start[1] is not None and end[1] is not None and not errors:
        load["others"] = max(0.0, (end[1] - start[1]) / (end[0] - start[0]))
        if load["others"] > DISTURBED:
            load["note"] = "disturbed by other processes"
    return {
        name: {"note": f"failed: {errors[name]}"}
        if name in errors
        else {**timing.summarize(first[name], samples[name])._asdict(), **load}
        for name in workers
    }


def _busy_elsewhere(workers: Iterable[Worker]) -> float | None:
    """Processor seconds used by processes other than this one and `workers`; None if unknown."""
    try:
        user, nice, system, *_ = map(int, PROC_STAT.read_text().split()[1:5])
        pids = ["self", *(worker.pid for worker in workers)]
        own = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    except (OSError, ValueError):
        return None
    ticks = user + nice + system - sum(int(u) + int(s) for u, s in (row[11:13] for row in own))
    return ticks / os.sysconf("SC_CLK_TCK")


def _serve(connection: Connection, platform: str | None) -> None:
    """Answer the messages of a `Worker` until it closes."""
    if platform:
        jax.config.update("jax_platforms", platform)
    call: Callable[[], Any] | None = None
    while True:
        try:
            command, *args = connection.recv()
        except EOFError:
            return
        try:
            if command == "run":
                function, values = args
                answer = function(*values)
            elif command == "build":
                builder, values = args
                call = None  # free its memory first
                gc.collect()
                call = builder(*values)
                answer = timing.timed(call)[1]
            elif command == "peak":
                answer = harness.first_call(call).peak
            else:
                timing.timed(call)
                answer = timing.sample_interleaved([call], seconds=args[0], repeats=1)[0]
            connection.send((answer, ""))
        except Exception as error:
            connection.send((None, _one_line(error)))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
