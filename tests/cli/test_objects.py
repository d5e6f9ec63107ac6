"""The objects system through its commands, on a small set of images made here."""

import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdet import api, configs
from jaxdet.configs import objects
from jaxdet.data import images, localization
from jaxdet.models import plain
from jaxdet.models.localizer import Localizer
from jaxdet.ops import boxes
from jaxdet.plots import detection as detection_plots
from jaxdet.training import run_dir
from tests.cli.test_main import PNG, files, main, parse_aligned

COLORS = {"cup": (220, 40, 40), "key": (40, 200, 60), "pen": (50, 60, 230)}
EACH = 8  # images per label
WRONG = ("0.jpg,1,2", "flat.jpg,9,9,9,9", "gone.jpg,1,2,3,4")  # and one such row
WORDS = [
    *("--size", "64", "--epochs", "1", "--batch", "8", "--eval-batch", "8", "--devices", "1"),
    *("--val-fraction", "0.25", "--test-fraction", "0.25"),
]


def draw_image(rng, color):
    """A colored rectangle on noise: (image [H, W, 3], box)."""
    height, width = rng.integers(50, 120, 2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    x0, y0 = rng.integers(2, (width // 3, height // 3))
    x1, y1 = rng.integers((width // 2, height // 2), (width - 2, height - 2))
    image[y0:y1, x0:x1] = color
    return image, (x0, y0, x1, y1)


def write_objects(root, each=EACH):
    """`each` images per label, and three invalid rows: malformed, without box, without image."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for label, color in COLORS.items():
        (root / "images" / label).mkdir(parents=True)
        with open(root / "annotations" / f"{label}.csv", "w") as table:
            for i in range(each):
                image, box = draw_image(rng, color)
                Image.fromarray(image).save(root / "images" / label / f"{i}.jpg", quality=95)
                print(f"{i}.jpg", *box, label, sep=",", file=table)
    for label, line in zip(COLORS, WRONG, strict=True):
        with open(root / "annotations" / f"{label}.csv", "a") as table:
            print(f"{line},{label}", file=table)
    return root


def one_convolution(classes, *, dtype=None, **part):
    """A network that compiles fast, with the layers of `simple`: norm, pool, dropout."""
    features = partial(plain.ConvStack, layout="8 M8", dtype=dtype, **part)
    return Localizer(features, classes, hidden=(8,), rates=(0.5,), side=3, dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace `simple` by the small network, since commands are tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "simple", one_convolution)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run folder, and the output of its training."""
    run, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    with redirect_stdout(said):
        assert main("train", "objects", "--root", data, *WORDS, "--out", run) == 0
    return run, said.getvalue()


@pytest.fixture
def place(data, trained, tmp_path, monkeypatch):
    """The working folder, with the run and the images, both free to be changed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "data")
    shutil.copytree(trained[0], "run")
    path = tmp_path / "run" / "config.json"
    kept = json.loads(path.read_text())
    kept["config"]["root"] = str(tmp_path / "data")
    path.write_text(json.dumps(kept))
    return tmp_path


@pytest.fixture(scope="module")
def evaluated(trained):
    """Output of `eval --split all --json` for the run."""
    return scores(trained[0])


def part(folder, name):
    """The rows of one table of a split, as lists of words."""
    return list(csv.reader((folder / localization.SPLIT_FILES[name]).open()))


def answers(*words):
    """The JSON lines of a command."""
    said = io.StringIO()
    with redirect_stdout(said):
        assert main(*words, "--json") == 0
    return [json.loads(line) for line in said.getvalue().splitlines()]


TIMES = ("seconds", "operations_per_second")


def scores(*words, split="all"):
    """Output of `eval --json` for all splits, without the values that differ between two runs."""
    found = answers("eval", *words, "--split", split)
    return [{name: v for name, v in line.items() if name not in TIMES} for line in found]


# train


def test_training_keeps_its_split(trained, data):
    run, _ = trained
    rows, _ = localization.read_annotations(data)
    parts = localization.random_split(rows, val_fraction=0.25, test_fraction=0.25)
    kept = {path.name: path.read_text() for path in (run / "splits").iterdir()}
    assert kept == {
        localization.SPLIT_FILES[name]: localization.to_csv(of) for name, of in parts.items()
    }
    assert sum(len(of) for of in parts.values()) == 3 * EACH + 2
    metadata = json.loads((run / "config.json").read_text())["metadata"]
    assert metadata["classes"] == ["cup", "key", "pen"]
    assert metadata["input"] == [64, 64, 3]


def test_training_says_what_it_leaves_out(trained, data):
    warning, head, *lines = trained[1].splitlines()[:5]
    assert warning == "warning: --warmup 50 does not end: the run has only 2 parameter updates"
    assert head == "3 images or rows cannot be used and are left out:"
    tables = [data / "annotations" / f"{label}.csv row {EACH + 1}: " for label in COLORS]
    says = [
        "must have columns .* got 4 columns",
        "box 9 9 9 9 is empty.*",
        ".*gone.jpg: no such image",
    ]
    for line, table, words in zip(sorted(lines), tables, says, strict=True):
        assert re.fullmatch(f"  {table}{words}", line)


def test_training_logs_scores_of_labels_and_boxes(trained):
    last = run_dir.read_metrics(trained[0])[-1]
    assert {"loss", "classification", "regression"} <= set(last["train"])
    assert {"accuracy", "iou", "iou50", "iou70", "labels", "confusion"} <= set(last["val"])
    assert last["epoch"] == 1


def test_existing_split_files_are_used(place):
    chosen = {"train": ["cup/0.jpg", "key/1.jpg"], "val": ["pen/2.jpg"], "test": ["cup/7.jpg"]}
    rows = {row.name: row for row in localization.read_annotations("data")[0]}
    for name, of_part in chosen.items():
        run_dir.write_text(
            "mine",
            localization.SPLIT_FILES[name],
            localization.to_csv([rows[image] for image in of_part]),
        )
    system = configs.build("objects", objects.Config(root="data", size=64, split_files="mine"))
    assert {name: source.names for name, source in system.splits.items()} == chosen
    assert not system.notes


# eval


def test_report_has_the_format_of_assignment_0(place, evaluated, capsys):
    assert main("eval", "run", "--split", "all", "--report") == 0
    out = capsys.readouterr().out
    heads = re.findall(r"^\*\*\* (.*)$", out, re.M)
    assert heads == ["train set accuracy", "validation set accuracy", "test set accuracy"]
    texts = re.split(r"^\*\*\* .*\n", out, flags=re.M)[1:]
    for text, found in zip(texts, evaluated, strict=True):
        lines = text.splitlines()
        assert lines[0] == f"Mean accuracy for all labels: {found['accuracy']!r}"
        for i, (label, of_label) in enumerate(found["labels"].items()):
            right, count = of_label["correct"], of_label["count"]
            assert lines[1 + 2 * i] == f"    Mean accuracy for label {label}: {right / count!r}"
            assert lines[2 + 2 * i].strip() == f"{right} over {count} samples"
        assert f"iou {found['iou']!r}" in lines


def test_eval_prints_scores_and_confusion_of_each_split(place, evaluated, capsys):
    assert main("eval", "run", "--split", "all") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+) split, checkpoint of step \d+:$", out, re.M) == [
        "train",
        "val",
        "test",
    ]
    shown = parse_aligned(out)
    for overall, labels, found in zip(shown[::2], shown[1::2], evaluated, strict=True):
        values = {row["score"]: row["value"] for row in overall}
        for name in ("accuracy", "iou", "right_iou", "loss"):
            assert values[name] == f"{found[name]:.4g}"
        for row, (name, of_label), counts in zip(
            labels, found["labels"].items(), found["confusion"], strict=True
        ):
            assert row["label"] == name
            assert row["accuracy"] == f"{of_label['accuracy']:.4g}"
            assert [int(row[f"as {other}"]) for other in COLORS] == counts
    assert "***" not in out


def test_report_and_json_exclude_each_other(place, capsys):
    assert main("eval", "run", "--report", "--json") == 2
    assert "--report and --json exclude each other" in capsys.readouterr().err


def test_eval_counts_every_image_once(trained, evaluated):
    assert [found["split"] for found in evaluated] == list(localization.SPLIT_FILES)
    for found in evaluated:
        rows = part(trained[0] / "splits", found["split"])
        labels = [row[-1] for row in rows if row[0] not in ("flat.jpg", "gone.jpg")]
        counts = [labels.count(label) for label in COLORS]
        assert [found["labels"][label]["count"] for label in COLORS] == counts
        assert found["count"] == len(labels)
        np.testing.assert_array_equal(np.sum(found["confusion"], axis=1), counts)
        assert np.trace(found["confusion"]) == found["correct"]


def test_eval_gives_what_training_logged(trained):
    logged = run_dir.read_metrics(trained[0])[-1]["val"]
    (val,) = scores(trained[0], "--checkpoint", "last", split="val")
    assert {name: val[name] for name in logged} == logged


def test_eval_uses_the_split_of_the_run_whatever_becomes_of_the_tables(place, evaluated):
    for table in (place / "data" / "annotations").iterdir():
        lines = table.read_text().splitlines()
        table.write_text("\n".join(reversed(lines[:4])))
    assert scores("run", split="test") == evaluated[2:]
    shutil.rmtree("data/annotations")
    assert scores("run", split="val") == evaluated[1:2]


def test_images_of_the_run_in_another_folder_keep_their_split(place, evaluated, capsys):
    shutil.move("data", "moved")
    assert main("eval", "run") == 2
    assert re.fullmatch("jaxdet: error: .*data: no such folder\n", capsys.readouterr().err)
    assert scores("run", "--root", "moved", split="test") == evaluated[2:]
    count = [found["count"] for found in evaluated]
    said = f"only the {count[2]} images .* .train {count[0]}, val {count[1]}.;"
    assert re.search(f"warning: moved: {said} .* --split all\n", capsys.readouterr().err)


def test_every_image_from_elsewhere_is_evaluated(place, capsys):
    """Labels are those of folders and tables; one image has a box, one cannot be read."""
    for name in ("cup/1.jpg", "cup/2.jpg", "pen/3.jpg"):
        (place / "web" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"data/images/{name}", f"web/images/{name}")
    shutil.copy("data/images/cup/4.jpg", "web/images/cup_4.jpg")
    Path("web/images/pen/none.jpg").write_text("no image")
    (row,) = (row for row in localization.read_annotations("data")[0] if row.name == "cup/1.jpg")
    assert row.box
    Path("web/labels.csv").write_text(
        f"file,label\ncup_4.jpg,cup\n1.jpg,{','.join(map(str, row.box))},cup\n"
    )
    (found,) = answers("eval", "run", "--root", "web")
    unread, bare = capsys.readouterr().err.splitlines()
    assert re.search("1 images or rows .*none.jpg: not a readable image", unread)
    assert "no box: the loss is left out, and the box scores cover only the other 1" in bare
    counts = {name: of["count"] for name, of in found["labels"].items()}
    assert (found["split"], found["count"], counts) == ("test", 4, {"cup": 3, "key": 0, "pen": 1})
    predicted = {of["image"]: of for of in answers("predict", "run", "--root", "web")}
    assert {*predicted} == {"cup/1.jpg", "cup/2.jpg", "cup/cup_4.jpg", "pen/3.jpg"}
    right = sum(of["label"] == name.split("/")[0] for name, of in predicted.items())
    assert found["correct"] == right
    iou = float(boxes.iou(np.array(predicted["cup/1.jpg"]["box"]), np.array(row.box)))
    assert found["iou"] == pytest.approx(iou, abs=1e-3)
    assert "classification" in found and not {"loss", "regression"} & found.keys()

    Path("web/labels.csv").unlink()
    assert main("eval", "run", "--root", "web", "--report") == 0
    out, err = capsys.readouterr()
    assert "cup_4.jpg: has no label" in err and "3 of 3 images have no box: the loss and" in err
    assert "iou" not in out
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "*** test set accuracy"
    assert "Mean accuracy for label key: no sample" in lines
    assert f"{found['labels']['pen']['correct']} over 1 samples" in lines

    (place / "web" / "images" / "dog").mkdir()
    shutil.copy("data/images/cup/4.jpg", "web/images/dog/4.jpg")
    assert main("eval", "run", "--root", "web") == 2
    assert "unknown label 'dog', must be one of cup, key, pen" in capsys.readouterr().err


# predict


def test_samples_and_image_files_have_equal_predictions(place):
    samples = answers("predict", "run")
    paths = [Path("data/images") / sample["image"] for sample in samples]
    found = answers("predict", "run", *paths)
    assert [row["image"] for row in found] == list(map(str, paths))
    for file, sample in zip(found, samples, strict=True):
        assert file["label"] == sample["label"]
        np.testing.assert_allclose(file["box"], sample["box"], atol=0.02)
        np.testing.assert_allclose(file["score"], sample["score"], atol=2e-4)


def test_predicted_boxes_are_in_pixels_of_the_file(place):
    """The network's box, as a fraction of its input, times the size of the image."""
    run = api.load("run")
    predict = jax.jit(run.predict_fn())
    paths = images.list_images("data/images/key")[:3]
    for path, found in zip(paths, answers("predict", "run", *paths), strict=True):
        width, height = Image.open(path).size
        assert width != height
        network = predict(run.variables, images.read_resized_float(path, 64)[0][None])
        share = np.asarray(network["box"][0]) / 64
        np.testing.assert_allclose(found["box"], share * [width, height, width, height], atol=0.01)


def test_stretched_image_has_a_stretched_box(place):
    image = Image.open("data/images/pen/0.jpg")
    image.save("same.png")
    wide = image.resize((4 * image.width, image.height), Image.Resampling.NEAREST)
    wide.save("wide.png")
    same, wide = answers("predict", "run", "same.png", "wide.png")
    np.testing.assert_allclose(
        wide["box"], np.multiply(same["box"], [4, 1, 4, 1]), atol=0.05 * image.width
    )


def test_predict_takes_folders_and_tables(place):
    names = [f"{i}.jpg" for i in range(EACH)]
    of_folder = answers("predict", "run", "data/images/cup")
    assert [row["image"] for row in of_folder] == [f"data/images/cup/{name}" for name in names]
    Path("data/cup.CSV").write_text("file,a,b,c,d,label\n3.jpg,1,2,3,4,cup\n0.jpg,1,2,3,4,pen\n")
    of_table = answers("predict", "run", "data/cup.CSV")
    folder = place / "data" / "images"
    assert [row["image"] for row in of_table] == [f"{folder}/cup/3.jpg", f"{folder}/pen/0.jpg"]
    assert [of_table[0][k] for k in ("label", "score", "box")] == [
        of_folder[3][k] for k in ("label", "score", "box")
    ]


def test_images_of_a_table_are_those_of_the_data(place, capsys):
    Path("table.csv").write_text("3.jpg,1,2,3,4,cup\n0.jpg,1,2,3,4,pen\n")
    before = answers("predict", "run", "table.csv")
    shutil.move("data", "moved")
    assert main("predict", "run", "table.csv") == 2
    assert re.fullmatch("jaxdet: error: .*data: no such folder\n", capsys.readouterr().err)
    found = answers("predict", "run", "table.csv", "--root", "moved")
    assert [row["box"] for row in found] == [row["box"] for row in before]


def test_predict_prints_a_line_per_image(place, capsys):
    paths = ["data/images/cup/0.jpg", "data/images/pen/1.jpg"]
    found = answers("predict", "run", *paths)
    assert main("predict", "run", paths[0], "--filename", paths[1]) == 0
    lines = [" ".join(map(str, [r["image"], r["label"], r["score"], *r["box"]])) for r in found]
    assert capsys.readouterr().out.splitlines() == ["image label score x0 y0 x1 y1", *lines]


def test_only_failures_are_shown_without_show_all_images(place):
    """Tables list the prediction itself, another label, half a box, and a bit more."""
    other = "data/images/pen/0.jpg"  # of which no table says anything
    rows = []
    for i, found in enumerate(
        answers("predict", "run", *images.list_images("data/images/cup")[:4])
    ):
        (x0, y0, x1, y1), label = found["box"], found["label"]
        x1 = x0 + {2: 0.45, 3: 0.55}.get(i, 1) * (x1 - x0)
        label = {"pen": "cup"}.get(label, "pen") if i == 1 else label
        shutil.copy(found["image"], f"data/images/{label}/{i}_known.jpg")
        rows.append(f"{i}_known.jpg,{x0},{y0},{x1},{y1},{label}\n")
    Path("table.csv").write_text("".join(rows))
    every = answers("predict", "run", "table.csv", other)
    assert len(every) == 5
    words = ["predict", "run", "table.csv", other]
    assert answers(*words, "--show-all-images", "false") == every[1:3]
    assert answers(*words, "--no-show-all-images") == every[1:3]


def test_failed_samples_have_a_wrong_box_or_label(place):
    every = answers("predict", "run", "--split", "train")
    truth = {f"{row[-1]}/{row[0]}": row for row in part(Path("run/splits"), "train")}
    wrong = []
    for row in every:
        *_, x0, y0, x1, y1, label = truth[row["image"]]
        box = np.array([x0, y0, x1, y1], float)
        if row["label"] != label or boxes.iou(np.array(row["box"]), box) < 0.5:
            wrong.append(row)
    words = ["predict", "run", "--split", "train", "--show-all-images", "false"]
    assert answers(*words) == wrong


def test_save_dir_has_a_picture_per_image(place, capsys):
    words = ["data/images/cup/1.jpg", "data/images/pen/1.jpg"]
    assert main("predict", "run", *words, "--save-dir", "new/pictures") == 0
    assert capsys.readouterr().out.endswith("\nwrote predictions of 2 images to new/pictures\n")
    found = sorted(Path("new/pictures").iterdir())
    assert [path.name for path in found] == ["0000_1.png", "0001_1.png"]
    assert all(path.read_bytes().startswith(PNG) for path in found)


def test_pictures_have_true_and_predicted_boxes_in_original_pixels(place, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        detection_plots, "gallery", lambda *args, **kwargs: drawn.append((args, kwargs))
    )
    Path("table.csv").write_text("0.jpg,5,6,40,45,cup\n")
    file = "data/images/key/0.jpg"
    found = answers("predict", "run", "table.csv", file, "--figure", "new.png")
    (((pictures, path), drawn_options),) = drawn
    assert path == Path("new.png")
    np.testing.assert_allclose(drawn_options["true"][0], [5, 6, 40, 45], rtol=1e-5)
    assert drawn_options["true"][1] is None
    for i, name in enumerate(("data/images/cup/0.jpg", file)):
        np.testing.assert_array_equal(np.rint(pictures[i] * 255), np.asarray(Image.open(name)))
        np.testing.assert_allclose(drawn_options["predicted"][i], found[i]["box"], atol=0.01)
    labels = [row["label"] for row in found]
    assert drawn_options["titles"] == [f"true cup, predicted {labels[0]}", f"predicted {labels[1]}"]


@pytest.mark.parametrize(
    ("display", "words", "shown"),
    [
        (":0", ["--filename", "data/images/cup/0.jpg"], 1),
        ("", ["--filename", "data/images/cup/0.jpg"], 0),
        (":0", ["--filename", "data/images/cup/0.jpg", "--save-dir", "new"], 0),
        (":0", ["--filename", "data/images/cup/0.jpg", "--figure", "new.png"], 0),
        (":0", ["data/images/cup/0.jpg"], 0),
    ],
    ids=["window", "no display", "folder", "figure", "words"],
)
def test_windows_open_for_filename_where_there_is_a_display(
    place, monkeypatch, display, words, shown
):
    seen = []
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(
        detection_plots, "show_file", lambda path: seen.append(path.read_bytes()[:4])
    )
    assert main("predict", "run", *words) == 0
    assert seen == [PNG] * shown


# data


def test_inspect_lists_labels_and_invalid_rows(place, capfd):
    words = ["data", "inspect", "objects", "--root", "data"]
    assert main(*words, "--on-invalid", "error") == 2
    out, err = capfd.readouterr()
    assert err == (
        "jaxdet: error: 3 images or rows cannot be used; accept this with --on-invalid skip\n"
    )
    assert main(*words) == 0
    assert capfd.readouterr() == (out, "")
    for i, label in enumerate(COLORS):
        assert re.search(rf"^{label} +{EACH + (i > 0)} +{EACH}  ", out, re.M)
        assert f"data/annotations/{label}.csv row {EACH + 1}: " in out


def test_inspect_prints_json(place, capfd):
    words = ["data", "inspect", "objects", "--root", "data", "--json"]
    assert main(*words) == 0
    found = json.loads(capfd.readouterr().out)
    assert [row["label"] for row in found["labels"]] == list(COLORS)
    assert [row["usable"] for row in found["labels"]] == [EACH] * 3
    assert len(found["bad"]) == 3


def test_inspect_of_valid_data_exits_with_0(place, capfd):
    for table in (place / "data" / "annotations").iterdir():
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    assert main("data", "inspect", "objects", "--root", "data") == 0
    out, err = capfd.readouterr()
    assert out.startswith("every image and row can be used\n") and err == ""


def test_split_writes_the_tables_that_training_kept(place, capsys):
    words = ["data", "split", "objects", "--root", "data", *WORDS[-4:], "--out", "new"]
    assert main(*words) == 0
    out = capsys.readouterr().out
    kept = {path.name: path.read_text() for path in Path("run/splits").iterdir()}
    assert {path.name: path.read_text() for path in Path("new").iterdir()} == kept
    for name in localization.SPLIT_FILES:
        assert re.search(rf"^{name} +{len(part(Path('new'), name))}  ", out, re.M)
    assert main(*words, "--overwrite", "--split-seed", "5") == 0
    assert {path.name: path.read_text() for path in Path("new").iterdir()} != kept


def test_preview_draws_training_images(place, capsys):
    words = ["data", "preview", "objects", "--root", "data", *WORDS, "--count", "4"]
    assert main(*words, "--out", "new.png") == 0
    assert Path("new.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out == "wrote new.png\n"


# invalid input

TRAIN = ["train", "objects", "--root", "data", *WORDS]
FROZEN = ["--transfer", "frozen", "--weights", "gone.pth"]
SPLIT = ["data", "split", "objects", "--root", "data"]

REFUSED = {
    "no root": (["train", "objects"], "--root must be a folder with images/ and annotations/"),
    "root missing": (["train", "objects", "--root", "gone"], "--root .*gone: no such folder"),
    "root without tables": (["train", "objects", "--root", "run"], "run/annotations: no tables"),
    "size": ([*TRAIN, "--size", "63"], "--size must be at least 64 pixels, got 63"),
    "frozen": ([*TRAIN, "--transfer", "frozen"], "--transfer frozen needs --weights"),
    "finetune": ([*TRAIN, "--transfer", "finetune"], "--transfer finetune needs --weights"),
    "scratch": (
        [*TRAIN, "--weights", "a.pth"],
        "--weights needs --transfer frozen or finetune, got scratch",
    ),
    "learn last": (
        [*TRAIN, *FROZEN, "--unfreeze-last", "99"],
        "--unfreeze-last must be from 0 to .* for --model simple, got 99",
    ),
    "untrained": (
        [*TRAIN, *FROZEN, "--weights", "dog.csv"],
        "no pretrained weights for simple",
    ),
    "learn none": ([*TRAIN, *FROZEN, "--unfreeze-last", "-1"], "--unfreeze-last must be .*got -1"),
    "scale": ([*TRAIN, "--scale", "1.2", "0.8"], "--scale .*smaller first"),
    "dropout": ([*TRAIN, "--dropout-scale", "2"], "--dropout-scale must be .*below 2, got 2"),
    "light": (
        [*TRAIN, "--brightness-contrast", "1"],
        "--brightness-contrast must be .*below 1, got 1",
    ),
    "shift": ([*TRAIN, "--shift", "-0.1"], "--shift must be at least 0.*got -0.1"),
    "smoothing": ([*TRAIN, "--label-smoothing", "nan"], "--label-smoothing must be .*got nan"),
    "no norm": ([*TRAIN, "--model", "lite0", "--no-norm"], "--norm must be true for --model lite0"),
    "bad row": ([*TRAIN, "--on-invalid", "error"], r"row 9: .*\(problem 1 of 3\); leave unusable"),
    "cut": ([*TRAIN, "--val-fraction", "0"], "--val-fraction 0, .*26 images leave val empty"),
    "cut beyond": (
        [*TRAIN, "--test-fraction", "1.5"],
        "--test-fraction must be at least 0 and below 1, got 1.5",
    ),
    "eval batch": (
        [*TRAIN, "--devices", "4", "--eval-batch", "9"],
        "--eval-batch must be a positive multiple of 4.*got 9",
    ),
    "split files": ([*TRAIN, "--split-files", "gone"], "gone/training_data.csv: not a readable"),
    "run exists": ([*TRAIN, "--out", "run"], "run exists; .*--overwrite"),
    "unknown split": (
        ["eval", "run", "--split", "tset"],
        "must be one of train, val, test, all, got tset",
    ),
    "all samples": (
        ["predict", "run", "--split", "all"],
        "must be one of train, val, test, got all",
    ),
    "root of eval": (["eval", "run", "--root", "gone"], "gone: no such folder"),
    "no image": (["predict", "run", "gone.jpg"], "gone.jpg: no such image"),
    "no table": (["predict", "run", "gone.csv"], "gone.csv: not a readable table"),
    "bad table": (
        ["predict", "run", "data/annotations/cup.csv"],
        "cup.csv row 9: .* got 4 columns",
    ),
    "label of no class": (["predict", "run", "dog.csv"], "dog.csv row 1: unknown label .dog."),
    "folder without images": (["predict", "run", "run/splits"], "run/splits: no image files"),
    "no inspection": (["data", "inspect", "digits"], "does not support digits"),
    "no cut": (["data", "split", "digits"], "supports only objects, got digits"),
    "inspect no root": (["data", "inspect", "objects"], "--root must be a folder"),
    "inspect root missing": (["data", "inspect", "objects", "--root", "gone"], "gone: no such"),
    "split no root": (["data", "split", "objects"], "--root must be a folder"),
    "split taken": (
        [*SPLIT, "--out", "run/splits"],
        "run/splits already has a split; .*--overwrite",
    ),
    "split empty": ([*SPLIT, "--out", "new", "--train-fraction", "0"], "leave train empty"),
    "preview no root": (["data", "preview", "objects"], "--root must be a folder"),
    "system to inspect": (["data", "inspect", "objcts"], "'objcts'.*objects"),
}


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_invalid_input_is_one_line_and_changes_nothing(place, capfd, words, says):
    shutil.copytree("data/images/cup", "data/images/dog")
    Path("dog.csv").write_text("0.jpg,1,2,3,4,dog\n")
    before = files(place)
    assert main(*words) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(f"jaxdet: error: .*{says}.*\n", err), err
    assert out == "" and files(place) == before


def test_system_without_tables_predicts_images_only(place, monkeypatch, capfd):
    build = configs.without_data
    monkeypatch.setattr(
        configs, "without_data", lambda *args: replace(build(*args), read_table=None)
    )
    assert main("predict", "run", "data/annotations/key.csv") == 2
    says = "data/annotations/key.csv: must be an image for a run of objects, got a table\n"
    assert capfd.readouterr().err == f"jaxdet: error: {says}"


def test_a_run_of_objects_is_not_resumed_as_digits(place, capfd):
    assert main("train", "digits", "--out", "run", "--resume") == 2
    assert "run must be a run of digits, got a run of 'objects'" in capfd.readouterr().err
