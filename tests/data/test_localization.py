import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet.data import localization
from jaxdet.data.localization import Annotation
from jaxdet.errors import InputError
from tests.data.test_images import save_gradient, save_oriented

CLASSES = ["cat", "face"]
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path):
    """Two labels with images a.jpg and b.jpg of 30 x 20 (height, width), and damaged ones."""
    for label in CLASSES:
        for name in ("a.jpg", "b.jpg"):
            save_gradient(tmp_path / "images" / label / name)
    faces = tmp_path / "images" / "face"
    (faces / "text.jpg").write_text("not an image")
    (faces / "empty.jpg").write_bytes(b"")
    whole = (faces / "a.jpg").read_bytes()
    (faces / "cut.jpg").write_bytes(whole[:-20])
    return tmp_path


@pytest.fixture
def table(root):
    return root / "annotations" / "face.csv"


FIRST = "a.jpg,1,2,13,14,face"
HEADER = "file,x0,y0,x1,y1,label"


@pytest.mark.parametrize(
    "lines",
    [
        [FIRST],
        [HEADER, FIRST],
        ["filename,startX,startY,endX,endY,label", FIRST],
        ["", FIRST, "", ""],
        ['"a.jpg","1","2","13","14","face"'],
        [" a.jpg, 1,2.0 ,13 , 1.4e1,face "],
        [f"\ufeff{HEADER}", FIRST],
        [f"\ufeff{FIRST}"],
    ],
    ids=[
        "plain",
        "header",
        "assignment 0",
        "blank",
        "quotes",
        "spaces",
        "BOM",
        "BOM alone",
    ],
)
def test_all_variants_of_csv_are_read(root, table, lines):
    (row,), bad = localization.read_table(write(table, *lines), root)
    assert bad == []
    assert row[:3] == ("face", "a.jpg", (1, 2, 13, 14))
    assert row.name == "face/a.jpg"
    assert (
        row.location == f"{table} row {1 + next(i for i, line in enumerate(lines) if '13' in line)}"
    )


def test_only_the_first_row_can_be_a_header(root, table):
    good, bad = localization.read_table(write(table, HEADER, FIRST, HEADER), root)
    assert len(good) == 1
    assert bad == [f"{table} row 3: box must be four numbers, got 'x0 y0 x1 y1'"]


WRONG = {
    "few columns": ("b.jpg,1,2,3,face", "must have columns file,x0,y0,x1,y1,label, got 5 columns"),
    "many columns": ("b.jpg,1,2,3,4,face,1", "7 columns"),
    "spaces": ("  ", "1 columns"),
    "word": ("b.jpg,1,two,3,4,face", "box must be four numbers, got '1 two 3 4'"),
    "words": ("b.jpg,a,b,c,d,face", "must be four numbers, got 'a b c d'"),
    "no number": ("b.jpg,,2,3,4,face", "four numbers"),
    "nan": ("b.jpg,1,nan,3,4,face", "must be four numbers, got '1 nan 3 4'"),
    "infinity": ("b.jpg,1,2,inf,4,face", "four numbers"),
    "unknown label": (
        "b.jpg,1,2,3,4,dog",
        "label 'dog' has no folder of images, must be one of cat, face",
    ),
    "no label": ("b.jpg,1,2,3,4,", "label ''"),
    "folder above": ("../b.jpg,1,2,3,4,face", "file '../b.jpg' must be a plain file name"),
    "other label": ("../cat/b.jpg,1,2,3,4,face", "must be a plain file name"),
    "absolute": ("/b.jpg,1,2,3,4,face", "must be a plain file name"),
    "flat": ("b.jpg,3,2,13,2,face", "box 3 2 13 2 is empty; must have x0 < x1 and y0 < y1"),
    "narrow": ("b.jpg,3,2,3,14,face", "is empty"),
    "swapped": ("b.jpg,13,2,1,14,face", "box 13 2 1 14 is empty"),
    "left": ("b.jpg,-0.5,2,13,14,face", "box -0.5 2 13 14 must be inside the 20 x 30 image"),
    "above": ("b.jpg,1,-1,13,14,face", "must be inside"),
    "right": ("b.jpg,1,2,21,14,face", "must be inside"),
    "below": ("b.jpg,1,2,13,30.0001,face", "box 1 2 13 30.0001 must be inside the 20 x 30 image"),
    "missing": ("gone.jpg,1,2,13,14,face", "gone.jpg: no such image"),
    "folder": ("..,1,2,13,14,face", "not a readable image"),
    "no file": (",1,2,13,14,face", "not a readable image"),
    "text": ("text.jpg,1,2,13,14,face", "text.jpg: not a readable image"),
    "empty": ("empty.jpg,1,2,13,14,face", "not a readable image"),
    "cut short": ("cut.jpg,1,2,13,14,face", "cut.jpg: not a readable image .*truncated"),
}


