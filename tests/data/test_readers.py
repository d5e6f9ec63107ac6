"""Detection sets as other programs write them: layouts, names, encodings, and faults."""

import codecs
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jaxdet import configs, runs
from jaxdet.configs.detect import Config
from jaxdet.data import coco, detection, formats, images, voc, yolo
from jaxdet.errors import InputError

BOX = [[40, 24, 60, 36]]  # of `ROW` in an image of 100 x 60 pixels
ROW = "0 0.5 0.5 0.2 0.2"
XML = "<object><name>a</name><bndbox>{}</bndbox></object>".format(
    "".join(
        f"<{n}>{v}</{n}>"
        for n, v in zip(("xmin", "ymin", "xmax", "ymax"), (41, 25, 60, 36), strict=True)
    )
)


def write(root, files):
    """Write files: text, bytes, JSON values, or for None an image of 100 x 60 pixels."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (100, 60)).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def boxes_of(dataset, split="train"):
    return {one.name: one.boxes.round(4).tolist() for one in dataset.splits[split]}


def faults(dataset):
    return detection.faults(dataset.notes)


# YOLO


YAML = "train: images/train\nnames: [a, b]\n"
TRAIN = {"images/train/p.png": None, "labels/train/p.txt": ROW}


@pytest.mark.parametrize(
    "files",
    {
        "ultralytics": {"data.yaml": f"path: ../datasets/set\n{YAML}"} | TRAIN,
        "colab": {"data.yaml": YAML.replace("images", "/content/set/images")} | TRAIN,
        "path": {"data.yaml": f"path: /content/set\n{YAML}"} | TRAIN,
        "roboflow": {
            "data.yaml": "train: ../train/images\nnames: [a]",
            "train/images/p.png": None,
            "train/labels/p.txt": ROW,
        },
        "dataset.yaml": {"dataset.yaml": YAML} | TRAIN,
        "own name": {"cells.yaml": YAML} | TRAIN,
        "from 1": {
            "data.yaml": "train: images/train\nnames: {1: a, 2: b}",
            "images/train/p.png": None,
            "labels/train/p.txt": "1" + ROW[1:],
        },
        "number of classes": {"data.yaml": "train: images/train\nnc: 2\n"} | TRAIN,
        "classes.txt": {"classes.txt": "a\nb\n", "p.png": None, "p.txt": ROW},
        "beside": {"data.yaml": "train: all\nnames: [a]", "all/p.png": None, "all/p.txt": ROW},
        "images twice": {
            "data.yaml": "train: images/images\nnames: [a]",
            "images/images/p.png": None,
            "images/labels/p.txt": ROW,
        },
        "list": {
            "data.yaml": "train: train.txt\nnames: [a]",
            "train.txt": "C:\\sets\\images\\train\\p.png\n",
        }
        | TRAIN,
        "marks": {
            "data.yaml": codecs.BOM_UTF8 + YAML.encode(),
            "images/train/p.png": None,
            "labels/train/p.txt": codecs.BOM_UTF8 + f"{ROW}\r\n".encode(),
        },
        "utf-16": {
            "data.yaml": YAML.encode("utf-16"),
            "images/train/p.png": None,
            "labels/train/p.txt": ROW.encode("utf-16"),
        },
    }.items(),
    ids=lambda item: item[0],
)
def test_yolo_sets_of_all_layouts(tmp_path, files):
    found = formats.read(write(tmp_path, files[1]))
    assert boxes_of(found) == {"p.png": BOX} and not faults(found)
    assert found.splits["train"][0].labels.tolist() == [0]


def test_yolo_labels_outside_the_folder_are_not_read(tmp_path):
    root = tmp_path / "images" / "set"
    write(tmp_path, {"labels/set/p.txt": "1 .5 .5 1 1", "labels/set/all/p.txt": "1 .5 .5 1 1"})
    write(root, {"data.yaml": "train: all\nnames: [a, b]", "all/p.png": None, "all/p.txt": ROW})
    assert boxes_of(yolo.read(root)) == {"p.png": BOX}


def test_images_without_a_label_file_are_counted(tmp_path):
    more = {"images/train/q.png": None, "images/val/r.png": None}
    files = {"data.yaml": YAML + "val: images/val\n"} | TRAIN | more
    found = yolo.read(write(tmp_path, files))
    assert not faults(found) and found.splits.keys() == {"train"}
    assert [str(note) for note in found.notes] == [
        "train: 1 of 2 images have no label file and are read as images without objects",
        "val: no image has a label file: the split is left out",
    ]
    (tmp_path / "labels/train/p.txt").unlink()
    with pytest.raises(
        InputError, match=r"train: no image has a label file, .*; first image: .*p\.png"
    ):
        yolo.read(tmp_path)


POINTS = "0.45 0.45 0.55 0.55"
EXTRA = {  # more keys of data.yaml, rows, what is said of them
    "keypoints": ("kpt_shape: [2, 2]\n", [f"{ROW} {POINTS}"], "boxes with 2 keypoints"),
    "visible": ("kpt_shape: [2, 3]\n", [f"{ROW} .45 .45 2 .55 .55 2"], "boxes with 2 keypoints"),
    "undeclared": ("", [f"{ROW} {POINTS}", f"{ROW} 0 0 .5 .5"], "boxes with keypoints"),
    "score": ("", [f"{ROW} .9"], None),
    "track": ("", [f"{ROW} .91 7"], "box, score and track id"),
    "task": ("task: track\n", [f"{ROW} 7 .91 .3"], None),
    "polygon": ("", ["0 .4 .4 .6 .4 .6 .6", ROW], "polygons"),
    "polygons": ("", ["0 .4 .4 .6 .4 .6 .6 .4 .6", "0 .4 .4 .6 .4 .6 .6"], "polygons"),
    "segment": ("task: segment\n", ["0 .4 .4 .6 .4 .6 1e0", "0 .4 .4 .6 .4 .6 .6"], "polygons"),
    "obb": ("task: obb\n", ["0 .4 .4 .6 .4 .6 .6 .4 .6"], "polygons"),
}


@pytest.mark.parametrize("case", EXTRA)
def test_further_values_of_yolo_rows_are_read_by_rule_and_said(tmp_path, case):
    keys, rows, said = EXTRA[case]
    files = {"data.yaml": YAML + keys}
    for number, row in enumerate(rows):
        files |= {f"images/train/{number}.png": None, f"labels/train/{number}.txt": row}
    found = yolo.read(write(tmp_path, files))
    assert not faults(found) and boxes_of(found)[f"{len(rows) - 1}.png"] == BOX
    assert [said in note for note in found.notes] == [True] * bool(said)


@pytest.mark.parametrize(
    "keys, row", [("kpt_shape: [2, 2]\n", f"{ROW} .91 7"), ("", f"{ROW} .45 .45 2 .55 .55 2")]
)
def test_rows_of_another_kind_are_noted_and_their_image_is_no_background(tmp_path, keys, row):
    more = {"images/train/q.png": None, "labels/train/q.txt": row}
    write(tmp_path, {"data.yaml": YAML + keys} | TRAIN | more)
    found = formats.read(tmp_path)
    assert len(faults(found)) == 1 and "q.txt row 1: must be class x y" in faults(found)[0]
    assert boxes_of(found) == {"p.png": BOX}


REFUSED_YAML = {
    "train: 5\nnames: [a]": "train must be a path or a list of paths, got 5",
    "train: gone\nnames: [a]": "gone: no such folder or file, named in",
    "train: ../../gone\nnames: [a]": "gone: no such folder or file, named in",
    "train: images\nnames: [a]\nnc: 2": "nc must be 1, the number of names, got 2",
    "train: images\nnames: [[a]]": "names must be strings",
    "train: images\nnames: {2: a}": "names must be a list",
    "names: &a [x]\ntrain: *a": "cannot be read as YAML .aliases are not supported",
    "[" * 400: "cannot be read as YAML .nested too deeply",
    "names: [a]\nkpt_shape: 3\ntrain: images": "kpt_shape must be two integers in 1..999, got 3",
}


@pytest.mark.parametrize("text", REFUSED_YAML)
def test_a_yaml_file_that_cannot_be_used_is_one_line(tmp_path, text):
    write(tmp_path, {"data.yaml": text, "images/train/p.png": None, "labels/train/p.txt": ROW})
    with pytest.raises(InputError, match=REFUSED_YAML[text]) as error:
        formats.read(tmp_path)
    assert "\n" not in str(error.value)


# COCO


def coco_json(**changes):
    whole = {
        "images": [{"id": 1, "file_name": "p.png", "width": 100, "height": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 24, 20, 12]}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return whole | changes


def one_image(**fields):
    return coco_json(images=[coco_json()["images"][0] | fields])


def one_object(**fields):
    return coco_json(annotations=[coco_json()["annotations"][0] | fields])


SEGMENTATION = [[40, 24, 60, 24, 60, 30], [50, 30, 60, 36, 45, 36]]


@pytest.mark.parametrize(
    "files",
    {
        "one JSON": {"labels.json": coco_json(), "p.png": None},
        "fiftyone": {"labels.json": coco_json(), "data/p.png": None},
        "label studio": {"result.json": one_image(file_name="images\\p.png"), "images/p.png": None},
        "cvat": {"annotations/instances_default.json": coco_json(), "images/default/p.png": None},
        "absolute": {
            "train.json": one_image(file_name="/content/set/train/p.png"),
            "train/p.png": None,
        },
        "mark": {
            "_annotations.coco.json": codecs.BOM_UTF8 + json.dumps(coco_json()).encode(),
            "p.png": None,
        },
        "text ids": {"a.json": one_object(image_id="1", category_id="1"), "p.png": None},
        "polygons": {"a.json": one_object(bbox=[], segmentation=SEGMENTATION), "p.png": None},
        "another": {
            "a.json": coco_json(),
            "package.json": {"name": "web"},
            "compose.yaml": "services: {web: {image: x}}",
            "p.png": None,
        },
        "smaller": {
            "train/labels.json": coco_json(),
            "train/p.png": None,
            "valid/labels.json": coco_json(categories=[{"id": 1, "name": "a"}]),
            "valid/p.png": None,
        },
        "secret": {
            "annotations/instances_train.json": coco_json(),
            "annotations/instances_test.json": coco_json(annotations=[]),
            "train/p.png": None,
        },
    }.items(),
    ids=lambda item: item[0],
)
def test_coco_sets_of_all_layouts(tmp_path, files):
    found = formats.read(write(tmp_path, files[1]))
    assert found.classes == ("a", "b") and found.class_ids == (1, 2)
    assert boxes_of(found) == {found.splits["train"][0].name: BOX} and not faults(found)
    assert found.splits["train"][0].image.is_file()
    assert "test" not in found.splits


@pytest.mark.parametrize("value, crowd", [("0", False), ("1", True), (1.0, True), (None, False)])
def test_flags_of_coco_are_read_as_programs_write_them(tmp_path, value, crowd):
    for flag in ("iscrowd", "ignore"):
        write(tmp_path, {"a.json": one_object(**{flag: value}), "p.png": None})
        assert coco.read(tmp_path).splits["train"][0].crowd.tolist() == [crowd]


def test_the_area_of_coco_is_that_of_the_file(tmp_path):
    write(tmp_path, {"a.json": one_object(area=100), "p.png": None})
    samples = coco.read(tmp_path).splits["train"]
    assert samples[0].area.tolist() == [100]
    source, _ = detection.load(samples, 32, 32, 1)
    assert source.arrays["true_area"].tolist() == [[100]]


REFUSED_JSON = {
    "image ids": (coco_json(images=[{"id": 4, "file_name": n} for n in "xy"]), "id 4 .* x and y"),
    "category ids": (
        coco_json(categories=[{"id": 1, "name": n} for n in "ab"]),
        "category id 1 .*'a' and 'b'",
    ),
    "category id": (coco_json(categories=[{"id": [1], "name": "a"}]), "must have an integer id"),
    "deep": ('{"images": ' + "[" * 100_000, "cannot be read as JSON .nested too deeply"),
    "digits": ('{"images": ' + "1" * 5000 + "}", "cannot be read as JSON .*4300 digits"),
    "rows": (coco_json(images=[3]), "images must be a list of objects"),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_a_coco_file_that_cannot_be_used_is_one_line(tmp_path, case):
    content, says = REFUSED_JSON[case]
    write(tmp_path, {"annotations/instances_train.json": content, "p.png": None})
    with pytest.raises(InputError, match=says) as error:
        formats.read(tmp_path)
    assert "\n" not in str(error.value)


def test_categories_of_one_id_and_two_names_are_refused(tmp_path):
    other = coco_json(categories=[{"id": 1, "name": "b"}])
    write(tmp_path, {"train.json": coco_json(), "val.json": other, "p.png": None})
    with pytest.raises(InputError, match="category 1 must have the same name in all files"):
        coco.read(tmp_path)


ODD = [[], {}, None, "x", 2**60, 1e400, True, [1, 2], "\0", "a\nb"]


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "iscrowd", "area", "id"])
def test_any_value_in_a_coco_annotation_is_read_or_noted(tmp_path, key):
    whole = coco_json()
    whole["annotations"] += [whole["annotations"][0] | {key: value} for value in ODD]
    found = coco.read(write(tmp_path, {"train.json": whole, "p.png": None}))
    assert boxes_of(found)["p.png"][0] == BOX[0]
    assert all("\n" not in note and "\0" not in note for note in found.notes)


@pytest.mark.parametrize("key", ["id", "file_name", "width"])
def test_any_value_in_a_coco_image_is_read_or_noted(tmp_path, key):
    first = coco_json()["images"][0]
    rows = [first, *(first | {"id": i, key: value} for i, value in enumerate(ODD, 10))]
    if key == "id":
        rows = [first, *(first | {"id": value} for value in ODD)]
    found = coco.read(write(tmp_path, {"train.json": coco_json(images=rows), "p.png": None}))
    _, notes = detection.load(found.splits["train"], 32, 32, 1)
    assert all("\n" not in note and "\0" not in note for note in (*found.notes, *notes))


# Pascal VOC


def annotation(size="", name="a"):
    return f"<annotation>{size}{XML.replace('>a<', f'>{name}<')}</annotation>"


LISTS = "ImageSets/Main"


@pytest.mark.parametrize(
    "files",
    {
        "annotations": {"annotations/p.xml": annotation(), "images/p.jpg": None},
        "annots": {"annots/p.xml": annotation(), "images/p.png": None},
        "roboflow": {"train/p.xml": annotation(), "train/p.jpg": None},
        "trainval": {
            f"{LISTS}/trainval.txt": "p\n",
            "Annotations/p.xml": annotation(),
            "Annotations/q.xml": annotation(),
            "JPEGImages/p.jpg": None,
            "JPEGImages/q.jpg": None,
        },
        "spaces": {
            f"{LISTS}/train.txt": "p 1 \n",
            "Annotations/p 1.xml": annotation(),
            "JPEGImages/p 1.jpg": None,
        },
        "flag": {
            f"{LISTS}/train.txt": "p  1\n",
            "Annotations/p.xml": annotation(),
            "JPEGImages/p.jpg": None,
        },
        "ending": {
            f"{LISTS}/train.txt": codecs.BOM_UTF8 + b"p.jpg\r\n",
            "Annotations/p.xml": annotation(),
            "JPEGImages/p.jpg": None,
        },
        "upper": {"Annotations/p.xml": annotation(), "JPEGImages/p.JPG": None},
        "bmp": {"Annotations/p.xml": annotation(), "JPEGImages/p.bmp": None},
        "file name": {
            "Annotations/p.xml": annotation("<filename>C:\\x\\q.jpg</filename>"),
            "JPEGImages/q.jpg": None,
        },
        "latin": {
            "Annotations/p.xml": (
                '<?xml version="1.0" encoding="ISO-8859-1"?>' + annotation(name="\xdf")
            ).encode("latin-1"),
            "JPEGImages/p.jpg": None,
        },
        "utf-16": {
            "Annotations/p.xml": (
                '<?xml version="1.0" encoding="UTF-16"?>' + annotation(name="\xdf")
            ).encode("utf-16"),
            "JPEGImages/p.jpg": None,
        },
        "hidden": {
            "__MACOSX/._p.xml": "x",
            "__MACOSX/q.xml": annotation(),
            ".ipynb_checkpoints/r.xml": annotation(),
            "a/p.xml": annotation(),
            "a/p.jpg": None,
            "a/._p.jpg": b"x",
        },
    }.items(),
    ids=lambda item: item[0],
)
def test_voc_sets_of_all_layouts(tmp_path, files):
    found = formats.read(write(tmp_path, files[1]))
    assert list(found.splits) == ["train"] and not faults(found)
    assert [one.boxes.tolist() for one in found.splits["train"]] == [BOX]
    assert found.splits["train"][0].image.is_file() and found.classes[0] in ("a", "\xdf")


def test_voc_folders_named_after_splits_tell_them_apart(tmp_path):
    files = {
        f"{split}/{i}.{end}": content
        for i, split in enumerate(("train", "valid", "test"))
        for end, content in (("xml", annotation()), ("jpg", None))
    }
    found = formats.read(write(tmp_path, files | {"train/more.jpg": None}))
    assert {split: [one.name for one in own] for split, own in found.splits.items()} == {
        "train": ["0"],
        "val": ["1"],
        "test": ["2"],
    }
    assert "1 images have no XML file and are not used" in found.notes[0]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"<a/>", "root element must be annotation, got a"),
        (b"<!DOCTYPE a><annotation/>", "must not define XML entities"),
        ("<!DOCTYPE a><annotation/>".encode("utf-16"), "must not define XML entities"),
        (b"\xff\xfe\x00", "cannot be read as XML"),
        (b"<annotation>" + b"<a>" * 20_000, "cannot be read as XML"),
        (b"<annotation><object><name> </name></object></annotation>", "must have a name"),
    ],
)
def test_an_xml_file_that_cannot_be_used_is_noted_in_one_line(tmp_path, content, says):
    write(tmp_path, {"Annotations/p.xml": content, "JPEGImages/p.jpg": None})
    (note,) = voc.read(tmp_path).notes
    assert re.search(says, note) and "\n" not in note


# LabelMe


def labelme_json(*shapes, **changes):
    shapes = [{"label": "a", "points": [[40, 24], [60, 36]]} | one for one in shapes or ({},)]
    size = {"imageHeight": 60, "imageWidth": 100}
    return {"version": "5", "flags": {}, "shapes": shapes, "imagePath": "p.png"} | size | changes


TRIANGLE = [[40, 24], [60, 30], [50, 36]]


@pytest.mark.parametrize(
    "shape",
    [
        {"shape_type": "rectangle", "points": [[60, 24], [40, 36]]},
        {"shape_type": "polygon", "points": TRIANGLE},
        {"shape_type": None, "points": TRIANGLE},
        {"shape_type": "mask", "points": [[40, 24], [59, 35]]},
        {"shape_type": "circle", "points": [[50, 30], [58, 36]]},
    ],
    ids=lambda shape: str(shape["shape_type"]),
)
def test_shapes_of_labelme_become_boxes(tmp_path, shape):
    found = formats.read(write(tmp_path, {"p.json": labelme_json(shape), "p.png": None}))
    expected = [[40, 20, 60, 40]] if shape["shape_type"] == "circle" else BOX
    assert boxes_of(found) == {"p.png": expected} and not found.notes
    (one,) = found.splits["train"]
    assert one.rows.tolist() == [1] and one.file.endswith("p.json") and one.size == (60, 100)


def test_labelme_sets_of_all_layouts(tmp_path):
    files = {
        "annotations/p.json": labelme_json(imagePath="..\\images\\p.png"),
        "images/p.png": None,
        "images/unused.png": None,
        "valid/q.json": labelme_json({"flags": {"difficult": True}}, imagePath="C:\\q.bmp"),
        "valid/q.png": None,
        "train/r.json": labelme_json(imagePath="../../../r.png"),
        "train/broken.json": b'{"shapes": [',
        "train/other.json": {"name": "web"},
    }
    found = formats.read(write(tmp_path, files))
    assert boxes_of(found) == {"p.png": BOX, "r.png": BOX} and boxes_of(found, "val")
    assert found.splits["val"][0].crowd.tolist() == [True]
    assert found.splits["train"][1].image == tmp_path / "train/r.png"  # inside the folder
    assert len(faults(found)) == 1 and "broken.json: cannot be read as JSON" in faults(found)[0]
    assert "1 images have no JSON file and are not used" in found.notes[-1]


@pytest.mark.parametrize("key", ["label", "points", "shape_type", "flags"])
def test_any_value_in_a_labelme_shape_is_read_or_noted(tmp_path, key):
    values = [*ODD, [[1]], [["x", 1], [2, 3]], [[1, 1e400], [2, 3]]]
    content = labelme_json({}, *({key: value} for value in values))
    found = formats.read(write(tmp_path, {"p.json": content, "p.png": None}))
    assert boxes_of(found)["p.png"][0] == BOX[0]
    assert all("p.json shape" in note or "duplicates" in note for note in found.notes)
    assert all("\n" not in note and "\0" not in note for note in found.notes)


@pytest.mark.parametrize("content", [[], {"shapes": 3}, {"shapes": [3]}])
def test_a_labelme_file_that_cannot_be_used_is_noted(tmp_path, content):
    write(tmp_path, {"p.json": labelme_json(), "q.json": content, "p.png": None})
    content and (tmp_path / "q.json").write_text(json.dumps({"imagePath": "q"} | content))
    found = formats.read(tmp_path)
    assert boxes_of(found) == {"p.png": BOX} and len(faults(found)) == bool(content)


# CVAT


def cvat_xml(shapes, labels="ab", attributes=""):
    names = "".join(f"<label><name>{name}</name></label>" for name in labels)
    image = f'<image name="p.png" width="100" height="60" {attributes}>{shapes}</image>'
    return f"<annotations><meta><task><labels>{names}</labels></task></meta>{image}</annotations>"


CVAT_BOX = '<box label="a" xtl="40" ytl="24" xbr="60" ybr="36"{}/>'


@pytest.mark.parametrize(
    "shape",
    {
        "box": CVAT_BOX.format(""),
        "turned": '<box label="a" xtl="44" ytl="20" xbr="56" ybr="40" rotation="90"/>',
        "polygon": '<polygon label="a" points="40.0,24;60,30;50,36"/>',
        "ellipse": '<ellipse label="a" cx="50" cy="30" rx="6" ry="10" rotation="270"/>',
        "mask": '<mask label="a" rle="0, 240" left="40" top="24" width="20" height="12"/>',
    }.items(),
    ids=lambda item: item[0],
)
def test_shapes_of_cvat_become_boxes(tmp_path, shape):
    text = cvat_xml(f'<tag label="b"/>{shape[1]}')
    found = formats.read(write(tmp_path, {"annotations.xml": text, "images/p.png": None}))
    assert boxes_of(found) == {"p.png": BOX} and found.classes == ("a", "b") and not found.notes


def test_invalid_shapes_of_cvat_are_noted_by_their_number(tmp_path):
    shapes = [
        CVAT_BOX.format(""),
        CVAT_BOX.format("").replace('"a"', '"c"'),
        '<points label="a" points="1,2"/>',
        '<box label="a" xtl="1"/>',
        '<polygon label="a" points="1;2"/>',
    ]
    text = cvat_xml("".join(shapes), attributes='subset="Validation"')
    found = formats.read(
        write(tmp_path, {"annotations.xml": text, "images/Validation/p.png": None})
    )
    assert boxes_of(found, "val") == {"p.png": BOX}
    says = ["2: unknown class 'c'", "3: shape must be one of", "4: box must", "5: polygon must"]
    for note, text in zip(faults(found), says, strict=True):
        assert f"annotations.xml image p.png object {text}" in note
    (one,) = found.splits["val"]
    assert (one.unknown, one.unread, one.image) == (1, 3, tmp_path / "images/Validation/p.png")


@pytest.mark.parametrize(
    "text, says",
    [
        ("<annotations><track/></annotations>", "got tracks of CVAT for video"),
        ("<!DOCTYPE a><annotations></annotations>", "must not define XML entities"),
        ("<annotations>", "cannot be read as XML"),
    ],
)
def test_a_cvat_file_that_cannot_be_used_is_one_line(tmp_path, text, says):
    with pytest.raises(InputError, match=says) as error:
        formats.read(write(tmp_path, {"annotations.xml": text}))
    assert "\n" not in str(error.value)


# CSV


@pytest.mark.parametrize(
    "text",
    [
        "p.png,40,24,60,36,a\nq.png,,,,,\n",
        "label,x0,x1,y0,y1,file,note\na,40,60,24,36,p.png,good\n,,,,,q.png,\n",
        'FILE,X0,Y0,X1,Y1,LABEL\r\n"C:\\set\\p.png",40.0,24,60,36,"a"\r\n\r\nq.png\r\n',
        codecs.BOM_UTF8 + b"p.png,40,24,60,36,a\nq.png,,,,,\n",
        "p.png,40,24,60,36,a\nq.png,,,,,\n".encode("utf-16"),
    ],
)
def test_csv_tables_with_and_without_a_heading(tmp_path, text):
    found = formats.read(write(tmp_path, {"boxes.csv": text, "p.png": None, "images/q.png": None}))
    assert boxes_of(found) == {"p.png": BOX, "q.png": []} and found.classes == ("a",)
    assert not found.notes and found.splits["train"][1].image.is_file()


def test_invalid_rows_of_csv_are_noted_by_their_number(tmp_path):
    rows = ["p.png,40,24,60,36,a", "p.png,40,x,60,36,a", "p.png,40,24,60,36,", ",1,2,3,4,a"]
    rows += ["p.png,40,24,,36,a", "p.png,nan,1,2,3,a", "../../p.png,1,1,5,5,a", "q.png,1,1,2,y,a"]
    files = {"train.csv": "\n".join(rows), "val.csv": "p.png,1,2,x,4,a", "p.png": None}
    found = formats.read(write(tmp_path, files | {"more.csv": "a,b\n"}))
    says = ["2: x0, y0", "3: label must", "4: file must", "5: x0, y0", "8: x0, y0"]
    for note, text in zip(faults(found), says, strict=True):
        assert f"train.csv row {text}" in note
    (one,) = found.splits["train"]  # q.png has no valid row
    assert (one.unread, one.rows.tolist(), one.file) == (3, [1, 6, 7], str(tmp_path / "train.csv"))
    assert one.image == tmp_path / "p.png"  # inside the folder
    with pytest.raises(InputError, match="no csv data"):
        formats.read(write(tmp_path / "other", {"train.csv": "a,b,c\n"}), "csv")


# All formats


@pytest.mark.parametrize("size, boxes", [((100, 60), BOX), ((200, 120), [[80, 48, 120, 72]])])
def test_boxes_are_scaled_to_an_image_of_another_size(tmp_path, size, boxes):
    said = "<size><width>100</width><height>60</height></size>"
    write(tmp_path / "voc", {"a/p.xml": annotation(said), "a/p.png": None})
    write(tmp_path / "coco", {"train.json": one_object(area=100), "p.png": None})
    for name, path in (("voc", "a/p.png"), ("coco", "p.png")):
        Image.new("RGB", size).save(tmp_path / name / path)
        samples = formats.read(tmp_path / name).splits["train"]
        source, notes = detection.load(samples, 32, 32, 1)
        np.testing.assert_allclose(source.arrays["true_boxes"][0], boxes)
        assert not detection.faults(notes) and len(notes) == (size != (100, 60))
    factor = size[0] / 100
    assert source.arrays["true_area"][0, 0] == 100 * factor**2


def test_an_image_of_another_aspect_ratio_is_refused_by_name(tmp_path):
    write(tmp_path, {"train.json": coco_json(), "p.png": None})
    for size, why in (((60, 100), "EXIF"), ((100, 90), "another aspect ratio")):
        Image.new("RGB", size).save(tmp_path / "p.png")
        samples = formats.read(tmp_path).splits["train"]
        with pytest.raises(InputError, match=rf"p\.png: size is 100 x 60 .*: .*{why}"):
            detection.load(samples, 32, 32, 1)


def test_images_with_unknown_classes_only_are_no_background(tmp_path):
    own = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    told = coco_json()["annotations"][0]
    annotations = [told | {"image_id": 0}, told | {"image_id": 1, "category_id": 9}]
    whole = coco_json(
        images=own, annotations=[*annotations, told | {"image_id": 0, "category_id": 9}]
    )
    write(tmp_path, {"train.json": whole} | {f"{i}.png": None for i in range(3)})
    found = formats.read(tmp_path)
    assert list(boxes_of(found)) == ["0.png", "2.png"] and len(faults(found)) == 2
    assert found.notes[-1] == (
        "train: 1 of 3 images have only objects of an unknown class: left out"
    )
    found = formats.read(tmp_path, unknown_classes="background")
    assert list(boxes_of(found)) == ["0.png", "1.png", "2.png"]
    assert found.notes[-1].endswith("kept as images without objects")
    config = Config(root=str(tmp_path), size=(32, 32), val_fraction=0.5, devices=1)
    assert sum(len(s) for s in configs.build("detect", config).splits.values()) == 2
    with pytest.raises(InputError, match=r"0\.png: .* must be 0, got 1; --unknown-cl"):
        configs.build("detect", replace(config, unknown_classes="error"))


def test_chosen_classes_are_kept_in_their_order(tmp_path):
    own = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    told = coco_json()["annotations"][0]
    classes = [{"id": 2, "name": "a"}, {"id": 5, "name": "b"}, {"id": 7, "name": "c"}]
    pairs = [(0, 2), (0, 7), (0, 5), (1, 5), (2, 7)]  # image, category
    annotations = [
        told | {"image_id": i, "category_id": c, "bbox": [4, 4, 10 + c, 10]} for i, c in pairs
    ]
    whole = coco_json(images=own, annotations=annotations, categories=classes)
    write(tmp_path, {"train.json": whole} | {f"{i}.png": None for i in range(3)})
    found = formats.read(tmp_path, classes=("c", "a"))
    assert found.classes == ("c", "a") and found.class_ids == (7, 2)
    first, last = found.splits["train"]  # the other image has only objects of other classes
    assert (first.name, list(first.labels), first.unknown) == ("0.png", [1, 0], 1)
    assert list(first.boxes[:, 2]) == [16, 21] and list(last.labels) == [0]
    found = formats.read(tmp_path, classes=("c", "a"), unknown_classes="background")
    assert [len(sample.boxes) for sample in found.splits["train"]] == [2, 0, 1]
    assert formats.read(tmp_path, classes=("a", "b", "c")).classes == ("a", "b", "c")
    config = Config(root=str(tmp_path), size=(32, 32), classes=("a", "d"), devices=1)
    with pytest.raises(InputError, match=r"^--classes must be among a, b, c, got d$"):
        configs.build("detect", config)


def test_an_image_whose_boxes_are_all_unusable_is_no_background(tmp_path):
    write(tmp_path, {"p.png": None, "q.png": None})
    bad = detection.annotated_image(tmp_path / "p.png", [((5, 5, 5, 9), 0)], "p.png")
    good = detection.annotated_image(tmp_path / "q.png", [], "q.png")
    source, notes = detection.load([bad, good], 32, 32, 1)
    assert source.names == ["q.png"] and notes == ["p.png: box 5 5 5 9 has no area"]


def test_boxes_that_are_there_twice_are_kept_once_and_said(tmp_path):
    rows = {"labels/train/p.txt": f"{ROW}\n{ROW}\n1{ROW[1:]}\n"}
    found = formats.read(write(tmp_path, {"data.yaml": YAML} | TRAIN | rows))
    assert found.splits["train"][0].labels.tolist() == [0, 1]
    assert found.notes == ("p.png: 1 of 3 boxes are duplicates, left out",)


def test_files_of_unknown_formats_are_counted_and_hidden_ones_skipped(tmp_path, caplog):
    odd = {f"images/train/{name}": b"x" for name in ("a.heic", "b.heic", "c.orf", "._p.png")}
    odd |= {"images/train/.ipynb_checkpoints/p.png": None, "images/train/notes.txt": "x"}
    found = formats.read(write(tmp_path, {"data.yaml": YAML} | TRAIN | odd))
    assert list(boxes_of(found)) == ["p.png"]
    (note,) = found.notes
    assert note.endswith("3 files have no known image format (.heic: 2, .orf: 1)")
    assert images.list_images(tmp_path) == [tmp_path / "images/train/p.png"]
    assert "no known image format" in caplog.text


def test_classes_of_one_name_are_told_apart(tmp_path):
    write(tmp_path, {"data.yaml": "train: images/train\nnames: [a, a]\n"} | TRAIN)
    assert yolo.read(tmp_path).classes == ("a", "a (1)")


def test_remarks_are_no_faults(tmp_path):
    more = {"images/train/q.png": None, "images/train/r.png": None}
    write(tmp_path, {"data.yaml": YAML} | TRAIN | more)
    config = Config(root=str(tmp_path), size=(32, 32), on_invalid="error", devices=1)
    said = []
    runs.report_notes(configs.build("detect", replace(config, val_fraction=0.5)).notes, said.append)
    assert said == [
        "1 remarks on the data:",
        "  train: 2 of 3 images have no label file and are read as images without objects",
    ]


def test_data_without_any_class_are_refused(tmp_path):
    write(tmp_path, {"Annotations/p.xml": "<annotation></annotation>", "JPEGImages/p.jpg": None})
    with pytest.raises(InputError, match="must hold objects with a class, got none"):
        configs.build("detect", Config(root=str(tmp_path), size=(32, 32), devices=1))


@pytest.mark.parametrize("name", ["data.yaml", "labels/train/p.txt", "train.json", "a/p.xml"])
def test_pipes_are_not_read(tmp_path, name):
    files = {"labels/train/q.txt": ROW, "images/train/q.png": None} | TRAIN | {"a/p.jpg": None}
    files |= {"data.yaml": YAML} if name.startswith("labels") else {}
    write(tmp_path, {key: value for key, value in files.items() if key != name})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    try:
        notes = formats.read(tmp_path).notes
    except InputError as error:
        notes = [str(error)]
    assert any("not a regular file" in n or "no label file" in n or "no data" in n for n in notes)
