import json

import pytest

from benchmarks import all as everything
from benchmarks import experiments
from jaxdet import files
from jaxdet.training import run_dir

SCORES = {"accuracy": 0.9, "iou": 0.8, "iou50": 1.0, "iou70": 0.7, "loss": 1.5}


@pytest.fixture
def commands(monkeypatch):
    """The commands given to jaxdet; a stand-in trains three epochs of 10 steps."""
    given = []

    def jaxdet(*words):
        given.append(words)
        if words[0] == "train":
            folder = words[words.index("--out") + 1]
            files.write_text(f"{folder}/metrics.jsonl", "")
            for epoch, seconds in enumerate((9.0, 3.0, 2.0, 4.0)):
                line = {"step": 10 * epoch, "epoch": epoch, "train": {}, "val": {"loss": 1.0}}
                line["time"] = {"train": seconds, "eval": 0.5}
                run_dir.append_metrics(folder, line)
            return "trained"
        step = 30 if "last" in words else 20
        return "a warning\n" + json.dumps({"step": step, "split": "test", **SCORES})

    def jaxdet_with_folder(*words):
        (folder,) = (words[words.index("--out") + 1],) if "--out" in words else (words[1],)
        run_dir.Path(folder).mkdir(parents=True, exist_ok=True)
        return jaxdet(*words)

    monkeypatch.setattr(experiments, "jaxdet", jaxdet_with_folder)
    return given


def test_the_running_loss_is_flat_from_the_epoch_after_which_it_hardly_falls():
    losses = [None, 2.0, 1.5, 1.002, 1.01, 1.0, 0.995]
    lines = [
        {"epoch": epoch, "train": loss and {"loss": loss}} for epoch, loss in enumerate(losses)
    ]
    assert experiments.convergence(lines) == {"running_loss": 0.995, "flat_from": 3}
    assert experiments.convergence(lines[:3])["flat_from"] == 2


def table(path):
    return json.loads(path.read_text())["rows"]


def test_run_is_trained_once_and_evaluated_at_its_checkpoints(commands, tmp_path, capsys):
    words = ["--names", "long", "--root", "data", "--size", "96", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(tmp_path / "results")]) == 0
    train, best, last = commands
    assert train[:2] == ("train", "objects") and train[-2:] == ("--root", "data")
    assert {"--no-norm", "--resume", "96", ".005"} <= set(train)
    assert "best" in best and "last" in last
    rows = table(tmp_path / "results" / "experiment_long.json")
    assert [row["epoch"] for row in rows] == [2, 3]
    assert all(row["epoch_seconds"] == 3.5 for row in rows)
    assert {name: rows[0][name] for name in SCORES} == SCORES
    assert (tmp_path / "results" / "experiment_long.md").read_text() == capsys.readouterr().out

    commands.clear()
    assert experiments.main(words) == 0
    assert commands[0] == (
        "train",
        "objects",
        "--out",
        str(tmp_path / "runs" / train[3].split("/")[-1]),
        "--resume",
    )


def test_rows_may_have_the_scores_of_each_label():
    labels = {"face": {"count": 2, "accuracy": 0.5, "iou": 0.7}, "airplane": {"count": 0}}
    assert experiments.label_scores({"labels": labels}) == {
        **{"face accuracy": 0.5, "face iou": 0.7},
        **{"airplane accuracy": None, "airplane iou": None},
    }
    labels = {"RBC": {"count": 2, "map": 0.5, "map50": 0.7}}
    assert experiments.label_scores({"labels": labels}) == {"RBC map": 0.5}


def test_a_summary_has_the_mean_over_seeds():
    rows = [
        {"run": f"{name}_{seed}", "epoch": seed, "map": 0.25 * seed + base, "options": words}
        for name, base, option in (("warm", 0.25, "--lr 2"), ("cold", 0.0, "--lr 1"))
        for seed in (0, 2)
        for words in [f"{option} --seed {seed} --vflip"]
    ]
    rows = [{"run": "first_0", "map": 0.125, "options": "--lr 3"}, *rows]
    assert experiments.summarize({"rows": rows}).splitlines()[2:] == [
        "| first_0 | 1 |  | 0.125 | --lr 3 |",
        "| warm | 2 | 0.354 | 0.500 | --lr 2 --vflip |",
        "| cold | 2 | 0.354 | 0.250 | --lr 1 --vflip |",
    ]
    assert experiments.summarize({"rows": rows[:1]}) == experiments.render({"rows": rows[:1]})


def test_every_experiment_has_options_of_its_system(tmp_path):
    from jaxdet import configs
    from jaxdet.cli import flags, options

    for experiment in experiments.EXPERIMENTS.values():
        kind = configs.config(experiment.system)
        names = [run.name for run in experiment.runs]
        assert len(set(names)) == len(names)
        for run in experiment.runs:
            words = experiments.fill(run.words, experiments.Options(size=96, epochs=3))
            _, config = flags.parse_with_config("train", words, (options.Train(), kind()))
            assert config != kind()
        if experiment.sweep:
            words, axes = flags.split_axes(experiment.sweep.format(epochs=3).split(), kind)
            assert not axes
            _, config = flags.parse_with_config("sweep", words, (options.Sweep(), kind()))
            assert config != kind()
        assert bool(experiment.runs) != bool(experiment.sweep)


def test_sweep_is_resumed_and_its_rows_are_the_table(monkeypatch, tmp_path, capsys):
    commands, rows = [], [{"changed": "one", "map": 0.5}, {"changed": "two", "map": 0.25}]

    def jaxdet(*words):
        commands.append(words)
        files.write_json(
            tmp_path / "runs" / "ablation" / "sweep.json", [{**row, "loss": 1.0} for row in rows]
        )

    (tmp_path / "runs" / "ablation").mkdir(parents=True)
    monkeypatch.setattr(experiments, "jaxdet", jaxdet)
    words = ["--names", "ablation", "--root", "data", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(tmp_path / "results")]) == 0
    (sweep,) = commands
    assert sweep[:2] == ("sweep", "detect") and sweep[-1] == "--resume"
    assert sweep[sweep.index("--out") + 1] == str(tmp_path / "runs" / "ablation")
    assert table(tmp_path / "results" / "experiment_ablation.json") == rows
    assert "| two | 0.250 |" in capsys.readouterr().out


def test_equal_names_are_equal_runs():
    """Experiments share a folder if they need the same run, and only then."""
    seen = {}
    for experiment in experiments.EXPERIMENTS.values():
        for run in experiment.runs:
            assert seen.setdefault(run.name, (experiment.system, run.words)) == (
                experiment.system,
                run.words,
            )


def test_page_of_results_contains_experiments(commands, tmp_path, monkeypatch):
    results = tmp_path / "results"
    words = ["--names", "epochs", "--root", "data", "--out", str(tmp_path / "runs")]
    assert experiments.main([*words, "--results", str(results)]) == 0
    page = everything.page(results)
    assert "## experiment_epochs" in page and "| 200_epochs |" in page
    assert "`python -m benchmarks.experiments --names epochs --root DIR`" in page


@pytest.mark.parametrize(
    "words, message",
    [
        (["--names", "nothing", "--root", "x"], "--names must be among epochs"),
        (["--names", "epochs"], "--root must be the folder of the data, got none"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(words, message, capsys):
    assert experiments.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.long  # it runs and times whole programs
def test_failing_training_is_one_line(tmp_path, capsys):
    out = str(tmp_path / "runs")
    assert experiments.main(["--names", "long", "--root", str(tmp_path / "no"), "--out", out]) == 2
    assert "no such folder" in capsys.readouterr().err