@pytest.mark.parametrize(("line", "says"), WRONG.values(), ids=WRONG)
def test_an_invalid_row_is_noted_and_left_out(root, table, line, says):
    rows, unread = localization.read_table(write(table, FIRST, line, "b.jpg,0,0,20,30,face"), root)
    found, unused = localization.load(rows, root, 16, CLASSES)
    (message,) = unread + unused
    assert message.startswith(f"{table} row 2: ")
    assert re.search(says, message), message
    assert "\n" not in message
    assert found.names == ["face/a.jpg", "face/b.jpg"]


@pytest.mark.parametrize(
    ("content", "says"), [(b"\xff\x00a", "utf-8"), (b'"' + bytes(200_000), "field limit")]
)
def test_a_file_that_is_not_a_table_is_refused(root, table, content, says):
    write(table).write_bytes(content)
    with pytest.raises(InputError, match=f"face.csv: not a readable table .*{says}.*expected"):
        localization.read_table(table, root)


@pytest.mark.parametrize("name", ["gone.csv", "images"])
def test_a_table_that_cannot_be_opened_is_refused(root, name):
    with pytest.raises(InputError, match=f"{name}: not a readable table .*expected {HEADER}"):
        localization.read_table(root / name, root)


def test_labels_are_in_the_order_of_assignment_0_and_then_by_name(tmp_path):
    labels = ["airplane", "bird", "face", "motorcycle", "zebra"]
    for label in labels:
        (tmp_path / "images" / label).mkdir(parents=True)
        lines = [f"{name}.jpg,0,0,1,1,{label}" for name in "ba"]
        write(tmp_path / "annotations" / f"{label}.csv", *lines, f"{label}.jpg")
    rows, bad = localization.read_annotations(tmp_path)
    order = ["motorcycle", "airplane", "face", "bird", "zebra"]
    assert [row.name for row in rows] == [f"{label}/{name}.jpg" for label in order for name in "ba"]
    tables = [f"{tmp_path}/annotations/{label}.csv" for label in order]
    assert bad == [f"{name} row 3: must have columns {HEADER}, got 1 columns" for name in tables]


def test_an_image_has_one_row_and_file_names_may_repeat_across_labels(root, table):
    write(table, FIRST, "b.jpg,1,2,3,4,face", "a.jpg,3,4,5,6,face")
    other = write(table.with_name("cat.csv"), "a.jpg,1,2,3,4,cat", FIRST)
    rows, bad = localization.read_annotations(root)
    assert [row.name for row in rows] == ["face/a.jpg", "face/b.jpg", "cat/a.jpg"]
    assert rows[0].box == (1, 2, 13, 14)
    assert bad == [
        f"{table} row 3: face/a.jpg is in {table} row 1 already, left out",
        f"{other} row 2: face/a.jpg is in {table} row 1 already, left out",
    ]


def test_a_folder_without_tables_is_refused(root):
    with pytest.raises(InputError, match="annotations: no tables; expected LABEL.csv for each"):
        localization.read_annotations(root)


# Boxes


@st.composite
def image_and_box(draw):
    """(height, width), and a box of at least 2 x 2 pixels within."""
    height, width = draw(st.integers(4, 90)), draw(st.integers(4, 90))
    x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    x1, y1 = draw(st.integers(x0 + 2, width)), draw(st.integers(y0 + 2, height))
    return (height, width), (x0, y0, x1, y1)


@given(st.lists(image_and_box(), min_size=1, max_size=5), st.integers(1, 512))
def test_to_original_undoes_to_network(found, side):
    size, box = (np.array(column) for column in zip(*found, strict=True))
    there = localization.to_network(box, size, side)
    assert there.min() >= 0 and there.max() <= side * (1 + 1e-6)
    np.testing.assert_allclose(localization.to_original(there, size, side), box, rtol=1e-5)


