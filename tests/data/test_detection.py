import json
import os
import re
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
def test_every_format_gives_what_was_written(root, name):
    found = formats.READERS[name].read(root)
    assert found.classes == datasets.CLASSES and not found.notes
    assert {part: len(of) for part, of in found.parts.items()} == {"train": 3, "val": 1}
    for part, photos in datasets.PARTS.items():
        for one, i in zip(found.parts[part], photos, strict=True):
            boxes = [box for box, _ in datasets.BOXES[i]]
            np.testing.assert_allclose(one.boxes, np.reshape(boxes, (-1, 4)), atol=1e-4)
            np.testing.assert_array_equal(one.labels, [label for _, label in datasets.BOXES[i]])
            assert one.boxes.dtype == np.float32 and one.labels.dtype == np.int32
            assert images.read_letterboxed(one.image, 32, 32)[1] == datasets.SIZES[i]
    ids = {"coco": (3, 7), "parquet": (1, 2)}
    assert found.numbers == ids.get(name, ())
    known = [one.number for part in found.parts.values() for one in part]
    assert known == ([0, 1, 2, 3] if name in ids else [None] * 4)
    crowds = found.parts["val"][0].crowd.tolist()
    assert crowds == [False, False, name in ("coco", "voc")]


@each_format
def test_the_format_is_found(root, name):
    found = formats.read(root)
    assert found.classes == datasets.CLASSES and found.parts.keys() == datasets.PARTS.keys()


