import shutil

import pytest

from jaxdet.data import detection, formats, quality_checks, yolo
from tests import datasets


@pytest.fixture
def root(tmp_path):
    """A YOLO set with one instance of everything that is checked."""
    datasets.write_yolo(tmp_path / "set")
    images, labels = (tmp_path / "set" / name / "train" for name in ("images", "labels"))
    datasets.draw_image(0).convert("L").save(images / "gray.png")
    rotated = datasets.draw_image(1)
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(images / "rotated.jpg", exif=exif)
    shutil.copy(images / "0.png", tmp_path / "set" / "images" / "val" / "copy.png")
    (images / "text.png").write_text("not an image")
    lines = [
        *("0 .5 .5 0 .2", "1 2 2 .1 .1", "1 .5 .5 .001 .2", "5 .5 .5 .1 .1", "one .5 .5"),
        *("0 0 .5 .5 .5", "0 .5 .5 .5 .5"),
    ]
    (labels / "gray.txt").write_text("\n".join(lines))
    return tmp_path / "set"


COUNTS = {
    quality_checks.DUPLICATES: (1, "copy.png (val), same as 0.png (train)"),
    "images without objects": (3, "2.png"),  # rotated.jpg and copy.png as well
    "grayscale images": (1, "gray.png"),
    "images rotated by EXIF": (1, "rotated.jpg"),
    "boxes clipped to their image": (1, "gray.png"),
    "boxes without area": (1, "gray.png: box 30 16 30 24 has no area"),
    "boxes outside the image": (1, "gray.png: box 117 78 123 82 is outside the 60 x 40"),
    "boxes smaller than one pixel of the network's input": (1, "gray.png: box 29.97 16 30.03 24"),
    "objects of an unknown class": (1, "labels/train/gray.txt row 4: unknown class 5"),
    "duplicate boxes": (0, ""),
    "images of another size than annotated": (0, ""),
    "images listed twice": (0, ""),
    "images that cannot be read": (1, "images/train/text.png: not a readable image"),
    quality_checks.OTHER_NOTES: (
        1,
        "labels/train/gray.txt row 5: must be class x y width height, got 'one .5 .5'",
    ),
}


def test_every_check_is_counted_with_its_first_instance(root):
    rows, notes = quality_checks.check_dataset(yolo.read(root), 64, 96)
    assert {row["check"]: row["count"] for row in rows} == {k: c for k, (c, _) in COUNTS.items()}
    for row in rows:
        assert COUNTS[row["check"]][1] in row["first"], row
    assert len(detection.faults(notes)) == 6


def test_images_listed_twice_are_counted(root):
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("images/val", "images/train"))
    rows, _ = quality_checks.check_dataset(yolo.read(root), 64, 96)
    assert {row["check"]: row["count"] for row in rows}["images listed twice"] == 6


@pytest.mark.parametrize("name", ["coco", "voc", "parquet"])
def test_a_clean_set_has_only_its_image_without_objects(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    datasets.FORMATS[name](tmp_path / "set")
    rows, notes = quality_checks.check_dataset(formats.read(tmp_path / "set"), 64, 96)
    assert not notes
    assert {row["check"]: row["count"] for row in rows if row["count"]} == {
        "images without objects": 1
    }


@pytest.mark.parametrize("side, count", [(640, 0), (32, 1)])
def test_small_boxes_are_counted_at_the_given_input_size(tmp_path, side, count):
    datasets.write_yolo(tmp_path / "set")
    (tmp_path / "set" / "labels" / "train" / "0.txt").write_text("0 .5 .5 .015 .5\n")
    rows, _ = quality_checks.check_dataset(yolo.read(tmp_path / "set"), side, side)
    assert [row["count"] for row in rows if "smaller than one pixel" in row["check"]] == [count]
