"""A command restarts once, with large pages, where the kernel gives them."""

import os
import subprocess
import sys

import pytest

from jaxdet.cli import main as cli
from jaxdet.cli import process
from jaxdet.cli.options import Process
from jaxdet.kernels import program_cache


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """Arguments of each restart; the kernel has `always [madvise] never`."""
    found = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *args: found.append(args))
    monkeypatch.setattr(process, "KERNEL", tmp_path / "enabled")
    process.KERNEL.write_text("always [madvise] never\n")
    return found


def test_process_restarts_where_large_pages_are_given_on_request(restarts):
    process.restart_with_large_pages()
    assert restarts == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == process.SETTING
    process.restart_with_large_pages()
    assert len(restarts) == 1


@pytest.mark.parametrize("word", ["[always] madvise never", "always madvise [never]"])
def test_no_restart_where_it_has_no_effect(restarts, word):
    process.KERNEL.write_text(word)
    process.restart_with_large_pages()
    assert not restarts


def test_no_restart_where_the_user_set_the_variable_or_the_kernel_has_no_such_pages(
    restarts, monkeypatch
):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    process.restart_with_large_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    process.KERNEL.unlink()
    process.restart_with_large_pages()
    assert not restarts


def test_commands_restart_and_keep_programs_but_not_for_help(restarts, monkeypatch):
    monkeypatch.setattr(program_cache, "_enabled", False)
    monkeypatch.setattr(cli, "main", lambda argv: argv)
    assert cli.enter(["train", "--help"]) == ["train", "--help"]
    assert not restarts and not program_cache._enabled
    cli.enter(["eval", "somewhere"])
    assert restarts and program_cache._enabled


@pytest.mark.parametrize(
    "given, deterministic, expected",
    [
        (None, False, None),
        (None, True, process.DETERMINISTIC_FLAG),
        ("--xla_a=1", False, "--xla_a=1"),
        ("--xla_a=1", True, f"--xla_a=1 {process.DETERMINISTIC_FLAG}"),
    ],
)
def test_only_deterministic_adds_a_flag(monkeypatch, given, deterministic, expected):
    monkeypatch.delenv("XLA_FLAGS")
    if given:
        monkeypatch.setenv("XLA_FLAGS", given)
    process.prepare(Process(deterministic=deterministic, cache=False))
    assert os.environ.get("XLA_FLAGS") == expected


def test_compiled_programs_are_kept_unless_the_environment_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "7")
    process.prepare(Process())
    assert [os.environ[name] for name in names] == [str(tmp_path), "0.5"]
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] == "7"


def test_restarted_process_keeps_its_arguments():
    code = (
        "import sys; from jaxdet.cli import process; process.restart_with_large_pages(); "
        "print(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, "one", "two words"]
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    out = subprocess.run(words, env=clean, capture_output=True, text=True, check=True).stdout
    assert out == "['one', 'two words']\n"