def test_load_fits_photos_and_boxes_and_pads(tmp_path):
    datasets.yolo(tmp_path / "set")
    found = yolo.read(tmp_path / "set")
    source, notes = detection.load(found.parts["train"], 64, 96, 4, first_id=5)
    assert not notes
    rows = source.arrays
    assert rows["image"].shape == (3, 64, 96, 3) and rows["image"].dtype == np.uint8
    np.testing.assert_array_equal(rows["id"], [5, 6, 7])
    np.testing.assert_array_equal(rows["valid"].sum(1), [2, 1, 0])
    np.testing.assert_array_equal(rows["size"], datasets.SIZES[:3])
    scale, offset = rows["to_original"][:, None, :2], rows["to_original"][:, None, 2:]
    back = rows["boxes"] * np.tile(scale, 2) + np.tile(offset, 2)
    for i in range(3):
        boxes = np.reshape([box for box, _ in datasets.BOXES[i]], (-1, 4))
        np.testing.assert_allclose(back[i][rows["valid"][i]], boxes, atol=1e-3)
        sides = boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_allclose(rows["area"][i][rows["valid"][i]], sides.prod(1), rtol=1e-4)
        for (x0, y0, x1, y1), label in zip(
            rows["boxes"][i][rows["valid"][i]], rows["labels"][i], strict=False
        ):
            middle = rows["image"][i][int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert middle.argmax() == (0 if label == 0 else 2)  # red cells, blue dots
    assert (
        rows["image"][1][:, 0] == images.LETTERBOX_FILL
    ).all()  # a narrow photo has grey beside it


def test_load_cuts_boxes_and_names_those_it_leaves_out(tmp_path):
    datasets.photo(0).save(tmp_path / "a.png")  # 60 x 40
    boxes = [(-5, -5, 10, 10), (20, 20, 20, 30), (70, 0, 80, 5), (5, 5, 5.5, 30), (1, 1, 9, 9)]
    one = detection.annotated_image(tmp_path / "a.png", [(box, 0, False) for box in boxes], "a.png")
    gone = detection.annotated_image(tmp_path / "gone.png", [], "gone.png")
    source, notes = detection.load([one, gone], 32, 64, 2)
    np.testing.assert_array_equal(source.arrays["valid"], [[True, True]])
    np.testing.assert_allclose(source.arrays["boxes"][0, 0], [8, 0, 16, 8], atol=1e-5)
    assert source.arrays["area"][0, 0] == 100
    assert [re.sub(".*/", "", note) for note in notes] == [
        "a.png: box 20 20 20 30 has no area",
        "a.png: box 70 0 80 5 is outside of the 60 x 40 pixels",
        "a.png: box 5 5 5.5 30 is less than a pixel of the network's input",
        "gone.png: no such image",
    ]
    with pytest.raises(InputError, match="none of 1 photos can be used; first: gone.png"):
        detection.load([gone], 32, 64, 2)


def test_more_boxes_than_slots_are_told(tmp_path):
    datasets.photo(3).save(tmp_path / "a.png")
    one = detection.annotated_image(
        tmp_path / "a.png", [(b, c, False) for b, c in datasets.BOXES[3]], "a.png"
    )
    source, notes = detection.load([one], 64, 64, 2)
    assert source.arrays["valid"].sum() == 2
    assert notes == ["a.png: 3 boxes, 2 slots; the others are left out"]


def test_grey_and_turned_photos(tmp_path):
    datasets.photo(0).convert("L").save(tmp_path / "grey.png")
    turned = datasets.photo(0)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    grey, size = images.read_letterboxed(tmp_path / "grey.png", 32, 48)
    assert (grey[..., 0] == grey[..., 1]).all() and size == (40, 60)
    _, size = images.read_letterboxed(tmp_path / "turned.jpg", 64, 64)
    assert size == images.read_size(tmp_path / "turned.jpg") == (60, 40)


def test_repeats_and_parts_that_are_missing(tmp_path):
    datasets.yolo(tmp_path / "set")
    text = (tmp_path / "set" / "data.yaml").read_text()
    (tmp_path / "set" / "data.yaml").write_text(text.replace("images/val", "images/train"))
    found = yolo.read(tmp_path / "set")
    assert len(found.notes) == 3 and "0.png is in train already" in found.notes[0]
    assert not found.parts["val"]
    cut = detection.with_validation(found.parts, 0.34, 0)
    assert len(cut["val"]) == 1 and len(cut["train"]) == 2
    with pytest.raises(InputError, match="--val-fraction 0.01 of 3 photos"):
        detection.with_validation(found.parts, 0.01, 0)


BROKEN = {
    "yolo no yaml": (datasets.yolo, "data.yaml", "a: [", yolo, "data.yaml: not readable YAML"),
    "yolo no names": (datasets.yolo, "data.yaml", "train: images/train", yolo, "names: a list"),
    "yolo place": (
        datasets.yolo,
        "data.yaml",
        "names: [a]\ntrain: gone",
        yolo,
        "gone: no such folder",
    ),
    "yolo out": (datasets.yolo, "data.yaml", "names: [a]\ntrain: ../..", yolo, "leads out of"),
    "coco json": (
        datasets.coco,
        "annotations/instances_val2017.json",
        "{",
        coco,
        "not readable JSON",
    ),
    "yolo gaps": (
        datasets.yolo,
        "data.yaml",
        "names: {0: a, 2: b}\n",
        yolo,
        "all by number from 0",
    ),
    "coco row": (
        datasets.coco,
        "annotations/instances_val2017.json",
        '{"images": [3], "annotations": [], "categories": []}',
        coco,
        "images: a list of objects",
    ),
    "coco keys": (
        datasets.coco,
        "annotations/instances_val2017.json",
        "{}",
        coco,
        "no annotations,",
    ),
    "voc none": (datasets.voc, "ImageSets/Main/val.txt", "../../x", voc, "leads out of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_named(tmp_path, case):
    write, file, text, reader, says = BROKEN[case]
    write(tmp_path / "set")
    (tmp_path / "set" / file).write_text(text)
    if case == "voc none":
        assert any(says in note for note in reader.read(tmp_path / "set").notes)
        return
    with pytest.raises(InputError, match=says):
        reader.read(tmp_path / "set")


def test_wrong_rows_are_named_and_left_out(tmp_path):
    datasets.yolo(tmp_path / "yolo")
    labels = tmp_path / "yolo" / "labels" / "train" / "0.txt"
    labels.write_text("5 .5 .5 .1 .1\n0 .5 .5 .1\n0 .5 .5 .1 .1\n")
    found = yolo.read(tmp_path / "yolo")
    assert [note.split("/")[-1] for note in found.notes] == [
        "0.txt row 1: unknown class 5; 0 to 1 are known",
        "0.txt row 2: '0 .5 .5 .1'; class x y width height are wanted",
    ]
    assert len(found.parts["train"][0].boxes) == 1
    datasets.coco(tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    told = json.loads(path.read_text())
    told["annotations"][0]["category_id"] = 4
    told["annotations"][1]["bbox"] = [1, 2]
    told["annotations"][2]["image_id"] = 99
    path.write_text(json.dumps(told))
    notes = coco.read(tmp_path / "coco").notes
    assert [note.split(": ", 1)[1].split(" ")[0] for note in notes] == ["unknown", "bbox", "image"]
    datasets.voc(tmp_path / "voc")
    annotation = tmp_path / "voc" / "Annotations" / "0.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>5<", "<xmin>five<"))
    (tmp_path / "voc" / "Annotations" / "1.xml").write_text("<!DOCTYPE a><a/>")
    notes = voc.read(tmp_path / "voc").notes
    assert "object 1: bndbox wants numbers" in notes[0] and "entities are not read" in notes[1]


def test_one_category_may_stand_for_all_and_numbers_name_classes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    image = {"bytes": b"no image", "path": "a"}
    objects = {"bbox": [[1, 1, 5, 5], [2, 2, 4, 4]], "category": 2}
    rows = [{"image": image, "image_id": 0, "objects": objects}]
    files.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    found = parquet.read(tmp_path)
    assert found.classes == ("class 1", "class 2")
    np.testing.assert_array_equal(found.parts["train"][0].labels, [1, 1])
    _, notes = detection.load([*found.parts["train"], _readable(tmp_path)], 32, 32, 2)
    assert notes == [
        "train.parquet row 1: 8 bytes: not a readable image (" + notes[0].split("(")[1]
    ]


def _table(folder, objects, names=(), part="train"):
    """A parquet file of a row for each of `objects`, with names in its metadata."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    rows = [
        {"image": {"bytes": b"x", "path": ""}, "image_id": i, "objects": one}
        for i, one in enumerate(objects)
    ]
    table, label = pyarrow.Table.from_pylist(rows), {"_type": "ClassLabel", "names": list(names)}
    if names:
        told = {"info": {"features": {"objects": {"feature": {"category": label}}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    files.write_table(table, folder / f"{part}.parquet")


NAMED = {  # categories, names -> classes, labels
    "Halo": ([1, 3], ("set", "enemy", "head", "friend"), ("enemy", "head", "friend"), [0, 2]),
    "from 0": ([0, 2], ("a", "b", "c"), ("a", "b", "c"), [0, 2]),
    "from 1": ([1, 3], ("a", "b", "c"), ("a", "b", "c"), [0, 2]),
    "numbers": ([1, 2], (), ("class 1", "class 2"), [0, 1]),
    "numbers from 0": ([0, 2], (), ("class 0", "class 1", "class 2"), [0, 2]),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("case", NAMED)
def test_categories_have_the_names_that_the_schema_gives_them(tmp_path, case, listed):
    categories, names, classes, labels = NAMED[case]
    box = [1.0, 1.0, 5.0, 5.0]
    if listed:
        objects = [[{"bbox": box, "category": c} for c in categories]]
    else:
        objects = [{"bbox": [box, box], "category": categories}]
    _table(tmp_path, objects, names)
    _table(tmp_path, objects, names, "validation")
    found = parquet.read(tmp_path)
    assert found.classes == classes and not found.notes
    for part in ("train", "val"):
        np.testing.assert_array_equal(found.parts[part][0].labels, labels)


def test_rows_of_parquet_that_are_wrong_are_named(tmp_path):
    _table(tmp_path, [{"bbox": [[1.0, 1.0, 5.0, 5.0], [1.0, 2.0]], "category": [1, 9]}])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found = parquet.read(tmp_path)
    assert found.notes == ("train.parquet row 1: unknown class 9; 1 to 2 are known",)
    _table(tmp_path, [{"bbox": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], "category": [1, 2]}])
    (note,) = parquet.read(tmp_path).notes
    assert note == "train.parquet row 1: bbox [1.0, 2.0]; left, top, width, height are wanted"


def test_a_corrupt_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="train.parquet: not a readable parquet file"):
        formats.read(tmp_path)


def test_the_other_files_of_cocos_own_folder_are_left_alone(tmp_path):
    datasets.coco(tmp_path / "set")
    for name in ("captions_train2017", "person_keypoints_train2017"):
        (tmp_path / "set" / "annotations" / f"{name}.json").write_text("{}")
    assert coco.read(tmp_path / "set").parts.keys() == {"train", "val"}


@pytest.mark.parametrize("box", [["a", 1, 2, 3], [None, 1, 2, 3], "1 2 3 4"])
def test_a_box_of_coco_without_numbers_is_named(tmp_path, box):
    datasets.coco(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_val2017.json"
    told = json.loads(path.read_text())
    told["annotations"][0]["bbox"] = box
    path.write_text(json.dumps(told))
    (note,) = coco.read(tmp_path / "set").notes
    assert "annotation 1: bbox" in note


def test_places_as_roboflow_writes_them(tmp_path):
    datasets.yolo(tmp_path / "set")
    path = tmp_path / "set" / "data.yaml"
    before = yolo.read(tmp_path / "set")
    path.write_text(path.read_text().replace(": images/", ": ../images/"))
    after = yolo.read(tmp_path / "set")
    assert {part: len(of) for part, of in after.parts.items()} == {"train": 3, "val": 1}
    assert after.parts["train"][0].image == before.parts["train"][0].image


def test_polygons_have_the_box_around_them_and_scores_are_left_out(tmp_path):
    datasets.yolo(tmp_path / "set")
    labels = tmp_path / "set" / "labels" / "train" / "0.txt"  # of 60 x 40 pixels
    labels.write_text("1 .5 .25 .75 .5 .25 .5\n0 .5 .5 .5 .5 .9\n0 nan .5 .5 .5\nnan 0 0 0 0\n")
    found = yolo.read(tmp_path / "set")
    np.testing.assert_allclose(found.parts["train"][0].boxes[0], [15, 10, 45, 20])
    np.testing.assert_allclose(found.parts["train"][0].boxes[1], [15, 10, 45, 30])
    assert [note.split("/")[-1] for note in found.notes] == [
        "0.txt row 4: unknown class nan; 0 to 1 are known"
    ]
    _, notes = detection.load(found.parts["train"][:1], 64, 96, 4)
    assert notes == ["0.png: box nan 10 nan 30 is not of numbers"]


def _readable(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return detection.annotated_image(folder / "a.png", [], "a.png")


@real
def test_blood_cells_are_all_there():
    found = voc.read(Path(DATA) / "bccd")
    counts = {part: len(of) for part, of in found.parts.items()}
    assert counts == {"train": 205, "val": 87, "test": 72} and not found.notes
    assert found.classes == ("Platelets", "RBC", "WBC")
    every = [one for of_part in found.parts.values() for one in of_part]
    thin = [one for one in every if (one.boxes[:, 2:] - one.boxes[:, :2] < 1.5).any()]
    _, notes = detection.load(thin, 320, 416, 40)
    assert len(notes) == 2 and all("less than a pixel" in note for note in notes)


@real
def test_coco128_has_its_photos():
    found = yolo.read(Path(DATA) / "coco128")
    assert len(found.classes) == 80
    assert {part: len(of) for part, of in found.parts.items()} == {"train": 128, "val": 128}
    _, notes = detection.load(found.parts["train"][:16], 64, 64, 40)
    assert all("less than a pixel" in note for note in notes)
