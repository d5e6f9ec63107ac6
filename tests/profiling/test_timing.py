from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxdet.profiling import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `spend` moves on."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def spender(clock, *seconds, calls=None, name="a"):
    """A call that takes these seconds, the last of them from then on."""
    left = list(seconds)

    def call():
        clock.now += left.pop(0) if len(left) > 1 else left[0]
        (calls if calls is not None else []).append(name)

    return call


def test_measure_keeps_the_first_call_apart(clock):
    found = timing.measure(spender(clock, 10, 1, 3, 2), seconds=0.0)
    assert found == timing.Timing(compile_s=8, median=2, spread=1, repeats=3)


def test_measure_repeats_while_there_is_time(clock):
    assert timing.measure(spender(clock, 1), seconds=7.5).repeats == 8
    assert timing.measure(spender(clock, 0), seconds=7.5).repeats == timing.MAX_REPEATS


def test_a_first_call_quicker_than_the_others_compiled_nothing(clock):
    assert timing.measure(spender(clock, 1, 2), seconds=0.0).compile_s == 0


def test_pairs_take_turns_and_the_slow_one_stops_first(clock):
    calls = []
    slow, fast = spender(clock, 5, calls=calls, name="A"), spender(clock, 1, calls=calls, name="b")
    times = timing.measure_interleaved(slow, fast, seconds=5.0)
    assert "".join(calls) == "Ab" + "AbAbAb" + "bb"
    assert [each.median for each in times] == [5, 1]


def test_calls_are_waited_for_and_other_results_passed_through():
    assert timing.timed(lambda: "text")[0] == "text"
    assert timing.measure(jax.jit(jnp.sin), jnp.ones(3), seconds=0.0).median > 0
