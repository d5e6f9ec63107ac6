import json

import numpy as np
import pytest

from benchmarks import similarity
from jaxdet.ops import embeddings

pytestmark = pytest.mark.long  # it runs and times whole programs

SMALL = ["--probes", "30", "--gallery", "7", "--dim", "5", "--chunk", "8", "--seconds", "0"]


def test_command_compares_all_implementations(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert similarity.main([*SMALL, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    product, numpy, jaxdet = record["rows"]
    assert product["ratio"] == 1 and jaxdet["implementation"] == "jaxdet"
    for row in (numpy, jaxdet):
        assert row["ratio"] == row["median"] / product["median"]
    assert all(
        row["memory_bytes"] is None or 0 <= row["memory_bytes"] < 1e9 for row in record["rows"]
    )
    assert record["memory_source"].startswith(("process", "device", "unknown"))
    assert "| jaxdet | 30 | 7 | 5 |" in capsys.readouterr().out


def test_memory_is_that_of_the_result():
    """The result is larger than random variations of the process's memory."""
    options = similarity.Options(probes=9000, gallery=1000, dim=4, seconds=0)
    rows, source = similarity.compare(options)
    assert source == "unknown" or 0.03e9 < rows[-1]["memory_bytes"] < 0.3e9


def test_difference_ends_the_run(monkeypatch):
    monkeypatch.setattr(embeddings, "similarity", lambda a, b, chunk: np.zeros((len(a), len(b))))
    with pytest.raises(AssertionError):
        similarity.compare(similarity.Options(probes=9, gallery=3, dim=4, seconds=0))


def test_empty_gallery_is_refused(capsys):
    assert similarity.main(["--gallery", "0"]) == 2
    assert "--gallery must be at least 1, got 0" in capsys.readouterr().err
