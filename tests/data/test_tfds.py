"""Detection sets of tensorflow-datasets."""

from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdet.data import detection, formats
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError
from tests import datasets
from tests.cli.test_main import main

COUNTS = {"train": 3, "validation": 2}
BOXES = [tfds.features.BBox(0.25, 0.5, 0.75, x1) for x1 in (1.0, 0.75)]  # y0 x0 y1 x1


def prepare(folder, name, *, boxes=True):
    """A set whose image i, of 8 x 12 pixels, has the pixel value i and i boxes."""
    features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
    if boxes:
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        one = {"bbox": tfds.features.BBoxFeature(), "label": label, "is_crowd": np.bool_}
        features["objects"] = tfds.features.Sequence(one)
    images = [{"image": datasets.encode_constant(i, (8, 12, 3))} for i in range(3)]
    objects = [
        [{"bbox": box, "label": i % 2, "is_crowd": i == 2} for box in BOXES[:i]] for i in range(3)
    ]
    if boxes:
        images = [image | {"objects": own} for image, own in zip(images, objects, strict=True)]
    examples = {split: images[:count] for split, count in COUNTS.items()}
    datasets.prepare_tfds(folder, name, features, examples)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, "boxed")
    prepare(folder, "bare", boxes=False)
    return folder


def test_every_record_is_read_with_boxes_in_pixels(root):
    found = tfds_data.read_detection("boxed", root)
    assert found.classes == ("cat", "dog")
    assert {name: len(own) for name, own in found.splits.items()} == {"train": 3, "val": 2}
    source, notes = detection.load(found.splits["train"], 8, 12, 3)
    assert not notes
    values = source.arrays["image"][:, 0, 0, 0]
    for value, boxes, valid, crowd in zip(
        values, *(source.arrays[name] for name in ("boxes", "valid", "crowd")), strict=True
    ):
        assert valid.sum() == value
        expected = np.float32([[6, 2, 12, 6], [6, 2, 9, 6]][:value]).reshape(-1, 4)
        np.testing.assert_allclose(boxes[valid], expected)
        assert crowd[valid].all() == (value == 2) or value == 0


def test_images_are_read_when_needed(root):
    pytest.importorskip("grain")
    one = tfds_data.read_detection("boxed", root).splits["train"][2]
    assert callable(one.image) and one.image().startswith(b"\x89PNG")
    streamed, notes = detection.stream([one], 8, 12, 2)
    record = streamed.read(0)
    assert not notes
    assert record["valid"].sum() == len(one.boxes) and (record["image"] == len(one.boxes)).all()


def test_a_set_is_converted_to_coco(root, tmp_path, monkeypatch, capsys):
    before = tfds_data.read_detection("boxed", root)
    reader = partial(tfds_data.read_detection, data_dir=root)
    monkeypatch.setattr(tfds_data, "read_detection", reader)
    assert main("data", "convert", "tfds:boxed", str(tmp_path / "out"), "--to", "coco") == 0
    assert capsys.readouterr().out.endswith("images: train 3, val 2\n")
    after = formats.read(tmp_path / "out")
    assert after.classes == before.classes
    for split, samples in before.splits.items():
        for one, other in zip(samples, after.splits[split], strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            assert other.image.suffix == ".png" and other.image.read_bytes() == one.image()


def test_a_set_without_boxes_and_an_unknown_set_are_refused_in_one_line(root, monkeypatch):
    with pytest.raises(InputError, match="'bare': features must include image, .* image$"):
        tfds_data.read_detection("bare", root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    with pytest.raises(InputError, match="prepare it once") as error:
        formats.read("tfds:no_such_set")
    assert "\n" not in str(error.value)
