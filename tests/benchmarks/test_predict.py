import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import predict
from jaxdet.errors import InputError

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "goldens" / "schema2" / "objects"


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(random.integers(0, 256, (30 + i, 40, 3), np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    return tmp_path


def test_every_way_to_predict_has_a_row(photos, monkeypatch, capsys):
    def refuse(run, resized):
        raise InputError("not installed")

    monkeypatch.setattr(predict, "onnx_call", refuse)
    out = photos / "rows.json"
    words = ["--runs", str(RUN), "--images", str(photos), "--batches", "3", "--seconds", "0"]
    assert predict.main([*words, "--json", str(out)]) == 0
    rows = {row["implementation"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.pop("onnxruntime")["note"] == "not installed"
    assert [*rows] == ["predict", "predict, array", "network"]
    for row in rows.values():
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] and row["repeats"] == 20
        assert row["images_per_s"] == pytest.approx(3 / row["p50"])
        assert row["overhead"] == pytest.approx(row["p50"] - rows["network"]["p50"])
    assert "| objects | objects | 3 | predict |" in capsys.readouterr().out


@pytest.mark.long  # the export proves itself in a process of its own
def test_onnxruntime_is_one_of_them(photos):
    pytest.importorskip("onnxruntime")
    run = predict.jaxdet.load(RUN)
    rows = predict.compare(run, "r", [photos / "0.png"], batch=2, seconds=0)
    assert rows[-1]["implementation"] == "onnxruntime" and rows[-1]["p50"] > 0, rows


@pytest.mark.parametrize(
    "words, error",
    [
        ([], "--runs must have at least one value, got none"),
        (["--runs", "r"], "--images must have at least one value, got none"),
        (["--runs", "r", "--images", "i", "--batches", "0"], "--batches must be at least 1, got 0"),
        (["--runs", "r", "--images", "."], "--images .: must have image files, got none"),
    ],
)
def test_missing_options_are_one_line(words, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict.main(words) == 2
    assert capsys.readouterr().err == f"benchmarks.predict: error: {error}\n"
