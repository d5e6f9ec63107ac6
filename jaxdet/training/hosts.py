"""Several processes, usually one per host, that train one run together.

JAX's distributed runtime connects them: collectives of the compiled step go over NCCL or gloo, and
its coordinator, in process 0, provides the barriers and the small values with which the processes
agree.  Each process reads its own rows of a batch; only process 0, the main one, writes the run
folder.  All processes must call the functions of this module in the same order.  In a single
process the functions cost nothing: `gather`, for example, returns the value of that process.

Processes notice when another process ends or hangs: each process gives a sign of life, called a
beat, every second, and barriers have a time limit: `barrier`, `agree`, `from_main` and `check_same`
raise `PeerError` if another process does not come in time.
"""

import atexit
import ctypes
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # barriers and values of the coordinator have no public name
from jax.experimental import multihost_utils

from jaxdet.errors import InputError
from jaxdet.types import Tree

T = TypeVar("T")
BEAT = 1.0  # seconds between two signs of life
TIMEOUT = 300.0  # seconds to wait for another process
LAUNCHERS = {  # variable with the number of tasks -> variables by which JAX finds the others
    "SLURM_NTASKS": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
}


class PeerError(RuntimeError):
    """Another process of the run has ended, or has not answered in time; the message names it."""


class Peers:
    """The processes of a run, as this one sees them through the coordinator.

    timeout: seconds to wait for another process.
    """

    def __init__(self, index: int, count: int, timeout: float = TIMEOUT, client: Any = None):
        self.index, self.count, self.timeout, self.client = index, count, timeout, client
        self.calls, self.names = itertools.count(), [socket.gethostname()] * count
        self.closing = threading.Event()
        self.stepped: float | None = None  # time of the last step that all have agreed on
        self.seen: dict[int, tuple[str, float]] = {}  # process -> (last beat, time of its arrival)

    def name(self, *processes: int) -> str:
        """The processes in words, such as "process 1 on node07"."""
        return ", ".join(f"process {each} on {self.names[each]}" for each in processes)

    def gather(self, value: str) -> list[str]:
        """The values of all processes, in the order of the processes.

        Raises `PeerError` if the value of a process does not come in time.
        """
        if self.count == 1:
            return [value]
        call = next(self.calls)
        try:
            self.client.key_value_set(f"jaxdet/values/{call}/{self.index}", value)
            self.client.wait_at_barrier(f"jaxdet/{call}", int(1000 * self.timeout))
            values = self._values(f"values/{call}")
        except jax.errors.JaxRuntimeError as error:
            raise PeerError(self.explain(error, call)) from None
        if self.index == 0 and call:  # everyone has read the values of the call before
            self.client.key_value_delete(f"jaxdet/values/{call - 1}/")
        return [values[each] for each in sorted(values)]

    def explain(self, error: Exception, call: int | None = None) -> str:
        """One line about a failed operation among processes; the line names missing processes."""
        try:
            if line := self._reported():
                return line
            if call is not None:
                missing = set(range(self.count)) - set(self._values(f"values/{call}"))
                if missing:
                    limit = f"within --peer-timeout {self.timeout:g} s"
                    return f"{self.name(*sorted(missing))} has not answered {limit}"
        except jax.errors.JaxRuntimeError:
            return self.lost_coordinator()
        if silent := self.silent(2.5 * BEAT):
            return f"{self.name(*silent)} has ended or cannot be reached"
        return f"an operation among processes has failed: {str(error).splitlines()[0]}"

    def lost_coordinator(self) -> str:
        """The error line for a coordinator that does not answer."""
        return f"{self.name(0)}, which has the coordinator, has ended or cannot be reached"

    def silent(self, seconds: float) -> list[int]:
        """The processes that have given no sign of life for this long."""
        limit = time.monotonic() - seconds
        return [each for each, (_, at) in sorted(self.seen.items()) if at < limit]

    def watch(self, lost: Callable[[str], Any]) -> None:
        """Give signs of life until closed; call `lost(line)` if a process fails, ends or hangs."""
        with ThreadPoolExecutor(1, "beats") as pool:
            for beat in itertools.count():
                try:
                    line = pool.submit(self._beat, str(beat)).result(self.timeout)
                except (TimeoutError, jax.errors.JaxRuntimeError):
                    line = self.lost_coordinator()
                if self.closing.wait(BEAT):
                    return
                if line:
                    time.sleep(self._linger())
                    lost(line)

    def _beat(self, beat: str) -> str:
        """Give a sign of life; returns a line about a process that has ended or hangs, or ""."""
        self.client.key_value_set(f"jaxdet/beats/{self.index}", beat, True)
        now, beats = time.monotonic(), self._values("beats")
        for each in set(range(self.count)) - {self.index}:
            last = beats.get(each, "")
            if each not in self.seen or self.seen[each][0] != last:
                self.seen[each] = last, now
        limit = f"--peer-timeout {self.timeout:g} s"
        if line := self._reported():
            return line
        if silent := self.silent(self.timeout):
            return f"{self.name(*silent)} has given no sign of life for {limit}"
        if self.stepped is not None and now - self.stepped > self.timeout:
            return f"{self.name(self.index)} has not come to its next step within {limit}"
        return ""

    def _reported(self) -> str:
        """The line that another process reported when it ended, or ""."""
        reports = self._values("failed")
        return next((reports[each] for each in sorted(set(reports) - {self.index})), "")

    def _linger(self) -> float:
        """Seconds to wait before this process ends, so that the other processes can read why."""
        # The main process waits longer, because the coordinator ends with it.
        return 4 * BEAT if self.index == 0 else 2 * BEAT

    def report(self, error: BaseException, line: str) -> bool:
        """Tell the other processes that this one ends, and why.

        Returns whether to print the reason here: False if the main process prints the same reason.
        """
        told = [
            line if isinstance(error, PeerError) else f"{self.name(each)} has ended: {line}"
            for each in (self.index, 0)
        ]
        try:
            self.client.key_value_set(f"jaxdet/failed/{self.index}", told[0], True)
            time.sleep(self._linger())
            return self.index == 0 or self._values("failed").get(0) != told[1]
        except jax.errors.JaxRuntimeError:  # the coordinator has ended
            return True

    def _values(self, folder: str) -> dict[int, str]:
        """{process: value} of the values that the coordinator holds in a folder."""
        pairs = self.client.key_value_dir_get(f"jaxdet/{folder}/")
        return {int(key.rpartition("/")[2]): value for key, value in pairs}


