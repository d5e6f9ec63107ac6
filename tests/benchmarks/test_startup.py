import json
import os

import pytest

from benchmarks import startup


@pytest.fixture(scope="module")
def stages():
    """{stage: seconds} of a real process, with the programs that tests keep."""
    return startup.training(startup.SMALL, os.environ["JAX_COMPILATION_CACHE_DIR"])


def test_a_training_goes_through_every_stage(stages):
    assert list(stages)[0] == startup.START and list(stages)[-2:] == ["second step", startup.WHOLE]
    assert {"import jax", "init: state, data to the device", "step: compile"} <= set(stages)
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["second step"] < stages["import jax"]


def test_the_stages_are_most_of_the_time_to_the_first_step(stages):
    parts = sum(stages.values()) - stages[startup.WHOLE] - stages["second step"]
    assert 0.7 * stages[startup.WHOLE] < parts <= stages[startup.WHOLE]


def test_help_is_timed_in_a_process():
    assert 0.02 < startup.seconds_of_help() < 30


def test_the_command_tells_cold_from_warm(tmp_path, monkeypatch, capsys):
    seen = []

    def process(module, *words, cache=None):
        if cache is None:
            return "usage"
        warm = (kept := cache + "/program") in seen
        seen.append(kept)
        seconds = {"step: compile": 1.0 if warm else 5.0, "first step": 0.5}
        return json.dumps({"begun": 1e12, "first": 1e12, "seconds": seconds})

    monkeypatch.setattr(startup, "process", process)
    file = tmp_path / "a.json"
    assert startup.main(["--repeats", "2", "--small", "--json", str(file)]) == 0
    rows = {row["stage"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows)[0] == startup.HELP and "warm_s" not in rows[startup.HELP]
    assert (rows["step: compile"]["cold_s"], rows["step: compile"]["warm_s"]) == (5, 1)
    assert rows["first step"]["cold_spread"] == 0 and rows["first step"]["repeats"] == 2
    assert len(seen) == 4 and len(set(seen)) == 2  # two processes each, two folders in all
    assert "| step: compile | 5 | 0 | 1 | 0 | 2 |" in capsys.readouterr().out


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ended with code 1: .*nonsense"):
        startup.process("benchmarks.nonsense")


def test_no_repeats_are_refused(capsys):
    assert startup.main(["--repeats", "0"]) == 2
    assert "--repeats starts at 1" in capsys.readouterr().err
