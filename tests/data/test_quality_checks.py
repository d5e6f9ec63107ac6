import shutil

import pytest

from jaxdet.data import formats, quality_checks, yolo
from tests import datasets


@pytest.fixture
def root(tmp_path):
    """A YOLO set with one of everything that is odd."""
    datasets.yolo(tmp_path / "set")
    photos, labels = (tmp_path / "set" / name / "train" for name in ("images", "labels"))
    datasets.photo(0).convert("L").save(photos / "grey.png")
    turned = datasets.photo(1)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photos / "turned.jpg", exif=exif)
    shutil.copy(photos / "0.png", tmp_path / "set" / "images" / "val" / "copy.png")
    (photos / "text.png").write_text("no photo")
    lines = [
        *("0 .5 .5 0 .2", "1 2 2 .1 .1", "1 .5 .5 .001 .2", "5 .5 .5 .1 .1", "one .5 .5"),
        *("0 0 .5 .5 .5", "0 .5 .5 .5 .5"),
    ]
    (labels / "grey.txt").write_text("\n".join(lines))
    return tmp_path / "set"


COUNTS = {
    quality_checks.DUPLICATES: (1, "copy.png (val), as 0.png (train)"),
    "photos without objects": (3, "2.png"),  # turned.jpg and copy.png as well
    "grey photos": (1, "grey.png"),
    "photos turned by their EXIF data": (1, "turned.jpg"),
    "boxes that leave their photo, cut": (1, "grey.png"),
    "boxes without an area": (1, "grey.png: box 30 16 30 24 has no area"),
    "boxes outside of the photo": (1, "grey.png: box 117 78 123 82 is outside of the 60 x 40"),
    "boxes of less than a pixel of the network's input": (1, "grey.png: box 29.97 16 30.03 24"),
    "objects of an unknown class": (1, "labels/train/grey.txt row 4: unknown class 5"),
    "photos named twice": (0, ""),
    "photos that cannot be read": (1, "images/train/text.png: not a readable image"),
    quality_checks.OTHER_NOTES: (
        1,
        "labels/train/grey.txt row 5: 'one .5 .5'; class x y width height",
    ),
}


def test_every_oddity_is_counted_and_has_its_first_place(root):
    rows, notes = quality_checks.check_dataset(yolo.read(root), 64, 96)
    assert {row["what"]: row["count"] for row in rows} == {k: c for k, (c, _) in COUNTS.items()}
    for row in rows:
        assert COUNTS[row["what"]][1] in row["first"], row
    assert len(notes) == 6


def test_photos_named_twice_are_counted(root):
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("images/val", "images/train"))
    rows, _ = quality_checks.check_dataset(yolo.read(root), 64, 96)
    assert {row["what"]: row["count"] for row in rows}["photos named twice"] == 6


@pytest.mark.parametrize("name", ["coco", "voc", "parquet"])
def test_a_set_without_oddities_has_none_but_its_empty_photo(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    datasets.FORMATS[name](tmp_path / "set")
    rows, notes = quality_checks.check_dataset(formats.read(tmp_path / "set"), 64, 96)
    assert not notes
    assert {row["what"]: row["count"] for row in rows if row["count"]} == {
        "photos without objects": 1
    }


@pytest.mark.parametrize("side, count", [(640, 0), (32, 1)])
def test_small_boxes_are_judged_by_the_input_that_is_named(tmp_path, side, count):
    datasets.yolo(tmp_path / "set")
    (tmp_path / "set" / "labels" / "train" / "0.txt").write_text("0 .5 .5 .015 .5\n")
    rows, _ = quality_checks.check_dataset(yolo.read(tmp_path / "set"), side, side)
    assert [row["count"] for row in rows if "less than a pixel" in row["what"]] == [count]
