import json

import jax
import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.lib import train_steps
from benchmarks.lib.train_steps import StepOptions
from jaxdet.errors import InputError


@pytest.mark.long  # it runs and times whole programs
def test_a_step_sums_its_gradients_over_the_devices():
    work = train_steps.make_workload(train_steps.MODELS["digits"], StepOptions(batch=2))
    init, _ = train_steps.pure_step(work)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init).params))
    found = scaling.summed_bytes(work, 2)
    assert 4 * parameters < found < 1.02 * 4 * parameters  # statistics and loss terms as well
    assert scaling.summed_bytes(work, 1) == 0


@pytest.mark.long  # it runs and times whole programs
def test_predictions_follow_from_the_stated_speeds(monkeypatch):
    monkeypatch.setattr(scaling, "summed_bytes", lambda work, devices: 10**6)
    options = scaling.Options(gpu_tflops=50.0, gpus_per_host=8, link=100.0, network=10.0)
    assert scaling.all_reduce_seconds(10**9, 8, options) == pytest.approx(2 * 7 / 8 / 100)
    assert scaling.all_reduce_seconds(10**9, 64, options) == pytest.approx(2 * 63 / 64 / 10)
    row = scaling.predict("digits", options)
    assert row["step_s"] == row["operations"] / 50e12 and row["bytes"] == 10**6
    for count in scaling.GPUS:
        share = row["step_s"] / (row["step_s"] + row[f"reduce_{count}"])
        assert row[f"efficiency_{count}"] == share


def test_a_setup_that_fails_becomes_a_row_with_its_error(monkeypatch):
    def fail(model, options, processes, devices):
        raise InputError(f"{processes} x {devices}")

    monkeypatch.setattr(scaling, "time_setup", fail)
    monkeypatch.setattr(scaling, "summed_bytes", lambda work, devices: 0)
    rows = list(scaling.measure("digits", scaling.Options(batch=4)))
    assert [row["note"] for row in rows] == ["1 x 1", "1 x 2", "1 x 4", "2 x 2"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_processes_take_a_step_together(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "SETUPS", ((2, 1),))
    out = tmp_path / "rows.json"
    words = ["--models", "digits", "--batch", "2", "--predicted", "digits", "--repeats", "2"]
    assert scaling.main([*words, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    (row,) = record["rows"]
    assert (row["processes"], row["devices"], row["repeats"]) == (2, 2, 2) and "note" not in row
    assert row["steps_per_s"] == pytest.approx(1 / row["median"]) and np.isfinite(row["median"])
    assert [row["model"] for row in record["predicted"]] == ["digits"]
    assert "| digits | 2 | 2 | 2 |" in capsys.readouterr().out


def test_wrong_options_are_refused(capsys):
    assert scaling.main(["--models", "lenet"]) == 2
    assert scaling.main(["--repeats", "0"]) == 2
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err
