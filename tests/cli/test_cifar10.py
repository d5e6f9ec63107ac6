"""The cifar10 system through its commands, on a small set of images made here."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxdet.cli import discussion, report, sweep_table
from jaxdet.configs.cifar10 import Config
from jaxdet.data import cifar10
from jaxdet.plots import detection as detection_plots
from jaxdet.training import checkpoint, progress, run_dir, sweep, time_budget
from jaxdet.training import loop as training_loop
from tests import datasets
from tests.cli.test_compare import cells, printed
from tests.cli.test_main import PNG, files, main, parse_aligned

CLASSES = ["cat", "dog", "owl"]
SMALL = [
    "--channels",
    "3",
    "4",
    "--fc-widths",
    "8",
    "--batch",
    "9",
    "--eval-batch",
    "6",
    "--lr",
    "0.02",
]
SMALL += [
    "--no-count-operations",
    "--conv",
    "lax",
    "--devices",
    "1",
    "--val-fraction",
    "0.25",
    "--epochs",
    "3",
    "--quiet",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return datasets.write_image_folder(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main("train", "cifar10", "--root", data, *SMALL, "--out", run) == 0
    return run


@pytest.fixture
def place(data, trained, tmp_path, monkeypatch):
    """The working folder, with a run, and the images beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    (tmp_path / "data").symlink_to(data)
    return tmp_path


def answers(*words):
    return printed(*words)[0]


# train


def test_training_logs_scores_before_the_first_epoch_and_after_each(trained):
    metrics = run_dir.read_metrics(trained)
    assert [line["epoch"] for line in metrics] == [0, 1, 2, 3]
    assert {"loss", "accuracy", "labels", "confusion"} <= set(metrics[0]["val"])
    assert metrics[-1]["val"]["accuracy"] > 0.6 > metrics[0]["val"]["accuracy"]
    metadata = run_dir.read_metadata(trained)
    assert (metadata["classes"], metadata["input"]) == (CLASSES, [32, 32, 3])


def test_training_warns_of_an_uneven_batch_and_ends_with_each_label(data, tmp_path, capsys):
    words = ["--root", data, *SMALL[:-1], "--epochs", "1", "--batch", "10", "--out", tmp_path / "x"]
    assert main("train", "cifar10", *words, "--count-operations") == 0
    out = capsys.readouterr().out
    check_operations(tmp_path / "x", out, capsys)
    (warned,) = re.findall("^warning: (.*)$", out, re.M)
    assert warned.startswith("--batch 10 does not divide the 27 images of train: ")
    best = max(
        run_dir.read_metrics(tmp_path / "x"),
        key=lambda line: (line["val"]["accuracy"], -line["val"]["loss"]),
    )
    *_, rows = parse_aligned(out)
    assert [row["label"] for row in rows] == CLASSES
    assert out.count(f"validation scores of the best checkpoint, step {best['step']}:\n") == 1
    for row, of_label in zip(rows, best["val"]["labels"].values(), strict=True):
        assert row["accuracy"] == f"{of_label['accuracy']:.4g}"
    counts = [[int(row[f"as {name}"]) for name in CLASSES] for row in rows]
    assert counts == best["val"]["confusion"]


def check_operations(run, out, capsys):
    """Those of a training are the network's forward and backward, and little more."""
    first, second = (line["operations"] for line in run_dir.read_metrics(run))
    assert list(first) == ["eval"] and list(second) == ["train", "eval"]
    (scores,) = answers("eval", run, "--split", "val")
    assert {name: scores[name] for name in second["eval"]} == second["eval"] == first["eval"]
    assert main("describe", run, "--backward", "--json") == 0
    *_, whole = json.loads(capsys.readouterr().out)["layers"]
    images = 30  # three batches of 10
    for name in ("additions", "multiplications"):
        more = second["train"][name] / (images * whole[name])
        assert 1 < more < 1.3, name
    before, after, _ = parse_aligned(out)
    assert before[0]["pass"] == "evaluation"
    assert [row["pass"] for row in after[:2]] == ["training", "evaluation"]
    for row, counts in zip(after, second.values(), strict=False):
        assert row["operations"] == f"{counts['operations']:,}"
        assert float(row["operations/s"]) > 0


