import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib import harness
from jaxdet.errors import InputError


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
