"""Runs trained together are the runs they would be alone."""

import itertools
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import configs
from jaxdet.cli import flags, swept
from jaxdet.cli import main as cli
from jaxdet.cli import sweep as command
from jaxdet.cli.options import Sweep, Train
from jaxdet.config import task_hparams
from jaxdet.configs.digits import Config
from jaxdet.data.sources import ArraySource
from jaxdet.training import checkpoint, run_dir, sweep, time_budget
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress
from jaxdet.types import Task
from tests import tiny

VARIED = (
    {"lr": 1e-2},
    {"lr": 4e-2, "weight_decay": 0.1, "momentum": 0.5},
    {"seed": 3, "box_weight": 5.0, "share": 0.5},
)
QUIET = Progress(quiet=True)


@dataclass(frozen=True)
class Shared(Config):
    """A configuration that says how much of the training set is used."""

    SUBSET_FIELDS: ClassVar = ("share",)

    share: float = 1.0


DIFFERENT = {"batch": 4, "eval_batch": 4, "warmup": 2, "best": "accuracy", "clip": 1.0, "epochs": 3}
CONFIG = Shared(**vars(tiny.CONFIG) | DIFFERENT)


def line_task():
    """The task of one line w x + b through noisy points."""

    def loss(variables, batch, key, context):
        error = jnp.square(said(variables, batch["image"]) - batch["y"]) * batch["real"][:, None]
        rows = jnp.maximum(batch["real"].sum(), 1)
        share = context.hparams["box_weight"] * error.sum() / rows
        return share, ({}, {"loss": share, "accuracy": -share})

    def said(variables, x):
        return x @ variables["params"]["kernel"] + variables["params"]["bias"]

    def init(key, batch):
        return {"params": {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.zeros((1, 1))}}

    return Task(
        init=init,
        augment=lambda keys, batch, context: batch | {"image": batch["x"]},
        loss=loss,
        predict=said,
        measure=lambda found, batch: {"error": jnp.abs(found - batch["y"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line_system():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]]) + 0.1 * x[:, :1] ** 2
    source = ArraySource({"x": x, "y": y, "id": np.arange(20, dtype=np.int32)})
    system = Experiment(line_task(), {"train": source, "val": source}, task_hparams(CONFIG), {})

    def part(config):
        return system._replace(
            splits=system.splits | {"train": source.first(int(20 * config.share))}
        )

    return system._replace(part=part)


def lanes(folder, stop=lambda: False, varied=VARIED, spent=0.0):
    system, chosen = line_system(), [replace(CONFIG, **numbers) for numbers in varied]
    folders = [folder / str(i) for i in range(len(chosen))]
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
    return system, chosen, sweep.VmappedRuns(system, chosen, folders, QUIET, stop, spent=spent)


def last(folder, system, config):
    like = jax.eval_shape(training_state.init_fn(system, config))
    return checkpoint.restore(folder, like, "last")[1]


def close(a, b, **tolerance):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The last states of the runs, each trained by itself, by their places in `VARIED`."""
    folder = tmp_path_factory.mktemp("alone")
    states = []
    for i, numbers in enumerate(VARIED):
        (folder / str(i)).mkdir()
        chosen = replace(CONFIG, **numbers)
        own = sweep.with_hparams(line_system(), chosen)
        training_loop.train(own, chosen, folder / str(i), show=QUIET)
        states.append(last(folder / str(i), own, chosen))
    return folder, states


@pytest.mark.parametrize("together, tolerance", [(True, 1e-5), (False, 0.0)])
def test_each_run_is_what_it_is_alone(alone, tmp_path, together, tolerance):
    system, chosen, runner = lanes(tmp_path)
    assert runner.run(together=together)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=tolerance, atol=tolerance)
        ours, theirs = (run_dir.read_metrics(place / str(i)) for place in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_runs_do_not_count_the_seconds_of_the_others(tmp_path, monkeypatch, together):
    """Each evaluation takes the others a minute."""
    _, _, runner = lanes(tmp_path)
    waited = training_loop.Loop.evaluate

    def slow(loop):
        for other in runner.loops:
            other.began -= 60.0 * (other is not loop)
        waited(loop)

    monkeypatch.setattr(training_loop.Loop, "evaluate", slow)
    assert runner.run(together=together)
    for loop in runner.loops:
        first, *others = run_dir.read_metrics(loop.folder)
        assert first["time"]["train"] == 0
        assert all(0 < line["time"]["train"] < 50 for line in others)


def test_seconds_of_runs_trained_together_add_up_to_what_passed(tmp_path, monkeypatch):
    """The steps of an epoch of both take ten seconds, and all else next to nothing."""
    now, steps = [100.0], sweep.VmappedRuns._steps

    def slow(runner, live):
        now[0] += 10.0
        steps(runner, live)

    def look():
        now[0] += 1e-6
        return now[0]

    for module in (sweep, training_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=look))
    monkeypatch.setattr(sweep.VmappedRuns, "_steps", slow)
    two = [{"lr": lr, "time_budget": 1e3} for lr in (1e-2, 4e-2)]
    for _ in range(2):  # the second finds all complete, and counts nothing
        _, _, runner = lanes(tmp_path, varied=two, spent=7.0)
        assert runner.run(together=True)
    for loop in runner.loops:
        lines = run_dir.read_metrics(loop.folder)
        assert [round(line["time"]["train"], 2) for line in lines] == [0, 5, 5, 5]
        assert [line.get("together") for line in lines] == [None, 2, 2, 2]
        assert run_dir.read_seconds(loop.folder) == pytest.approx(7 + 15, abs=0.1)


def test_what_was_spent_before_is_of_the_budget_of_each(tmp_path, ticking):
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    _, _, runner = lanes(tmp_path, varied=late, spent=6.5)
    assert runner.run(together=False)
    assert [loop.at for loop in runner.loops] == [0, 0, 0] and len(runner.failed) == 3


def test_runs_differ_by_their_numbers(alone):
    one, *others = (jax.tree.leaves(state.params) for state in alone[1])
    for other in others:
        assert any(not np.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_a_sweep_that_is_stopped_goes_on_to_the_same_end(alone, tmp_path):
    asked = iter([False] * 17 + [True] * 100)  # 15 batches of evaluations, 2 steps
    _, _, runner = lanes(tmp_path, stop=lambda: next(asked))
    assert not runner.run(together=True)
    system, chosen, runner = lanes(tmp_path)
    assert 0 < runner.loops[0].at < runner.programs.plan.steps
    assert runner.run(together=True)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)
        ours, theirs = (run_dir.read_metrics(place / str(i)) for place in (tmp_path, alone[0]))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]


@pytest.fixture
def ticking(monkeypatch):
    """A clock that is a second later whenever a sweep looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.mark.parametrize("together, at", [(True, [2, 2, 0]), (False, [1, 1, 1])])
def test_a_late_run_is_left_behind_and_goes_on_when_it_may(alone, tmp_path, ticking, together, context):
    """An evaluation takes 5 seconds, a step 1; together, two runs have 13 and one has 6.5."""
    late = [numbers | {"time_budget": 6.5} for numbers in VARIED]
    _, _, runner = lanes(tmp_path, varied=late)
    assert runner.run(together=together)
    assert [loop.at for loop in runner.loops] == at
    for loop, (folder, why) in zip(runner.loops, runner.failed.items(), strict=True):
        assert folder == loop.folder and checkpoint.steps(folder)[-1] == loop.at
        end = f"step {loop.at} of {loop.plan.steps}"
        assert why == f"its 6.5 s (--time-budget) are over at {end}"
    system, chosen, runner = lanes(tmp_path)
    assert runner.run(together=False)
    for i, config in enumerate(chosen):
        found = last(tmp_path / str(i), sweep.with_hparams(system, config), config)
        close(found.params, alone[1][i].params, rtol=1e-5, atol=1e-5)


def test_a_run_that_goes_on_has_what_is_left_of_its_seconds(tmp_path):
    _, _, runner = lanes(tmp_path, varied=VARIED[:1])
    QUIET.begin(0, 1)
    for _ in range(3):  # before the first epoch, the epoch, after it
        runner.loops[0].epoch()
    metrics = tmp_path / "0" / "metrics.jsonl"
    line, other = map(json.loads, metrics.read_text().splitlines())
    line["time"]["train"] = 99.0
    metrics.write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    for seconds, ends in ((90.0, 5), (900.0, 15)):
        _, _, runner = lanes(tmp_path, varied=[{**VARIED[0], "time_budget": seconds}])
        assert runner.run(together=False)
        assert runner.loops[0].at == ends and bool(runner.failed) == (ends == 5)


def test_timing_a_step_leaves_the_runs_where_they_are(alone, tmp_path):
    system, chosen, runner = lanes(tmp_path)
    before = jax.device_get([loop.state.params for loop in runner.loops])
    times = runner.times(repeats=2)
    assert min(times) > 0 and [loop.at for loop in runner.loops] == [0, 0, 0]
    for params, loop in zip(before, runner.loops, strict=True):
        close(params, loop.state.params, rtol=0)
    assert runner.run(together=True)
    found = last(tmp_path / "0", sweep.with_hparams(system, chosen[0]), chosen[0])
    close(found.params, alone[1][0].params, rtol=1e-5, atol=1e-5)


def test_runs_behind_the_others_catch_up(tmp_path):
    _, _, runner = lanes(tmp_path)
    QUIET.begin(0, 1)
    for _ in range(2):  # its evaluation, and its steps
        runner.loops[1].epoch()
    assert [loop.at for loop in runner.loops] == [0, runner.loops[1].plan.epoch_steps, 0]
    assert runner.run(together=True)
    assert [loop.at for loop in runner.loops] == [15, 15, 9]


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path):
    varied = ({"lr": 1e-3}, {"lr": float("inf")})
    _, _, runner = lanes(tmp_path, varied=varied)
    assert runner.run(together=True)
    assert list(runner.failed) == [tmp_path / "1"]
    assert "not finite" in runner.failed[tmp_path / "1"]
    assert runner.loops[0].complete()


