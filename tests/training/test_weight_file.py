"""Weights of a run in a safetensors file: written, loaded, trained from, damaged."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdet
from jaxdet import runs
from jaxdet.cli.main import main
from jaxdet.training import warm_start, weight_file
from tests.test_golden_runs import SCHEMA2


@pytest.fixture(scope="module")
def run():
    return jaxdet.load(SCHEMA2 / "digits", "last")


@pytest.fixture
def file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return run.export("w.safetensors", "safetensors")


def assert_same(expected, found):
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for pair in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_array_equal(*pair)


def test_a_file_holds_the_run(run, file):
    saved = weight_file.read(file)
    assert_same(run.variables, saved.variables)
    again = jaxdet.load(file)
    assert (again.config, again.step, again.epoch) == (run.config, run.step, run.epoch)
    assert again.classes == run.classes and again.recorded == saved.metadata
    image = np.zeros((64, 64), np.uint8)
    assert_same(run.predict(image), again.predict(image))


def test_other_programs_read_the_arrays(run, file):
    found = load_file(file)
    path = next(iter(found))
    leaf = run.variables
    for name in path.split("/"):
        leaf = leaf[name]
    np.testing.assert_array_equal(found[path], leaf)


def test_training_starts_from_a_file_as_from_the_run(run, file):
    config = runs.absolute_paths(replace(run.config, weights="w.safetensors"))
    assert config.weights == f"run:{file.absolute()}"
    assert runs.absolute_paths(config) == config
    runs.check_config("digits", config)
    found = warm_start.read_run(str(file.absolute()))
    expected = warm_start.read_run(str(SCHEMA2 / "digits"))
    assert found.classes == expected.classes and found.normalization == expected.normalization
    assert_same(jaxdet.load(SCHEMA2 / "digits").variables, expected.variables)


def test_published_weights_stay_files(run, tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    for path in (tmp_path / "other.safetensors", tmp_path / "missing.safetensors"):
        config = runs.absolute_paths(replace(run.config, weights=str(path)))
        assert config.weights == str(path)


def test_damaged_and_foreign_files_give_one_line(run, file, capsys):
    content = file.read_bytes()
    broken = [content[:-3], content[:50], b"", content[:-1] + bytes([content[-1] ^ 1])]
    save_file({"a": np.zeros(1)}, "foreign.safetensors")
    newer = content.replace(b'\\"schema\\": 2', b'\\"schema\\": 9')
    assert newer != content
    with open("foreign.safetensors", "rb") as foreign:
        broken += [foreign.read(), newer]
    for case in broken:
        file.write_bytes(case)
        assert main(["export", str(file), "out.safetensors", "--format", "safetensors"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("jaxdet: error: w.safetensors: ") and error.count("\n") == 1


def test_an_existing_file_is_kept(run, file):
    with pytest.raises(jaxdet.InputError, match="w.safetensors exists"):
        run.export(file, "safetensors")
    assert run.export(file, "safetensors", overwrite=True).read_bytes() == file.read_bytes()
    with pytest.raises(jaxdet.InputError, match=r"OUT must end in \.safetensors"):
        run.export("weights.bin", "safetensors")
