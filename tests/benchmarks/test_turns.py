import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.lib import turns


def make_call(value):
    """A call that returns a value."""
    return lambda: value


def make_array(megabytes):
    """A call that fills an array, and drops it."""
    return lambda: np.ones(megabytes * 10**6, np.uint8).sum()


def fail(message):
    raise RuntimeError(message)


def end_process():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def worker():
    worker = turns.Worker("cpu")
    yield worker
    worker.close()
    assert not worker._process.is_alive()


def test_functions_run_in_another_process(worker):
    assert worker.run(os.getpid) not in (os.getpid(), None)


def test_a_call_is_built_and_timed_in_turns(worker):
    first = worker.build(make_call, 3)
    found = turns.measure({"a": worker}, {"a": first}, seconds=0.0)
    assert found["a"]["repeats"] == turns.TURNS and 0 < found["a"]["median"] < 1


def test_other_processes_disturb(worker, monkeypatch):
    first = worker.build(make_call, 0.02)
    busy = iter([0.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr(turns, "_busy_elsewhere", lambda workers: next(busy))
    disturbed, quiet = (turns.measure({"a": worker}, {"a": first}, seconds=0.0) for _ in range(2))
    assert disturbed["a"]["others"] > 1 and "disturbed" in disturbed["a"]["note"]
    assert quiet["a"]["others"] == 0 and "note" not in quiet["a"]


def test_time_of_other_processes_is_known(worker):
    before = turns._busy_elsewhere([worker])
    end = time.process_time() + 0.3
    while time.process_time() < end:  # time of this process does not count
        pass
    idle = turns._busy_elsewhere([worker]) - before
    loop = f"import time\nwhile time.process_time() < {0.5 + 0.3}: pass"
    subprocess.run([sys.executable, "-S", "-c", loop], check=True)
    assert turns._busy_elsewhere([worker]) - before - idle > 0.5


def test_peak_memory_is_less_what_was_in_use(worker):
    worker.build(make_array, 64)
    assert 60e6 < worker.peak() < 90e6


def test_errors_are_one_line_and_the_worker_lives_on(worker):
    with pytest.raises(turns.WorkerError, match="^RuntimeError: no room$"):
        worker.run(fail, "no room\nat all")
    assert worker.run(abs, -2) == 2


def test_end_of_a_process_is_an_error_of_its_turn_only(worker):
    dying = turns.Worker("cpu")
    worker.build(make_call, 1)
    dying.build(make_call, 1)
    with pytest.raises(turns.WorkerError, match="its process ended with code -9"):
        dying.run(end_process)
    workers = {"dead": dying, "living": worker}
    found = turns.measure(workers, dict.fromkeys(workers, 0.0), seconds=0.0)
    assert found["dead"] == {"note": "failed: its process ended with code -9"}
    assert found["living"]["repeats"] == turns.TURNS
    dying.close()
