import json

import jax
import pytest

from benchmarks import compiler
from benchmarks.lib import train_steps, turns


@pytest.mark.long
def test_every_choice_is_timed_in_a_process_of_its_own(tmp_path, capsys, monkeypatch):
    out = tmp_path / "rows.json"
    words = ["--models", "digits", "--batch", "2", "--seconds", "0", "--json", str(out)]
    assert compiler.main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["choice"] for row in rows] == [*compiler.CHOICES]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["median"] / rows[0]["median"])
    assert "| digits | 2 | XLA_FLAGS |" in capsys.readouterr().out


@pytest.mark.parametrize("choice", compiler.CHOICES)
def test_xla_knows_the_options_of_every_choice(choice):
    options = compiler.CHOICES[choice].options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


class Worker:
    """A worker that fails to compile one choice."""

    pid = None

    def __init__(self, choice):
        self.choice = choice

    def build(self, builder, model, options):
        if self.choice == "without sums":
            raise turns.WorkerError("ValueError: no such option")
        return 1.0

    def sample(self, seconds):
        return [2.0 if self.choice == "jaxdet" else 3.0] * 3


def test_a_choice_that_fails_is_a_row_with_a_note():
    workers = {choice: Worker(choice) for choice in compiler.CHOICES}
    rows = compiler.compare(workers, "digits", compiler.Options())
    found = {row["choice"]: (row["ratio"], row.get("note")) for row in rows}
    assert found["jaxdet"] == (1.0, None) and found["XLA_FLAGS"] == (1.5, None)
    assert found["without sums"] == (None, "failed: ValueError: no such option")
    assert "| digits | 32 | 2.00 s | 3.00 s | 3.00 s |" in compiler.summarize({"rows": rows})


def test_flags_that_set_the_option_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", compiler.CHOICES["XLA_FLAGS"].flag)
    assert compiler.main(["--models", next(iter(train_steps.MODELS))]) == 2
    assert "XLA_FLAGS must not set xla_cpu_experimental_ynn_fusion_type" in capsys.readouterr().err