def test_stacked_trees_go_round():
    trees = [{"a": jnp.full((2,), i), "key": jax.random.key(i)} for i in range(3)]
    for tree, back in zip(trees, sweep.unstack(sweep.stack(trees), 3), strict=True):
        np.testing.assert_array_equal(tree["a"], back["a"])
        assert (tree["key"] == back["key"]).all()


@pytest.mark.parametrize(
    "words, rest, axes",
    [
        ("--lr 1 2 --batch 8", "--batch 8", {"--lr": ["1", "2"]}),
        ("--channels 8 16 --lr 1", "--channels 8 16 --lr 1", {}),
        ("--channels 8,16 --lr 1", "--channels 8,16 --lr 1", {}),
        ("--channels 8,16 4,4 --lr 1", "--lr 1", {"--channels": ["8,16", "4,4"]}),
        ("--layout c6,p2 c6", "", {"--stages": ["c6,p2", "c6"]}),
        ("--seeds 3", "", {"--seed": ["0", "1", "2"]}),
        ("--conv lax auto --ema 0", "--ema 0", {"--conv": ["lax", "auto"]}),
    ],
)
def test_options_with_several_values_are_told_from_lists(words, rest, axes):
    assert flags.several(words.split(), Config) == (rest.split(), axes)


@pytest.mark.parametrize("words", ["--channels 8 16", "--channels 8,16", "--channels 8, 16"])
def test_numbers_of_a_list_are_apart_by_spaces_or_commas(words):
    words = [*words.split(), "--layout", "c6,p2"]
    _, found = flags.with_config("train digits", words, (Train(), Config()))
    assert (found.widths, found.stages) == ((8, 16), "c6,p2")


