"""Images of parquet files are read when needed, a few row groups at a time."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdet.data import detection, images, parquet
from jaxdet.errors import InputError
from tests import datasets

pyarrow = pytest.importorskip("pyarrow")
files = pytest.importorskip("pyarrow.parquet")
ROWS, GROUP_SIZE, IMAGE_BYTES = 80, 4, 100_000
OBJECTS = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [1]}


def noise_bytes(row):
    return np.random.default_rng(row).bytes(IMAGE_BYTES)


def write(folder, images, group_size=GROUP_SIZE, name="train.parquet"):
    rows = [{"image": image, "image_id": i, "objects": OBJECTS} for i, image in enumerate(images)]
    files.write_table(pyarrow.Table.from_pylist(rows), folder / name, row_group_size=group_size)


@pytest.fixture
def root(tmp_path):
    """A file of twenty row groups, 8 MB of images."""
    write(tmp_path, [{"bytes": noise_bytes(row), "path": ""} for row in range(ROWS)])
    return tmp_path


def test_memory_holds_the_images_of_a_few_row_groups(root):
    before = pyarrow.total_allocated_bytes()
    train = parquet.read(root).splits["train"]
    assert pyarrow.total_allocated_bytes() - before < IMAGE_BYTES
    for row in (*range(ROWS), 17, 3, 39):
        assert images.file_bytes(train[row].image) == noise_bytes(row)
        held = pyarrow.total_allocated_bytes() - before
        assert (
            held < 3 * parquet.CACHED_GROUPS * GROUP_SIZE * IMAGE_BYTES
        )  # buffers grow by doubling


def test_threads_read_each_row_group_once(root, monkeypatch):
    plain, seen = parquet._read_group, []

    def slow(group):
        seen.append(group.number)
        time.sleep(0.01)
        return plain(group)

    monkeypatch.setattr(parquet, "_read_group", slow)
    train = parquet.read(root).splits["train"]
    with ThreadPoolExecutor(GROUP_SIZE) as pool:
        read = list(pool.map(images.file_bytes, [one.image for one in train]))
    assert read == [noise_bytes(row) for row in range(ROWS)]
    assert sorted(seen) == list(range(ROWS // GROUP_SIZE))


def test_listing_reads_no_images_and_a_damaged_file_is_named(root):
    path = root / "train.parquet"
    group = files.ParquetFile(path).metadata.row_group(1)
    column = group.column(0)
    assert column.path_in_schema == "image.bytes"
    data = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    data[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    train = parquet.read(root).splits["train"]
    assert [one.name for one in train] == [f"train.parquet row {i + 1}" for i in range(ROWS)]
    np.testing.assert_array_equal(train[-1].boxes, [[1, 2, 4, 6]])
    assert images.file_bytes(train[0].image) == noise_bytes(0)
    with pytest.raises(OSError, match=r"train\.parquet: not a readable parquet file") as error:
        detection.load(train[GROUP_SIZE : GROUP_SIZE + 1], 32, 32, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nothing", [None, {"path": "a.png"}, {"bytes": None}, {"bytes": b""}])
def test_a_row_without_bytes_is_noted_and_the_others_are_read(tmp_path, nothing):
    datasets.draw_image(1).save(tmp_path / "1.png")
    good = {"bytes": (tmp_path / "1.png").read_bytes()}
    write(tmp_path, [nothing, good, good], group_size=2)
    source, notes = detection.load(parquet.read(tmp_path).splits["train"], 32, 32, 1)
    assert notes == ["train.parquet row 1: image must be the bytes of an image file, got none"]
    assert source.names == ["train.parquet row 2", "train.parquet row 3"]


def test_an_image_may_be_plain_bytes_and_a_missing_column_is_refused(tmp_path):
    write(tmp_path, [noise_bytes(0)])
    (one,) = parquet.read(tmp_path).splits["train"]
    assert images.file_bytes(one.image) == noise_bytes(0)
    files.write_table(pyarrow.table({"image": [noise_bytes(0)]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: must have columns .*, lacks objects"):
        parquet.read(tmp_path)


@pytest.mark.parametrize(
    "objects, says",
    [
        (3, "objects must have the lists bbox and category, got 3"),
        ({"bbox": 3, "category": [1]}, "objects must have the lists"),
        ({"bbox": [["a"] * 4], "category": [1]}, "bbox must be numbers left, top, width, height"),
        ({"bbox": [[1.0] * 4], "category": ["cat"]}, "unknown class cat"),
        ({"bbox": [[1.0] * 4], "category": [2**60]}, "must be at most 100000, got 11529"),
        ([{"bbox": "x", "category": 1}], "bbox must be numbers left"),
    ],
)
def test_columns_of_other_types_are_noted_or_refused(tmp_path, objects, says):
    row = {"image": {"bytes": noise_bytes(0)}, "image_id": "a", "objects": objects}
    files.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    try:
        found = parquet.read(tmp_path)
        assert not any(len(one.boxes) for one in found.splits["train"])
        text = found.notes[0]
    except InputError as error:
        text = str(error)
    assert says in text and "\n" not in text


def test_area_crowds_and_size_are_read_where_they_are_there(tmp_path):
    bbox, area = [[1.0, 1, 5, 5], [2.0, 2, 5, 5]], [9.0, 25.0]
    objects = {"bbox": bbox, "category": [1, 1], "area": area, "iscrowd": [0, 1]}
    row = {"image": noise_bytes(0), "width": 30, "height": 20, "objects": objects}
    files.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    (one,) = parquet.read(tmp_path).splits["train"]
    assert one.area.tolist() == area and one.crowd.tolist() == [False, True]
    assert one.size == (20, 30)
