import json
import time
from importlib.util import find_spec

import numpy as np
import pytest

from jaxdet.data import sources
from jaxdet.data.sources import ArraySource, StreamSource
from jaxdet.errors import InputError

IMAGES = np.arange(1, 5, dtype=np.uint8)[:, None, None] * np.ones((3, 2), np.uint8)


def test_a_record_is_a_row_of_every_array():
    source = ArraySource({"image": IMAGES, "label": np.array([3, 1, 4, 1])})
    assert len(source) == 4
    assert source[2].keys() == {"image", "label"}
    np.testing.assert_array_equal(source[2]["image"], np.full((3, 2), 3))
    assert [record["label"] for record in source] == [3, 1, 4, 1]


def test_take_keeps_the_given_order_and_nests():
    source = ArraySource({"id": np.arange(10)}).take([7, 2, 5])
    np.testing.assert_array_equal(source.arrays["id"], [7, 2, 5])
    np.testing.assert_array_equal(source.take(np.array([2, 0])).arrays["id"], [5, 7])
    assert len(source.take([])) == 0


@pytest.mark.parametrize("columns", [{}, {"image": np.zeros(3), "label": np.zeros(2)}])
def test_arrays_of_different_lengths_are_refused(columns):
    with pytest.raises(InputError, match="must have the same length"):
        ArraySource(columns)


def test_a_blank_source_has_the_types_and_shapes_of_its_spec():
    ids = np.arange(4, dtype=np.int32)
    source = ArraySource({"image": IMAGES, "boxes": np.ones((4, 0, 4), np.float32), "id": ids})
    blank = sources.blank_source(json.loads(json.dumps(sources.record_spec(source))))
    assert len(blank) == 1 and blank.arrays.keys() == source.arrays.keys()
    for name, column in source.arrays.items():
        np.testing.assert_array_equal(blank.arrays[name], 0 * column[:1], strict=True)


def test_labels_are_those_of_the_arrays_or_none():
    assert ArraySource({"image": IMAGES}).labels is None
    np.testing.assert_array_equal(ArraySource({"label": np.array([3, 1])}).labels, [3, 1])


# Streams of which some records cannot be read

needs_grain = pytest.mark.skipif(find_spec("grain") is None, reason="needs grain")
LABELS = np.arange(12) % 3


def stream(unreadable, **options):
    """Twelve records, the first of which are left out; `unreadable` may change later."""

    def read(number):
        if number in unreadable:
            raise InputError(f"{number}.jpg: no such image")
        return {"id": np.int32(number)}

    names = [f"{number}.jpg" for number in range(12)]
    return StreamSource(read, 12, names, LABELS, left_out=[0, 1], **options)


def ids(source, index):
    return np.stack([batch["id"] for batch in source.batches(np.array(index))])


@needs_grain
def test_another_record_of_the_label_takes_the_place_of_an_unreadable_one(caplog):
    index = np.arange(10).reshape(5, 2)
    vanished = set()
    source = stream(vanished)
    np.testing.assert_array_equal(ids(source, index), index + 2)
    vanished.update([4, 9])
    found = ids(source, index)
    changed = (found != index + 2).reshape(-1)
    np.testing.assert_array_equal(np.flatnonzero(changed) + 2, [4, 9])
    np.testing.assert_array_equal(LABELS[found.reshape(-1)], LABELS[2:])
    assert sorted(caplog.messages) == [f"{i}.jpg: no such image; left out" for i in (4, 9)]
    # The same in any order, in another process, and in the rest of an epoch.
    np.testing.assert_array_equal(ids(stream(vanished), index[::-1]), found[::-1])
    np.testing.assert_array_equal(ids(stream(vanished), index[3:]), found[3:])
    vanished.clear()
    np.testing.assert_array_equal(ids(source, index), index + 2)


@needs_grain
def test_a_record_of_another_label_is_the_last_resort(caplog):
    vanished = {2, 5, 8, 11}  # all of one label
    found = ids(stream(vanished), [[0, 3]])
    assert not {*found[0].tolist()} & vanished
    whole = stream(vanished).take([0, 1])
    assert whole.names == [f"{number}.jpg" for number in whole.arrays["id"]]
    with pytest.raises(sources.UnreadableError, match="no such image; no image can be read in its"):
        ids(stream({*range(12)}), [[0, 1]])


@needs_grain
def test_rows_of_unreadable_records_are_masked():
    real = np.float32([[1, 1, 1], [1, 1, 0]])
    found = list(stream({3}).masked_batches(np.array([[0, 1, 2], [3, 4, 1]]), real))
    np.testing.assert_array_equal([mask for _, mask in found], [[1, 0, 1], [1, 1, 0]])
    assert found[0][1].dtype == np.float32


@needs_grain
@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_of_records_does_not_depend_on_the_number_of_threads(monkeypatch, threads):
    monkeypatch.setattr(sources, "READ_THREADS", threads)
    random, source = np.random.default_rng(threads), stream({7})
    read = source.read
    source.read = lambda number: time.sleep(random.random() / 500) or read(number)
    index = np.random.default_rng(0).permutation(10).reshape(5, 2)
    np.testing.assert_array_equal(ids(source, index), ids(stream({7}), index))