def white_box(image):
    """The box [4] around the pixels of an image [H, W] nearer to white than to black."""
    y, x = np.nonzero(image > 127)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("orientation", [1, 6])
@once
@given(image_and_box())
def test_boxes_are_scaled_by_the_original_size(root, orientation, found):
    """The box of a white rectangle on black encloses the white pixels of the resized image."""
    (height, width), (x0, y0, x1, y1) = found
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    save_oriented(root / "images" / "face" / "drawn.png", Image.fromarray(pixels), orientation)
    row = Annotation("face", "drawn.png", tuple(map(float, found[1])), "here")
    source, bad = localization.load([row], root, 128, CLASSES)
    assert bad == []
    np.testing.assert_array_equal(source.arrays["size"], [found[0]])
    box = source.arrays["boxes"][0, 0]
    np.testing.assert_allclose(box / 128 * [width, height, width, height], row.box, rtol=1e-5)
    np.testing.assert_allclose(white_box(source.arrays["image"][0, ..., 0]), box, atol=1)


# Splits


def split_of_assignment_0(rows, seed):
    """The split as the code of assignment 0 draws it."""
    rows = list(rows)
    random.seed(seed)
    random.shuffle(rows)
    first, second = int(0.8 * len(rows)), int(0.9 * len(rows))
    return {"train": rows[:first], "val": rows[first:second], "test": rows[second:]}


@given(st.integers(10, 3000), st.integers(0, 9))
def test_the_default_split_is_that_of_assignment_0(count, seed):
    before = random.getstate()
    found = localization.random_split(range(count), seed=seed)
    assert random.getstate() == before
    assert found == split_of_assignment_0(range(count), seed)


fractions = st.floats(0, 1)


@given(st.integers(1, 400), fractions, fractions, fractions, st.integers(0, 9))
def test_splits_are_disjoint_and_of_the_given_fractions(count, val, test, train, seed):
    asked = {"val_fraction": val, "test_fraction": test, "train_fraction": train, "seed": seed}
    try:
        parts = localization.random_split(range(count), **asked)
    except InputError as error:
        left = min(train, 1 - val - test)
        assert min(left, val, test) * count < 1 + 1e-6
        assert re.search("leave .* empty$", str(error))
        return
    assert list(parts) == ["train", "val", "test"]
    every = [row for part in parts.values() for row in part]
    assert len(set(every)) == len(every) and set(every) <= set(range(count))
    assert abs(len(parts["val"]) - val * count) < 1 + 1e-6
    assert abs(len(parts["test"]) - test * count) < 1 + 1e-6
    most = count - len(parts["val"]) - len(parts["test"])
    assert len(parts["train"]) == min(int(train * count + 1e-9), most)
    assert parts == localization.random_split(range(count), **asked)


def test_the_split_depends_on_the_seed_and_training_may_be_limited():
    whole, other = (localization.random_split(range(100), seed=seed) for seed in (1, 2))
    assert whole != other
    less = localization.random_split(range(100), seed=1, train_fraction=0.29)
    assert less == whole | {"train": whole["train"][:29]}


@pytest.mark.parametrize(
    ("count", "asked", "says"),
    [
        (0, {}, "of 0 images leave train and val and test empty"),
        (
            5,
            {},
            "--val-fraction 0.1, --test-fraction 0.1 and --train-fraction 1 of 5 images leave val",
        ),
        (100, {"val_fraction": 0}, "leave val empty$"),
        (100, {"test_fraction": 0}, "leave test empty"),
        (100, {"train_fraction": 0}, "leave train empty"),
        (100, {"val_fraction": 0.5, "test_fraction": 0.5}, "leave train empty"),
        (100, {"val_fraction": -0.1}, "--val-fraction must be from 0 to 1, got -0.1"),
        (100, {"test_fraction": 1.5}, "--test-fraction must be from 0 to 1, got 1.5"),
        (100, {"val_fraction": float("nan")}, "--val-fraction must be from 0 to 1, got nan"),
        (100, {"train_fraction": -0.5}, "--train-fraction must be from 0 to 1, got -0.5"),
        (100, {"train_fraction": float("inf")}, "--train-fraction must be from 0 to 1, got inf"),
    ],
)
def test_an_empty_split_is_refused(count, asked, says):
    with pytest.raises(InputError, match=says):
        localization.random_split(range(count), **asked)


