import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness
from jaxdet.types import InputError


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `spend` moves on."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    return clock


def spender(clock, *seconds, calls=None, name="a"):
    """A call that takes these seconds, the last of them from then on."""
    left = list(seconds)

    def call():
        clock.now += left.pop(0) if len(left) > 1 else left[0]
        (calls if calls is not None else []).append(name)

    return call


def test_measure_keeps_the_first_call_apart(clock):
    found = harness.measure(spender(clock, 10, 1, 3, 2), seconds=0.0)
    assert found == harness.Timing(compile_s=8, median=2, spread=1, repeats=3)


def test_measure_repeats_while_there_is_time(clock):
    assert harness.measure(spender(clock, 1), seconds=7.5).repeats == 8
    assert harness.measure(spender(clock, 0), seconds=7.5).repeats == harness.MOST


def test_a_first_call_quicker_than_the_others_compiled_nothing(clock):
    assert harness.measure(spender(clock, 1, 2), seconds=0.0).compile_s == 0


def test_pairs_take_turns_and_the_slow_one_stops_first(clock):
    calls = []
    slow, fast = spender(clock, 5, calls=calls, name="A"), spender(clock, 1, calls=calls, name="b")
    times = harness.paired(slow, fast, seconds=5.0)
    assert "".join(calls) == "Ab" + "AbAbAb" + "bb"
    assert [each.median for each in times] == [5, 1]


def test_calls_are_waited_for_and_other_results_passed_through():
    assert harness.clock(lambda: "text")[0] == "text"
    assert harness.measure(jax.jit(jnp.sin), jnp.ones(3), seconds=0.0).median > 0


def test_compiled_is_the_function():
    program, seconds = harness.compiled(jnp.cumsum, jnp.ones(4))
    np.testing.assert_array_equal(program(jnp.ones(4)), [1, 2, 3, 4])
    assert seconds > 0


def test_first_sees_the_peak_of_one_run():
    def call():
        return np.ones(2**23).sum()  # 64 MiB, freed before the call returns

    found = harness.first(call)
    assert found.value == 2**23
    if found.peak is not None:
        assert 60 < found.peak / 2**20 < 150
        assert harness.first(lambda: None).peak / 2**20 < 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate"),
    ],
)
def test_running_out_of_memory_is_no_crash(error):
    assert harness.within_memory(fail, error) is None


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), InputError("a"), TypeError()])
def test_other_errors_are_not_swallowed(error):
    with pytest.raises(type(error)):
        harness.within_memory(fail, error)


def fail(error):
    raise error


def test_need_knows_beforehand():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 100, "bytes_in_use": 60})
    assert harness.available(device) == 40
    harness.need(40, device)
    with pytest.raises(MemoryError, match="41 bytes are needed and 40 are free"):
        harness.need(41, device)


def test_a_limit_of_the_container_counts(monkeypatch, tmp_path):
    device, limit = SimpleNamespace(memory_stats=lambda: None), tmp_path / "memory.max"
    monkeypatch.setattr(harness, "LIMIT", limit)
    if not harness.FREE.is_file():
        pytest.skip("no /proc")
    limit.write_text("max\n")
    assert harness.available(device) > 0
    limit.write_text("1000\n")
    assert harness.available(device) < 1000


def test_table_is_markdown():
    rows = [{"a": 1234567, "b": 1.23456}, {"a": [5, 2, 2, 4], "b": None}, {"b": True}]
    lines = harness.table(rows, {"a": "first", "b": "second"}).split("\n")
    assert lines[:2] == ["| first | second |", "| --- | --- |"]
    assert lines[2:] == ["| 1,234,567 | 1.2346 |", "| 5 x 2 x 2 x 4 |  |", "|  | yes |"]


@dataclass
class Options:
    """Of a benchmark that is none."""

    batch: int = 3
    """images"""
    json: Path | None = None
    """file"""


def test_write_keeps_what_the_figures_depend_on(tmp_path):
    out = tmp_path / "deep" / "rows.json"
    rows = [{"seconds": 1.5}]
    harness.write("x", rows, out, jax.devices(), options=Options(json=out), torch={"threads": 2})
    kept = json.loads(out.read_text())
    assert (kept["benchmark"], kept["rows"], kept["torch"]) == ("x", rows, {"threads": 2})
    assert kept["options"] == {"batch": 3, "json": str(out)}
    assert {"packages", "processors", "devices", "flags"} <= set(kept["environment"])
    assert kept["date"].endswith("+00:00")


@pytest.mark.parametrize(
    "error, code", [(InputError("no such size"), 2), (OSError("no space left"), 1)]
)
def test_door_says_what_is_wrong_in_one_line(error, code, capsys):
    def run(options):
        raise error

    assert harness.door("x", Options, ["--batch", "2"], run) == code
    assert capsys.readouterr().err == f"benchmarks.x: error: {error}\n"


@pytest.mark.parametrize("words, batch", [([], 3), (["--batch", "2"], 2)])
def test_door_reads_the_options(words, batch):
    found = []
    assert harness.door("x", Options, words, found.append) == 0
    assert found == [Options(batch=batch)]


def test_door_refuses_unknown_options():
    with pytest.raises(SystemExit) as ended:
        harness.door("x", Options, ["--bach", "2"], print)
    assert ended.value.code == 2


def test_show_prints_and_keeps(tmp_path, capsys):
    harness.show("| a |", tmp_path / "deep" / "page.md")
    assert capsys.readouterr().out == (tmp_path / "deep" / "page.md").read_text() == "| a |\n"
