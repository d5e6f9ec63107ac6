"""The mosaics of the benchmark, and its scores of predictions that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import tiles as benchmark
from jaxdet.data import detection, formats
from jaxdet.errors import InputError
from jaxdet.types import Detections
from tests import datasets


@pytest.fixture(scope="module")
def dataset():
    """Four images of several sizes, and a fifth that remains."""
    samples = [
        detection.annotated_image(
            datasets.png_bytes(datasets.draw_image(i)), datasets.BOXES[i], f"{i}"
        )
        for i in (0, 1, 2, 3, 1)
    ]
    return detection.DetectionDataset(datasets.CLASSES, {"test": samples}, ())


@pytest.fixture(scope="module")
def mosaics(dataset, tmp_path_factory):
    return benchmark.write(dataset, "test", tmp_path_factory.mktemp("mosaics") / "coco", 2)


def truth(samples):
    """Rows with the true boxes of samples."""
    count = max(len(one.boxes) for one in samples)

    def padded(column):
        return np.pad(column, [(0, count - len(column)), *[(0, 0)] * (column.ndim - 1)])

    names = ("boxes", "labels", "crowd", "area")
    rows = {f"true_{n}": np.stack([padded(getattr(one, n)) for one in samples]) for n in names}
    valid = [padded(np.ones_like(one.crowd)) for one in samples]
    return {**rows, "true_valid": np.stack(valid), "size": np.array([s.size for s in samples])}


def test_a_mosaic_has_four_images_with_their_boxes_on_the_objects(mosaics):
    sample, other = formats.read(mosaics.folder).splits["test"]  # of two draws
    assert mosaics.cell == (50, 60) and sample.size == other.size == (100, 120)
    assert mosaics.parts[0] != mosaics.parts[1]
    pixels = np.asarray(Image.open(sample.image)).astype(int)
    bright = (pixels[..., 0] > 200) | (pixels[..., 2] > 200)
    covered = np.zeros_like(bright)
    for x0, y0, x1, y1 in sample.boxes.astype(int):
        covered[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(bright, covered)


def test_perfect_predictions_of_the_images_apart_are_perfect_on_the_mosaic(dataset, mosaics):
    samples = formats.read(mosaics.folder).splits["test"]
    of_image = {one.image: one for one in dataset.splits["test"]}

    def predict(images):
        found = [of_image[image] for image in images]
        return [Detections(one.boxes, np.ones(len(one.boxes)), one.labels) for one in found]

    detector = SimpleNamespace(predict=predict, classes=dataset.classes)
    ((name, cost, found),) = benchmark._peers(detector, mosaics, benchmark.Options())
    assert (name, cost) == ("apart", 4)
    rows = benchmark.replace_boxes(truth(samples), found)
    scores = benchmark.scores(rows, detector)
    assert scores["map"] == scores["map_small"] == pytest.approx(1)
    assert scores["map_large"] == -1  # no object is so large
    worse = [found[0], found[1]._replace(boxes=found[1].boxes + 99)]  # those of one draw miss
    rows = benchmark.replace_boxes(truth(samples), worse)
    assert benchmark.summarize(rows, detector, 2)["map"] == "0.500 (0.707)"


def test_wrong_input_is_one_line(dataset, tmp_path, capsys):
    for words, said in {
        ("--repeats", "0"): "--repeats must be at least 1, got 0",
        ("--run", str(tmp_path)): "is not a run",
    }.items():
        assert benchmark.main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with pytest.raises(InputError, match="--sahi false: failed: no message"):
        benchmark._sahi("false", "slices")
    few = dataset._replace(splits={"test": dataset.splits["test"][:3]})
    with pytest.raises(InputError, match="--split test must have at least 4 images, got 3"):
        benchmark.write(few, "test", tmp_path / "few", 1)