def test_resumed_run_ends_in_equal_scores(place, trained):
    steps = checkpoint.steps("run")
    shutil.rmtree(place / "run" / "checkpoints" / str(steps[-1]))
    assert checkpoint.steps("run") == steps[:-1] != []
    words = ["train", "cifar10", "--root", place / "data", *SMALL, "--out", "run"]
    assert main(*words, "--resume") == 2  # another --root: a link
    assert main("train", "cifar10", "--out", "run", "--resume", "--quiet") == 0
    untimed = [
        [{k: v for k, v in line.items() if k != "time"} for line in run_dir.read_metrics(run)]
        for run in ("run", trained)
    ]
    assert untimed[0] == untimed[1]


def test_a_run_with_class_weights_resumes_in_equal_scores(place):
    words = ["train", "cifar10", "--root", "data", *SMALL, "--class-weights", "1,2,.5"]
    assert main(*words, "--out", "weighted") == 0
    before, plain = (
        [line["train"] for line in run_dir.read_metrics(run)] for run in ("weighted", "run")
    )
    assert all(a != b for a, b in zip(before[1:], plain[1:], strict=True))
    shutil.rmtree(place / "weighted" / "checkpoints" / str(checkpoint.steps("weighted")[-1]))
    assert main("train", "cifar10", "--out", "weighted", "--resume", "--quiet") == 0
    assert [line["train"] for line in run_dir.read_metrics("weighted")] == before


def test_monitored_test_scores_select_nothing(place):
    words = ["--monitor", "test", "--resume", "--out", "watched"]
    assert main("train", "cifar10", "--root", "data", *SMALL, *words) == 0
    before, watched = (run_dir.read_metrics(run) for run in ("run", "watched"))
    assert [line["val"] for line in watched] == [line["val"] for line in before]
    assert checkpoint.best("watched", print) == checkpoint.best("run", print)
    step = checkpoint.best("watched", print)
    (scores,) = (line["test"] for line in watched if line["step"] == step)
    (test,) = answers("eval", "watched")
    assert {name: test[name] for name in scores} == scores


def test_without_validation_the_last_checkpoint_is_evaluated_and_tables_say_so(place, capsys):
    words = ["--root", "data", *SMALL[:-1], "--val-fraction", "0", "--monitor", "test"]
    words += ["--epochs", "1"]
    assert main("train", "cifar10", *words, "--out", "whole") == 0
    out = capsys.readouterr().out
    assert "test scores of the last checkpoint, step 4:" in out
    assert len(re.findall(r"^epoch [01]/1 \| test accuracy .*", out, re.M)) == 2
    metrics = run_dir.read_metrics("whole")
    assert [line["val"] for line in metrics] == [None] * 2
    (test,) = answers("eval", "whole")
    assert test["step"] == 4 and test["accuracy"] == metrics[-1]["test"]["accuracy"]
    answers("compare", "whole", "run", "--report", "out.md")
    text = Path("out.md").read_text()
    assert "`whole`, chosen by its accuracy on the test images for lack of validation" in text or (
        "`run`, chosen by its accuracy on the test images for lack of validation" in text
    )
    tables = [part for part in text.split("\n\n") if part.startswith("| epoch |")]
    (table,) = (table for table in tables if "whole, test" in table.split("\n")[0])
    assert float(cells(table)[1]["whole, test"]) == pytest.approx(test["accuracy"], abs=1e-4)
    assert "They selected no checkpoint and ended no run." in text
    config = Config(val_fraction=0, monitor="test", lr=2e-2)
    assert sweep_table.test_scores_note([sweep_table.run_summary("whole", config, Path("whole"))])
    assert not sweep_table.test_scores_note([sweep_table.run_summary("run", config, Path("run"))])


# eval


