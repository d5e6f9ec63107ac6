import json

import numpy as np
import pytest

from benchmarks import similarity
from jaxdet.ops import embeddings

SMALL = ["--unknown", "30", "--known", "7", "--numbers", "5", "--chunk", "8", "--seconds", "0"]


def test_the_command_compares_all_ways(tmp_path, capsys):
    file = tmp_path / "a.json"
    assert similarity.main([*SMALL, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    product, numpy, jaxdet = record["rows"]
    assert product["ratio"] == 1 and jaxdet["way"] == "jaxdet"
    for row in (numpy, jaxdet):
        assert row["ratio"] == row["median"] / product["median"]
    assert all(row["memory"] is None or 0 <= row["memory"] < 1 for row in record["rows"])
    assert record["memory"].startswith(("process", "device", "unknown"))
    assert "| jaxdet | 30 | 7 | 5 |" in capsys.readouterr().out


def test_what_is_told_is_the_memory_of_jaxdet_s_result():
    """A table that is larger than what the process may hold by chance."""
    options = similarity.Options(unknown=9000, known=1000, numbers=4, seconds=0)
    rows, source = similarity.compare(options)
    assert source == "unknown" or 0.03 < rows[-1]["memory"] < 0.3


def test_cosines_that_differ_end_the_run(monkeypatch):
    monkeypatch.setattr(embeddings, "similarity", lambda a, b, chunk: np.zeros((len(a), len(b))))
    with pytest.raises(AssertionError):
        similarity.compare(similarity.Options(unknown=9, known=3, numbers=4, seconds=0))


def test_no_embeddings_are_refused(capsys):
    assert similarity.main(["--known", "0"]) == 2
    assert "--known starts at 1" in capsys.readouterr().err
