"""Digits of every source, and the idx format."""

import contextlib
import gzip
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from jaxdet.data import digits
from jaxdet.errors import InputError
from tests import datasets

CODES = {np.dtype(name): code for code, name in digits.IDX_DTYPES.items()}

NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]


def encode_idx(array):
    """The bytes of an idx file."""
    big = np.asarray(array)
    big = big.astype(big.dtype.newbyteorder(">"))
    header = bytes([0, 0, CODES[big.dtype], big.ndim])
    return header + struct.pack(f">{big.ndim}I", *big.shape) + big.tobytes()


def write_mnist(folder, spelling="{}-idx{}-ubyte", pack=bytes, **changed):
    """5 training and 3 test digits; `changed` are the bytes of files by short name."""
    for name in NAMES:
        rows = 5 if name.startswith("train") else 3
        images = np.arange(rows * 12, dtype=np.uint8).reshape(rows, 4, 3)
        array = images if "images" in name else np.arange(rows, dtype=np.uint8)
        content = changed.get(name.replace("-", "_"), encode_idx(array))
        (folder / spelling.format(name, array.ndim)).write_bytes(pack(content))
    return folder


IMAGES = np.arange(1, 5, dtype=np.uint8)[:, None, None] * np.ones((3, 2), np.uint8)


def test_ids_count_from_first_id():
    source = digits.digit_source(IMAGES, np.uint8([0, 9, 5, 5]), where="here", first_id=60)
    assert {name: array.dtype for name, array in source.arrays.items()} == {
        "image": np.uint8,
        "label": np.int32,
        "id": np.int32,
    }
    np.testing.assert_array_equal(source.arrays["id"], [60, 61, 62, 63])


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (IMAGES[0], [1, 1, 1], r"got uint8 \[3, 2\]"),
        (IMAGES[..., None], [1] * 4, r"got uint8 \[4, 3, 2, 1\]"),
        (IMAGES.astype(float), [1] * 4, "got float64"),
        (IMAGES[:0], [], r"got uint8 \[0, 3, 2\]"),
        (IMAGES, [1] * 5, r"labels must be \[4\], one per image, got \[5\]"),
        (IMAGES, [1, 2, 10, 11], "row 2: label must be 0 to 9, got 10"),
        (IMAGES, [1, 2, 3, -1], "row 3: label must be 0 to 9, got -1"),
        (IMAGES, [1, 2.5, 3, 4], "row 1: label must be 0 to 9, got 2.5"),
    ],
)
def test_invalid_images_and_labels_are_refused(image, label, message):
    with pytest.raises(InputError, match="^here.*" + message):
        digits.digit_source(image, label, where="here")


# Splits


def ids(source):
    return source.arrays["id"]


@pytest.fixture(scope="module", params=["embedded", "mnist"])
def whole(request, tmp_path_factory):
    """(source, root, sizes of the splits) of a source."""
    if request.param == "embedded":
        return "embedded", None, {"train": 1297, "val": 200, "test": 300, "heldout": 500}
    images, labels = np.ones((70, 4, 3), np.uint8), np.arange(70, dtype=np.uint8) % 10
    changed = {"t10k_images": encode_idx(images), "t10k_labels": encode_idx(labels)}
    root = write_mnist(tmp_path_factory.mktemp("mnist"), **changed)
    return "mnist", root, {"train": 5, "val": 40, "test": 30, "heldout": 70}


def test_splits_partition_the_set_with_unique_ids(whole):
    name, root, counts = whole
    splits = digits.read_splits(name, root)
    assert {split: len(source) for split, source in splits.items()} == counts
    np.testing.assert_array_equal(ids(splits["train"]), np.arange(counts["train"]))
    every = np.concatenate([ids(splits["train"]), ids(splits["heldout"])])
    np.testing.assert_array_equal(every, np.arange(len(every)))
    rejoined = np.concatenate([ids(splits["val"]), ids(splits["test"])])
    np.testing.assert_array_equal(np.sort(rejoined), ids(splits["heldout"]))


def test_a_record_keeps_its_id_in_every_split(whole):
    name, root, _ = whole
    splits = digits.read_splits(name, root)
    for record in splits["test"]:
        same = splits["heldout"][record["id"] - len(splits["train"])]
        np.testing.assert_array_equal(record["image"], same["image"])
        assert record["label"] == same["label"]