def test_eval_has_the_scores_that_training_logged_and_the_confusion_of_each_label(place, capsys):
    logged = run_dir.read_metrics("run")[-1]["val"]
    (val,) = answers("eval", "run", "--checkpoint", "last", "--split", "val")
    assert {name: val[name] for name in logged} == logged
    assert main("eval", "run", "--plots", "pictures") == 0
    out = capsys.readouterr().out
    assert re.search(r"^test split, checkpoint of step \d+:$", out, re.M)
    _, rows = parse_aligned(out)
    assert [row["label"] for row in rows] == CLASSES
    counts = [[int(row[f"as {name}"]) for name in CLASSES] for row in rows]
    (test,) = answers("eval", "run")
    assert test["confusion"] == counts and np.sum(counts) == 12
    assert np.trace(counts) == test["correct"] == round(12 * (1 - test["error_rate"]))
    assert files(place / "pictures").keys() == {
        str(place / "pictures" / name) for name in ("test", "test/confusion.png")
    }


def test_tta_costs_twice_as_much_and_does_not_change_the_loss(place):
    (one,), (both,) = answers("eval", "run"), answers("eval", "run", "--tta", "true")
    assert both["loss"] == pytest.approx(one["loss"]) and both["accuracy"] <= 1
    assert both["operations"] == pytest.approx(2 * one["operations"], rel=1e-3)
    alone = answers("predict", "run", "--count", "12")
    mirrored = answers("predict", "run", "--count", "12", "--tta", "true")
    assert [x["image"] for x in alone] == [x["image"] for x in mirrored]
    assert any(abs(x["score"] - y["score"]) > 1e-4 for x, y in zip(alone, mirrored, strict=True))


# predict


def test_image_files_and_samples_have_equal_labels_and_scores(place, capsys):
    samples = answers("predict", "run", "--count", "12")
    paths = [Path("data/test") / sample["image"] for sample in samples]
    found = answers("predict", "run", *paths)
    assert all(sample.keys() == {"image", "label", "score"} for sample in samples)
    assert [{**file, "image": 0} for file in found] == [{**one, "image": 0} for one in samples]
    right = sum(sample["label"] == sample["image"].split("/")[0] for sample in samples)
    assert right == answers("eval", "run")[0]["correct"]
    assert main("predict", "run", paths[0]) == 0
    line = capsys.readouterr().out
    assert line == f"image label score\n{paths[0]} {found[0]['label']} {found[0]['score']}\n"


def test_titles_of_wrong_labels_are_red_and_no_boxes_are_drawn(place, monkeypatch):
    drawn, gallery = [], detection_plots.gallery
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *a, **k: drawn.append((a, k)) or gallery(*a, **k)
    )
    every = answers("predict", "run", "--count", "12", "--figure", "out.png")
    (((pictures, _), options),) = drawn
    assert Path("out.png").read_bytes().startswith(PNG) and len(pictures) == 12
    wrong = [one["label"] != one["image"].split("/")[0] for one in every]
    assert options["wrong"] == wrong
    assert options["true"] == options["predicted"] == [None] * 12
    first = every[0]["image"].split("/")[0]
    assert options["titles"][0] == f"true {first}, predicted {every[0]['label']}"
    failed = answers("predict", "run", "--count", "12", "--no-show-all-images")
    assert failed == [one for one, bad in zip(every, wrong, strict=True) if bad]


def test_images_of_any_size_are_predicted(place):
    Image.open("data/test/owl/00.png").resize((90, 50)).save("large.png")
    small, large = answers("predict", "run", "data/test/owl/00.png", "large.png")
    assert small["label"] == large["label"]


# describe, data