def test_a_grid_of_rows_trains_each(tmp_path, capsys, monkeypatch):
    rows = ("--lr 1e-3 --comment low", "--lr 2e-3 --comment high --weight-decay .1")
    monkeypatch.setattr(Config, "GRIDS", {"two": rows})
    words = [*tiny.WORDS, "--epochs", "1", "--grid", "two", "--together", "no"]
    out = tmp_path / "swept"
    assert cli.main(["sweep", "digits", *words, "--seeds", "2", "--out", str(out)]) == 0
    assert "program 1 of 1: 4 runs" in capsys.readouterr().out
    found = json.loads((out / "sweep.json").read_text())
    named = [{name: row[name] for name in ("lr", "weight-decay", "comment")} for row in found]
    usual = Config().weight_decay
    assert named == [
        {"lr": 1e-3, "weight-decay": usual, "comment": "low"},
        {"lr": 2e-3, "weight-decay": 0.1, "comment": "high"},
    ]
    assert [row["runs"] for row in found] == [2, 2]
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


def test_a_grid_that_a_system_has_not_is_refused(tmp_path, capsys):
    words = ["sweep", "digits", "--grid", "two", "--out", str(tmp_path / "x")]
    assert cli.main(words) == 2
    assert "--grid two: digits has no grids" in capsys.readouterr().err


