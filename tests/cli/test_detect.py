"""The detect system through its commands, on small sets of images made here."""

import csv
import io
import json
import re
import shutil
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import jaxdet
from jaxdet import configs, runs
from jaxdet.cli import predict
from jaxdet.configs import detect
from jaxdet.data import formats, sampler
from jaxdet.errors import InputError
from jaxdet.export import replay
from jaxdet.metrics import detection as metrics
from jaxdet.metrics import error_types
from jaxdet.models import efficientnet, heads, necks, registry
from jaxdet.models.layers import Freezable
from jaxdet.models.resnet import BasicBlock, ResNet
from jaxdet.plots import detection as detection_plots
from jaxdet.tasks.detect import DetectionTask
from jaxdet.training import evaluator, host_init, run_dir
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state
from tests import browser, datasets
from tests.cli.test_main import PNG, main, parse_aligned
from tests.cli.test_objects import answers
from tests.marks import long_for
from tests.plots import test_page

WORDS = [
    *("--size", "64", "96", "--epochs", "1", "--batch", "2", "--eval-batch", "1"),
    *("--max-detections", "10"),
    *("--devices", "1", "--neck-channels", "8", "--model", "resnet18", "--warmup", "0"),
    *("--scale", "1", "1", "--shift", "0", "--color-jitter", "0", "--brightness-contrast", "0"),
]


KEYS = "image_id", "category_id"  # of COCO's results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "data"
    datasets.write_yolo(root)
    return root


def stage_names(name, backbone=registry.backbone):
    """Stages of the real backbones."""
    return backbone(name)().stage_names()


class Features(Freezable):
    """One convolution, and three maps of it: a backbone that compiles fast."""

    @nn.compact
    def __call__(self, x, train=False):
        x = self.conv_norm_act(x, 4, 7, "stem", stride=8, train=train)
        return x, x[:, ::2, ::2], x[:, ::4, ::4]


class Neck(necks.FPN):
    """The finest map as it is."""

    def __call__(self, maps, train=False):
        return maps[:1]


class Head(heads.DecoupledHead):
    """The last convolutions alone."""

    def conv_norm_act(self, x, *_, **__):
        return x


@contextmanager
def small():
    """Replace the network by three convolutions, since commands are tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "backbone", lambda name: Features)
        patch.setattr(registry, "stage_names", stage_names)
        patch.setattr(necks, "FPN", Neck)
        patch.setattr(heads, "DecoupledHead", Head)
        yield


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run folder, and the output of its training."""
    run, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    with small(), redirect_stdout(said):
        assert main("train", "detect", "--root", data, *WORDS, "--out", run) == 0
    return run, said.getvalue()


