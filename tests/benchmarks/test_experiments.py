import json

import pytest

from benchmarks import all as everything
from benchmarks import experiments
from jaxdet import files
from jaxdet.training import run_dir

SCORES = {"accuracy": 0.9, "iou": 0.8, "iou50": 1.0, "iou70": 0.7, "loss": 1.5}


@pytest.fixture
def asked(monkeypatch):
    """The commands that were given to jaxdet; a stand-in trains three epochs of 10 steps."""
    said = []

    def jaxdet(*words):
        said.append(words)
        if words[0] == "train":
            folder = words[words.index("--out") + 1]
            files.write_text(f"{folder}/metrics.jsonl", "")
            for epoch, seconds in enumerate((9.0, 3.0, 2.0, 4.0)):
                time = {"train": seconds, "eval": 0.5}
                run_dir.append_metrics(folder, {"step": 10 * epoch, "epoch": epoch, "time": time})
            return "trained"
        step = 30 if "last" in words else 20
        return "a warning\n" + json.dumps({"step": step, "split": "test", **SCORES})

    def prepared(*words):
        (folder,) = (words[words.index("--out") + 1],) if "--out" in words else (words[1],)
        run_dir.Path(folder).mkdir(parents=True, exist_ok=True)
        return jaxdet(*words)

    monkeypatch.setattr(experiments, "jaxdet", prepared)
    return said


def table(path):
    return json.loads(path.read_text())["rows"]


def test_a_run_is_trained_once_and_judged_at_its_checkpoints(asked, tmp_path, capsys):
    words = ["--names", "long", "--root", "data", "--size", "96", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(tmp_path / "results")]) == 0
    train, best, last = asked
    assert train[:2] == ("train", "objects") and train[-2:] == ("--root", "data")
    assert {"--no-norm", "--resume", "96", ".005"} <= set(train)
    assert "best" in best and "last" in last
    rows = table(tmp_path / "results" / "experiment_long.json")
    assert [row["epoch"] for row in rows] == [2, 3]
    assert all(row["median s of an epoch"] == 3.5 for row in rows)
    assert {name: rows[0][name] for name in SCORES} == SCORES
    assert (tmp_path / "results" / "experiment_long.md").read_text() == capsys.readouterr().out

    asked.clear()
    assert experiments.main(words) == 0
    assert asked[0] == (
        "train",
        "objects",
        "--out",
        str(tmp_path / "runs" / train[3].split("/")[-1]),
        "--resume",
    )


def test_every_experiment_has_options_that_its_system_knows(tmp_path):
    from jaxdet import configs
    from jaxdet.cli import flags, options

    for experiment in experiments.EXPERIMENTS.values():
        kind = configs.config(experiment.system)
        names = [run.name for run in experiment.trained]
        assert len(set(names)) == len(names)
        for run in experiment.trained:
            words = run.words.format(size=96, epochs=3).split()
            _, config = flags.with_config("train", words, (options.Train(), kind()))
            assert config != kind()
        if experiment.swept:
            words, axes = flags.several(experiment.swept.format(epochs=3).split(), kind)
            assert not axes
            _, config = flags.with_config("sweep", words, (options.Sweep(), kind()))
            assert config != kind()
        assert bool(experiment.trained) != bool(experiment.swept)


def test_a_sweep_is_continued_and_its_rows_are_the_table(monkeypatch, tmp_path, capsys):
    said, rows = [], [{"changed": "one", "map": 0.5}, {"changed": "two", "map": 0.25}]

    def jaxdet(*words):
        said.append(words)
        files.write_json(
            tmp_path / "runs" / "ablation" / "sweep.json", [{**row, "loss": 1.0} for row in rows]
        )

    (tmp_path / "runs" / "ablation").mkdir(parents=True)
    monkeypatch.setattr(experiments, "jaxdet", jaxdet)
    words = ["--names", "ablation", "--root", "data", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(tmp_path / "results")]) == 0
    (sweep,) = said
    assert sweep[:2] == ("sweep", "detect") and sweep[-1] == "--resume"
    assert sweep[sweep.index("--out") + 1] == str(tmp_path / "runs" / "ablation")
    assert table(tmp_path / "results" / "experiment_ablation.json") == rows
    assert "| two | 0.25 |" in capsys.readouterr().out


def test_one_name_is_one_training():
    """Experiments share a folder where they ask for the same training, and only there."""
    said = {}
    for experiment in experiments.EXPERIMENTS.values():
        for run in experiment.trained:
            assert said.setdefault(run.name, (experiment.system, run.words)) == (
                experiment.system,
                run.words,
            )


def test_the_page_of_all_results_has_what_experiments_found(asked, tmp_path, monkeypatch):
    results = tmp_path / "results"
    words = ["--names", "epochs", "--root", "data", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(results)]) == 0
    page = everything.page(results)
    assert "## experiment_epochs" in page and "| 200_epochs |" in page
    assert "python -m benchmarks.experiments --names epochs --root DIR\n" in page


@pytest.mark.parametrize(
    "words, said",
    [
        (["--names", "nothing", "--root", "x"], "known are epochs"),
        (["--names", "epochs"], "--root: the folder of the data"),
    ],
)
def test_wrong_words_are_one_line_and_code_two(words, said, capsys):
    assert experiments.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_training_that_fails_is_one_line(tmp_path, capsys):
    out = str(tmp_path / "runs")
    assert experiments.main(["--names", "long", "--root", str(tmp_path / "no"), "--out", out]) == 2
    assert "no such folder" in capsys.readouterr().err
