import json
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks.lib import harness
from jaxdet.cli import main as cli

ROOT = Path(everything.__file__).parents[1]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, *words):
    """Exit code of the command, with files in `out`/results; the page."""
    code = everything.main([*words, "--out", str(out / "results")])
    return code, (out / "RESULTS.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of two benchmarks that succeeded."""
    out = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setitem(everything.QUICK, "flops", "--models lenet")
        patch.setitem(everything.QUICK, "target_encoding", "--batch 2 --seconds 0")
        assert run(out, "--quick", "--names", "target_encoding", "flops")[0] == 0
    return out


def test_the_page_has_a_section_for_each(made):
    page = (made / "RESULTS.md").read_text()
    assert page.count("\n## ") == 2
    for name, words in (("target_encoding", "--batch 2"), ("flops", "--models lenet")):
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        files = f"--json {made}/results/{name}.json --markdown {made}/results/{name}.md"
        assert f"python -m benchmarks.{name} {words} " in part and files in part
        assert (made / "results" / f"{name}.md").read_text() in part
        record = json.loads((made / "results" / f"{name}.json").read_text())
        assert f"- date: {record['date']}, load " in part
        assert f"jaxlib {metadata.version('jaxlib')}" in part and "- device: " in part
        assert f"- XLA_FLAGS: `{os.environ['XLA_FLAGS']}`" in part


def test_the_commands_of_the_page_can_be_read(made):
    for name in ("target_encoding", "flops"):
        record = json.loads((made / "results" / f"{name}.json").read_text())
        module = import_module(f"benchmarks.{name}")
        _, _, _, *words = everything.command(name, module, record["options"]).split()
        assert harness.door(name, module.Options, words, lambda options: None) == 0


def test_one_that_fails_is_visible_and_the_others_stay(made, monkeypatch, capsys):
    monkeypatch.setitem(everything.QUICK, "target_encoding", "--batch 0")
    code, page = run(made, "--quick", "--names", "target_encoding")
    assert code == 1
    error = "benchmarks.target_encoding: error: --batch starts at 1"
    assert f"**Failed**: `{error}`" in page and "benchmarks.target_encoding --batch 0 " in page
    assert "## flops" in page and "| lenet | 1 x 32 x 32 x 3 |" in page
    err = capsys.readouterr().err
    assert err.startswith("1/1 target_encoding ") and f"failed: {error}" in err


def test_success_takes_the_failure_away(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "flops.failed").write_text("python\nno\n")
    monkeypatch.setattr(everything, "run", lambda words, more: "")
    assert run(tmp_path, "--names", "flops")[0] == 0
    assert not (tmp_path / "results" / "flops.failed").exists()


def test_what_is_run_by_default_is_everything(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(everything, "run", lambda words, more: seen.append((words, more)) or "no")
    code, page = run(tmp_path)
    assert code == 1
    assert [words[1] for words, _ in seen] == [f"benchmarks.{name}" for name in everything.NAMES]
    assert all("--json" in words and "--markdown" in words for words, _ in seen)
    assert [words[1] for words, more in seen if not more] == ["benchmarks.tutorial"]
    count = len(everything.NAMES)
    assert [page.count(f"\n## {name}\n") for name in everything.NAMES] == [1] * count
    assert page.count("**Failed**: `no`") == count


@pytest.mark.parametrize("name", everything.NAMES)
def test_quick_options_are_understood(name):
    options = everything.Options(quick=True, out=Path("somewhere"))
    words, found = everything.chosen_words(name, options), []
    module = import_module(f"benchmarks.{name}")
    assert harness.door(name, module.Options, words, found.append) == 0
    assert found[0].json == Path(f"somewhere/{name}.json")


def test_an_unknown_name_is_one_line_and_code_two(capsys):
    assert everything.main(["--names", "layer"]) == 2
    err = capsys.readouterr().err
    assert "--names layer: known are" in err and err.count("\n") == 1


FLAGS = """
import os, sys
import jax, jaxlib
from benchmarks import all as everything
from importlib import import_module
from jaxdet import cli
for name in everything.NAMES:
    import_module(f"benchmarks.{name}")
cli.FLAG, cli.FLAGGED = "--xla_no_such_flag=1", (jaxlib.__version__,)
from benchmarks import harness, target_encoding
harness.door("x", target_encoding.Options, None, lambda options: print(jax.devices()))
"""


def test_a_command_sets_the_flag_before_xla_reads_it():
    """A flag that XLA does not know ends the process: so it is seen that XLA read it."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", FLAGS], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode and "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1" in done.stderr


@pytest.mark.parametrize("given", ["", "--xla_a=1"])
def test_flags_of_the_user_win(given, monkeypatch):
    monkeypatch.setattr(cli, "FLAGGED", (metadata.version("jaxlib"),))
    monkeypatch.setenv("XLA_FLAGS", given)
    harness.quicken()
    assert os.environ["XLA_FLAGS"] == given
    monkeypatch.delenv("XLA_FLAGS")
    harness.quicken()
    assert os.environ["XLA_FLAGS"] == cli.FLAG


def test_words_from_within_a_process_set_no_flag(monkeypatch):
    """The devices of a process that calls `main(words)` may be there already."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert harness.door("all", everything.Options, ["--quick"], lambda options: None) == 0
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize(
    "version, given, meant",
    [
        ("0.10.2", "", cli.FLAG),
        ("0.10.2", "--xla_a=1", f"--xla_a=1 {cli.FLAG}"),
        ("0.10.2", f"{cli.FLAG} --xla_a=1", f"{cli.FLAG} --xla_a=1"),
        ("0.11.0", "--xla_a=1", "--xla_a=1"),
        ("0.11.0", "", ""),
    ],
)
def test_the_flag_is_added_where_jaxlib_knows_it(version, given, meant, monkeypatch):
    monkeypatch.setattr(cli.metadata, "version", lambda name: version)
    assert cli.quicker(given) == meant