def test_the_seed_draws_only_the_test_digits(whole):
    name, root, _ = whole
    first, again, other = (digits.read_splits(name, root, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(ids(first["test"]), ids(again["test"]))
    assert set(ids(first["test"])) != set(ids(other["test"]))
    for split in ("train", "heldout"):
        np.testing.assert_array_equal(first[split].arrays["image"], other[split].arrays["image"])


def test_every_split_of_the_embedded_set_has_all_classes():
    for source in digits.read_splits("embedded").values():
        assert set(source.arrays["label"]) == set(range(10))


def test_too_few_test_digits_are_refused(tmp_path):
    with pytest.raises(InputError, match="mnist: must have at least 60 test digits, got 3"):
        digits.read_splits("mnist", write_mnist(tmp_path))


@pytest.mark.parametrize("name", ["cifar", "mnist", "tfds:", "tfds", "embedded:x", ""])
def test_an_unknown_source_or_one_without_its_root_is_refused(name):
    with pytest.raises(InputError, match="--source must be embedded .* or tfds:NAME"):
        digits.read_splits(name)


# Embedded scans


@pytest.fixture(scope="module")
def embedded():
    return digits.embedded()


def test_embedded_scans_are_dark_strokes_on_exact_zero(embedded):
    image = embedded.arrays["image"]
    assert image.shape == (1797, 28, 28)
    assert image.dtype == np.uint8
    inked = (image > 0).mean(axis=(1, 2))
    assert inked.min() > 0.08 and inked.max() < 0.5
    assert image.max(axis=(1, 2)).min() > 200
    assert not np.delete(image, np.s_[2:26], axis=1).any()
    assert not np.delete(image, np.s_[2:26], axis=2).any()


def test_embedded_scans_resemble_the_mean_of_their_class(embedded):
    image, label = embedded.arrays["image"].astype(float), embedded.arrays["label"]
    half = len(label) // 2
    means = np.array([image[:half][label[:half] == digit].mean(axis=0) for digit in range(10)])
    distance = ((image[half:, None] - means[None]) ** 2).sum(axis=(2, 3))
    assert (distance.argmin(axis=1) == label[half:]).mean() > 0.85


def test_the_scans_equal_those_of_scikit_learn():
    expected = load_digits()
    scans, label = digits._load_scans()
    np.testing.assert_array_equal(scans, expected.images)
    np.testing.assert_array_equal(label, expected.target)


# The idx format and MNIST


@pytest.fixture
def path(tmp_path):
    return tmp_path / "values-idx"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", digits.IDX_DTYPES.values())
def test_values_of_every_type_are_read_as_written(path, name, pack):
    array = np.arange(24).reshape(2, 3, 4).astype(name)
    path.write_bytes(pack(encode_idx(array)))
    values = digits.read_idx(path)
    np.testing.assert_array_equal(values, array)
    assert values.dtype == np.dtype(name).newbyteorder("=")


VECTOR = encode_idx(np.arange(6, dtype=np.uint8))

ZIPPED = gzip.compress(VECTOR, mtime=0)  # no time: the bytes name tests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing"),
        (b"\0\0\x08", "got 00 00 08"),
        (b"\x89PNG\r\n", "got 89 50 4e 47"),
        (b"\0\0\x0a\x01" + VECTOR[4:], "got type code 0a"),
        (b"\0\0\x08\x00", "and rank 0$"),
        (b"\0\0\x08\xff" + bytes(1020), "and rank 255$"),
        (VECTOR[:6], "truncated within its header"),
        (VECTOR[:-1], "truncated; its header announces 14 bytes, got 13"),
        (VECTOR + b"\n", "too long; its header announces 14 bytes, got 15"),
        (encode_idx(np.zeros((0, 4), np.uint8)), r"at least one value, got shape \[0, 4\]"),
        (ZIPPED[:-9], "damaged gzip"),
        (ZIPPED[:12] + b"\xff\xff" + ZIPPED[14:], "damaged gzip"),
        (ZIPPED[:-8] + bytes(8), "damaged gzip"),
        (ZIPPED + b"more", "damaged gzip"),
    ],
)
def test_an_invalid_idx_file_is_described_in_one_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        digits.read_idx(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([VECTOR, ZIPPED]), st.integers(0, 40), st.binary(max_size=6), st.data())
def test_a_damaged_idx_file_gives_an_array_or_an_input_error(path, content, at, bytes_, data):
    past = data.draw(st.integers(at, at + 6))
    path.write_bytes(content[:at] + bytes_ + content[past:])
    with contextlib.suppress(InputError):
        assert digits.read_idx(path).size > 0


def test_a_missing_idx_file_is_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=f"{path}: cannot be read"):
            digits.read_idx(path)


