"""Code blocks of README.md and docs/ are valid: Python blocks run, commands are understood."""

import importlib
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet import api
from jaxdet.cli import main as cli
from jaxdet.models import registry
from jaxdet.training import parallel
from tests import tiny

ROOT = Path(jaxdet.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GOLDENS = Path(__file__).parent / "goldens"
SHORT = {"epochs": 1, "batch": 64, "layout": "c6s4,p2", "channels": (8,), "fc_widths": (16,)}


def blocks(page, language):
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def commands():
    """(page, command) of every line of the bash blocks, continued lines joined."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            words = (shlex.split(line, comments=True) for line in lines)
            yield from ((page.name, command) for command in words if command)


def test_every_page_has_code_that_is_checked():
    pages = {page for page, _ in commands()} | {p.name for p in PAGES if blocks(p, "python")}
    assert {"README.md", "python.md", "detection.md", "assignments.md"} <= pages


@pytest.mark.parametrize("page, command", commands(), ids=lambda x: x if isinstance(x, str) else "")
def test_commands_are_understood(page, command, monkeypatch):
    understood = []
    monkeypatch.setattr(cli, "_run", lambda name, *args: understood.append(name) or 0)
    match command:
        case ["jaxdet", *words]:
            assert cli.main(words) == 0
            assert understood or "--help" in words
        case ["python", "-m", module, *words]:
            options = importlib.import_module(module).Options.__dataclass_fields__
            named = [w[2:].replace("-", "_") for w in words if w.startswith("--")]
            assert not [name for name in named if name not in options]
        case ["bash" | "sbatch", script, *_]:
            assert (ROOT / script).is_file()
        case _:
            raise AssertionError(f"{page}: unknown command {command}")


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A folder with the images and the run that examples name; trainings are cut short."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(name)
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    monkeypatch.setattr(parallel, "local_devices", lambda count=0: jax.local_devices()[:1])
    return tmp_path


def test_the_python_of_the_readme_runs(examples, monkeypatch):
    train = api.train

    def short(config, folder, **options):
        return train(tiny.replace(config, **SHORT, window=40), folder, **options)

    monkeypatch.setattr(api, "train", short)
    (code,) = blocks(ROOT / "README.md", "python")
    namespace = {}
    exec(code, namespace)
    assert namespace["image"].shape == (64, 64)
    assert (examples / "runs" / "digits" / "metrics.jsonl").is_file()


def test_the_python_of_the_api_page_runs(examples):
    code = blocks(ROOT / "docs" / "python.md", "python")
    namespace = {}
    for block in code:
        exec(block, namespace)
    assert namespace["shape"] == (1, 64, 96, 3)
    assert {path.name for path in (examples / "runs").iterdir()} >= {"own-data", "regression"}


def test_the_python_of_the_detection_page_runs(examples, monkeypatch, capsys):
    load = api.load

    def golden(folder, **options):
        assert folder == "runs/detect"
        return load(GOLDENS / "schema1" / "detect", "last", **options | {"score_threshold": 0.0})

    monkeypatch.setattr(api, "load", golden)
    (code,) = blocks(ROOT / "docs" / "detection.md", "python")
    exec(code, {})
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"a.jpg", "b.jpg"}
