import json
import os

import pytest

from benchmarks import startup

pytestmark = pytest.mark.long  # it runs and times whole programs


@pytest.fixture(scope="module")
def stages():
    """{stage: seconds} of a real process, with the compilation cache of the tests."""
    given = {"system": "digits", "fields": startup.SMALL}
    return startup.time_stages(given, os.environ["JAX_COMPILATION_CACHE_DIR"])


def test_training_passes_every_stage(stages):
    assert list(stages)[0] == startup.START
    assert list(stages)[-3:] == ["second step", startup.STEP, startup.TOTALS["train"]]
    assert {"import jax", "init: state, data to the device", "compile"} <= set(stages)
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["second step"] < stages["import jax"]


def test_stages_add_up_to_the_time_to_the_first_step(stages):
    total = stages[startup.TOTALS["train"]]
    parts = sum(stages.values()) - total - stages["second step"] - stages[startup.STEP]
    assert 0.7 * total < parts <= total


def test_help_is_timed_in_a_process():
    assert 0.02 < startup.time_help() < 30


def test_predictions_are_timed_by_stage_and_by_line(tmp_path):
    training = startup.TRAININGS["digits"]._replace(fields=startup.SMALL)
    rows = {row["stage"]: row for row in startup.predict_rows(training, tmp_path, 1)}
    first, tenth = (rows[stage] for stage in startup.LINES.values())
    assert first["warm_s"] < first["cold_s"] and (first["cold_goal"], first["warm_goal"]) == (
        6,
        2.5,
    )
    assert tenth["warm_s"] > 0 and "warm_goal" not in tenth
    assert {"restore", "decode the image", "trace", startup.TOTALS["predict"]} <= set(rows)


def test_command_separates_cold_and_warm(tmp_path, monkeypatch, capsys):
    seen = []

    def run_module(module, *words, cache=None):
        if cache is None:
            return "usage"
        warm = (kept := cache + "/program") in seen
        seen.append(kept)
        seconds = {"trace": 0.5, "compile": 1.0 if warm else 5.0, "first step": 0.5}
        return json.dumps({"begun": 1e12, "first": 1e12, "seconds": seconds})

    monkeypatch.setattr(startup, "run_module", run_module)
    path = tmp_path / "a.json"
    words = ["--repeats", "2", "--small", "--commands", "digits", "--json", str(path)]
    assert startup.main(words) == 0
    rows = {row["stage"] or row["command"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows)[0] == startup.HELP and "warm_s" not in rows[startup.HELP]
    assert (rows["compile"]["cold_s"], rows["compile"]["warm_s"]) == (5, 1)
    assert rows[startup.STEP]["cold_s"] == 6 and rows[startup.STEP]["cold_goal"] == 4
    assert rows["first step"]["cold_spread"] == 0 and rows["first step"]["repeats"] == 2
    assert len(seen) == 4 and len(set(seen)) == 2  # two processes for each of two folders
    assert "| jaxdet train digits | compile | 5.00 s | 0 s |" in capsys.readouterr().out


def test_failing_process_says_why():
    with pytest.raises(RuntimeError, match="failed with exit code 1: .*nonsense"):
        startup.run_module("benchmarks.nonsense")


def test_zero_repeats_are_refused(capsys):
    assert startup.main(["--repeats", "0"]) == 2
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err
