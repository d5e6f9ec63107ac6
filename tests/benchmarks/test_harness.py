import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib import harness
from jaxdet.errors import InputError


def test_compile_call_compiles_the_function():
    program, seconds = harness.compile_call(jnp.cumsum, jnp.ones(4))
    np.testing.assert_array_equal(program(jnp.ones(4)), [1, 2, 3, 4])
    assert seconds > 0


def test_first_call_measures_the_peak_of_one_run():
    def call():
        return np.ones(2**23).sum()  # 64 MiB, freed before the call returns

    found = harness.first_call(call)
    assert found.value == 2**23
    if found.peak is not None:
        assert 60 < found.peak / 2**20 < 150
        assert harness.first_call(lambda: None).peak / 2**20 < 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate"),
    ],
)
def test_out_of_memory_gives_none(error):
    assert harness.within_memory(fail, error) is None


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), InputError("a"), TypeError()])
def test_other_errors_are_raised(error):
    with pytest.raises(type(error)):
        harness.within_memory(fail, error)


def fail(error):
    raise error


def test_require_memory_raises_before_allocating():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 100, "bytes_in_use": 60})
    assert harness.available_memory(device) == 40
    harness.require_memory(40, device)
    with pytest.raises(MemoryError, match="41 bytes are needed and 40 are free"):
        harness.require_memory(41, device)


def test_container_limit_counts(monkeypatch, tmp_path):
    device, limit = SimpleNamespace(memory_stats=lambda: None), tmp_path / "memory.max"
    monkeypatch.setattr(harness, "CGROUP_LIMIT", limit)
    if not harness.MEMINFO.is_file():
        pytest.skip("no /proc")
    limit.write_text("max\n")
    assert harness.available_memory(device) > 0
    limit.write_text("1000\n")
    assert harness.available_memory(device) < 1000


@dataclass
class Options:
    """Options of a made-up benchmark."""

    batch: int = 3
    """images"""
    json: Path | None = None
    """file"""


def test_record_has_everything_the_figures_depend_on(tmp_path):
    path = tmp_path / "deep" / "rows.json"
    rows = [{"seconds": 1.5}]
    harness.write_record("x", rows, path, options=Options(json=path), torch={"threads": 2})
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["rows"], record["torch"]) == ("x", rows, {"threads": 2})
    assert record["options"] == {"batch": 3, "json": str(path)}
    assert {"packages", "processors", "devices", "flags"} <= set(record["environment"])
    assert record["date"].endswith("+00:00")


@pytest.mark.parametrize(
    "error, code", [(InputError("no such size"), 2), (OSError("no space left"), 1)]
)
def test_errors_are_one_line_and_an_exit_code(error, code, capsys):
    def run(options):
        raise error

    assert harness.run_command("x", Options, ["--batch", "2"], run) == code
    assert capsys.readouterr().err == f"benchmarks.x: error: {error}\n"


@pytest.mark.parametrize("words, batch", [([], 3), (["--batch", "2"], 2)])
def test_run_command_parses_the_options(words, batch):
    found = []
    assert harness.run_command("x", Options, words, found.append) == 0
    assert found == [Options(batch=batch)]


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit) as ended:
        harness.run_command("x", Options, ["--bach", "2"], print)
    assert ended.value.code == 2


def test_write_tables_prints_and_writes(tmp_path, capsys):
    harness.write_tables("| a |", tmp_path / "deep" / "page.md")
    assert capsys.readouterr().out == (tmp_path / "deep" / "page.md").read_text() == "| a |\n"
