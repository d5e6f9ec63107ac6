import json

import numpy as np
import pytest

from jaxdet.data import digits, sources
from jaxdet.data.sources import ArraySource
from jaxdet.errors import InputError

IMAGES = np.arange(1, 5, dtype=np.uint8)[:, None, None] * np.ones((3, 2), np.uint8)


def test_a_record_is_one_row_of_every_array():
    source = ArraySource({"image": IMAGES, "label": np.array([3, 1, 4, 1])})
    assert len(source) == 4
    assert source[2].keys() == {"image", "label"}
    np.testing.assert_array_equal(source[2]["image"], np.full((3, 2), 3))
    assert [record["label"] for record in source] == [3, 1, 4, 1]


def test_take_keeps_the_order_asked_for_and_nests():
    source = ArraySource({"id": np.arange(10)}).take([7, 2, 5])
    np.testing.assert_array_equal(source.arrays["id"], [7, 2, 5])
    np.testing.assert_array_equal(source.take(np.array([2, 0])).arrays["id"], [5, 7])
    assert len(source.take([])) == 0


@pytest.mark.parametrize("columns", [{}, {"image": np.zeros(3), "label": np.zeros(2)}])
def test_arrays_of_one_source_have_one_length(columns):
    with pytest.raises(InputError, match="one length"):
        ArraySource(columns)


def test_a_blank_record_is_like_those_of_its_source():
    ids = np.arange(4, dtype=np.int32)
    source = ArraySource({"image": IMAGES, "boxes": np.ones((4, 0, 4), np.float32), "id": ids})
    blank = sources.blank_source(json.loads(json.dumps(sources.record_spec(source))))
    assert len(blank) == 1 and blank.arrays.keys() == source.arrays.keys()
    for name, column in source.arrays.items():
        np.testing.assert_array_equal(blank.arrays[name], 0 * column[:1], strict=True)


def test_labelled_numbers_the_rows_on_from_the_first_id():
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
        (IMAGES[0], [1, 1, 1], r"uint8 \[3, 2\]"),
        (IMAGES[..., None], [1] * 4, r"uint8 \[4, 3, 2, 1\]"),
        (IMAGES.astype(float), [1] * 4, "float64"),
        (IMAGES[:0], [], r"\[0, 3, 2\]"),
        (IMAGES, [1] * 5, r"4 images but labels \[5\]"),
        (IMAGES, [1, 2, 10, 11], "row 2: label 10; 0..9"),
        (IMAGES, [1, 2, 3, -1], "row 3: label -1"),
        (IMAGES, [1, 2.5, 3, 4], "row 1: label 2.5"),
    ],
)
def test_labelled_names_what_is_wrong(image, label, message):
    with pytest.raises(InputError, match="^here.*" + message):
        digits.digit_source(image, label, where="here")
