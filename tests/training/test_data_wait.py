import time
from types import SimpleNamespace

import jax.numpy as jnp

from jaxdet.training.data_wait import MAX_CALLS, DataWait

SECONDS = 0.05
COUNT = 4


def run(reading, computing):
    """Seconds counted for calls whose batches take `reading` s, and the devices `computing` s."""
    wait = DataWait()

    def read():
        for _ in range(COUNT):
            time.sleep(reading)
            yield

    def finish():
        time.sleep(computing)
        return time.monotonic()

    for _ in wait.counted(read()):
        wait.calls.append(wait.pool.submit(finish))  # one after the other, as a device
        assert len(wait.calls) <= MAX_CALLS
    return wait.restart()


def test_devices_wait_for_batches_that_are_read_more_slowly_than_they_compute():
    assert run(SECONDS, 0) > 0.9 * COUNT * SECONDS
    # The first batch takes three times as long, the others a time longer than the devices compute.
    assert 0.8 < run(3 * SECONDS, 2 * SECONDS) / ((3 + COUNT - 1) * SECONDS) < 1.5


def test_devices_that_compute_longer_wait_for_the_first_batch_only():
    assert 0.9 * SECONDS < run(SECONDS, 2 * SECONDS) < 2.5 * SECONDS


def test_a_call_is_finished_when_its_state_is_ready_though_the_state_is_donated():
    wait, state = DataWait(), SimpleNamespace(step=jnp.int32(3))
    for _ in wait.counted([1, 2]):
        wait.dispatched(state)
        state.step.delete()  # as the next call does
        state.step = jnp.int32(4)
    assert all(call.result() <= time.monotonic() for call in wait.calls)
    assert wait.restart() < 1 and wait.restart() == 0