def test_describe_has_the_classes_and_widths_of_the_run(place, capsys):
    assert main("describe", "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    layers = found["layers"]
    outputs = {layer["layer"]: layer.get("output") for layer in layers}
    assert (outputs["conv1"], outputs["logits"]) == ([1, 28, 28, 3], [1, 3])
    compared = answers("compare", "run")[0]
    assert layers[-1]["parameters"] == compared["parameters"]
    normalize = 2 * 32 * 32 * 3
    softmax = (5 * 3 - 1) + 2 + 2  # of three classes, the largest probability, and its class
    assert compared["operations"] == layers[-1]["total"] + normalize + softmax
    (note,) = found["notes"]
    assert note.startswith(
        f"prediction: {compared['operations']:,} operations, as eval and compare count them"
    )


def test_preview_shows_images_before_and_after(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *args, **kwargs: drawn.append((args, kwargs))
    )
    words = [
        "--root",
        "data",
        "--count",
        "4",
        "--before",
        "--flip",
        "--crop-padding",
        "4",
        "--cutout",
        "0.5",
    ]
    assert main("data", "preview", "cifar10", *words, "--out", "out.png") == 0
    (((pictures, _), options),) = drawn
    titles = options["titles"]
    assert len(pictures) == len(titles) == 8
    assert titles[::2] == titles[1::2] and titles[0].startswith("true ")
    assert options["true"] == [None] * 8
    assert all((a != b).any() for a, b in zip(pictures[::2], pictures[1::2], strict=True))


def test_preview_has_the_fractions_of_mixed_images(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *_, **kwargs: drawn.append(kwargs["titles"])
    )
    words = ["--root", "data", "--count", "20", "--mixup-alpha", "1", "--label-smoothing", "0.1"]
    assert main("data", "preview", "cifar10", *words) == 0
    (titles,) = drawn
    mixed = [title for title in titles if "," in title]
    alone, both = (rf"true ({'|'.join(CLASSES)})", r"true (\w+) (0\.\d\d), (\w+) (0\.\d\d)")
    assert all(re.fullmatch(both if title in mixed else alone, title) for title in titles)
    assert len(mixed) > 3 and len(set(mixed)) > 3


def test_inspect_counts_images_and_lists_unreadable_ones(place, capsys):
    shutil.copytree("data/", "copy", symlinks=False)
    assert main("data", "inspect", "cifar10", "--root", "copy") == 0
    (rows,) = parse_aligned(capsys.readouterr().out)
    sides = {"height": "32 to 32", "width": "32 to 32"}
    counts = {"train": "12", "test": "4", "unusable": "0"}
    assert rows == [{"label": name, **counts, **sides} for name in CLASSES]
    Path("copy/train/cat/00.png").write_text("no image")
    Image.new("RGB", (7, 50)).save("copy/test/dog/wide.png")
    assert main("data", "inspect", "cifar10", "--root", "copy", "--on-invalid", "error") == 2
    out, err = capsys.readouterr()
    ((cat, dog, _),) = parse_aligned(out)
    assert (cat["train"], cat["unusable"]) == ("11", "1")
    assert (dog["height"], dog["width"], dog["test"]) == ("32 to 50", "7 to 32", "5")
    assert re.search(r"^  copy/train/cat/00.png: not a readable image", out, re.M)
    assert re.fullmatch("jaxdet: error: 1 images or rows cannot be used; .*\n", err)
    (found,) = answers("data", "inspect", "cifar10", "--root", "copy")
    assert len(found["bad"]) == 1


# compare, sweep


def test_failures_are_wrong_labels_by_their_scores_and_then_the_lowest_scores(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *args, **kwargs: drawn.append((args, kwargs))
    )
    answers("compare", "run", "--failures", "worst.png")
    (((pictures, _), options),) = drawn
    every = {one["image"]: one for one in answers("predict", "run", "--count", "12")}
    ranks = sorted(map(rank, every.values()))[:6]
    assert options["wrong"] == tuple(not right for right, _ in ranks)
    assert options["true"] == options["predicted"] == (None,) * 6 and len(pictures) == 6
    for title, (right, score) in zip(options["titles"], ranks, strict=True):
        name = re.match(r"run: (\S+)\n", title)[1]
        label = every[name]["label"]
        assert rank(every[name]) == (right, pytest.approx(score, abs=2e-4))
        assert title.endswith(f"\ntrue {name[:3]}, predicted {label}, score {abs(score):.2f}")


def rank(answer):
    """Sort key of an answer: whether its label is correct, and its score."""
    right = answer["label"] == answer["image"].split("/")[0]
    return right, answer["score"] if right else -answer["score"]


def test_a_report_has_limits_best_network_and_all_epochs(place, trained):
    shutil.copytree("run", "other")
    words = ["compare", "run", "other", "--report", "report.md"]
    rows = answers(*words)
    text = Path("report.md").read_text()
    assert "at most 262,144 trainable parameters and 3,600 seconds" in text
    assert Path("report_curves.png").exists() and Path("report_failures.png").exists()
    table = cells(text.split("\n\n")[3])
    assert {"run", "accuracy", "error rate", "parameters", "operations per image"} <= set(table[0])
    assert {"best epoch", "s per epoch", "total s", "cat accuracy"} <= set(table[0])
    assert not any("iou" in name for name in table[0])
    assert (
        f"`run`, chosen by its validation accuracy, has accuracy {rows[0]['accuracy']:.4f}" in text
    )
    (command,) = re.findall("^    jaxdet (.*)$", text, re.M)
    assert "--channels 3 4 --fc-widths 8" in command
    retrained = ["--out", "again", "--quiet"]
    assert main(*shlex.split(command), *retrained) == 0
    assert run_dir.read_metrics("again")[-1]["val"] == run_dir.read_metrics("run")[-1]["val"]
    for line in ("| 0 | input |  | 1 x 32 x 32 x 3 |", "| 1 | conv1 | Conv, features 3"):
        assert line in text
    assert re.search(r"^Highest accuracy: \w+, [.\d]+; lowest: \w+, [.\d]+\..*\.$", text, re.M)
    assert "The runs differ in" not in text and "of its 3 epochs" not in text
    assert re.search(r"^\| label \| accuracy \| as cat \| as dog \| as owl \|$", text, re.M)
    assert len(re.findall(r"^\| [0-3] \| [\d.]+ \| [\d.]+ \|$", text, re.M)) == 4
    assert text.count("| not reached |") == 2


def test_a_report_shows_how_runs_differ_and_which_are_incomplete(place, data):
    words = ["--root", data, *SMALL, "--flip", "--lr", "1e30", "--out", "bad"]
    assert main("train", "cifar10", *words) == 1
    assert main("compare", "run", "bad", "--report", "out.md", "--json") == 0
    text = Path("out.md").read_text()
    (table,) = [part for part in text.split("\n\n") if part.startswith("| run | lr | flip |")]
    assert cells(table) == [
        {"run": "run", "lr": "0.02", "flip": "no"},
        {"run": "bad", "lr": "1e+30", "flip": "yes"},
    ]
    said = "`bad` has 0 of its 3 epochs: it was stopped, or its loss was not finite."
    assert said in text and "`run` has" not in text
    assert "Within both limits: `run`" in text


def test_labels_are_summarized_in_words():
    labels = {"cat": {"count": 2, "accuracy": 0.5}, "dog": {"count": 0}, "owl": {"count": 3}}
    labels["owl"]["accuracy"] = 1.0
    row = {"labels": labels, "confusion": [[1, 1, 0], [0, 0, 0], [0, 0, 3]]}
    best_and_worst = "Highest accuracy: owl, 1.000; lowest: cat, 0.500."
    mistake = "Most frequent mistake: cat predicted as dog, 1 of 1 mistakes."
    assert discussion.summarize_labels(row) == f"{best_and_worst}  {mistake}"
    row["confusion"][0] = [2, 0, 0]
    assert discussion.summarize_labels(row) == best_and_worst


def test_runs_over_the_limits_are_not_the_best_within_them(place, monkeypatch):
    shutil.copytree("run", "slow")
    run_dir.write_seconds("slow", 3601)
    run_dir.write_seconds("run", 3599)
    asked, write = [], report.write
    monkeypatch.setattr(report, "write", lambda *words: asked.append(words) or write(*words))
    assert main("compare", "slow", "run", "--report", "out.md", "--json") == 0
    assert "Within both limits: `run`" in Path("out.md").read_text()
    ((options, evaluated, *rest),) = asked
    write(options, evaluated[:1], *rest)
    assert "No run is within both limits; the best of all: `slow`" in Path("out.md").read_text()


def test_a_report_notes_seconds_of_runs_that_shared_a_program():
    run = {"row": {"run": "a", "epochs": 2}, "config": Config()}
    for metrics, count in (([{}, {"together": 3}], 1), ([{}, {}], 0)):
        parts = list(report.differences([SimpleNamespace(**run, metrics=metrics)]))
        assert len(parts) == count and all("up to 3 runs in all" in part for part in parts)


def test_the_limit_of_parameters_is_the_lowest_that_was_given():
    runs = [SimpleNamespace(config=Config(max_params=limit)) for limit in (0, 250_000, 262_144)]
    limits = [report.resolve_limits(Config, runs[:count])["parameters"] for count in (1, 2, 3)]
    assert limits == [262_144, 250_000, 250_000]


def test_a_sweep_over_rates_has_the_costs_of_each(place, capsys):
    words = ["--root", "data", *SMALL, "--epochs", "1", "--lr", "1e-3", "2e-2", "--out", "swept"]
    assert main("sweep", "cifar10", *words, "--vmap", "yes") == 0
    one, two = cells(capsys.readouterr().out)
    assert (one["lr"], two["lr"]) == ("0.001", "0.02")
    own = answers("compare", "run")[0]
    for row in (one, two):
        assert int(row["operations per image"].replace(",", "")) == own["operations"]
        assert int(row["parameters"].replace(",", "")) == own["parameters"]
        assert float(row["s per epoch"]) > 0 and 0 <= float(row["accuracy"]) <= 1
    again = ["sweep", "cifar10", *words, "--vmap", "no", "--batch", "12", "--overwrite"]
    assert main(*again) == 0
    assert run_dir.read_config("swept/lr=0.02").config["batch"] == 12


def test_a_killed_sweep_is_resumed_where_it_was(place, monkeypatch):
    """Its data are read once in each process, and put on the devices once for both programs."""
    evaluated, asked, compiled = [], [], []
    evaluate, read = training_loop.Loop.evaluate, cifar10.read

    def killed(loop):
        evaluated.append(loop.step)
        if len(evaluated) == 4:  # after the epoch of the second run
            raise KeyboardInterrupt
        evaluate(loop)

    class Recorded(sweep.VmappedRuns):
        """The runs of one program, whose compiled steps are recorded."""

        def __init__(self, *args):
            super().__init__(*args)
            compiled.append(self.compiled)

    monkeypatch.setattr(sweep, "VmappedRuns", Recorded)
    monkeypatch.setattr(cifar10, "read", lambda *args: asked.append(args) or read(*args))
    swept = ["sweep", "cifar10", "--root", "data", *SMALL, "--epochs", "1"]
    swept += ["--batch", "12", "9", "--out", "swept"]
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.Loop, "evaluate", killed)
        assert main(*swept) == 130
    first, second = compiled
    assert asked == [(str(place / "data"),)]
    assert first.data is second.data and (
        first.evaluators["val"].data is second.evaluators["val"].data
    )
    assert [line["step"] for line in run_dir.read_metrics("swept/batch=9")] == [0]
    assert main(*swept, "--resume") == 0
    ours, theirs = (run_dir.read_metrics(folder) for folder in ("swept/batch=9", "run"))
    assert [line["val"] for line in ours] == [line["val"] for line in theirs[:2]]


