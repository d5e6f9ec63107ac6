"""Calls timed in turns, each in a process of its own.

In one process, libraries wait for each other's threads and share one allocator: on a CPU this
favors PyTorch by 20 to 35%, and on a GPU the libraries may load different versions of cuDNN. All
processes live as long as the comparison, one of them works at a time, and their turns alternate,
since the speed of a machine drifts.
"""

import gc
import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import jax

from jaxdet.profiling import timing
from jaxdet.profiling.timing import Timing

TURNS = 3  # number of turns of each process in a comparison
JOIN_SECONDS = 10.0


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
) -> dict[str, Timing | WorkerError]:
    """Time the call that each worker has built; a call that fails has its error instead.

    first: seconds of the first run of each call.
    seconds: seconds for which each call is timed, over all turns.
    """
    samples: dict[str, list[float]] = {name: [] for name in workers}
    errors: dict[str, WorkerError] = {}
    for _ in range(TURNS):
        for name, worker in workers.items():
            if name not in errors:
                try:
                    samples[name] += worker.sample(seconds / TURNS)
                except WorkerError as error:
                    errors[name] = error
    return {
        name: errors.get(name) or timing.summarize(first[name], samples[name]) for name in workers
    }


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
            else:
                timing.timed(call)
                answer = timing.sample_interleaved([call], seconds=args[0], repeats=1)[0]
            connection.send((answer, ""))
        except Exception as error:
            connection.send((None, _one_line(error)))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
