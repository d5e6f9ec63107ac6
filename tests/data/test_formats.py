"""Readers of detection formats: the same data set in each of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import coco, detection, formats, images, parquet, voc, yolo
from jaxdet.errors import InputError
from tests import datasets

each_format = pytest.mark.parametrize("name", datasets.FORMATS)

DATA = os.environ.get("JAXDET_DATA")

real = pytest.mark.skipif(not DATA, reason="JAXDET_DATA is not set")


@pytest.fixture
def root(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    datasets.FORMATS[name](tmp_path / "set")
    return tmp_path / "set"


@each_format
def test_every_format_is_read_as_written(root, name):
    found = formats.READERS[name].read(root)
    assert found.classes == datasets.CLASSES and not detection.faults(found.notes)
    assert len(found.notes) == (name == "yolo")  # 1 of 3 images has no label file
    assert {split: len(own) for split, own in found.splits.items()} == {"train": 3, "val": 1}
    for split, numbers in datasets.SPLITS.items():
        for one, i in zip(found.splits[split], numbers, strict=True):
            boxes = [box for box, _ in datasets.BOXES[i]]
            np.testing.assert_allclose(one.boxes, np.reshape(boxes, (-1, 4)), atol=1e-4)
            np.testing.assert_array_equal(one.labels, [label for _, label in datasets.BOXES[i]])
            assert one.boxes.dtype == np.float32 and one.labels.dtype == np.int32
            assert images.read_letterboxed(one.image, 32, 32)[1] == datasets.SIZES[i]
    ids = {"coco": (3, 7), "parquet": (1, 2)}
    assert found.class_ids == ids.get(name, ())
    known = [one.id for own in found.splits.values() for one in own]
    assert known == ([0, 1, 2, 3] if name in ids else [None] * 4)
    crowds = found.splits["val"][0].crowd.tolist()
    assert crowds == [False, False, name in datasets.MARKED]


@each_format
def test_the_format_is_recognized(root, name):
    found = formats.read(root)
    assert found.classes == datasets.CLASSES and found.splits.keys() == datasets.SPLITS.keys()


VAL = "annotations/instances_val2017.json"
BROKEN = {
    "yolo no yaml": ("yolo", "data.yaml", "a: [", "data.yaml: cannot be read as YAML"),
    "yolo no names": ("yolo", "data.yaml", "train: images/train", "names must be a list"),
    "yolo gaps": (
        "yolo",
        "data.yaml",
        "names: {0: a, 2: b}\n",
        "a mapping from the numbers 0, 1, ... or 1, 2, ...",
    ),
    "yolo place": ("yolo", "data.yaml", "names: [a]\ntrain: gone", "gone: no such folder"),
    "yolo out": ("yolo", "data.yaml", "names: [a]\ntrain: ../..", "must be inside"),
    "coco json": ("coco", VAL, "{", "cannot be read as JSON"),
    "coco row": (
        *("coco", VAL, '{"images": [3], "annotations": [], "categories": []}'),
        "images must be a list of objects",
    ),
    "coco keys": (
        "coco",
        VAL,
        "{}",
        "must have the keys images and categories, lacks categories and images",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unreadable_files_are_named(tmp_path, case):
    name, file, text, message = BROKEN[case]
    datasets.FORMATS[name](tmp_path / "set")
    (tmp_path / "set" / file).write_text(text)
    with pytest.raises(InputError, match=message):
        formats.READERS[name].read(tmp_path / "set")


def test_linked_folders_of_a_set_are_read_and_circular_links_end(tmp_path):
    root = tmp_path / "set"
    datasets.write_voc(root)
    expected = [one.boxes.tolist() for one in voc.read(root).splits["train"]]
    for name in ("Annotations", "JPEGImages"):
        (root / name).rename(tmp_path / name)
        (root / name).symlink_to(tmp_path / name)
    (root / "loop").symlink_to(root)
    assert [one.boxes.tolist() for one in voc.read(root).splits["train"]] == expected


def test_a_voc_name_that_leads_out_of_the_folder_is_noted(tmp_path):
    datasets.write_voc(tmp_path / "set")
    (tmp_path / "set" / "ImageSets/Main/val.txt").write_text("../../x")
    assert any("must be inside" in note for note in voc.read(tmp_path / "set").notes)


def test_invalid_rows_are_noted_and_left_out(tmp_path):
    datasets.write_yolo(tmp_path / "yolo")
    labels = tmp_path / "yolo" / "labels" / "train" / "0.txt"
    labels.write_text("5 .5 .5 .1 .1\n0 .5 .5 .1\n0 .5 .5 .1 .1\n")
    found = yolo.read(tmp_path / "yolo")
    assert [note.split("/")[-1] for note in detection.faults(found.notes)] == [
        "0.txt row 1: unknown class 5, must be 0 to 1",
        "0.txt row 2: must be class x y width height, got '0 .5 .5 .1'",
    ]
    assert len(found.splits["train"][0].boxes) == 1
    datasets.write_coco(tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 4
    content["annotations"][1]["bbox"] = [1, 2]
    content["annotations"][2]["image_id"] = 99
    path.write_text(json.dumps(content))
    notes = coco.read(tmp_path / "coco").notes
    faults = [note.split(": ", 1)[1].split(" ")[0] for note in notes]
    assert faults == ["unknown", "bbox", "image_id"]
    datasets.write_voc(tmp_path / "voc")
    annotation = tmp_path / "voc" / "Annotations" / "0.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>5<", "<xmin>five<"))
    (tmp_path / "voc" / "Annotations" / "1.xml").write_text("<!DOCTYPE a><a/>")
    notes = voc.read(tmp_path / "voc").notes
    assert (
        "object 1: bndbox must have numbers" in notes[0]
        and "must not define XML entities" in notes[1]
    )


def test_one_category_applies_to_all_boxes_and_unnamed_classes_are_numbered(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    image = {"bytes": b"no image", "path": "a"}
    objects = {"bbox": [[1, 1, 5, 5], [2, 2, 4, 4]], "category": 2}
    rows = [{"image": image, "image_id": 0, "objects": objects}]
    files.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    found = parquet.read(tmp_path)
    assert found.classes == ("class 1", "class 2")
    np.testing.assert_array_equal(found.splits["train"][0].labels, [1, 1])
    _, notes = detection.load([*found.splits["train"], readable_image(tmp_path)], 32, 32, 2)
    assert notes == [
        "train.parquet row 1: 8 bytes: not a readable image (" + notes[0].split("(")[1]
    ]


def write_parquet(folder, objects, names=(), split="train"):
    """A parquet file with a row for each of `objects`, and class names in its metadata."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    rows = [
        {"image": {"bytes": b"x", "path": ""}, "image_id": i, "objects": one}
        for i, one in enumerate(objects)
    ]
    table, label = pyarrow.Table.from_pylist(rows), {"_type": "ClassLabel", "names": list(names)}
    if names:
        metadata = {"info": {"features": {"objects": {"feature": {"category": label}}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    files.write_table(table, folder / f"{split}.parquet")


CATEGORIES = {  # categories, names -> classes, labels
    "Halo": ([1, 3], ("set", "enemy", "head", "friend"), ("enemy", "head", "friend"), [0, 2]),
    "from 0": ([0, 2], ("a", "b", "c"), ("a", "b", "c"), [0, 2]),
    "from 1": ([1, 3], ("a", "b", "c"), ("a", "b", "c"), [0, 2]),
    "numbers": ([1, 2], (), ("class 1", "class 2"), [0, 1]),
    "numbers from 0": ([0, 2], (), ("class 0", "class 1", "class 2"), [0, 2]),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("case", CATEGORIES)
def test_categories_are_named_by_the_schema(tmp_path, case, listed):
    categories, names, classes, labels = CATEGORIES[case]
    box = [1.0, 1.0, 5.0, 5.0]
    if listed:
        objects = [[{"bbox": box, "category": c} for c in categories]]
    else:
        objects = [{"bbox": [box, box], "category": categories}]
    write_parquet(tmp_path, objects, names)
    write_parquet(tmp_path, objects, names, "validation")
    found = parquet.read(tmp_path)
    assert found.classes == classes and not found.notes
    for split in ("train", "val"):
        np.testing.assert_array_equal(found.splits[split][0].labels, labels)


def test_invalid_parquet_rows_are_noted(tmp_path):
    write_parquet(tmp_path, [{"bbox": [[1.0, 1.0, 5.0, 5.0], [1.0, 2.0]], "category": [1, 9]}])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found = parquet.read(tmp_path)
    assert found.notes == ("train.parquet row 1: unknown class 9, must be 1 to 2",)
    write_parquet(tmp_path, [{"bbox": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], "category": [1, 2]}])
    (note,) = parquet.read(tmp_path).notes
    assert (
        note == "train.parquet row 1: bbox must be numbers left, top, width, height, got [1.0, 2.0]"
    )


def test_a_corrupt_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="train.parquet: not a readable parquet file"):
        formats.read(tmp_path)


def test_other_annotation_files_of_coco_are_ignored(tmp_path):
    datasets.write_coco(tmp_path / "set")
    for name in ("captions_train2017", "person_keypoints_train2017"):
        (tmp_path / "set" / "annotations" / f"{name}.json").write_text("{}")
    assert coco.read(tmp_path / "set").splits.keys() == {"train", "val"}


@pytest.mark.parametrize("box", [["a", 1, 2, 3], [None, 1, 2, 3], "1 2 3 4"])
def test_a_coco_box_without_four_numbers_is_noted(tmp_path, box):
    datasets.write_coco(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = box
    path.write_text(json.dumps(content))
    (note,) = coco.read(tmp_path / "set").notes
    assert "annotation 1: bbox" in note


def test_folders_as_roboflow_writes_them(tmp_path):
    datasets.write_yolo(tmp_path / "set")
    path = tmp_path / "set" / "data.yaml"
    before = yolo.read(tmp_path / "set")
    path.write_text(path.read_text().replace(": images/", ": ../images/"))
    after = yolo.read(tmp_path / "set")
    assert {split: len(own) for split, own in after.splits.items()} == {"train": 3, "val": 1}
    assert after.splits["train"][0].image == before.splits["train"][0].image


def test_polygons_give_their_bounding_box_and_scores_are_ignored(tmp_path):
    datasets.write_yolo(tmp_path / "set")
    labels = tmp_path / "set" / "labels" / "train" / "0.txt"  # of 60 x 40 pixels
    labels.write_text("1 .5 .25 .75 .5 .25 .5\n0 .5 .5 .5 .5 .9\n0 nan .5 .5 .5\nnan 0 0 0 0\n")
    found = yolo.read(tmp_path / "set")
    np.testing.assert_allclose(found.splits["train"][0].boxes[0], [15, 10, 45, 20])
    np.testing.assert_allclose(found.splits["train"][0].boxes[1], [15, 10, 45, 30])
    assert [note.split("/")[-1] for note in detection.faults(found.notes)] == [
        "0.txt row 4: unknown class nan, must be 0 to 1"
    ]
    _, notes = detection.load(found.splits["train"][:1], 64, 96, 4)
    assert notes == ["0.png: box nan 10 nan 30 is not finite"]


def test_boxes_beyond_the_range_of_float32_are_left_out(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    boxes = [((0, 0, 1e39, 1e39), 0), ((1, 1, 7, 7), 0)]
    image = detection.annotated_image(tmp_path / "a.png", boxes, "a.png")
    source, notes = detection.load([image], 32, 32, 2)
    assert notes == ["a.png: box 0 0 inf inf is not finite"]
    assert source.arrays["valid"].sum() == source.arrays["true_valid"].sum() == 1
    assert np.isfinite(source.arrays["true_boxes"]).all()


def readable_image(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return detection.annotated_image(folder / "a.png", [], "a.png")


@real
def test_bccd_is_complete():
    found = voc.read(Path(DATA) / "bccd")
    counts = {split: len(own) for split, own in found.splits.items()}
    assert counts == {"train": 205, "val": 87, "test": 72} and not found.notes
    assert found.classes == ("Platelets", "RBC", "WBC")
    every = [one for own in found.splits.values() for one in own]
    thin = [one for one in every if (one.boxes[:, 2:] - one.boxes[:, :2] < 1.5).any()]
    _, notes = detection.load(thin, 320, 416, 40)
    assert len(notes) == 2 and all("smaller than one pixel" in note for note in notes)


@real
def test_coco128_is_complete():
    found = yolo.read(Path(DATA) / "coco128")
    assert len(found.classes) == 80
    assert {split: len(own) for split, own in found.splits.items()} == {"train": 128, "val": 128}
    _, notes = detection.load(found.splits["train"][:16], 64, 64, 40)
    assert all("smaller than one pixel" in note for note in notes)
