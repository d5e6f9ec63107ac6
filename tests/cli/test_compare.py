"""`jaxdet compare` on small runs of two systems."""

import csv
import io
import json
import re
import shutil
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxdet.cli import compare
from jaxdet.cli.evaluated_run import EvaluatedRun
from jaxdet.data import localization
from jaxdet.ops import boxes
from jaxdet.plots import detection as detection_plots
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, run_dir
from tests import tiny
from tests.cli.test_main import PNG, files, main, parse_aligned
from tests.cli.test_objects import small  # noqa: F401
from tests.plots import test_page

LABELS = ("face", "tall", "wide")
OBJECTS = [
    *("--size", "64", "--epochs", "1", "--batch", "16", "--eval-batch", "6", "--devices", "1"),
    *("--warmup", "0", "--ema", "0.5", "--val-fraction", "0.2", "--test-fraction", "0.3"),
    "--quiet",
]


def draw_rectangle(draw, rng, width, height):
    """Draw a colored rectangle somewhere in an image of 200 x 160 pixels; its box."""
    x, y = (int(rng.integers(0, limit)) for limit in (200 - width, 160 - height))
    color = tuple(int(value) for value in rng.integers(120, 256, 3))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    return x, y, x + width, y + height


def draw_face(draw, rng):
    """Draw a face that the Haar cascade detects; its box, from the brows to the chin."""
    x, y = int(rng.integers(50, 150)), int(rng.integers(70, 90))
    ovals = {
        **{(0, 0, 50, 68): 200, (0, -45, 52, 35): 50},  # head, hair
        **{(-22, -8, 14, 7): 70, (22, -8, 14, 7): 70, (0, 40, 20, 6): 100},  # eyes, mouth
    }
    for (dx, dy, a, b), value in ovals.items():
        draw.ellipse((x + dx - a, y + dy - b, x + dx + a, y + dy + b), fill=(value,) * 3)
    draw.line((x, y - 12, x, y + 15), fill=(230, 230, 230), width=9)
    return max(x - 62, 0), max(y - 60, 0), min(x + 62, 200), min(y + 70, 160)


