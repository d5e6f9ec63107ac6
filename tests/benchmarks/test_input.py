import json
import os

import numpy as np
import pytest

from benchmarks import input as input_benchmark
from benchmarks.lib import synthetic
from jaxdet.configs import cifar10
from jaxdet.data import digits
from tests.cli.test_main import mnist

pytestmark = pytest.mark.long  # it runs and times whole programs

CORES = len(os.sched_getaffinity(0))
THREADS = [f"decode, threads: {count}" for count in sorted({1, CORES})]
OPERATIONS = ["read", "records", "read", "read", "files", *THREADS, "stream, batches of 4"]
OPERATIONS += ["stream, image cache", "grain alone", f"PyTorch DataLoader, workers: {CORES}"]
OPERATIONS += ["gather", "place"]
OPERATIONS += [
    "gather",
    "gather, flip",
    "gather, crop",
    "gather, cutout",
    "gather, flip, crop, cutout",
]


def rows(tmp_path):
    """Rows of the command at its smallest size."""
    path = tmp_path / "a.json"
    words = ["--batch", "4", "--canvas", "52", "--seconds", "0", "--json", str(path)]
    assert input_benchmark.main(words) == 0
    return json.loads(path.read_text())["rows"]


def test_every_source_and_operation_is_timed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("grain")
    pytest.importorskip("torch")
    mnist(tmp_path / "mnist")
    monkeypatch.setenv("JAXDET_DATA", str(tmp_path))
    found = rows(tmp_path)
    assert [row["operation"] for row in found] == OPERATIONS
    decoded = [4 * count for count in (*sorted({1, CORES}), *[CORES] * 4)]
    counts = [1797, 4, 120, 500, input_benchmark.FILES, *decoded, *[4] * 7]
    assert [row["images"] for row in found] == counts
    for row in found:
        assert row["images_per_s"] == row["images"] / row["median"] > 0
        assert row["repeats"] == 3
    out = capsys.readouterr().out
    assert out.startswith("| source |") and out.count("\n") == 2 + len(found)


def test_missing_source_is_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAXDET_DATA", raising=False)
    monkeypatch.setattr(input_benchmark, "find_spec", lambda name: None)
    notes = {row["source"]: row["note"] for row in rows(tmp_path) if "note" in row}
    assert notes == {
        "MNIST, idx": "no data in $JAXDET_DATA/mnist",
        "JPEG, 480 x 640": "PyTorch is not installed",
        "tensorflow-datasets, array_record": "not installed",
    }
    out = capsys.readouterr().out
    assert all(note in out for note in notes.values())


def test_prepared_set_can_be_read(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    synthetic.prepare_tfds(tmp_path, "noise")
    train, test = digits.read_tfds("noise", tmp_path)
    assert (len(train), len(test)) == (synthetic.TRAIN_IMAGES, synthetic.TEST_IMAGES)
    assert train.arrays["image"].shape[1:] == (synthetic.SIDE, synthetic.SIDE)
    np.testing.assert_array_equal(
        np.bincount(train.arrays["label"]), [synthetic.TRAIN_IMAGES // 10] * 10
    )


@pytest.mark.parametrize("fields", [{}, *input_benchmark.AUGMENTATIONS.values()])
def test_images_are_augmented_as_configured(fields):
    experiment = synthetic.cifar10_experiment(cifar10.Config(**fields), train=40, val=1)
    data, rows = experiment.splits["train"].arrays, np.arange(2, 40)
    found = np.asarray(input_benchmark.augment_batch(experiment.task, data, rows))
    differs = (abs(found - data["image"][2:] / np.float32(255)) > 1e-6).any((1, 2, 3))
    assert differs.any() == bool(fields)


def test_parts_are_chosen(tmp_path, capsys):
    assert input_benchmark.main(["--parts", "files", "--batch", "1", "--seconds", "0"]) == 0
    assert "| embedded |" not in capsys.readouterr().out


def test_empty_batch_is_refused(capsys):
    assert input_benchmark.main(["--batch", "0"]) == 2
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err