def test_a_run_without_an_end_is_counted_in_the_table(place, capsys):
    words = ["--root", "data", *SMALL, "--epochs", "1", "--lr", "0.02", "inf", "--out", "swept"]
    assert main("sweep", "cifar10", *words, "--vmap", "no") == 0
    good, bad = cells(capsys.readouterr().out)
    assert (good["unfinished"], bad["unfinished"]) == ("0", "1")
    assert bad["accuracy"] and not bad["s per epoch"] and good["s per epoch"]
    assert float(good["error rate"]) == pytest.approx(1 - float(good["accuracy"]), abs=1e-4)


def test_seeds_of_a_training_are_a_sweep_that_is_planned_once(place, capsys, monkeypatch):
    """The command of the last exercise of assignment 3."""
    asked = []

    def planned(compiled, experiment, spent):
        asked.append((experiment.config.time_budget, spent))
        return replace(experiment, config=replace(experiment.config, epochs=2))

    monkeypatch.setattr(time_budget, "plan_epochs", planned)
    monkeypatch.setattr(progress, "since_start", lambda: 40.0)
    words = ["train", "cifar10", "--root", "data", *SMALL, "--seeds", "2", "--time-budget", "999"]
    words += ["--vmap", "no", "--out", "seeds"]
    assert main(*words) == 0
    (row,) = cells(capsys.readouterr().out)
    assert row["runs"] == "2" and float(row["accuracy +-"]) >= 0
    ((seconds, spent),) = asked
    assert seconds == 999 and 40 <= spent < 999
    for seed in (0, 1):
        kept = run_dir.read_config(f"seeds/seed={seed}").config
        assert (kept["seed"], kept["epochs"], kept["time_budget"]) == (seed, 2, 999.0)
        total = run_dir.total_seconds(run_dir.read_metrics(f"seeds/seed={seed}"))
        assert run_dir.read_seconds(f"seeds/seed={seed}") >= total + spent
    one, two, both = answers("compare", "seeds/seed=0", "seeds/seed=1", "seeds/seed=1")
    assert (both["run"], both["runs"], both["split"]) == ("seed=0, seed=1", 2, "test")
    for name in ("loss", "accuracy", "error_rate"):
        assert both[name] == pytest.approx((one[name] + two[name]) / 2)
        assert both[f"{name} +-"] == pytest.approx(abs(one[name] - two[name]) / 2**0.5)
    assert main("compare", "seeds/seed=0", "seeds/seed=1") == 0
    table = capsys.readouterr().out.split("over seeds:\n\n")[1]
    assert float(cells(table)[0]["accuracy +-"]) == pytest.approx(both["accuracy +-"], rel=1e-3)
    assert len(answers("compare", "seeds/seed=0", "run")) == 2
    monkeypatch.setattr(time_budget, "plan_epochs", lambda *_: 1 / 0)
    before = files(place / "seeds")
    assert main(*words, "--resume") == 0
    assert files(place / "seeds").keys() == before.keys()


