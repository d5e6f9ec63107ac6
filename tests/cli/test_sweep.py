"""`jaxdet sweep`: grids, run folders, and the tables of a sweep."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

from jaxdet import configs
from jaxdet.cli import flags, sweep, sweep_table
from jaxdet.cli.options import Sweep, Train
from jaxdet.configs.digits import Config
from jaxdet.training import run_dir, time_budget, tracking
from tests import tiny
from tests.cli.test_compare import cells
from tests.cli.test_main import main


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """Epochs of three steps."""
    with tiny.few_digits():
        yield


@pytest.mark.parametrize(
    "words, rest, axes",
    [
        ("--lr 1 2 --batch 8", "--batch 8", {"--lr": ["1", "2"]}),
        ("--channels 8 16 --lr 1", "--channels 8 16 --lr 1", {}),
        ("--channels 8,16 --lr 1", "--channels 8,16 --lr 1", {}),
        ("--channels 8,16 4,4 --lr 1", "--lr 1", {"--channels": ["8,16", "4,4"]}),
        ("--layout c6,p2 c6", "", {"--layout": ["c6,p2", "c6"]}),
        ("--seeds 3", "", {"--seed": ["0", "1", "2"]}),
        ("--conv lax auto --ema 0", "--ema 0", {"--conv": ["lax", "auto"]}),
    ],
)
def test_options_with_several_values_are_axes(words, rest, axes):
    assert flags.split_axes(words.split(), Config) == (rest.split(), axes)


def test_options_have_aliases():
    words = ["--batch", "20", "--test-batch=400", "--test_batch", "3", "5", "--root", "test-batch"]
    expected = ["--batch", "20", "--eval-batch=400", "--eval-batch", "3", "5", "--root"]
    assert flags.replace_aliases(words) == [*expected, "test-batch"]
    kind = configs.config("cifar10")
    rest, axes = flags.split_axes(["--test-batch", "3", "5"], kind)
    assert (rest, axes) == ([], {"--eval-batch": ["3", "5"]})
    both = (Sweep(), kind())
    _, config = flags.parse_with_config("train cifar10", ["--test-batch", "7"], both)
    assert config.eval_batch == 7
    with pytest.raises(SystemExit):
        flags.parse_with_config("train cifar10", ["--test-batch", "seven"], both)


@pytest.mark.parametrize("words", ["--channels 8 16", "--channels 8,16", "--channels 8, 16"])
def test_numbers_of_a_list_are_separated_by_spaces_or_commas(words):
    words = [*words.split(), "--layout", "c6,p2"]
    _, config = flags.parse_with_config("train digits", words, (Train(), Config()))
    assert (config.channels, config.layout) == ((8, 16), "c6,p2")


def test_every_row_of_a_grid_is_trained_with_every_seed(tmp_path, capsys, monkeypatch):
    rows = ("--lr 1e-3 --comment low", "--lr 2e-3 --comment high --weight-decay .1")
    monkeypatch.setattr(Config, "GRIDS", {"two": rows})
    words = [*tiny.WORDS, "--epochs", "1", "--grid", "two", "--vmap", "no"]
    out = tmp_path / "sweep"
    assert main("sweep", "digits", *words, "--seeds", "2", "--out", out) == 0
    assert "program 1 of 1: 4 runs" in capsys.readouterr().out
    table = json.loads((out / "sweep.json").read_text())
    shown = [{name: row[name] for name in ("lr", "weight-decay", "comment")} for row in table]
    assert shown == [
        {"lr": 1e-3, "weight-decay": Config().weight_decay, "comment": "low"},
        {"lr": 2e-3, "weight-decay": 0.1, "comment": "high"},
    ]
    assert [row["runs"] for row in table] == [2, 2]
    log = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in log] == [
        f"two{row},seed={seed}" for row in ("01", "02") for seed in (0, 1)
    ]
    for line in log:
        metrics = run_dir.read_metrics(out / line["run"])
        best = max(metrics, key=lambda one: (one["val"]["right_iou"], -one["val"]["loss"]))
        assert (line["epochs"], line["best_epoch"]) == (1, best["epoch"])
        assert line["val"]["loss"] == best["val"]["loss"] and line["train"] == best["train"]
        assert line["comment"] in line["options"]


def test_an_unknown_grid_is_refused(tmp_path, capsys):
    assert main("sweep", "digits", "--grid", "two", "--out", tmp_path / "x") == 2
    assert "digits has no grids; leave out --grid two" in capsys.readouterr().err


def test_one_at_a_time_combines_first_values_with_each_other_value():
    axes = {"--seed": ["0", "1"], "--lr": ["1", "2", "3"], "--ema": ["0", "9"], "--clip": ["5"]}
    found = [values[1:] for values in sweep.combinations(axes, True) if values[0] == "0"]
    assert found == [("1", "0", "5"), ("1", "9", "5"), ("2", "0", "5"), ("3", "0", "5")]
    assert len(list(sweep.combinations(axes, True))) == 2 * len(found)
    assert len(list(sweep.combinations(axes, False))) == 2 * 3 * 2


def test_runs_are_named_by_the_option_in_which_they_differ():
    axes = {"--lr": ["1", "2"], "--batch": ["4", "8"], "--seed": ["0", "1"]}
    options = Sweep(one_at_a_time=True)
    grid = sweep.Grid(["--root", "."], axes, [[]])
    found = sweep.run_titles("cifar10", options, grid)
    names = ["", "lr=2.0,", "batch=8,"]
    assert sorted(found.values()) == sorted(f"{own}seed={i}" for own in names for i in (0, 1))
    del axes["--seed"]
    found = sweep.run_titles("cifar10", options, grid)
    assert set(found.values()) == {"baseline", "lr=2.0", "batch=8"}


@dataclass(frozen=True)
class EvalOnly(Config):
    """A configuration in which `best` affects evaluation only."""

    EVAL_ONLY: ClassVar = ("best",)


@pytest.mark.parametrize(
    "kind, expected", [(EvalOnly, [0, 0, 2, 2]), (Config, [0, 1, 2, 3])], ids=["shared", "own"]
)
def test_runs_that_differ_in_evaluation_only_are_trained_once(kind, expected):
    chosen = [kind(lr=lr, best=best) for lr in (1.0, 2.0) for best in ("accuracy", "loss")]
    found = sweep.shared_training(kind, chosen)
    assert [chosen.index(found[config]) for config in chosen] == expected


def test_one_at_a_time_without_values_uses_the_ablation_grid():
    config, one_at_a_time = configs.config("detect")(), Sweep(one_at_a_time=True)
    words, axes, rows = sweep.resolve_grid("detect", one_at_a_time, ["--batch", "4"], {})
    assert words == ["--batch", "4"] and rows == [[]]
    assert {"--assigner", "--box-loss", "--neck", "--neck-block", "--background"} <= {*axes}
    assert "--nms-type" in axes
    for axis, values in axes.items():
        default = sweep_table.option_value(config, axis)
        assert str(default) == values[0] or float(values[0]) == default, axis
    assert sweep.resolve_grid("detect", Sweep(), [], {}) == ([], {}, [[]])
    given = {"--neck": ["pan", "fpn"]}
    assert sweep.resolve_grid("detect", one_at_a_time, [], given) == ([], given, [[]])
    named = sweep.resolve_grid("detect", Sweep(grid="ablation"), [], given)
    assert named.axes == {**axes, **given}


def test_gains_are_shown_beside_the_changed_options():
    rows = [
        {"box-loss": "ciou", "neck": "fpn", "runs": 1, "map": 0.5},
        {"box-loss": "iou", "neck": "fpn", "runs": 1, "map": 0.25},
        {"box-loss": "iou", "neck": "pan", "runs": 0},
    ]
    found = sweep_table.gain_rows(rows, ("--box-loss", "--neck"), "map")
    changed = ["baseline", "box-loss iou", "box-loss iou, neck pan"]
    assert [row["changed"] for row in found] == changed
    assert [row.get("gain") for row in found] == [0, -0.25, None]
    assert [{k: row[k] for k in one} for row, one in zip(found, rows, strict=True)] == rows


class Recorder:
    """A `SummaryWriter` that keeps {folder: {(tag, step): value}} of all writers."""

    found: ClassVar[dict[str, dict]] = {}

    def __init__(self, folder, **options):
        self.own = self.found.setdefault(folder, {})

    def add_scalar(self, tag, value, step):
        self.own[tag, step] = value

    def flush(self):
        pass

    def close(self):
        self.own["closed"] = True


def test_the_command_trains_all_runs_and_prints_a_table(tmp_path, capsys, monkeypatch):
    package = SimpleNamespace(SummaryWriter=Recorder)  # tensorboardX takes seconds to import
    monkeypatch.setattr(tracking.packages, "load", lambda *_: package)
    words = [*tiny.WORDS, "--lr", "1e-3", "2e-3", "--vmap", "no", "--quiet"]
    words += ["--track", "tensorboard"]
    out = tmp_path / "sweep"
    assert main("sweep", "digits", *words, "--out", out) == 0
    printed = capsys.readouterr().out
    rows = json.loads((out / "sweep.json").read_text())
    assert [(row["lr"], row["runs"]) for row in rows] == [(1e-3, 1), (2e-3, 1)]
    names = ("lr=0.001", "lr=0.002")
    ends = [run_dir.read_metrics(out / name)[-1]["val"]["loss"] for name in names]
    assert ends[0] != ends[1]
    written = (out / "sweep.md").read_text()
    assert written.endswith(f"\n\n![{sweep_table.PLOT_TITLE}](sweep.png)\n")
    shown, kept = cells(printed), cells(written)
    for one, other in zip(shown, kept, strict=True):
        assert one.keys() == other.keys() and "|" not in printed
        assert (one["lr"], one["parameters"]) == (other["lr"], other["parameters"])
        assert float(one["error rate"]) == pytest.approx(float(other["error rate"]), rel=1e-3)
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0]["error_rate"] == 1 - rows[0]["accuracy"]
    metrics = run_dir.read_metrics(out / "lr=0.001")
    timed = sum(sum(line["time"].values()) for line in metrics)
    assert rows[0]["total_seconds"] == run_dir.read_seconds(out / "lr=0.001") > timed

    for name in names:
        lines = run_dir.read_metrics(out / name)
        expected = {
            (tag, line["step"]): value for line in lines for tag, value in tracking.scalars(line)
        }
        found = Recorder.found[str(out / name / tracking.TENSORBOARD)]
        assert expected and found == expected | {"closed": True}

    before = (out / "lr=0.002" / "metrics.jsonl").read_bytes()
    assert main("sweep", "digits", *words, "--out", out) == 2
    assert "--resume" in capsys.readouterr().err
    assert main("sweep", "digits", *words, "--batch", "32", "--resume", "--out", out) == 2
    assert "--batch must be 64 to resume" in capsys.readouterr().err
    assert main("sweep", "digits", *words, "--out", out, "--resume") == 0
    assert (out / "lr=0.002" / "metrics.jsonl").read_bytes() == before


def test_scores_over_seeds_are_mean_and_spread():
    scores = [{"loss": 1.0, "labels": {}}, {"loss": 3.0, "labels": {}}]
    row = sweep_table.mean_and_spread({"--lr": 0.1}, scores)
    assert row == {"lr": 0.1, "runs": 2, "loss": 2.0, "loss +-": pytest.approx(2**0.5)}


def test_a_score_with_the_name_of_an_option_keeps_both():
    row = sweep_table.mean_and_spread({"--loss": "hinge"}, [{"loss": 1.0}, {"loss": 3.0}])
    assert (row["loss"], row["val loss"]) == ("hinge", 2.0)
    assert "val loss +-" in row and "loss +-" not in row


def test_runs_that_diverged_do_not_change_the_mean_of_the_others():
    scores = [{}, {"loss": 3.0, "epoch_seconds": 2.0}, {"loss": 5.0, "epoch_seconds": None}]
    row = sweep_table.mean_and_spread({"--lr": 0.1}, scores)
    assert (row["runs"], row["loss"], row["epoch_seconds"]) == (3, 4.0, 2.0)
    assert "epoch_seconds +-" not in row
    assert sweep_table.column_names([{"lr": 1}, row]) == [*row]


def test_options_of_the_sweep_itself_take_one_value(tmp_path, capsys):
    for words in (["--vmap", "yes", "no"], ["--grid", "a", "b"]):
        assert main("sweep", "digits", *words, "--lr", "1", "2", "--out", tmp_path / "x") == 2
        name, *values = words
        assert f"{name} must be one value, got {' '.join(values)}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_sweep_needs_an_option_with_several_values(tmp_path, capsys):
    assert main("sweep", "digits", "--lr", "1", "--out", tmp_path / "x") == 2
    assert "several values" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_architectures_of_cifar10_are_below_the_limit_of_parameters():
    kind = configs.config("cifar10")
    chosen = [
        flags.parse_with_config("sweep cifar10", row.split(), (Sweep(), kind()))[1]
        for row in kind.GRIDS["arch"]
    ]
    assert {config.model for config in chosen} >= {"tutorial", "inception", "narrow", "tiny"}
    assert any(config.norm for config in chosen) and any(config.dropout for config in chosen)
    for config in chosen:
        time_budget.check_parameters(*configs.network("cifar10", config), config.max_params)


@pytest.mark.parametrize(
    "name, grid", [(name, grid) for name in configs.SYSTEMS for grid in configs.config(name).GRIDS]
)
def test_every_grid_names_options_and_values_that_exist(name, grid):
    kind = configs.config(name)
    words = kind.GRIDS[grid]
    if isinstance(words, tuple):
        for row in words:
            flags.parse_with_config(f"sweep {name}", row.split(), (Sweep(), kind()))
        return
    rest, axes = flags.split_axes(words.split(), kind)
    assert axes
    flags.parse_with_config(f"sweep {name}", rest, (Sweep(), kind()))
    for axis, values in axes.items():
        for value in values:
            _, config = flags.parse_with_config(f"sweep {name}", [axis, value], (Sweep(), kind()))
            parsed = sweep_table.option_value(config, axis)
            if "," in value:
                assert parsed == tuple(map(float, value.split(",")))
            else:
                assert str(parsed).lower().startswith(value)
