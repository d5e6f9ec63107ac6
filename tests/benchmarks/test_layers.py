import json
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from benchmarks import layers
from benchmarks.lib import harness, precision
from benchmarks.lib.single_layers import DIRECTIONS, LAYERS, random_case

pytestmark = pytest.mark.long  # it runs and times whole programs

QUICK = ["--batch", "2", "--seconds", "0"]


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait by spinning: on a busy machine, one is faster."""
    if find_spec("torch"):
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield


def small_layer(name):
    """A layer at a quarter of its side, where the side does not matter."""
    layer = LAYERS[name]
    side, channels = layer.shape[0] // 4, layer.shape[-1]
    return layer._replace(shape=(side, side, channels)) if side in (14, 56) else layer


@pytest.mark.parametrize("name", LAYERS)
def test_both_libraries_agree(name):
    pytest.importorskip("torch")
    case = random_case(small_layer(name), 2)
    call, named, _ = layers.jax_call(case, DIRECTIONS[1], "float32", "auto")
    torch_call, torch_named = layers.torch_call(case, DIRECTIONS[1])
    found, expected = named(call()), torch_named(torch_call())
    assert found.keys() == expected.keys()
    assert found["output"].shape == case.cotangent.shape
    np.testing.assert_allclose(found["output"], expected["output"], atol=1e-4)
    assert layers.largest_difference(found, expected) < 1e-4


@pytest.mark.parametrize(
    "name, gradients",
    [
        ("dense", {"kernel", "bias", "input"}),
        ("conv3_deep", {"kernel", "input"}),
        ("conv7_stride2", {"kernel"}),
        ("norm", {"scale", "bias", "input"}),
        ("relu", {"input"}),
    ],
)
def test_gradients_are_those_that_training_needs(name, gradients):
    case = random_case(small_layer(name), 1)
    for direction, expected in zip(DIRECTIONS, (set(), gradients), strict=True):
        call, named, _ = layers.jax_call(case, direction, "float32", "lax")
        assert set(named(call())) == {"output"} | expected


@pytest.mark.parametrize("name", ["depthwise3", "conv3_deep", "conv1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_operations_do_not_depend_on_the_implementation(name, direction):
    case = random_case(small_layer(name), 2)
    (*_, lax), (*_, auto) = (
        layers.jax_call(case, direction, "float32", impl) for impl in ("lax", "auto")
    )
    assert lax == auto


def test_command_compares_both_directions(tmp_path, capsys):
    pytest.importorskip("torch")
    files = {name: tmp_path / f"a.{name}" for name in ("json", "markdown")}
    words = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert layers.main([*QUICK, "--layers", "conv5_valid", "relu", *words]) == 0
    assert capsys.readouterr().out == files["markdown"].read_text()
    record = json.loads(files["json"].read_text(), parse_constant=pytest.fail)
    rows = record["rows"]
    assert [row["layer"] for row in rows] == ["conv5_valid"] * 2 + ["relu"] * 2
    assert [row["direction"] for row in rows] == [*DIRECTIONS] * 2
    assert rows[0]["output"] == [2, 28, 28, 32]
    assert rows[0]["operations"] == 2 * 28 * 28 * 32 * (2 * 5 * 5 * 16 - 1)
    assert rows[2]["operations"] == 2 * 56 * 56 * 64
    for row in rows:
        assert row["ratio"] == row["jaxdet_s"] / row["torch_s"] > 0
        assert row["operations_per_s"] == row["operations"] / row["jaxdet_s"]
        assert row["repeats"] == 3 and row["difference"] < 1e-4
    assert {"version", "threads", "openmp"} == set(record["torch"])


def test_missing_pytorch_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    words = [*QUICK, "--layers", "relu", "--json", str(tmp_path / "a.json")]
    assert layers.main(words) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["rows"][-1] == {"layer": "torch", "note": "not installed"}
    assert "torch_s" not in record["rows"][0] and "torch" not in record
    out = capsys.readouterr().out
    assert "not installed" in out and "PyTorch" not in out


def test_gpu_has_rows_in_each_precision_and_percentages_of_its_peak(monkeypatch, tmp_path):
    peaks = {"float32": 1e12, "tf32": 2e12, "bfloat16": 4e12}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(precision, "matmul_peak", peaks.get)
    words = [*QUICK, "--layers", "dense", "--json", str(tmp_path / "a.json")]
    assert layers.main(words) == 0
    *rows, last = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["type"] for row in rows] == [name for name in peaks for _ in range(2)]
    for row in rows:
        expected = 100 * row["operations_per_s"] / peaks[row["type"]]
        assert row["percent_of_peak"] == pytest.approx(expected)
    note = "PyTorch finds no CUDA device" if find_spec("torch") else "not installed"
    assert last == {"layer": "torch", "note": note}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--layers", "conv9"], "--layers must be among dense, conv3"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(words, message, capsys):
    assert layers.main(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
