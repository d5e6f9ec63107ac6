"""The mosaics of the benchmark, and its scores of predictions that are known."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import tiles as benchmark
from jaxdet.data import detection
from jaxdet.errors import InputError
from jaxdet.types import Detections
from tests import datasets


@pytest.fixture(scope="module")
def samples():
    """Four images of several sizes, and a fifth that remains."""
    return [
        detection.annotated_image(
            datasets.png_bytes(datasets.draw_image(i)), datasets.BOXES[i], f"{i}"
        )
        for i in (0, 1, 2, 3, 1)
    ]


@pytest.fixture(scope="module")
def mosaics(samples):
    return benchmark.draw(samples, 2)


def test_a_mosaic_has_four_images_with_their_boxes_on_the_objects(mosaics):
    first, second = mosaics  # of two draws
    assert first.parts != second.parts
    for sample, _, corners in mosaics:
        assert sample.size == (100, 120) and corners == [(0, 0), (60, 0), (0, 50), (60, 50)]
        pixels = np.asarray(Image.open(io.BytesIO(sample.image)))
        covered = np.zeros(sample.size, bool)
        for x0, y0, x1, y1 in sample.boxes.astype(int):
            covered[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(pixels.max(-1) > 200, covered)


def test_perfect_predictions_of_the_images_apart_are_perfect_on_the_mosaics(
    samples, mosaics, monkeypatch
):
    of_image = {one.image: one for one in samples}

    def predict(images):
        found = [of_image[image] for image in images]
        return [Detections(one.boxes, np.ones(len(one.boxes)), one.labels) for one in found]

    monkeypatch.setattr(benchmark, "multiply_adds", lambda *_: 5)
    detector = SimpleNamespace(predict=predict, config=None)
    ((name, cost, found),) = benchmark.peers(detector, mosaics, benchmark.Options())
    assert (name, cost) == ("apart", 20)
    truth = benchmark.true_rows([mosaic.sample for mosaic in mosaics])
    rows = {**truth, **benchmark.predicted_rows(found)}
    scores = benchmark.scores(rows, datasets.CLASSES)
    assert scores["map"] == scores["map_small"] == pytest.approx(1)
    assert scores["map_large"] == -1  # no object is so large
    worse = [found[0], found[1]._replace(boxes=found[1].boxes + 99)]  # one draw is missed
    rows = {**truth, **benchmark.predicted_rows(worse)}
    assert benchmark.summarize(rows, datasets.CLASSES, 2)["map"] == "0.500 (0.707)"


def test_wrong_input_is_one_line(samples, tmp_path, capsys):
    for words, said in {
        ("--repeats", "0"): "--repeats must be at least 1, got 0",
        ("--run", str(tmp_path)): "is not a run",
    }.items():
        assert benchmark.main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with pytest.raises(InputError, match="--sahi false: failed: no message"):
        benchmark._sahi("false", "slices")
    with pytest.raises(InputError, match="--split must have at least 4 images, got 3"):
        benchmark.draw(samples[:3], 1)
