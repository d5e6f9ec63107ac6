"""Checkpoints written in the background: training goes on, and nothing is announced too early."""

import sys
from threading import Event
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdet.training import checkpoint, saver

STATE = {
    "kernel": np.arange(6, dtype=np.float32),
    "key": jax.random.key(3),
    "bookkeeping": {"count": np.int32(2)},
}


@pytest.fixture
def announced():
    """(step, path) of each announced checkpoint."""
    return []


@pytest.fixture
def background(tmp_path, announced):
    return saver.Saver(tmp_path, lambda *given: announced.append(given))


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until this event is set."""
    event, write = Event(), checkpoint._write

    def wait_and_write(path, state):
        assert event.wait(60)
        write(path, state)

    monkeypatch.setattr(checkpoint, "_write", wait_and_write)
    return event


def restored(folder, which="last"):
    return checkpoint.restore(folder, jax.eval_shape(lambda: STATE), which)


def test_the_state_may_change_while_its_copy_is_written(tmp_path, background, announced, gate):
    state = {**STATE, "kernel": np.arange(6, dtype=np.float32)}
    background.save(7, state, (0.5, 1.0))
    state["kernel"] += 1
    background.poll()
    assert not announced and not checkpoint.steps(tmp_path)
    gate.set()
    background.wait()
    assert announced == [(7, tmp_path / "checkpoints" / "7")]
    step, found = restored(tmp_path)
    assert step == 7
    np.testing.assert_array_equal(found["kernel"], np.arange(6.0))
    assert jax.random.key_data(found["key"]).tolist() == [0, 3]


def test_buffers_that_are_donated_are_copied_before(tmp_path, background, gate):
    state = jax.device_put(np.arange(6.0, dtype=np.float32))
    background.save(1, {**STATE, "kernel": state}, None)
    jax.jit(lambda x: x * 2, donate_argnums=0)(state).block_until_ready()
    gate.set()
    background.wait()
    _, found = restored(tmp_path)
    np.testing.assert_array_equal(found["kernel"], np.arange(6.0))


def test_a_checkpoint_waits_for_the_one_before(tmp_path, background, announced):
    for step in (1, 2, 3):
        background.save(step, STATE, None)
    assert [step for step, _ in announced] == [1, 2]
    background.wait()
    assert [step for step, _ in announced] == [1, 2, 3]
    background.wait()
    background.poll()
    assert len(announced) == 3


def test_the_error_of_a_write_is_raised_once_and_the_checkpoint_before_stays(
    tmp_path, background, announced, monkeypatch
):
    background.save(1, STATE, None)
    background.wait()

    def fail(path, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", fail)
    background.save(2, STATE, None)
    with pytest.raises(OSError, match="cannot write checkpoint .*/2: .*No space left on device"):
        background.wait()
    background.wait()
    assert checkpoint.steps(tmp_path) == [1] and restored(tmp_path)[0] == 1
    assert len(announced) == 1


def test_threads_of_a_failed_write_are_silent_and_other_reports_are_not(monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    with pytest.raises(OSError), checkpoint._silent_threads():
        raise OSError
    for error in (RuntimeError("Event loop is closed"), ValueError("another")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [str(report.exc_value) for report in reports] == ["another"]
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    with checkpoint._silent_threads():
        pass
    assert sys.unraisablehook == reports.append
