"""A command begins again with large pages where the kernel gives them, once."""

import os
import subprocess
import sys

import pytest

from jaxdet.cli import main as cli
from jaxdet.cli import process


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What a process would begin again with; the kernel's word is `always [madvise] never`."""
    found = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *args: found.append(args))
    monkeypatch.setattr(process, "KERNEL", tmp_path / "enabled")
    process.KERNEL.write_text("always [madvise] never\n")
    return found


def test_where_the_kernel_gives_large_pages_to_those_who_ask(begun):
    process.restart_with_large_pages()
    assert begun == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == process.SETTING
    process.restart_with_large_pages()
    assert len(begun) == 1


@pytest.mark.parametrize("word", ["[always] madvise never", "always madvise [never]"])
def test_not_where_it_makes_no_difference(begun, word):
    process.KERNEL.write_text(word)
    process.restart_with_large_pages()
    assert not begun


def test_not_where_the_user_has_set_something_or_the_kernel_has_no_such_pages(begun, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    process.restart_with_large_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    process.KERNEL.unlink()
    process.restart_with_large_pages()
    assert not begun


def test_the_command_line_asks_but_not_for_help(begun, monkeypatch):
    monkeypatch.setattr(cli, "main", lambda argv: argv)
    assert cli.enter(["train", "--help"]) == ["train", "--help"]
    assert not begun
    cli.enter(["eval", "somewhere"])
    assert begun


def test_a_process_that_begins_again_keeps_its_words():
    code = "import os, sys; from jaxdet import pages; pages.begin_again(); print(sys.argv[1:])"
    words = [sys.executable, "-c", code, "one", "two words"]
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    out = subprocess.run(words, env=clean, capture_output=True, text=True, check=True).stdout
    assert out == "['one', 'two words']\n"