@pytest.fixture
def place(data, trained, tmp_path, monkeypatch):
    """The working folder, with the run and the images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "data")
    shutil.copytree(trained[0], "run")
    with small():
        yield tmp_path


def rewritten(run, **changes):
    """The run with another configuration."""
    path = Path(run) / "config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "config": kept["config"] | changes}))


def test_training_logs_every_term_and_chooses_by_map(trained):
    run, said = trained
    last = run_dir.read_metrics(run)[-1]
    assert {"classification", "box", "positives", "loss"} <= set(last["train"])
    assert {"map", "map50", "labels"} <= set(last["val"])
    assert "epoch 1/1" in said
    assert (run / "plots" / "convergence.png").read_bytes().startswith(PNG)


def test_eval_has_the_scores_that_training_logged(place, trained):
    (found,) = answers("eval", "run", "--split", "val")
    logged = next(m for m in run_dir.read_metrics("run") if m["step"] == found["step"])["val"]
    for name in ("map", "map50", "loss"):
        assert found[name] == logged[name]
    names = ("count", "map", "map50")
    of_eval = {k: {name: v[name] for name in names} for k, v in found["labels"].items()}
    assert of_eval == logged["labels"]


def test_val_is_evaluated_where_the_data_have_no_test_split(place, trained, capsys):
    (test,) = answers("eval", "run")
    assert capsys.readouterr().err == "jaxdet: warning: the data have no test split; val is used\n"
    (val,) = answers("eval", "run", "--split", "val", "--devices", "4", "--eval-batch", "3")
    assert test["split"] == val["split"] == "val"
    assert val["map"] == pytest.approx(test["map"], abs=1e-5)
    assert [row["split"] for row in answers("compare", "run", "--eval-batch", "1")] == ["val"]


@pytest.fixture
def fixed(place, monkeypatch):
    """A run on a COCO set that predicts the same three boxes on every image."""
    datasets.write_coco(Path("coco"))
    rewritten("run", root="coco")

    def predict(task, variables, images):  # boxes that extend into the padding left and right
        found = np.float32([[4, 0, 92, 64], [30, 14, 33, 21], [46, 9, 73, 36]])
        rows = {"boxes": found, "scores": np.float32([0.9, 0.8, 0.2])}
        rows |= {"labels": np.int32([1, 0, 0]), "valid": np.ones(3, bool)}
        return {name: jnp.stack([column] * len(images)) for name, column in rows.items()}

    monkeypatch.setattr(DetectionTask, "predict", predict)


def test_scores_are_those_of_cocos_own_evaluation_of_the_predicted_file(fixed, capsys):
    (found,) = answers("eval", "run", "--split", "val")
    capsys.readouterr()
    assert main("predict", "run", "coco/val2017", "--save-json", "all.json") == 0
    shown = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    assert shown[1:3] == [["dot", "0.9"], ["cell", "0.8"]] and len(shown) == 4  # .2 is not shown
    truth = json.loads(Path("coco/annotations/instances_val2017.json").read_text())
    written = json.loads(Path("all.json").read_text())
    category_ids = {"cell": 3, "dot": 7}
    results = [one | {"category_id": category_ids[one["category"]]} for one in written]
    expected = metrics.coco_scores(truth, results)
    assert expected == pytest.approx({name: found[name] for name in expected}, abs=1e-6)
    assert found["labels"]["dot"]["map"] == pytest.approx(1)  # .5 if the padding counted
    assert 0 < found["labels"]["cell"]["map"] < 1


def test_chosen_thresholds_are_kept_in_the_run_and_applied_by_predict(fixed, capsys):
    words = ("predict", "run", "coco/val2017", "--score-threshold", "chosen", "--save-json", "j")
    assert main(*words) == 2
    assert "run has no chosen thresholds; choose them with jaxdet eval" in capsys.readouterr().err
    (found,) = answers("eval", "run", "--choose-threshold", "f1")
    kept = json.loads(Path("run/thresholds.json").read_text())
    assert kept == {name: found[name] for name in ("rule", "step", "all", "classes")}
    cell, dot, both = found["val"]
    assert (cell["class"], dot["class"], both["class"]) == ("cell", "dot", "all")
    assert dot["threshold"] == pytest.approx(0.9) and dot["f1"] == dot["best_f1"] == 1
    assert main("eval", "run", "--choose-threshold", "f1") == 0
    assert "run/thresholds.json; apply it with predict" in capsys.readouterr().out
    run = jaxdet.load("run")
    assert run.choose_threshold("f1") == json.loads(Path("run/thresholds.json").read_text()) == kept
    assert run.chosen_thresholds().tolist() == [kept["classes"][name] for name in run.classes]
    Path("run/thresholds.json").write_text(
        json.dumps(kept | {"classes": {"cell": 0.15, "dot": None}})
    )
    assert main(*words) == 0
    shown = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert {tuple(each) for each in shown} == {("cell", "0.8"), ("cell", "0.2")}
    assert {row["category"] for row in json.loads(Path("j").read_text())} == {"cell"}
    Path("run/thresholds.json").write_text("{}")
    assert main(*words) == 2
    assert "run/thresholds.json is damaged" in capsys.readouterr().err


@pytest.fixture
def exporting(place, monkeypatch):
    """The working folder; exported files are replayed in this process, on few small images."""
    monkeypatch.setattr(replay, "run_process", replay.main)
    monkeypatch.setattr(replay, "SIZES", [(1, 1), (30, 9), (7, 60), (60, 90)])
    rewritten("run", score_threshold=0.0)


def test_an_exported_program_is_replayed_and_keeps_the_chosen_thresholds(exporting, capsys):
    step = next(path.name for path in Path("run/checkpoints").iterdir())
    chosen = {"rule": "f1", "step": int(step), "all": None, "classes": {"cell": 0.0, "dot": None}}
    Path("run/thresholds.json").write_text(json.dumps(chosen))
    assert main("export", "run", "m.jaxdet", "--format", "stablehlo") == 0
    said = capsys.readouterr().out
    assert "replayed 16 images of the data" in said and "160 scores differ by at most" in said
    words = ("data/images/val", "--score-threshold", "chosen", "--json")
    lines = answers("predict", "m.jaxdet", *words)
    assert {each["label"] for line in lines for each in line["objects"]} == {"cell"}


@pytest.mark.long
def test_an_exported_program_predicts_as_its_run(exporting, capsys):
    assert main("export", "run", "m.jaxdet", "--format", "stablehlo") == 0
    images, names = "data/images/val", ("run", "m.jaxdet")
    for words in ((), ("--score-threshold", ".004")):
        for name in names:
            assert main("predict", name, images, *words, "--save-json", f"{name}.json") == 0
        expected, found = (json.loads(Path(f"{name}.json").read_text()) for name in names)
        assert expected and len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert [one[key] for key in KEYS] == [other[key] for key in KEYS]
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["bbox"] == pytest.approx(other["bbox"], abs=0.03)
    assert main("export", "run", "raw.jaxdet", "--format", "stablehlo", "--nms", "false") == 0
    capsys.readouterr()
    assert main("predict", "raw.jaxdet", images) == 2
    assert "has no non-maximum suppression" in capsys.readouterr().err
    found = jaxdet.load_exported("raw.jaxdet").predict(np.zeros((40, 50, 3), np.uint8))
    assert found.boxes.shape == (len(found.scores), 4) and found.scores.shape[1] == 2


def test_eval_counts_right_wrong_and_missed_boxes(fixed, capsys):
    words = ("--per-image", "out/images.csv", "--per-class", "out/classes.csv", "--plots", "out")
    at = ("--score-threshold", ".85")
    (found,) = answers("eval", "run", "--split", "val", *words, *at)
    with open("out/images.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val"} and len(rows) == found["count"]
    total = {name: sum(int(row[name]) for row in rows) for name in ("tp", "fp", "fn")}
    labels = found["labels"].values()
    assert total["tp"] == sum(round(of["recall"] * of["count"]) for of in labels)
    assert total["tp"] + total["fn"] == sum(of["count"] for of in labels)
    assert total["tp"] + total["fp"] == len(rows)  # the other boxes have lower scores
    kinds = {kind: sum(int(row[kind]) for row in rows) for kind in error_types.KINDS}
    assert sum(kinds.values()) == total["fp"]
    drawn = {path.stem for path in Path("out/val").iterdir()}
    assert drawn & {*kinds, "missed"} == {"missed"} and total["fn"] > 0
    with open("out/classes.csv") as file:
        by_class = {row["label"]: row for row in csv.DictReader(file)}
    assert {name: float(row["map"]) for name, row in by_class.items()} == {
        name: of["map"] for name, of in found["labels"].items()
    }
    for words, message in {
        ("--choose-threshold", "f2"): "must be f1, recall=R or precision=P",
        ("--choose-threshold", "f1", "--root", "coco"): "leave out --root",
    }.items():
        assert main("eval", "run", *words) == 2
        assert message in capsys.readouterr().err


def test_audit_ranks_label_errors_and_names_their_rows(fixed, capsys):
    path = Path("coco/annotations/instances_val2017.json")
    content = json.loads(path.read_text())
    content["annotations"][1]["category_id"] = 3  # a dot labeled as a cell
    del content["annotations"][2]  # a crowd, in which there is a prediction
    path.write_text(json.dumps(content))
    assert main("data", "audit", "run", "--out", "out/audit.csv", "--split", "val") == 0
    said = capsys.readouterr().out
    assert "wrote out/audit.csv\nwrote out/audit.png\n" in said
    assert Path("out/audit.png").read_bytes().startswith(PNG)
    with open("out/audit.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val"} and {row["image"] for row in rows} == {"3.png"}
    assert {row["file"] for row in rows} == {str(path)}
    found = [(row["kind"], row["row"], row["class"], row["suggested"]) for row in rows]
    assert found == [
        ("missing", "", "cell", ""),
        ("misplaced", "2", "cell", "cell"),
        ("mislabeled", "2", "cell", "dot"),
    ]
    assert [float(rows[2][name]) for name in ("x0", "y0", "x1", "y1")] == [0, 0, 45, 45]
    assert float(rows[0]["score"]) == pytest.approx(0.2 * (1 - 0.18), abs=0.01)
    assert main("data", "audit", "run", "--top", "1", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in shown] == ["missing", "misplaced", "mislabeled"]
    assert main("data", "audit", "run", "--top", "0") == 2
    assert "--top must be at least 1, got 0" in capsys.readouterr().err


IN_A_BROWSER = """
const pair = cells => [cells[0].textContent, parseFloat(cells[1].dataset.v)];
const values = table => [...table.tBodies[0].rows].map(row => pair(row.cells));
const tables = [...document.querySelectorAll("table.sortable")].map(table => {
  const before = values(table);
  table.tHead.querySelectorAll("button")[1].click();
  return [before, values(table)];
});
const charts = [...document.querySelectorAll("svg.chart")].map(chart => {
  const point = [...chart.querySelectorAll("circle")].at(-1);
  const box = point.getBoundingClientRect();
  const at = {clientX: box.x, clientY: box.y, bubbles: true};
  chart.dispatchEvent(new window.PointerEvent("pointermove", at));
  return [point.textContent, chart.parentElement.querySelector("output").textContent];
});
const images = [...document.images].map(image => [image.naturalWidth, image.width]);
window.dispatchEvent(new Event("beforeprint"));
const closed = document.querySelectorAll("details:not([open])").length;
return {tables, charts, images, closed, width: document.documentElement.scrollWidth};
"""


def check_in_a_browser(text, folder):
    """On a phone, a report sorts its tables, shows its images, and says the values of curves."""
    found, said = browser.evaluate(text, IN_A_BROWSER, folder, width=390)
    assert said == []
    assert found["width"] <= 390 and found["closed"] == 0
    assert found["images"] == [[96, found["images"][0][1]]] * 2 and found["images"][0][1] > 300
    pairs = [[text.partition(",")[2] for text in pair] for pair in found["charts"]]
    assert pairs and all(point == shown != "" for point, shown in pairs)  # of runs that are equal
    before, after = next(each for each in found["tables"] if "map" in dict(each[0]))
    numbers = [number for _, number in after]
    assert before != after and numbers == sorted(numbers) and dict(before) == dict(after)


def test_report_is_one_page_with_the_data_of_the_runs(fixed, capsys):
    shutil.copytree("run", "other <b>")
    words = ("report", "run", "other <b>", "--bootstrap", "20", "--out", "out/report.html")
    assert main(*words, "--split", "val") == 0
    assert capsys.readouterr().out == "wrote out/report.html\n"
    text = Path("out/report.html").read_text()
    found = test_page.Page(text)
    test_page.check_self_contained(found, text)
    headings = " ".join(e[2] for e in found.all("h2"))
    parts = "Configuration Scores Curves Classes Confusion Images Operations Environment"
    assert headings == parts
    (scores,) = answers("eval", "run", "--split", "val")
    shown = {float(e[1]["data-v"]) for e in found.all("td") if "data-v" in e[1]}
    assert {scores["map"], scores["labels"]["dot"]["map50"], scores["additions"]} <= shown
    charts = {e[1]["aria-label"]: e for e in found.all("svg", "chart")}
    held = {(float(e[1]["data-x"]), float(e[1]["data-y"])) for e in found.all("circle")}
    lines = [line for line in run_dir.read_metrics("run") if line["val"]]
    expected = {(line["epoch"], line["val"]["loss"]) for line in lines}
    assert expected <= held and "loss" in charts
    images = [test_page.decode(e[1]["src"]) for e in found.all("img")]
    assert len(images) == 2 and images[0].size == (96, 64)
    assert len(found.all("rect", "predicted")) == 2 * 2 and len(found.all("rect", "true")) == 2 * 3
    check_in_a_browser(text, Path("out"))
    assert main(*words) == 2
    assert "out/report.html exists" in capsys.readouterr().err
    assert main("report") == 2
    assert "must be given at least one run folder" in capsys.readouterr().err


def test_one_program_evaluates_with_the_assigners_of_all_epochs(data):
    config = detect.Config(
        root=str(data),
        size=(64, 96),
        neck_channels=8,
        model="resnet18",
        tal_from=1,
        batch=2,
        eval_batch=1,
        devices=1,
    )
    with small():
        experiment = configs.build("detect", config)
        state = host_init.initialize(training_state.init_fn(experiment))
        variables = training_state.variables_of(state)
        evaluate = evaluator.Evaluator(experiment, "val")
        zero, one, two = (evaluate(variables, epoch)["loss"] for epoch in range(3))
    assert zero != one == two and evaluate.step._cache_size() == 1


def test_eval_uses_the_assigner_of_the_last_epoch(place):
    last = run_dir.read_metrics("run")[-1]
    for tal_from in (1, 2):
        rewritten("run", tal_from=tal_from)
        (found,) = answers("eval", "run", "--split", "val", "--checkpoint", str(last["step"]))
        same = found["loss"] == pytest.approx(last["val"]["loss"], rel=1e-6)
        assert same == (tal_from == 1)
    (row,) = answers("compare", "run", "--split", "val", "--checkpoint", str(last["step"]))
    assert row["loss"] == found["loss"]


def test_compare_and_eval_have_equal_scores(place):
    (row,) = answers("compare", "run", "--split", "val")
    (found,) = answers("eval", "run", "--split", "val")
    assert (row["map"], row["loss"]) == (found["map"], found["loss"])


def test_eval_prints_a_table_of_scores_and_one_of_classes(place, capsys):
    assert (
        main("eval", "run", "--split", "val", "--score-threshold", ".001", "--nms-type", "wbf") == 0
    )
    scores, labels = parse_aligned(capsys.readouterr().out)
    (mean,) = [row["value"] for row in scores if row["score"] == "map"]
    assert re.fullmatch(r"-?[\d.e-]+", mean)
    assert list(labels[0]) == ["label", "count", "map", "map50", "precision", "recall", "f1"]
    assert [(row["label"], row["count"]) for row in labels] == [("cell", "2"), ("dot", "1")]


def test_report_has_the_thresholds_of_assignment_2(place, capsys):
    assert main("eval", "run", "--split", "val", "--report") == 0
    (found,) = answers("eval", "run", "--split", "val")
    first, *lines = capsys.readouterr().out.splitlines()[:4]
    assert first == f"val map {found['map']:.4f}"
    assert lines == [
        f"map_at_least_{least} {'yes' if found['map'] >= least else 'no'}"
        for least in (0.05, 0.1, 0.2)
    ]
    assert not any("at_least" in name for name in found)


def test_eval_draws_plots_and_predicts_from_six_views(place, capsys):
    words = ["eval", "run", "--split", "val", *LOW, "--tta", "true", "--plots", "new"]
    (found,) = answers(*words)
    (plain,) = answers(*words[:-4], "--split", "val")
    assert found["loss"] == plain["loss"] and found["operations"] > 5 * plain["operations"]
    for name in ("confusion.png", "precision_recall.png", "map.png"):
        assert (Path("new/val") / name).read_bytes().startswith(PNG)


def test_a_training_at_several_sizes_has_a_program_for_each(data, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(sampler, "draw_size", lambda *given: sizes.append(given) or len(sizes) % 2)
    with small():
        words = [*WORDS, "--multiscale", "0.5", "1", "--out", tmp_path / "run"]
        assert main("train", "detect", "--root", data, *words) == 0
    assert sizes == [(0, 0, 2), (0, 1, 2)]
    assert all(np.isfinite(line["val"]["loss"]) for line in run_dir.read_metrics(tmp_path / "run"))


@pytest.mark.long  # that streamed batches are the same ones: tests/data/test_detection.py
def test_a_streamed_training_logs_the_same_numbers(data, trained, tmp_path):
    pytest.importorskip("grain")
    with small():
        words = [*WORDS, "--stream", "true", "--out", tmp_path / "run"]
        assert main("train", "detect", "--root", data, *words) == 0
    for one, other in zip(*map(run_dir.read_metrics, (trained[0], tmp_path / "run")), strict=True):
        for part in ("train", "val"):
            for name, value in (one[part] or {}).items():
                if isinstance(value, float):
                    assert other[part][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


LOW = ["--score-threshold", "0.0001"]


def test_no_box_passes_a_score_that_is_too_high(place):
    (found,) = answers("predict", "run", "data/images/val/3.png", "--score-threshold", "0.999")
    assert found == {"image": "data/images/val/3.png", "objects": []}
    assert main("predict", "run", "data/images/val/3.png", "--score-threshold", "0.999") == 0


def test_predicted_boxes_are_inside_the_image_and_of_the_given_classes(place):
    paths = ["data/images/train/1.png", "data/images/val/3.png"]
    found = answers("predict", "run", *paths, *LOW)
    assert [row["image"] for row in found] == paths
    for row, i in zip(found, (1, 3), strict=True):
        height, width = datasets.SIZES[i]
        boxes = np.array([one["box"] for one in row["objects"]])
        assert len(boxes) > 3 and (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        scores = [one["score"] for one in row["objects"]]
        assert scores == sorted(scores, reverse=True)
    (one,) = answers("predict", "run", paths[0], *LOW, "--classes", "dot")
    assert {row["label"] for row in one["objects"]} == {"dot"}


def test_six_views_change_predictions_and_soft_nms_keeps_all_boxes(place):
    rewritten("run", max_detections=300)
    words = ["predict", "run", "data/images/val/3.png", *LOW, "--nms-iou", ".1", "--tta"]
    plain, hard = (answers(*words, tta)[0]["objects"] for tta in ("false", "true"))
    assert plain[0] != hard[0]
    linear, gaussian = (  # boxes of several views overlap
        answers(*words, "true", "--nms-type", kind)[0]["objects"] for kind in ("linear", "gaussian")
    )
    assert linear[0] == gaussian[0] == hard[0]  # nothing lowers the score of the best one
    assert len(linear) > len(hard) and len(gaussian) > len(hard)
    assert linear != gaussian


def test_tiles_state_their_cost_and_give_boxes_in_pixels_of_the_image(place, capsys):
    words = ["--tiles", "1x2", "--overlap", "0.3", *LOW]
    (found,) = answers("predict", "run", "data/images/val/3.png", *words)
    said = capsys.readouterr().err
    assert "--tiles 1x2: images of 64 x 160 pixels in 1 x 2 tiles of 64 x 96, " in said
    (ratio,) = re.findall(r" G multiply-adds per image, ([\d.]+) times as many as", said)
    assert float(ratio) > 3  # two tiles and the whole image
    boxes = np.array([one["box"] for one in found["objects"]])
    assert len(boxes) > 3 and (boxes >= 0).all() and (boxes <= 45).all()
    (sample,) = answers("predict", "run", "--split", "val", *words)
    assert sample["objects"] == found["objects"]


def test_tiles_by_size_give_each_image_its_own_grid(place, capsys):
    words = ["--tiles", "40", *LOW]  # 2.4 times as large, in 2 x 2 or 2 x 1 tiles
    (found,) = answers("predict", "run", "data/images/train/1.png", *words)
    said = capsys.readouterr().err
    assert "--tiles 40: images of up to 128 x 96 pixels in 2 x 1 tiles of 64 x 96, up to " in said
    run = jaxdet.load("run", tiles="40", score_threshold=0.0001)
    data = run.with_data()
    assert data.splits["train"].arrays["image"].shape == (3, 128, 160, 3)
    samples = predict._read_samples(data, "train", 3, True)
    shapes = [sample.prepared.image.shape[:2] for sample in samples]
    assert shapes == [(128, 160), (128, 96), (128, 96)]
    _, rows = run.measure(data, "train")
    expected = [row["box"] for row in found["objects"]]
    assert len(expected) > 3
    np.testing.assert_allclose(rows["boxes"][1][rows["valid"][1]], expected, atol=0.02)
    with pytest.raises(InputError, match="--format stablehlo needs inputs of one size"):
        run.export("out.jaxdet", "stablehlo")


def test_samples_folders_and_patterns_have_equal_predictions(place):
    samples = answers("predict", "run", "--split", "train", "--count", "3", *LOW)
    folder = answers("predict", "run", "data/images/train", *LOW)
    pattern = answers("predict", "run", "data/images/train/*.png", *LOW)
    assert pattern == folder == answers("predict", "run", "data/**/train/?.png", *LOW)
    for sample, file in zip(samples, folder, strict=True):
        assert Path(file["image"]).name == sample["image"]
        assert [one["label"] for one in sample["objects"]] == [
            one["label"] for one in file["objects"]
        ]
        boxes = [[one["box"] for one in row["objects"]] for row in (sample, file)]
        np.testing.assert_allclose(*boxes, atol=0.02)


def test_files_of_every_format_agree_with_the_printed_boxes(place, capsys):
    path = "data/images/train/0.png"
    words = ["predict", "run", path, *LOW]
    (found,) = answers(*words)
    kinds = ["--save-dir", "drawn", "--save-txt", "txt", "--save-crop", "crops"]
    assert main(*words, *kinds, "--save-json", "new/boxes.json", "--figure", "all.png") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "image label score x0 y0 x1 y1"
    assert len(lines) == len(found["objects"]) + 1 and lines[-1].startswith(
        "wrote all.png, predictions of 1 images"
    )
    height, width = datasets.SIZES[0]
    with Image.open("drawn/0.png") as drawn:
        assert drawn.size == (8 * width, 8 * height)  # 320 pixels at least
    rows = [line.split() for line in Path("txt/0.txt").read_text().splitlines()]
    results = json.loads(Path("new/boxes.json").read_text())
    assert len(rows) == len(results) == len(found["objects"])
    for row, one, other in zip(rows, results, found["objects"], strict=True):
        x, y, across, down = np.array(row[1:5], float) * [width, height, width, height]
        corners = [x - across / 2, y - down / 2, x + across / 2, y + down / 2]
        np.testing.assert_allclose(corners, other["box"], atol=0.02)
        x, y, across, down = one["bbox"]
        np.testing.assert_allclose([x, y, x + across, y + down], other["box"], atol=0.02)
        assert datasets.CLASSES[int(row[0])] == one["category"] == other["label"]
        assert one["category_id"] == int(row[0]) + 1
    assert all(Image.open(path).size[0] <= width for path in Path("crops").iterdir())


def test_files_of_images_with_equal_names_are_numbered(place, capsys):
    shutil.copy("data/images/train/0.png", "3.png")
    words = ["predict", "run", "3.png", "data/images/train/0.png", "data/images/val/3.png", *LOW]
    assert main(*words, "--save-txt", "txt", "--save-json", "all.json") == 0
    names = ["0.txt", "0000_3.txt", "0002_3.txt"]  # that of another name keeps it
    assert sorted(path.name for path in Path("txt").iterdir()) == names
    assert {one["image_id"] for one in json.loads(Path("all.json").read_text())} == {0, 1, 2}
    words = ["predict", "run", "data/images/val/3.png", *LOW, "--save-json", "all.json"]
    assert main(*words) == 0
    assert {one["image_id"] for one in json.loads(Path("all.json").read_text())} == {3}


def renumbered(root, categories, first):
    """The COCO set with other ids, in place: of categories in their order, and of images."""
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        old = [one["id"] for one in content["categories"]]
        for one in content["categories"]:
            one["id"] = categories[old.index(one["id"])]
        for one in content["annotations"]:
            one["category_id"] = categories[old.index(one["category_id"])]
            one["image_id"] += first
        for one in content["images"]:
            one["id"] += first
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("categories, first", [((3, 90), 500), ((0, 1), 0)], ids=["gaps", "zero"])
def test_coco_ids_are_those_of_the_data(place, categories, first):
    datasets.write_coco(Path("coco"))
    renumbered(Path("coco"), categories, first)
    config = runs.read_config("run")
    config = replace(config, root=str(Path("coco").absolute()))
    runs.create("new", configs.build("detect", config))
    shutil.copytree("run/checkpoints", "new/checkpoints")
    ids = dict(zip(datasets.CLASSES, categories, strict=True))
    image_ids = {
        one["file_name"]: one["id"]
        for path in Path("coco/annotations").iterdir()
        for one in json.loads(path.read_text())["images"]
    }
    words = ["predict", "new", *LOW, "--save-json", "all.json"]
    assert main(*words, "--split", "train") == 0
    results = json.loads(Path("all.json").read_text())
    assert {ids[one["category"]] for one in results} == {one["category_id"] for one in results}
    assert {one["file_name"]: one["image_id"] for one in results} == {
        name: number for name, number in image_ids.items() if name != "3.png"
    }
    shutil.rmtree("coco/annotations")  # image files need no data
    assert main(*words, "coco/val2017/3.png") == 0
    results = json.loads(Path("all.json").read_text())
    assert {ids[one["category"]] for one in results} == {one["category_id"] for one in results}
    assert {one["image_id"] for one in results} == {3}
    kept = json.loads(Path("new/config.json").read_text())
    assert kept["metadata"].pop("category_ids") == list(categories)
    Path("new/config.json").write_text(json.dumps(kept))  # as earlier versions wrote it
    assert main(*words, "coco/val2017/3.png") == 0
    for one in json.loads(Path("all.json").read_text()):
        assert one["category_id"] == datasets.CLASSES.index(one["category"]) + 1


def test_text_files_are_read_as_yolo_data(place):
    words = ["predict", "run", "data/images/train", *LOW]
    found = answers(*words, "--save-txt", "data/labels/train")
    read = formats.read("data").splits["train"]
    for row, one in zip(found, read, strict=True):
        assert row["image"].endswith(one.name)
        boxes = np.reshape([each["box"] for each in row["objects"]], (-1, 4))
        np.testing.assert_allclose(one.boxes, boxes, atol=0.02)
        assert [datasets.CLASSES[i] for i in one.labels] == [
            each["label"] for each in row["objects"]
        ]


def test_an_unreadable_image_is_named_and_the_others_are_predicted(place, monkeypatch, capsys):
    Path("images").mkdir()
    for name in ("a", "c"):
        shutil.copy("data/images/val/3.png", f"images/{name}.png")
    Path("images/b.png").write_text("no image")
    assert main("predict", "run", "images", *LOW, "--save-json", "boxes.json") == 1
    said = capsys.readouterr()
    assert "images/a.png" in said.out and "images/c.png" in said.out
    assert said.err.startswith("jaxdet: error: images/b.png: not a readable image")
    assert said.err.count("\n") == 1
    found = json.loads(Path("boxes.json").read_text())
    assert {row["image_id"] for row in found} == {0, 2}
    assert main("predict", "run", "images/b.png") == 2


def test_pictures_of_samples_have_true_boxes(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *args, **named: drawn.append((args, named))
    )
    assert main("predict", "run", "--split", "train", "--figure", "new.png", *LOW) == 0
    (((pictures, _), drawn_options),) = drawn
    for i, true in enumerate(drawn_options["true"]):
        assert pictures[i].shape == (*datasets.SIZES[i], 3)
        boxes = np.reshape([box for box, _ in datasets.BOXES[i]], (-1, 4))
        np.testing.assert_allclose(true, boxes, atol=1e-3)
        assert len(drawn_options["texts"][i]) == len(drawn_options["predicted"][i])


def test_inspect_and_preview(place, capsys):
    assert main("data", "inspect", "detect", "--root", "data") == 0
    said = capsys.readouterr().out
    checks, splits = parse_aligned(said)
    assert ["train", "dot", "2", "2"] in [list(row.values())[:4] for row in splits]
    assert "every image and row can be used" in said
    assert ["images without objects", "1", "2.png"] in [list(row.values())[:3] for row in checks]
    assert main("data", "preview", "detect", "--root", "data", *WORDS, "--out", "new.png") == 0
    assert Path("new.png").read_bytes().startswith(PNG)


def test_preview_shows_inputs_before_and_after_augmentation(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *args, **named: drawn.append((args, named))
    )
    words = [
        "--root",
        "data",
        *WORDS,
        "--mosaic",
        "1",
        "--close-mosaic-epochs",
        "0",
        "--count",
        "2",
    ]
    assert main("data", "preview", "detect", *words, "--out", "new.png", "--before", "true") == 0
    (((pictures, _), drawn_options),) = drawn
    assert len(pictures) == len(drawn_options["titles"]) == len(drawn_options["true"]) == 4
    assert drawn_options["titles"][0] == f"before: {len(datasets.BOXES[0])} boxes"
    assert drawn_options["titles"][1].startswith("after: ") and drawn_options["columns"] % 2 == 0
    assert drawn_options["texts"][0] == [datasets.CLASSES[label] for _, label in datasets.BOXES[0]]
    assert not np.array_equal(pictures[0], pictures[1])


def test_ablation_trains_once_for_two_types_of_nms(place, monkeypatch, capsys):
    epochs = []
    monkeypatch.setattr(
        training_loop.Loop, "batch_indices", _noted(epochs, training_loop.Loop.batch_indices)
    )
    words = ["--root", "data", *WORDS, *LOW, "--nms-type", "hard", "wbf", "--one-at-a-time"]
    words += ["--tal-from", "1", "--eval-first", "false"]
    assert main("sweep", "detect", *words, "--out", "swept") == 0
    assert len(epochs) == 1
    first, second = json.loads(Path("swept/sweep.json").read_text())
    assert (first["changed"], second["changed"]) == ("baseline", "nms-type wbf")
    assert second["gain"] == second["map"] - first["map"] and second["loss"] == first["loss"]
    (found,) = answers("eval", "swept/nms-type=wbf", "--split", "val")
    for name in ("map", "recall100", "loss"):
        assert found[name] == second[name]
    assert found["operations"] == second["operations"] and first["parameters"] > 0
    (shown,) = parse_aligned(capsys.readouterr().out)
    assert list(shown[0])[:3] == ["changed", "gain", "runs"]
    before = Path("swept/nms-type=wbf/metrics.jsonl").read_text()
    assert main("sweep", "detect", *words, "--out", "swept", "--resume") == 0
    assert Path("swept/nms-type=wbf/metrics.jsonl").read_text() == before and len(epochs) == 1


def _noted(calls, call):
    return lambda *given: calls.append(given) or call(*given)


def test_assigned_cells_are_counted_and_drawn(place, capsys):
    words = ["data", "assign", "run", "--split", "train", "--count", "3", "--out", "new/a.png"]
    (rows,) = answers(*words)
    assert [row["boxes"] for row in rows] == [len(datasets.BOXES[i]) for i in range(3)]
    for row in rows:
        cells = sum(count for name, count in row.items() if name.startswith("cells"))
        assert (cells > 0) == (row["boxes"] > row["without a cell"])
    assert main(*words) == 0
    table, _, written = capsys.readouterr().out.rpartition("wrote ")
    assert written == "new/a.png\n"
    (shown,) = parse_aligned(table)
    assert list(shown[0])[:4] == ["image", "boxes", "without a cell", "cells of 8"]
    assert [int(row["boxes"]) for row in shown] == [row["boxes"] for row in rows]
    assert Path("new/a.png").read_bytes().startswith(PNG)


REFUSED = {
    "no root": (["train", "detect", *WORDS], "--root must be a folder of data, got none"),
    "no data": (
        ["train", "detect", *WORDS, "--root", "run"],
        "no data of a known format; expected data.yaml",
    ),
    "format": (["train", "detect", "--root", "data", "--format", "voc"], "no voc data"),
    "size": (
        ["train", "detect", "--root", "data", "--size", "65", "96"],
        "--size must be two positive multiples of 32 pixels, got 65 96",
    ),
    "negative size": (
        ["train", "detect", "--root", "data", "--size", "-32", "-32"],
        "--size must be two positive multiples of 32 pixels, got -32 -32",
    ),
    "freeze": (
        ["train", "detect", "--root", "data", "--freeze-stages", "9"],
        "--freeze-stages must be from -8 to 8 for --model lite0, got 9",
    ),
    "frozen noise": (
        ["train", "detect", "--root", "data", "--freeze-stages", "2"],
        "--freeze-stages 2 needs --weights",
    ),
    "tal after iou": (
        ["train", "detect", "--root", "data", "--assigner", "iou", "--tal-from", "3"],
        "--tal-from needs --assigner tal.*got --assigner iou",
    ),
    "anchors": (
        [
            "train",
            "detect",
            "--root",
            "data",
            "--anchors-per-cell",
            "4",
            "--anchor-ratios",
            "1,2,3",
        ],
        "--anchors-per-cell must be .* a multiple of 3, the number of ratios, got 4",
    ),
    "scales": (
        ["train", "detect", "--root", "data", "--anchors-per-cell", "4", "--anchor-scales", "4"],
        "--anchors-per-cell must be .* times the number of ratios, 1, got 4",
    ),
    "no anchors": (
        ["train", "detect", "--root", "data", "--anchor-ratios", "2"],
        "--anchor-ratios need --anchors-per-cell",
    ),
    "offsets": (
        ["train", "detect", "--root", "data", "--box-loss", "smooth_l1"],
        "--box-loss smooth_l1 needs --anchors-per-cell",
    ),
    "distances": (
        ["train", "detect", "--root", "data", "--anchors-per-cell", "1", "--reg-max", "16"],
        "--reg-max must be 1 with --anchors-per-cell",
    ),
    "nms": (
        ["train", "detect", "--root", "data", "--nms-iou", "1.5"],
        "--nms-iou must be .*got 1.5",
    ),
    "sizes": (
        ["train", "detect", "--root", "data", "--multiscale", "0"],
        "--multiscale must be .*got 0",
    ),
    "mosaic": (
        ["train", "detect", "--root", "data", "--mosaic", "2"],
        "--mosaic must be from 0 to 1, got 2",
    ),
    "topk": (
        ["train", "detect", "--root", "data", "--topk", "0"],
        "--topk must be at least 1, got 0",
    ),
    "class": (
        ["predict", "run", "--split", "train", "--classes", "cat"],
        "--classes must be among cell, dot, got cat",
    ),
    "pattern": (["predict", "run", "data/*.gif"], "pattern matches no files"),
    "image": (["predict", "run", "gone.png"], "gone.png: no such image"),
    "score": (["eval", "run", "--score-threshold", "2"], "--score-threshold must be .*got 2"),
    "score of boxes": (
        ["predict", "run", "data/images/val/3.png", "--score-threshold", "2"],
        "--score-threshold must be .*got 2",
    ),
    "no mosaic": (
        ["train", "detect", "--root", "data", "--mosaic", "1", "--epochs", "5"],
        "--close-mosaic-epochs must be below --epochs 5 .*got 5",
    ),
    "no run": (["predict", "data", "data/images/val/3.png"], "data is not a run"),
    "folder": (["predict", "run", "empty"], "empty: no such image"),
    "split": (
        ["eval", "run", "--split", "tset"],
        "--split must be one of train, val, all, got tset",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_one_line(place, capsys, case):
    words, says = REFUSED[case]
    assert main(*words) == 2
    assert re.fullmatch(f"jaxdet: error: .*{says}.*\n", capsys.readouterr().err)


def test_invalid_rows_stop_training_on_request(place, capsys):
    labels = Path("data/labels/train/0.txt")
    labels.write_text(labels.read_text() + "7 .5 .5 .1 .1\n")
    words = ["train", "detect", "--root", "data", *WORDS, "--out", "other"]
    assert main(*words, "--on-invalid", "error") == 2
    assert "row 3: unknown class 7, must be 0 to 1 (problem 1 of 1)" in capsys.readouterr().err


CHOICES = {
    "yolox": {
        "model": "resnet18",
        "background": "objectness",
        "neck": "pan",
        "neck_block": "c3",
        "assigner": "iou",
        "anchors_per_cell": 2,
        "anchor_ratios": (0.5, 2.0),
        "box_loss": "smooth_l1",
    },
    "background": {
        "model": "resnet18",
        "background": "class",
        "neck_block": "c2f",
        "reg_max": 8,
        "tal_from": 1,
    },
    "b0": {"model": "b0", "freeze_bn": True, "nms_type": "gaussian"},
}


SHALLOW = {  # with a block a stage
    "resnet18": partial(ResNet, stages=(1, 1, 1, 1), block=BasicBlock, width=4, classes=0),
    "b0": partial(efficientnet.B0, depth=0.1, classes=0),
}


@pytest.mark.parametrize("case", long_for(CHOICES, {"b0"}))
def test_every_choice_has_a_loss_and_predictions(data, monkeypatch, case):
    monkeypatch.setattr(registry, "backbone", SHALLOW.get)
    config = detect.Config(root=str(data), size=(64, 64), neck_channels=8)
    config = replace(config, **CHOICES[case])
    experiment = configs.build("detect", config)
    batch = {k: v[:2] for k, v in experiment.splits["train"].arrays.items()}
    batch |= {"real": np.ones(2, np.float32)}

    def whole(key):
        from jaxdet.types import StepContext

        context = StepContext(True, np.int32(0), np.int32(1), experiment.hparams)
        drawn = experiment.task.augment(jax.random.split(key, 2), batch, context)
        variables = experiment.task.init(key, drawn)
        share, (_, terms) = experiment.task.loss(variables, drawn, key, context)
        return share, terms, experiment.task.predict(variables, drawn["image"])

    share, terms, found = jax.eval_shape(whole, jax.random.key(0))
    assert share.shape == () and found["boxes"].shape == (2, config.max_detections, 4)
    assert ("objectness" in terms) == (case == "yolox")
    assert ("distance" in terms) == (case == "background")
