"""Detection sets converted between formats read as the originals."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import convert, detection, formats, images
from jaxdet.errors import InputError
from tests import datasets
from tests.cli.test_main import main

pytest.importorskip("pyarrow")


def converted(source, out, to, *words):
    assert main("data", "convert", str(source), str(out), "--to", to, *words) == 0
    return formats.read(out, to)


def assert_same(before, after, *, crowd=True, area=True):
    """The same classes, splits, image files and objects, to the last bit."""
    assert after.classes == before.classes and after.splits.keys() == before.splits.keys()
    names = ["boxes", "labels", *["crowd"] * crowd, *["area"] * area]
    for split, samples in before.splits.items():
        for one, other in zip(samples, after.splits[split], strict=True):
            for name in names:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert images.file_bytes(other.image) == images.file_bytes(one.image)


@pytest.mark.parametrize("name", datasets.FORMATS)
def test_every_format_converts_to_every_other_and_back(tmp_path, name, capsys):
    datasets.FORMATS[name](tmp_path / name)
    before = formats.read(tmp_path / name)
    for to in convert.WRITERS:
        after = converted(tmp_path / name, tmp_path / f"to-{to}", to)
        assert_same(before, after, crowd=to != "yolo")
        assert not after.notes
        said = capsys.readouterr().out
        assert said.endswith(f"wrote {tmp_path / f'to-{to}'}: 2 classes, images: train 3, val 1\n")
        lost = to == "yolo" and name in datasets.MARKED
        assert ("1 objects marked as crowd or difficult become" in said) == lost


def odd_coco(root):
    """COCO: fractions of pixels, unsorted classes, equal names, and a segment's area."""
    rows = [
        {"bbox": [0.1, 0.7, 20.3, 11.9], "area": 17.5, "category_id": 3},
        {"bbox": [1 / 3, 2, 1e-3, 1], "category_id": 9},
    ]
    content = {
        "images": [{"id": 7 + i, "file_name": f"{i}/a b.png"} for i in range(2)],
        "annotations": [row | {"id": 5, "image_id": 8} for row in rows],
        "categories": [{"id": 3, "name": "z: é"}, {"id": 9, "name": "a"}, {"id": 10, "name": "b"}],
    }
    for i in range(2):
        (root / str(i)).mkdir(parents=True)
        datasets.draw_image(i).save(root / str(i) / "a b.png")
    (root / "train.json").write_text(json.dumps(content))


def test_a_chain_of_conversions_keeps_boxes_and_classes(tmp_path, capsys):
    odd_coco(tmp_path / "coco")
    before = formats.read(tmp_path / "coco")
    voc = converted(tmp_path / "coco", tmp_path / "voc", "voc")
    said = capsys.readouterr().out
    assert "1 image files are renamed" in said and "1 objects lose their area" in said
    assert "category ids are lost" in said
    yolo = converted(tmp_path / "voc", tmp_path / "yolo", "yolo")
    coco = converted(tmp_path / "yolo", tmp_path / "again", "coco", "--images", "link")
    for after in (voc, yolo, coco):
        assert_same(before, after, area=False)
        assert [one.image.stem for one in after.splits["train"]] == ["a b", "a b_2"]
    assert coco.splits["train"][0].image.is_symlink() and coco.class_ids == (1, 2, 3)
    direct = converted(tmp_path / "coco", tmp_path / "direct", "coco")
    assert_same(before, direct)
    assert direct.class_ids == (3, 9, 10) and [one.id for one in direct.splits["train"]] == [7, 8]


def test_unusable_images_and_boxes_are_left_out_or_refused(tmp_path, capsys):
    datasets.write_yolo(tmp_path / "set")
    (tmp_path / "set/images/train/1.png").write_bytes(b"x")
    with (tmp_path / "set/labels/train/0.txt").open("a") as file:
        file.write("0 2.5 .5 .1 .1\n")
    words = ["data", "convert", str(tmp_path / "set"), str(tmp_path / "out"), "--to", "voc"]
    assert main(*words, "--on-invalid", "error") == 2
    assert "2 images or rows cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(*words) == 0
    assert "1.png: not a readable image" in capsys.readouterr().out
    found = formats.read(tmp_path / "out")
    assert [len(one.boxes) for one in found.splits["train"]] == [2, 0]


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path, monkeypatch, capsys):
    datasets.write_yolo(tmp_path / "set")
    plan = convert.plan(formats.read(tmp_path / "set"), "parquet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for out in ("full", "set/data.yaml"):
        with pytest.raises(InputError, match="must be an empty or new folder"):
            convert.write(plan, tmp_path / out)
    with pytest.raises(InputError, match="--images link needs a format with image files"):
        convert.write(plan, tmp_path / "out", link=True)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setitem(convert.WRITERS, "parquet", fail)
    with pytest.raises(OSError, match="no space"):
        convert.write(plan, tmp_path / "new" / "out")
    assert not [*(tmp_path / "new").iterdir()]
    for source, out, said in (
        ("gone", "out", "SRC must be a folder of data"),
        ("set", "set/out", "DST must be outside SRC"),
    ):
        words = [str(tmp_path / source), str(tmp_path / out)]
        assert main("data", "convert", *words, "--to", "voc") == 2
        assert said in capsys.readouterr().err


def test_splits_and_names_that_a_format_cannot_hold_are_refused():
    sample = detection.annotated_image(Image.new("RGB", (4, 4)), [], "a")
    other = detection.DetectionDataset(("a",), {"unlabeled": [sample]}, ())
    with pytest.raises(InputError, match="splits must be train, val or test, got unlabeled"):
        convert.plan(other, "yolo")
    with pytest.raises(InputError, match=r"class names must be printable, .* got 'a\\n'"):
        convert.plan(other._replace(classes=("a\n",)), "coco")


def test_a_table_has_small_row_groups(tmp_path, monkeypatch):
    from pyarrow import parquet

    datasets.write_voc(tmp_path / "set")
    monkeypatch.setattr(convert, "GROUP_SIZE", 2)
    converted(tmp_path / "set", tmp_path / "out", "parquet")
    assert parquet.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 2