_peers = Peers(0, 1)
_abort_handler: Any = None  # a callback from C, kept here from garbage collection


def initialize(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    *,
    timeout: float = TIMEOUT,
    lost: Callable[[str], NoReturn],
) -> None:
    """Join the other processes of a run, before anything uses a device.

    Args:
        coordinator: host and port of process 0; "": Slurm or Open MPI provides this,
            `num_processes` and `process_id`.
        num_processes: number of processes.
        process_id: number of this process, from 0.
        timeout: seconds to wait for another process, here and later.
        lost: called from a thread, with one line, when another process fails, ends or hangs, or
            cannot be found here; it must end this process.

    Without a coordinator, and with at most one task of Slurm or Open MPI, nothing happens.  A
    process uses all GPUs that it sees, unless `JAX_LOCAL_DEVICE_IDS` chooses some.
    Raises InputError for arguments that do not fit together, or if joining is refused.
    """
    global _peers
    given = (coordinator or None, num_processes or None, process_id if process_id >= 0 else None)
    _check(*given, timeout)
    if not coordinator and _launched_tasks() < 2 or num_processes == 1:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take over SIGTERM
    where = f"the coordinator at {coordinator}" if coordinator else "the coordinator"
    _call_instead_of_abort(lost)
    timer = threading.Timer(
        timeout,
        lost,
        [f"not all processes have reached {where} within --peer-timeout {timeout:g} s"],
    )
    timer.daemon = True
    timer.start()
    patience = int(2 * timeout) + 60  # longer, so that `lost` ends the process before JAX aborts it
    ids = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=None if ids else range(_visible_gpus()),
            initialization_timeout=patience,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=int(timeout) + 1,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes: {str(error).splitlines()[0]}") from None
    finally:
        timer.cancel()
    state = distributed.global_state
    _peers = Peers(state.process_id, state.num_processes, timeout, state.client)
    threading.Thread(target=_peers.watch, args=[lost], daemon=True, name="peers").start()
    atexit.register(_peers.closing.set)
    check_same("--num-processes", _peers.count)
    _peers.names = _peers.gather(socket.gethostname())