def write_shapes(root, count=30):
    """Write a data set of faces, tall and wide rectangles: `count` images per label."""
    rng, sides = np.random.default_rng(0), {"tall": (30, 110), "wide": (120, 30)}
    (root / "annotations").mkdir(parents=True)
    for label in LABELS:
        (root / "images" / label).mkdir(parents=True)
        with open(root / "annotations" / f"{label}.csv", "w", newline="") as file:
            for number in range(count):
                image = Image.new("RGB", (200, 160), (90, 90, 90))
                draw = ImageDraw.Draw(image)
                face = draw_face(draw, rng) if label == "face" else None
                box = face or draw_rectangle(draw, rng, *sides[label])
                image.save(root / "images" / label / f"{number}.png")
                csv.writer(file).writerow([f"{number}.png", *box, label])
    return root


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """Epochs of three steps."""
    with tiny.few_digits():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of digits and one of objects."""
    place = tmp_path_factory.mktemp("compare")
    root = write_shapes(place / "data")
    assert main("train", "digits", *tiny.WORDS, "--quiet", "--out", place / "d") == 0
    assert main("train", "objects", "--root", root, *OBJECTS, "--out", place / "o") == 0
    return place


@pytest.fixture
def here(place, monkeypatch):
    """The folder of the runs as working folder; they must not change."""
    monkeypatch.chdir(place)
    before = files(place)
    yield place
    kept = files(place)
    assert {name: kept.get(name) for name in before} == before


class Comparison(NamedTuple):
    """Output, files and pictures of a comparison of both runs."""

    words: list
    out: str
    err: str
    report: Path
    drawn: list  # arguments of `plots.gallery`


@pytest.fixture(scope="module")
def compared(place, tmp_path_factory):
    """Both runs compared, with a report."""
    drawn, gallery = [], detection_plots.gallery
    folder = tmp_path_factory.mktemp("compared")
    report = folder / "a b" / "report.md"
    words = ["compare", place / "d", place / "o", "--report", report]
    words += ["--failures", folder / "c" / "worst.png"]

    def spy(*args, **named):
        drawn.append((args, named))
        gallery(*args, **named)

    with pytest.MonkeyPatch.context() as patch, captured() as (out, err):
        patch.setattr(detection_plots, "gallery", spy)
        assert main(*words) == 0
    return Comparison(words, out.getvalue(), err.getvalue(), report, drawn)


@contextmanager
def captured():
    """The two output streams, for fixtures that outlive a test."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def printed(*words):
    """(objects, warnings): the lines of JSON that a command prints, and its stderr."""
    with captured() as (out, err):
        assert main(*words, "--json") == 0
    return [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def test_differences_are_those_of_scores_on_the_same_images(place, tmp_path):
    shutil.copytree(place / "d", tmp_path / "same")
    words = ["compare", place / "d", tmp_path / "same", "--bootstrap", "30"]
    rows, _ = printed(*words)
    differences = [row for row in rows if "difference" in row]
    assert {row["score"] for row in differences} == {
        "accuracy",
        "iou",
        "iou50",
        "joint",
        "right_iou",
    }
    for row in differences:  # of a run and itself
        assert row["run"] == "same" and not row["difference"] and not row["differs"]
        assert row["interval"] == "0 to 0"


def test_a_difference_whose_interval_excludes_zero_counts():
    def evaluated(name, samples, score, images=0):
        fields = dict.fromkeys(EvaluatedRun._fields)
        row = {"run": name, "split": "test", "accuracy": score}
        added = {"row": row, "data": {"test": images}, "samples": {"accuracy": samples}}
        return EvaluatedRun(**fields | added)

    base, noise = np.linspace(0.4, 0.6, 50), np.linspace(-0.01, 0.01, 50)
    runs = [("a", base, 0.5), ("b", base + noise, 0.5), ("c", base + noise - 0.1, 0.4)]
    runs.append(("other images", base, 0.5, 1))
    b, c = compare.difference_rows([evaluated(*each) for each in runs])
    assert (b["run"], b["difference"], b["differs"]) == ("b", 0, False)
    assert c["run"] == "c" and c["differs"]
    np.testing.assert_allclose(c["difference"], -0.1)


def cells(text):
    """The rows {heading: cell} of a table in Markdown, or of the first one of aligned text."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    if not lines:
        return parse_aligned(text)[0]
    heads, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(heads, row, strict=True)) for row in rows]


COUNTS = {"d": 100, "o": 27}  # images of the test split
EPOCHS = {"d": 2, "o": 1}
KINDS = ("additions", "multiplications", "maxima", "operations")
COSTS = (*KINDS, "seconds", "operations_per_second")  # per image


def test_a_row_has_the_scores_of_eval_and_the_history_of_the_run(here):
    rows, _ = printed("compare", "d", "o")
    for row in rows:
        ((scores,), _) = printed("eval", row["run"])
        for kind in KINDS:
            assert row[kind] * COUNTS[row["run"]] == scores[kind]
        scores = {name: value for name, value in scores.items() if name not in COSTS}
        assert {name: row[name] for name in scores} == scores
        metrics = run_dir.read_metrics(row["run"])
        (best,) = (m for m in metrics if m["step"] == checkpoint.best(row["run"]))
        assert (row["epochs"], row["best_epoch"]) == (EPOCHS[row["run"]], best["epoch"])
        assert row["epoch_seconds"] == median_low(m["time"]["train"] for m in metrics if m["train"])
        assert row["parameters"] > 1000
        assert row["seconds"] > 0


def test_columns_that_a_run_lacks_are_empty(compared):
    digits, objects = cells(compared.out)
    assert (digits["run"], digits["model"], digits["size"]) == ("d", "digits", "56 x 56")
    assert (objects["run"], objects["model"], objects["size"]) == ("o", "simple", "64 x 64")
    class_columns = (f"{name} {score}" for name in LABELS for score in ("accuracy", "iou"))
    assert {name for name, cell in digits.items() if not cell} == {"iou70", *class_columns}
    assert all(objects.values())
    assert re.fullmatch("jaxdet: warning: the runs are of different systems.*\n", compared.err)


@pytest.fixture
def variants(here, tmp_path):
    """Copies of the run of objects: two equal ones, another test split, another loss."""
    for name in ("same", "b/o", "split", "loss"):
        shutil.copytree(here / "o", tmp_path / name)
    table = tmp_path / "split" / "splits" / "test_data.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    path = tmp_path / "loss" / "config.json"
    kept = json.loads(path.read_text())
    kept["config"]["box_loss"] = "mse"
    path.write_text(json.dumps(kept))
    return tmp_path


def test_other_data_and_another_loss_are_warned_of(variants):
    _, warned = printed("compare", "o", variants / "split", variants / "loss")
    edited, data, loss = warned.splitlines()
    assert re.fullmatch(f"jaxdet: warning: {variants / 'loss'}/config.json .*", edited)
    assert re.fullmatch("jaxdet: warning: the data .* differ in splits/test_data.csv", data)
    assert re.fullmatch("jaxdet: warning: the losses .* differ in box_loss; compare only .*", loss)


def test_runs_of_one_name_are_distinguished_and_a_run_is_evaluated_once(variants):
    rows, warned = printed("compare", "o", variants / "b" / "o", variants / "same", "o")
    assert [row["run"] for row in rows] == ["o", str(variants / "b" / "o"), "same"]
    assert warned == ""


def test_a_report_has_the_table_and_links_to_the_pictures(compared):
    text = compared.report.read_text()
    table, shown = cells(text), cells(compared.out)
    assert [[*row] for row in table] == [[*row] for row in shown]
    for row, other in zip(table, shown, strict=True):
        assert (row["run"], row["size"]) == (other["run"], other["size"])
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)
    links = re.findall(r"!\[.+\]\((.+)\)", text)
    assert links == ["report_curves.png", "../c/worst.png"]
    assert all((compared.report.parent / link).read_bytes().startswith(PNG) for link in links)
    assert "the runs are of different systems" in text
    assert compared.out.splitlines()[-1].startswith("wrote ")


def test_a_report_is_replaced_with_overwrite_only(compared, here, capsys):
    folder = compared.report.parent.parent
    before = files(folder)
    assert main(*compared.words) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"jaxdet: error: .*report.md exists; .*--overwrite\n", error)
    assert files(folder) == before
    compared.report.write_text("old")
    assert main("compare", "o", *compared.words[3:], "--overwrite") == 0
    assert "1 run compared" in compared.report.read_text()
    assert files(folder).keys() == before.keys()


def test_failures_are_the_worst_predictions_of_each_run(compared):
    (((images, _), named),) = compared.drawn
    assert (len(images), named["columns"]) == (12, 3)
    assert {image.shape for image in images} == {(56, 56, 1), (160, 200, 3)}  # of objects: files
    rows, _ = localization.read_annotations(compared.words[1].parent / "data")
    annotated, ranks = {row.name: row.box for row in rows}, []
    for title, true, found in zip(named["titles"], named["true"], named["predicted"], strict=True):
        pattern = r"(\w): (\S+)\ntrue (\w+), predicted (\w+), IoU (\d\.\d\d)"
        run, name, label, predicted, iou = re.fullmatch(pattern, title).groups()
        assert float(iou) == pytest.approx(float(boxes.iou(true, found)), abs=0.006)
        assert run == "d" or name.startswith(f"{label}/")
        assert run == "d" or tuple(np.round(true)) == annotated[name]
        ranks.append((run, label == predicted, float(iou)))
    assert ranks == sorted(ranks)


@pytest.mark.long
def test_a_page_on_runs_of_different_systems_has_their_worst_and_best_images(here, tmp_path):
    path = tmp_path / "report.html"
    assert main("report", "d", "o", "--out", path, "--bootstrap", "0") == 0
    text = path.read_text()
    found = test_page.Page(text)
    test_page.check_self_contained(found, text)
    sizes = [test_page.decode(e[1]["src"]).size for e in found.all("img")]
    assert sizes == [(56, 56)] * 12 + [(200, 160)] * 12
    said = [e[2] for e in found.all("figcaption") if "IoU" in e[2]]
    overlaps = [float(text.rsplit(maxsplit=1)[1]) for text in said]
    worst, best = overlaps[0:6] + overlaps[12:18], overlaps[6:12] + overlaps[18:24]
    assert sum(best) > sum(worst)


def test_curves_are_drawn_for_terms_that_all_runs_have(tmp_path):
    def lines(*terms, **more):
        return [{"epoch": epoch, "val": dict.fromkeys(terms, 0.5), **more} for epoch in range(3)]

    every, some = lines("loss", "accuracy", "iou"), lines("loss", "iou", "map")
    timed = lines("loss", "accuracy", time={"train": 3.0, "eval": 1.0})
    widths = (({"a": every}, 3), ({"a": every, "b": some}, 2), ({"a": []}, 1))
    for of_runs, width in (*widths, ({"a": timed}, 3), ({"a": timed, "b": every}, 2)):
        training_plots.compare_runs(of_runs, tmp_path / "c" / "curves.png")
        with Image.open(tmp_path / "c" / "curves.png") as picture:
            assert picture.size == (550 * width + 67, 400)


REFUSED = {
    "no run": ([], "no runs to compare"),
    "not a run": (["o", "data"], "data is not a run"),
    "no such folder": (["gone"], "gone is not a run"),
    "no checkpoint": (["o", "bare"], "bare has no checkpoints"),
    "no such checkpoint": (["o", "--checkpoint", "7"], "--checkpoint must be .* got 7"),
    "split": (["o", "--split", "all"], "--split must be one of train, val, test, got all"),
    "figure": (["o", "--figure", "curves.txt"], "a picture must end in .*, got curves.txt"),
    "failures": (["o", "--failures", "worst"], "a picture must end in .*, got worst"),
    "classic digits": (["o", "d", "--classic"], "--classic needs runs of objects, got d, .*digits"),
}


@pytest.mark.parametrize("words, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused_in_one_line(here, capsys, words, message):
    shutil.copytree("o", "bare", ignore=lambda *_: ["checkpoints"], dirs_exist_ok=True)
    before = files(here)
    assert main("compare", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"jaxdet: error: .*{message}.*\n", err), err
    assert files(here) == before


def test_classical_baselines_get_rows_with_the_same_scores(here, tmp_path, capsys):
    pytest.importorskip("cv2")
    path = tmp_path / "report.md"
    assert main("compare", "o", "--classic", "--report", path) == 0
    text = path.read_text()
    own, hog, haar = cells(text.split("## Settings")[0])
    assert [row["run"] for row in (own, hog, haar)] == ["o", "HOG + linear SVM", "Haar cascade"]
    scored = {"loss", "accuracy", "iou", "error rate", "s per image", "face iou"}
    assert all(hog[name] and haar[name] for name in scored)
    assert not hog["operations per image"] + haar["epochs"]
    assert float(hog["accuracy"]) > 0.9
    assert "softmax of its decision values" in text
    parts = ["Losses of training and validation", "The best network", "Accuracy of each label"]
    assert all(f"\n## {part}" in text for part in (*parts, "Discussion"))
    assert "The best run: `o`" in text and "| label | accuracy | iou |" in text


def test_help_names_every_option(capsys):
    assert main("compare", "--help") == 0
    text = capsys.readouterr().out
    for name in ("checkpoint", "split", "report", "figure", "failures", "classic", "overwrite"):
        assert f"--{name} " in text