WITHOUT_VAL = ["train", "cifar10", "--root", "data", "--val-fraction", "0", "--monitor", "test"]
REFUSED = {
    "no data": (["train", "cifar10", "--root", "gone", "--out", "x"], "no CIFAR-10 in .*gone"),
    "too large": (
        ["train", "cifar10", "--model", "resnet20"],
        "--max-params must be at least 272474, the number of parameters, got 262144",
    ),
    "grid": (
        ["sweep", "cifar10", "--grid", "archs"],
        "--grid must be one of arch, batch, aug, loss, opt.*got archs",
    ),
    "no grids": (
        ["sweep", "digits", "--grid", "arch"],
        "digits has no grids; leave out --grid arch",
    ),
    "two grids": (
        ["sweep", "cifar10", "--grid", "arch", "aug"],
        "--grid must be one value, got arch aug",
    ),
    "no seeds": (["train", "cifar10", "--seeds", "0"], "several values, .* --seeds 3"),
    "table": (
        ["predict", "run", "table.csv"],
        "table.csv: must be an image for a run of cifar10, got a table",
    ),
    "no image": (["predict", "run", "gone.png"], "gone.png: no such image"),
    "inspect nothing": (["data", "inspect", "cifar10"], "--root must be given"),
    "preview nothing": (["data", "preview", "cifar10"], "--root must be given"),
    "no split": (["data", "split", "cifar10"], "supports only objects, got cifar10"),
    "no patience": (
        [*WITHOUT_VAL, "--patience", "3"],
        "--patience 3 needs validation images: give a --val-fraction above 0",
    ),
    "no plateau": (
        [*WITHOUT_VAL, "--schedule", "plateau"],
        "--schedule plateau needs validation images",
    ),
    "canvas": (["predict", "run", "--canvas", "40"], "--canvas is not an option of cifar10"),
    "cells": (
        ["data", "assign", "run"],
        "run must be a run of detect, which assigns cells to boxes, got a run of cifar10",
    ),
}


@pytest.mark.parametrize("words, said", REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_refused(place, capsys, words, said):
    before = files(place)
    assert main(*words) == 2
    out, err = capsys.readouterr()
    assert re.match(f"jaxdet: error: .*{said}", err), err
    assert out == "" and files(place) == before
    assert err.count("\n") == 1 or words[-1] == "resnet20"
