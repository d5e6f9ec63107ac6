import os
import signal

import pytest

from benchmarks.lib import turns


def make_call(value):
    """A call that returns a value."""
    return lambda: value


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
    assert found["a"].repeats == turns.TURNS and 0 < found["a"].median < 1


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
    assert isinstance(found["dead"], turns.WorkerError) and found["living"].repeats == turns.TURNS
    dying.close()
