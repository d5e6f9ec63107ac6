import json
import os
import re
import shutil
from importlib import import_module, metadata
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks.lib import harness

ROOT = Path(everything.__file__).parents[1]


@pytest.fixture(autouse=True)
def run_in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, *words):
    """(exit code, page) of the command with its records in `out`/results."""
    code = everything.main([*words, "--out", str(out / "results")])
    return code, (out / "RESULTS.md").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of two benchmarks that succeeded."""
    out = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setitem(everything.QUICK_OPTIONS, "flops", "--models lenet")
        patch.setitem(everything.QUICK_OPTIONS, "target_encoding", "--batch 2 --seconds 0")
        assert run(out, "--quick", "--names", "target_encoding", "flops")[0] == 0
    return out


@pytest.mark.long  # it runs and times whole programs
def test_page_has_a_section_for_each(finished):
    page = (finished / "RESULTS.md").read_text()
    head, *_ = page.split("\n## ")
    assert page.count("\n## ") == 2
    assert f"jaxlib {metadata.version('jaxlib')}" in head and "- device: " in head
    assert f"- XLA_FLAGS: `{os.environ['XLA_FLAGS']}`" in head
    for name, words in (("target_encoding", "--batch 2 --seconds 0"), ("flops", "--models lenet")):
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        record = json.loads((finished / "results" / f"{name}.json").read_text())
        assert f"`python -m benchmarks.{name} {words}" in part
        assert f"; {record['date'][:10]}, load " in part
        assert f"(results/{name}.md)" in part and f"(results/{name}.json)" in part


@pytest.mark.long  # it runs and times whole programs
def test_tables_are_made_from_the_records(finished, monkeypatch):
    page = (finished / "RESULTS.md").read_text()
    complete = {path: path.read_text() for path in (finished / "results").glob("*.md")}
    assert "| conv1 |" in complete[finished / "results" / "flops.md"] and "| conv1 |" not in page
    for path in complete:
        path.unlink()
    monkeypatch.setattr(everything, "run_python", pytest.fail)
    assert run(finished, "--tables-only") == (0, page)
    assert {path: path.read_text() for path in complete} == complete


@pytest.mark.long  # it runs and times whole programs
def test_conditions_that_differ_are_named_in_their_section(finished, tmp_path):
    shutil.copytree(finished / "results", tmp_path / "results")
    flops = tmp_path / "results" / "flops.json"
    for name in ("one", "two"):  # more records like target_encoding.json
        shutil.copy(
            tmp_path / "results" / "target_encoding.json",
            tmp_path / "results" / f"experiment_{name}.json",
        )
    record = json.loads(flops.read_text())
    flops.write_text(json.dumps(record | {"environment": {**record["environment"], "flags": ""}}))
    _, page = run(tmp_path, "--tables-only")
    assert [part.count("XLA_FLAGS: none") for part in page.split("\n## ")] == [0, 0, 1, 0, 0]


@pytest.mark.long  # it runs and times whole programs
def test_commands_of_the_page_can_be_parsed(finished):
    for name in ("target_encoding", "flops"):
        record = json.loads((finished / "results" / f"{name}.json").read_text())
        module = import_module(f"benchmarks.{name}")
        _, _, _, *words = everything.command(name, record["options"]).split()
        assert harness.run_command(name, module.Options, words, lambda options: None) == 0


@pytest.mark.parametrize("name", ["RESULTS.md", "results/layers.md", "results/experiment_long.md"])
def test_stored_pages_are_those_of_the_stored_records(name, tmp_path):
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "results")
    assert run(tmp_path, "--tables-only")[0] == 0
    assert (tmp_path / name).read_text() == (ROOT / "benchmarks" / name).read_text()


def test_stored_page_is_short():
    assert len((ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()) <= 400


@pytest.mark.long  # it runs and times whole programs
def test_failure_is_visible_and_other_results_stay(finished, monkeypatch, capsys):
    monkeypatch.setitem(everything.QUICK_OPTIONS, "target_encoding", "--batch 0")
    code, page = run(finished, "--quick", "--names", "target_encoding")
    assert code == 1
    error = "benchmarks.target_encoding: error: --batch must be at least 1, got 0"
    assert f"**Failed**: `{error}`" in page and "benchmarks.target_encoding --batch 0 " in page
    assert "## flops" in page and "| lenet | 1 x 32 x 32 x 3 |" in page
    err = capsys.readouterr().err
    assert err.startswith("1/1 target_encoding ") and f"failed: {error}" in err


def test_success_removes_the_failure(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "flops.failed").write_text("python\nno\n")
    monkeypatch.setattr(everything, "run_python", lambda words, environment: "")
    assert run(tmp_path, "--names", "flops")[0] == 0
    assert not (tmp_path / "results" / "flops.failed").exists()


def test_default_is_to_run_everything(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(everything, "run_python", lambda *args: seen.append(args) or "no")
    code, page = run(tmp_path)
    assert code == 1
    assert [words[1] for words, _ in seen] == [f"benchmarks.{name}" for name in everything.NAMES]
    assert all("--json" in words for words, _ in seen)
    spinning = [words[1] for words, environment in seen if not environment]
    assert spinning == ["benchmarks.tutorial"]
    count = len(everything.NAMES)
    assert [page.count(f"\n## {name}\n") for name in everything.NAMES] == [1] * count
    assert page.count("**Failed**: `no`") == count


@pytest.mark.parametrize("name", everything.NAMES)
def test_quick_options_can_be_parsed(name):
    options = everything.Options(quick=True, out=Path("somewhere"))
    words, found = everything.benchmark_options(name, options), []
    module = import_module(f"benchmarks.{name}")
    assert harness.run_command(name, module.Options, words, found.append) == 0
    assert found[0].json == Path(f"somewhere/{name}.json")


def test_unknown_name_is_one_line_and_exit_code_two(capsys):
    assert everything.main(["--names", "layer"]) == 2
    err = capsys.readouterr().err
    assert "--names must be among sliding_windows" in err and err.count("\n") == 1


GUIDE = (ROOT / "docs" / "benchmarks.md").read_text()


def test_guide_lists_every_benchmark():
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", GUIDE, re.M)[: len(everything.NAMES)] == list(
        everything.NAMES
    )


@pytest.mark.parametrize("line", re.findall(r"^python -m benchmarks\.(.+)$", GUIDE, re.M))
def test_commands_of_the_guide_can_be_parsed(line):
    name, *words = line.split()
    module = import_module(f"benchmarks.{name}")
    assert harness.run_command(name, module.Options, words, lambda options: None) == 0