def test_one_at_a_time_leaves_the_first_values_beside_each_other_one():
    axes = {"--seed": ["0", "1"], "--lr": ["1", "2", "3"], "--ema": ["0", "9"], "--clip": ["5"]}
    found = [values[1:] for values in command._combined(axes, True) if values[0] == "0"]
    assert found == [("1", "0", "5"), ("1", "9", "5"), ("2", "0", "5"), ("3", "0", "5")]
    assert len(list(command._combined(axes, True))) == 2 * len(found)
    assert len(list(command._combined(axes, False))) == 2 * 3 * 2


def test_runs_that_differ_in_one_option_are_called_by_it():
    axes = {"--lr": ["1", "2"], "--batch": ["4", "8"], "--seed": ["0", "1"]}
    options = Sweep(one_at_a_time=True)
    found = command._titles("cifar10", options, ["--root", "."], axes, [[]])
    names = ["", "lr=2.0,", "batch=8,"]
    assert sorted(found.values()) == sorted(f"{own}seed={i}" for own in names for i in (0, 1))
    del axes["--seed"]
    found = command._titles("cifar10", options, ["--root", "."], axes, [[]])
    assert set(found.values()) == {"nothing", "lr=2.0", "batch=8"}


def test_what_is_only_judged_otherwise_is_trained_once():
    kind = type("Judged", (Shared,), {"JUDGED": ("best",)})
    chosen = [kind(lr=lr, best=best) for lr in (1.0, 2.0) for best in ("accuracy", "loss")]
    found = command._trained(kind, chosen)
    assert [chosen.index(found[config]) for config in chosen] == [0, 0, 2, 2]
    found = command._trained(Shared, chosen)
    assert [chosen.index(found[config]) for config in chosen] == [0, 1, 2, 3]


def test_one_at_a_time_without_values_is_the_grid_for_it():
    kind, none = configs.config("detect"), Sweep()
    words, axes, listed = command._with_grid(
        "detect", kind, Sweep(one_at_a_time=True), ["--batch", "4"], {}
    )
    assert words == ["--batch", "4"] and listed == [[]]
    assert {"--assigner", "--box-loss", "--neck", "--block", "--head", "--nms-type"} <= {*axes}
    for axis, values in axes.items():
        known = getattr(kind(), axis.strip("-").replace("-", "_"))
        assert str(known) == values[0] or float(values[0]) == known, axis
    assert command._with_grid("detect", kind, none, [], {}) == ([], {}, [[]])
    given = {"--neck": ["pan", "fpn"]}
    found = command._with_grid("detect", kind, Sweep(one_at_a_time=True), [], given)
    assert found == ([], given, [[]])
    named = command._with_grid("detect", kind, Sweep(grid="ablation"), [], given)[1]
    assert named == {**axes, **given}


def test_gains_are_told_beside_what_was_changed():
    rows = [
        {"box-loss": "ciou", "neck": "fpn", "runs": 1, "map": 0.5},
        {"box-loss": "iou", "neck": "fpn", "runs": 1, "map": 0.25},
        {"box-loss": "iou", "neck": "pan", "runs": 0},
    ]
    found = swept._gains(rows, ("--box-loss", "--neck"), "map")
    assert [row["changed"] for row in found] == [
        "nothing",
        "box-loss iou",
        "box-loss iou, neck pan",
    ]
    assert [row.get("gain") for row in found] == [0, -0.25, None]
    assert [{k: row[k] for k in one} for row, one in zip(found, rows, strict=True)] == rows


