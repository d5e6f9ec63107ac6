from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxdet.profiling import timing


@pytest.fixture
def clock(monkeypatch):
    """A fake clock, which only calls made by `spender` advance."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def spender(clock, *seconds, calls=None, name="a"):
    """A call that takes these seconds in turn, then always the last of them."""
    left = list(seconds)

    def call():
        clock.now += left.pop(0) if len(left) > 1 else left[0]
        (calls if calls is not None else []).append(name)

    return call


def test_measure_reports_the_first_call_separately(clock):
    found = timing.measure(spender(clock, 10, 1, 3, 2), seconds=0.0)
    assert found == timing.Timing(compile_s=8, median=2, spread=1, repeats=3)


def test_measure_repeats_until_the_time_is_used(clock):
    assert timing.measure(spender(clock, 1), seconds=7.5).repeats == 8
    assert timing.measure(spender(clock, 0), seconds=7.5).repeats == timing.MAX_REPEATS


def test_compile_time_is_zero_if_the_first_call_is_the_fastest(clock):
    assert timing.measure(spender(clock, 1, 2), seconds=0.0).compile_s == 0


def test_calls_are_interleaved_and_the_slow_one_stops_first(clock):
    calls = []
    slow, fast = spender(clock, 5, calls=calls, name="A"), spender(clock, 1, calls=calls, name="b")
    times = timing.measure_interleaved(slow, fast, seconds=5.0)
    assert "".join(calls) == "Ab" + "AbAbAb" + "bb"
    assert [each.median for each in times] == [5, 1]


def test_results_that_are_not_arrays_are_passed_through():
    assert timing.timed(lambda: "text")[0] == "text"
    assert timing.measure(jax.jit(jnp.sin), jnp.ones(3), seconds=0.0).median > 0
