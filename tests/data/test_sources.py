import json

import numpy as np
import pytest

from jaxdet.data import sources
from jaxdet.data.sources import ArraySource
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