@pytest.mark.parametrize(
    ("spelling", "pack"),
    [
        ("{}-idx{}-ubyte", bytes),
        ("{}.idx{}-ubyte", bytes),
        ("{}-idx{}-ubyte.gz", gzip.compress),
        ("{}.idx{}-ubyte.gz", gzip.compress),
        ("{}-idx{}-ubyte.gz", bytes),  # unzipped by a browser under the old name
    ],
)
def test_mnist_is_read_in_all_spellings_with_unique_ids(tmp_path, spelling, pack):
    train, test = digits.read_mnist(write_mnist(tmp_path, spelling, pack))
    np.testing.assert_array_equal(train.arrays["id"], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(test.arrays["id"], [5, 6, 7])
    np.testing.assert_array_equal(test.arrays["label"], [0, 1, 2])
    assert train.arrays["image"].shape == (5, 4, 3)
    assert train[1]["image"][0, 0] == 12


def test_a_missing_or_empty_folder_of_mnist_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        digits.read_mnist(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no file train-images.*, the folder is empty"):
        digits.read_mnist(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_of_mnist_is_named(tmp_path, name):
    (missing,) = write_mnist(tmp_path).glob(f"{name}*")
    missing.unlink()
    with pytest.raises(InputError, match=f"no file {missing.name}"):
        digits.read_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train_labels", np.zeros(4, np.uint8), "labels must be .5., one per image, got .4."),
        ("t10k_labels", np.uint8([1, 10, 2]), "row 1: label must be 0 to 9, got 10"),
        ("t10k_images", np.zeros((3, 4), np.uint8), "images must be .* got uint8"),
        ("train_images", np.zeros((5, 4, 3), np.float32), "images must be .* got float32"),
    ],
)
def test_files_of_mnist_with_invalid_values_are_named(tmp_path, name, array, message):
    write_mnist(tmp_path, **{name: encode_idx(array)})
    with pytest.raises(
        InputError, match=f"{name.split('_')[0]}-images-idx3-ubyte with .*{message}"
    ):
        digits.read_mnist(tmp_path)


@pytest.mark.skipif("JAXDET_DATA" not in os.environ, reason="JAXDET_DATA is not set")
def test_mnist_is_complete():
    train, test = digits.read_mnist(Path(os.environ["JAXDET_DATA"]) / "mnist")
    assert train.arrays["image"].shape == (60000, 28, 28)
    assert test.arrays["image"].shape == (10000, 28, 28)
    np.testing.assert_array_equal(train.arrays["label"][:8], [5, 0, 4, 1, 9, 2, 1, 3])
    np.testing.assert_array_equal(test.arrays["label"][:8], [7, 2, 1, 0, 4, 1, 4, 9])
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the test digits 0..9
    np.testing.assert_array_equal(np.bincount(test.arrays["label"]), counts)


# tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.prepare_tfds_images(folder, "tiny")
    datasets.prepare_tfds_images(folder, "colored", shape=(6, 4, 3))
    datasets.prepare_tfds_images(folder, "ragged", shape=(None, None, 1))
    datasets.prepare_tfds_images(folder, "unlabeled", label="name")
    datasets.prepare_tfds_images(folder, "letters", classes=26)
    return folder


def test_tfds_sets_are_read_without_tensorflow(prepared):
    train, test = digits.read_tfds("tiny", prepared)
    assert train.arrays["image"].shape == (12, 6, 4)
    assert test.arrays["image"].dtype == np.uint8
    for source, rows in ((train, 12), (test, 65)):
        values = source.arrays["image"][:, 0, 0]
        assert set(values) == set(range(rows))
        np.testing.assert_array_equal(source.arrays["label"], values % 10)
    every = np.concatenate([train.arrays["id"], test.arrays["id"]])
    np.testing.assert_array_equal(every, np.arange(77))
    assert "tensorflow" not in sys.modules


def test_splits_of_a_tfds_set(prepared):
    splits = digits.read_splits("tfds:tiny", prepared)
    counts = {"train": 12, "val": 35, "test": 30, "heldout": 65}
    assert {split: len(source) for split, source in splits.items()} == counts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "not found; prepare it once: .*array_record"),
        ("mnist", "not prepared in the array_record format; prepare it once"),
        ("two words", "two words"),
        ("colored", r"image \(H, W, 1\).*\(6, 4, 3\)"),
        ("ragged", r"image \(H, W, 1\).*\(None, None, 1\)"),
        ("unlabeled", r"label \(\), got .*'name'"),
        ("letters", r"letters train row \d+: label must be 0 to 9, got 1\d"),
    ],
)
def test_an_unsuitable_tfds_set_is_described_in_one_line(prepared, name, message):
    with pytest.raises(InputError, match=message) as raised:
        digits.read_tfds(name, prepared)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
