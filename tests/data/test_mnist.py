import contextlib
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdet.data import digits
from jaxdet.errors import InputError

CODES = {np.dtype(name): code for code, name in digits.IDX_DTYPES.items()}
NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]


def encoded(array):
    """The bytes of an idx file."""
    big = np.asarray(array)
    big = big.astype(big.dtype.newbyteorder(">"))
    header = bytes([0, 0, CODES[big.dtype], big.ndim])
    return header + struct.pack(f">{big.ndim}I", *big.shape) + big.tobytes()


def write(folder, spelling="{}-idx{}-ubyte", pack=bytes, **changed):
    """A set of 5 training and 3 test digits; `changed` are the bytes of files by short name."""
    for name in NAMES:
        rows = 5 if name.startswith("train") else 3
        images = np.arange(rows * 12, dtype=np.uint8).reshape(rows, 4, 3)
        array = images if "images" in name else np.arange(rows, dtype=np.uint8)
        content = changed.get(name.replace("-", "_"), encoded(array))
        (folder / spelling.format(name, array.ndim)).write_bytes(pack(content))
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "values-idx"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", digits.IDX_DTYPES.values())
def test_read_undoes_writing_for_every_type(path, name, pack):
    array = np.arange(24).reshape(2, 3, 4).astype(name)
    path.write_bytes(pack(encoded(array)))
    values = digits.read_idx(path)
    np.testing.assert_array_equal(values, array)
    assert values.dtype == np.dtype(name).newbyteorder("=")


VECTOR = encoded(np.arange(6, dtype=np.uint8))
ZIPPED = gzip.compress(VECTOR, mtime=0)  # no clock: the bytes name tests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "begins with 00 00 08"),
        (b"\x89PNG\r\n", "begins with 89 50 4e 47"),
        (b"\0\0\x0a\x01" + VECTOR[4:], "type code 0a"),
        (b"\0\0\x08\x00", "rank 0"),
        (b"\0\0\x08\xff" + bytes(1020), "rank 255"),
        (VECTOR[:6], "cut short within its header"),
        (VECTOR[:-1], "cut short: 13 bytes, its header wants 14"),
        (VECTOR + b"\n", "too long: 15 bytes, its header wants 14"),
        (encoded(np.zeros((0, 4), np.uint8)), r"shape \[0, 4\] holds no value"),
        (ZIPPED[:-9], "damaged gzip"),
        (ZIPPED[:12] + b"\xff\xff" + ZIPPED[14:], "damaged gzip"),
        (ZIPPED[:-8] + bytes(8), "damaged gzip"),
        (ZIPPED + b"more", "damaged gzip"),
    ],
)
def test_read_says_in_one_line_what_is_wrong(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        digits.read_idx(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([VECTOR, ZIPPED]), st.integers(0, 40), st.binary(max_size=6), st.data())
def test_read_of_damaged_bytes_gives_an_array_or_an_input_error(path, content, at, bytes_, data):
    past = data.draw(st.integers(at, at + 6))
    path.write_bytes(content[:at] + bytes_ + content[past:])
    with contextlib.suppress(InputError):
        assert digits.read_idx(path).size > 0


def test_read_of_what_is_no_file(tmp_path):
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
        ("{}-idx{}-ubyte.gz", bytes),  # unzipped on the way, as browsers do, under the old name
    ],
)
def test_mnist_knows_the_spellings_and_numbers_all_digits(tmp_path, spelling, pack):
    train, test = digits.read_mnist(write(tmp_path, spelling, pack))
    np.testing.assert_array_equal(train.arrays["id"], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(test.arrays["id"], [5, 6, 7])
    np.testing.assert_array_equal(test.arrays["label"], [0, 1, 2])
    assert train.arrays["image"].shape == (5, 4, 3)
    assert train[1]["image"][0, 0] == 12


def test_mnist_of_a_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        digits.read_mnist(tmp_path / "missing")
    with pytest.raises(InputError, match="is empty, without train-images-idx3-ubyte"):
        digits.read_mnist(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_mnist_names_the_file_that_is_missing(tmp_path, name):
    (missing,) = write(tmp_path).glob(f"{name}*")
    missing.unlink()
    with pytest.raises(InputError, match=f"has no {missing.name}"):
        digits.read_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train_labels", np.zeros(4, np.uint8), "5 images but labels"),
        ("t10k_labels", np.uint8([1, 10, 2]), "row 1: label 10"),
        ("t10k_images", np.zeros((3, 4), np.uint8), "images are uint8"),
        ("train_images", np.zeros((5, 4, 3), np.float32), "images are float32"),
    ],
)
def test_mnist_names_the_files_whose_values_are_wrong(tmp_path, name, array, message):
    write(tmp_path, **{name: encoded(array)})
    with pytest.raises(
        InputError, match=f"{name.split('_')[0]}-images-idx3-ubyte with .*{message}"
    ):
        digits.read_mnist(tmp_path)


@pytest.mark.skipif("JAXDET_DATA" not in os.environ, reason="JAXDET_DATA is not set")
def test_mnist_itself():
    train, test = digits.read_mnist(Path(os.environ["JAXDET_DATA"]) / "mnist")
    assert train.arrays["image"].shape == (60000, 28, 28)
    assert test.arrays["image"].shape == (10000, 28, 28)
    np.testing.assert_array_equal(train.arrays["label"][:8], [5, 0, 4, 1, 9, 2, 1, 3])
    np.testing.assert_array_equal(test.arrays["label"][:8], [7, 2, 1, 0, 4, 1, 4, 9])
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the test digits 0..9
    np.testing.assert_array_equal(np.bincount(test.arrays["label"]), counts)
