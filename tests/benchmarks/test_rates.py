import json

import pytest

from benchmarks import rates
from jaxdet.kernels import conv

pytestmark = pytest.mark.long  # it runs and times whole programs


def test_step_of_all_rates_is_timed_vmapped_and_sequential(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--count", "3", "--batch", "2", "--seconds", "0", "--json", str(out)]
    assert rates.main(words) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["model"], row["rates"], row["batch"]) == ("tutorial", 3, 2)
    assert (
        row["ratio"] == pytest.approx(row["vmapped_s"] / row["sequential_s"]) and row["ratio"] > 0
    )
    assert "| tutorial | 3 | 2 | auto |" in capsys.readouterr().out


def test_forms_of_convolution_are_compared(monkeypatch, capsys):
    """The program of all rates is traced with grouped convolutions, or with matrix products."""
    chosen, choose = [], conv.choose_plan
    monkeypatch.setattr(
        conv, "choose_plan", lambda *args: chosen.append(choose(*args)) or chosen[-1]
    )
    words = ["--count", "2", "--batch", "2", "--seconds", "0", "--convolutions"]
    for form in ("lax", "im2col"):
        chosen.clear()
        assert rates.main([*words, form]) == 0
        assert conv.Plan(form, form, form) in chosen
        assert f"| {form} |" in capsys.readouterr().out


def test_unknown_network_is_refused_in_one_line(capsys):
    assert rates.main(["--models", "vgg"]) == 2
    err = capsys.readouterr().err
    assert "must be among tutorial, doubled" in err and err.count("\n") == 1