words = st.text(st.sampled_from("ab.é ,\"'"), min_size=1, max_size=8).filter(
    lambda word: word == word.strip() and word not in ("", ".", "..")
)
numbers = st.integers(0, 10**7).map(float) | st.floats(0, 1e9) | st.floats(-10, 10)


@once
@given(st.lists(st.tuples(words, st.tuples(*[numbers] * 4)), max_size=4), words)
def test_a_table_is_read_as_it_was_written(tmp_path, found, label):
    (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
    rows = [Annotation(label, file, box, "") for file, box in found]
    path = tmp_path / "table.csv"
    path.write_text(localization.to_csv(rows), encoding="utf-8")
    good, bad = localization.read_table(path, tmp_path)
    assert bad == []
    assert [row[:3] for row in good] == [row[:3] for row in rows]


def test_integers_are_written_without_decimals():
    rows = [Annotation("face", "a.jpg", (1.0, 2.5, 300000.0, 1234567.0), "")]
    assert localization.to_csv(rows) == "a.jpg,1,2.5,300000,1234567,face\n"


@pytest.fixture
def folder(root):
    """A split of the four valid images."""
    rows = [
        Annotation(label, f"{name}.jpg", (1.0, 2.0, 13.0, 14.0), "")
        for label in CLASSES
        for name in "ab"
    ]
    parts = {"train": rows[:2], "val": rows[2:3], "test": rows[3:]}
    for part, of_part in parts.items():
        (root / localization.SPLIT_FILES[part]).write_text(localization.to_csv(of_part))
    return root


def test_split_files_are_read(folder):
    parts, bad = localization.read_split_files(folder, folder)
    assert bad == []
    names = {part: [row.name for row in rows] for part, rows in parts.items()}
    expected = {"train": ["cat/a.jpg", "cat/b.jpg"], "val": ["face/a.jpg"], "test": ["face/b.jpg"]}
    assert names == expected and list(names) == list(expected)


def test_split_files_with_an_image_in_two_splits_are_refused(folder):
    path = folder / "test_data.csv"
    path.write_text(path.read_text() + "b.jpg,3,4,5,6,cat\n")
    with pytest.raises(
        InputError, match="test_data.csv row 2: cat/b.jpg must be in one split, is also in train"
    ):
        localization.read_split_files(folder, folder)


def test_split_files_note_invalid_rows_and_name_a_missing_table(folder):
    for name in ("training_data.csv", "test_data.csv"):
        path = folder / name
        path.write_text(path.read_text() + "c.jpg,1,2,3,4\n")
    _, bad = localization.read_split_files(folder, folder)
    assert [line.partition(":")[0] for line in bad] == [
        f"{folder}/training_data.csv row 3",
        f"{folder}/test_data.csv row 2",
    ]
    (folder / "val_data.csv").unlink()
    with pytest.raises(InputError, match="val_data.csv: not a readable table"):
        localization.read_split_files(folder, folder)


# Sources


def test_load_keeps_the_order_and_ids_count_rows_left_out(root):
    named = ["face/b", "cat/a", "face/gone", "face/a", "cat/b"]
    rows = [
        Annotation(*f"{name}.jpg".split("/"), (0.0, 3.0, 10.0 + i, 30.0), f"row {i}")
        for i, name in enumerate(named)
    ]
    source, bad = localization.load(rows, root, 16, CLASSES, first_id=7)
    assert bad == [f"row 2: {root}/images/face/gone.jpg: no such image"]
    assert source.names == [f"{name}.jpg" for name in ("face/b", "cat/a", "face/a", "cat/b")]
    arrays = source.arrays
    np.testing.assert_array_equal(arrays["id"], [7, 8, 10, 11])
    np.testing.assert_array_equal(arrays["label"], [1, 0, 1, 0])
    np.testing.assert_array_equal(arrays["size"], [[30, 20]] * 4)
    right = np.array([10, 11, 13, 14])
    np.testing.assert_allclose(arrays["boxes"][:, 0, 2], right * 16 / 20, rtol=1e-6)
    np.testing.assert_allclose(arrays["boxes"][:, 0, 1], 3 * 16 / 30, rtol=1e-6)
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert shapes == {
        "image": ((4, 16, 16, 3), np.uint8),
        "label": ((4,), np.int32),
        "boxes": ((4, 1, 4), np.float32),
        "size": ((4, 2), np.int32),
        "id": ((4,), np.int32),
    }


def test_labeled_images_are_those_of_a_table(root, table):
    write(table, FIRST)
    (found,) = localization.read_labeled_images(root, CLASSES, table)
    assert found == (root / "images" / "face" / "a.jpg", 1, (1, 2, 13, 14))
    with pytest.raises(
        InputError, match="face.csv row 1: unknown label 'face', must be one of cat"
    ):
        localization.read_labeled_images(root, ["cat"], table)
    write(table, "a.jpg,1,2,3,face")
    with pytest.raises(InputError, match="face.csv row 1: .* got 5 columns"):
        localization.read_labeled_images(root, CLASSES, table)


def test_load_without_a_usable_image_is_refused(root):
    rows = [Annotation("face", f"{name}.jpg", (0.0, 0.0, 1.0, 1.0), f"row {name}") for name in "xy"]
    with pytest.raises(InputError, match="none of 2 .*; first problem: row x: .*no such"):
        localization.load(rows, root, 16, CLASSES)
    with pytest.raises(InputError, match="none of 0 images can be used$"):
        localization.load([], root, 16, CLASSES)


def test_the_summary_has_sizes_of_images_and_boxes_by_label(root, table):
    save_gradient(root / "images" / "face" / "large.jpg", size=(60, 50))
    lines = ["large.jpg,10,10,40,50,face", "gone.jpg,1,2,3,4,face", "b.jpg,1,2,3,face"]
    write(table, FIRST, *lines)
    write(table.with_name("cat.csv"), "gone.jpg,1,2,3,4,cat")
    labels, bad = localization.summarize(root)
    cat, face = labels
    assert face == {
        "label": "face",
        "rows": 3,
        "usable": 2,
        "image height": "30 to 60",
        "image width": "20 to 50",
        "box height": "12 to 40",
        "box width": "12 to 30",
        "box area %": "24 to 40",
    }
    assert (cat["label"], cat["rows"], cat["usable"], cat["box width"]) == ("cat", 1, 0, "none")
    where = [f"{table} row 4", f"{table} row 3", f"{table.with_name('cat.csv')} row 1"]
    assert [line.partition(":")[0] for line in bad] == where


def test_a_summary_of_tables_without_valid_rows_is_refused(root, table):
    write(table, HEADER)
    with pytest.raises(InputError, match="no valid rows$"):
        localization.summarize(root)
    write(table, "a.jpg,1,2,3,face")
    with pytest.raises(InputError, match="no valid rows; first problem: .*row 1: .* got 5 columns"):
        localization.summarize(root)


# The data set of assignment 0


@pytest.fixture(scope="module")
def real():
    return Path(os.environ["JAXDET_DATA"]) / "caltech3"


needs_data = pytest.mark.skipif("JAXDET_DATA" not in os.environ, reason="JAXDET_DATA is not set")


@needs_data
def test_the_data_set_of_assignment_0_has_its_counts(real):
    rows, bad = localization.read_annotations(real)
    assert bad == []
    labels = [row.label for row in rows]
    assert labels == ["motorcycle"] * 798 + ["airplane"] * 800 + ["face"] * 435


@needs_data
@pytest.mark.parametrize("part", localization.SPLIT_FILES)
def test_the_split_equals_that_of_assignment_0_row_for_row(real, part):
    rows, _ = localization.read_annotations(real)
    reference = (real / "reference" / localization.SPLIT_FILES[part]).read_text()
    assert localization.to_csv(localization.random_split(rows)[part]) == reference + "\n"


@needs_data
def test_one_training_row_of_assignment_0_is_invalid(real):
    parts, unread = localization.read_split_files(real / "reference", real)
    assert unread == []
    assert [len(rows) for rows in parts.values()] == [1626, 203, 204]
    train, bad = localization.load(parts["train"], real, 16, ["airplane", "face", "motorcycle"])
    assert len(train) == 1625
    (line,) = bad
    assert "training_data.csv row " in line and "box 104 38 126 38 is empty" in line
    boxes = train.arrays["boxes"]
    assert boxes.min() >= 0 and boxes.max() <= 16