def _call_instead_of_abort(lost: Callable[[str], NoReturn]) -> None:
    """Call `lost` when the runtime aborts this process."""
    # When the coordinator ends or refuses this process, the runtime prints lines of its own and
    # calls `abort` in one of its threads.
    global _abort_handler
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _abort_handler = kind(lambda _: lost(_peers.lost_coordinator()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler)


def _check(coordinator: Any, num_processes: Any, process_id: Any, timeout: float) -> None:
    """Raise InputError if only some options of `initialize` are given, or if one is invalid."""
    given = [each is not None for each in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError("--coordinator, --num-processes and --process-id must be given together")
    if timeout <= 0:
        raise InputError(f"--peer-timeout must be above 0, got {timeout:g}")
    if not coordinator:
        return
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator}")
    if num_processes < 1:
        raise InputError(f"--num-processes must be at least 1, got {num_processes}")
    if process_id >= num_processes:
        raise InputError(
            f"--process-id must be from 0 to {num_processes - 1}, as --num-processes is "
            f"{num_processes}, got {process_id}"
        )


def _launched_tasks() -> int:
    """Number of tasks that `srun` or Open MPI has started together; 1 without them."""
    # A job script itself, which neither has started, has only some of the variables.
    for count, others in LAUNCHERS.items():
        if {count, *others} <= os.environ.keys():
            text = os.environ[count]
            if not text.isdecimal():
                raise InputError(f"the environment variable {count} must be a number, got {text!r}")
            return int(text)
    return 1


def _visible_gpus() -> int:
    """Number of NVIDIA GPUs that this process may use; 0 without any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # as CUDA reads it: up to the first that cannot be, such as -1
        names = map(str.strip, visible.split(","))
        return len([*itertools.takewhile(lambda name: name and not name.startswith("-"), names)])
    return len([*Path("/dev").glob("nvidia[0-9]*")])


def check_single(what: str) -> None:
    """Raise InputError if `srun` or Open MPI has started several tasks; what: the command."""
    if (tasks := _launched_tasks()) > 1:
        raise InputError(f"{what} must be started in a single task, got {tasks} tasks")


def count() -> int:
    """Number of processes that train the run."""
    return _peers.count


def is_main() -> bool:
    """Whether this process writes the run folder."""
    return _peers.index == 0


def barrier() -> None:
    """Wait until all processes have called this."""
    _peers.gather("")


def agree(value: int) -> int:
    """The largest of the values of all processes."""
    return max(map(int, _peers.gather(str(int(value)))))


def agree_at_step(value: int) -> int:
    """Like `agree`, for use once per call of the compiled step.

    From the first use on, a process that does not come to its next step in time is ended.
    """
    value = agree(value)
    _peers.stepped = time.monotonic()
    return value


def from_main(fn: Callable[[], T]) -> T:
    """Call `fn` in the main process; return its value, or raise its InputError, in all processes.

    With several processes, the value must be one that JSON can express.
    """
    if count() == 1:
        return fn()
    if not is_main():
        reply = json.loads(_peers.gather("")[0])
        if "error" in reply:
            raise InputError(reply["error"])
        return reply["value"]
    try:
        value = fn()
    except InputError as error:
        _peers.gather(json.dumps({"error": str(error)}))
        raise
    return json.loads(_peers.gather(json.dumps({"value": value}))[0])["value"]


def check_same(what: str, value: Any) -> None:
    """Raise InputError if a value differs between processes.

    what: name of the value in the message.
    value: anything that JSON can express.
    """
    if count() == 1:
        return
    first, *others = [json.loads(text) for text in _peers.gather(json.dumps(value))]
    for process, other in enumerate(others, 1):
        if other != first:
            if isinstance(first, dict):  # only what differs
                names = [name for name in first if other.get(name) != first[name]]
                first, other = ({name: of.get(name) for name in names} for of in (first, other))
            raise InputError(
                f"{what} must be the same for all processes, got {first} for process 0 and "
                f"{other} for {_peers.name(process)}"
            )


def own_rows(index: np.ndarray) -> np.ndarray:
    """The columns [S, B / processes] of the row indices `index` [S, B] that this process reads."""
    return np.split(index, count(), axis=1)[_peers.index]


def gather_rows(rows: Tree, steps: int) -> Tree:
    """Rows of all processes, joined in the order that a single process would give them.

    rows: arrays [steps * b, ...] on the host, b rows of each batch.
    """
    if count() == 1:
        return rows

    def join(column):
        parts = multihost_utils.process_allgather(column)  # [processes, steps * b, ...]
        parts = parts.reshape(count(), steps, -1, *column.shape[1:])
        return np.concatenate(parts, axis=1).reshape(-1, *column.shape[1:])

    return jax.tree.map(join, rows)


def broadcast(tree: Tree) -> Tree:
    """The arrays and random keys of the main process, bit for bit, in all processes.

    The arrays returned are on the host.  Types and shapes must be the same in all processes.
    """
    if count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = [
        np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        for leaf, is_key in zip(leaves, keys, strict=True)
    ]
    sent = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    ends = np.cumsum([array.nbytes for array in arrays])
    found = [
        np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape)
        for part, array in zip(np.split(sent, ends[:-1]), arrays, strict=True)
    ]
    leaves = [
        jax.random.wrap_key_data(array) if is_key else array
        for array, is_key in zip(found, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def report(error: BaseException) -> str:
    """Tell the other processes that this one ends because of an error; returns the line to print.

    If another process has caused the error, the line is about that process.  It is "" if the main
    process prints the same line.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(3 * BEAT)  # whoever has ended is silent by now
        error = PeerError(_peers.explain(error))
    _peers.closing.set()
    line = str(error).partition("\n")[0] or type(error).__name__
    return line if _peers.report(error, line) else ""