def test_the_command_trains_all_and_prints_a_table(tmp_path, capsys):
    words = [*tiny.WORDS, "--lr", "1e-3", "2e-3", "--together", "no", "--quiet"]
    out = tmp_path / "swept"
    assert cli.main(["sweep", "digits", *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((out / "sweep.json").read_text())
    assert [(row["lr"], row["runs"]) for row in rows] == [(1e-3, 1), (2e-3, 1)]
    ends = [
        run_dir.read_metrics(out / name)[-1]["val"]["loss"] for name in ("lr=0.001", "lr=0.002")
    ]
    assert ends[0] != ends[1]
    assert (out / "sweep.md").read_text() == f"{printed}\n![{swept.PICTURE}](sweep.png)\n"
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0]["error_rate"] == 1 - rows[0]["accuracy"] and "| error rate |" in printed
    ours = run_dir.read_metrics(out / "lr=0.001")
    assert rows[0]["total_seconds"] == pytest.approx(sum(sum(x["time"].values()) for x in ours))

    before = (out / "lr=0.002" / "metrics.jsonl").read_bytes()
    assert cli.main(["sweep", "digits", *words, "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    other = [*words, "--batch", "32", "--resume"]
    assert cli.main(["sweep", "digits", *other, "--out", str(out)]) == 2
    assert "begun with another --batch" in capsys.readouterr().err
    assert cli.main(["sweep", "digits", *words, "--out", str(out), "--resume"]) == 0
    assert (out / "lr=0.002" / "metrics.jsonl").read_bytes() == before


def test_seeds_are_told_as_mean_and_spread():
    scores = [{"loss": 1.0, "labels": {}}, {"loss": 3.0, "labels": {}}]
    row = swept.averaged({"--lr": 0.1}, scores)
    assert row == {"lr": 0.1, "runs": 2, "loss": 2.0, "loss +-": pytest.approx(2**0.5)}


def test_a_score_that_is_called_as_an_option_does_not_hide_it():
    row = swept.averaged({"--loss": "hinge"}, [{"loss": 1.0}, {"loss": 3.0}])
    assert (row["loss"], row["val loss"]) == ("hinge", 2.0)
    assert "val loss +-" in row and "loss +-" not in row


def test_seeds_that_diverged_leave_the_scores_of_the_others():
    scores = [{}, {"loss": 3.0, "epoch_seconds": 2.0}, {"loss": 5.0, "epoch_seconds": None}]
    row = swept.averaged({"--lr": 0.1}, scores)
    assert (row["runs"], row["loss"], row["epoch_seconds"]) == (3, 4.0, 2.0)
    assert "epoch_seconds +-" not in row
    assert [*swept._columns([{"lr": 1}, row])] == [*row]


def test_the_options_of_a_sweep_have_one_value(tmp_path, capsys):
    for words in (["--together", "yes", "no"], ["--grid", "a", "b"]):
        line = ["sweep", "digits", *words, "--lr", "1", "2", "--out", str(tmp_path / "x")]
        assert cli.main(line) == 2
        assert f"{' '.join(words)}: one value is wanted" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_options_of_one_value_make_no_sweep(tmp_path, capsys):
    assert cli.main(["sweep", "digits", "--lr", "1", "--out", str(tmp_path / "x")]) == 2
    assert "several values" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_architectures_of_a_sweep_are_all_below_the_limit():
    kind = configs.config("cifar10")
    chosen = [
        flags.with_config("sweep cifar10", row.split(), (Sweep(), kind()))[1]
        for row in kind.GRIDS["arch"]
    ]
    assert {config.model for config in chosen} >= {"tutorial", "inception", "narrow", "tiny"}
    assert any(config.norm for config in chosen) and any(config.dropout for config in chosen)
    for config in chosen:
        time_budget.check_parameters(*configs.network("cifar10", config), config.max_params)


@pytest.mark.parametrize(
    "name, grid", [(name, grid) for name in configs.SYSTEMS for grid in configs.config(name).GRIDS]
)
def test_every_grid_is_made_of_options_that_exist(name, grid):
    kind = configs.config(name)
    words = kind.GRIDS[grid]
    if isinstance(words, tuple):
        for row in words:
            flags.with_config(f"sweep {name}", row.split(), (Sweep(), kind()))
        return
    rest, axes = flags.several(words.split(), kind)
    assert axes
    flags.with_config(f"sweep {name}", rest, (Sweep(), kind()))
    for axis, values in axes.items():
        for value in values:
            _, config = flags.with_config(f"sweep {name}", [axis, value], (Sweep(), kind()))
            told = getattr(config, axis.removeprefix("--").replace("-", "_"))
            if "," in value:
                assert told == tuple(map(float, value.split(",")))
            else:
                assert str(told).lower().startswith(value)
