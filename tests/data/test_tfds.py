import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdet.data import digits
from jaxdet.errors import InputError

ROWS = {"train": 12, "test": 65}


def png(value, shape):
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8).squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def prepare(folder, set_name, shape=(6, 4, 1), classes=10, label="label"):
    """A set whose row i shows the value i everywhere; its class is i modulo `classes`."""

    class Tiny(tfds.core.GeneratorBasedBuilder):
        __module__ = "__main__"  # found in a package, it would need importlib_resources
        VERSION = tfds.core.Version("1.0.0")
        name = set_name

        def _info(self):
            kind = tfds.features.ClassLabel(num_classes=classes)
            features = {"image": tfds.features.Image(shape=shape), label: kind}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(rows) for part, rows in ROWS.items()}

        def _generate_examples(self, rows):
            sides = [side or 5 for side in shape]
            for i in range(rows):
                yield i, {"image": png(i, sides), label: i % classes}

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():  # sets are found by their files alone
        prepare(folder, "tiny")
        prepare(folder, "coloured", shape=(6, 4, 3))
        prepare(folder, "ragged", shape=(None, None, 1))
        prepare(folder, "unlabelled", label="name")
        prepare(folder, "letters", classes=26)
    return folder


def test_load_reads_every_row_without_tensorflow(root):
    train, test = digits.read_tfds("tiny", root)
    assert train.arrays["image"].shape == (12, 6, 4)
    assert test.arrays["image"].dtype == np.uint8
    for source, rows in ((train, 12), (test, 65)):
        values = source.arrays["image"][:, 0, 0]
        assert set(values) == set(range(rows))
        np.testing.assert_array_equal(source.arrays["label"], values % 10)
    every = np.concatenate([train.arrays["id"], test.arrays["id"]])
    np.testing.assert_array_equal(every, np.arange(77))
    assert "tensorflow" not in sys.modules


def test_splits_take_a_named_set(root):
    parts = digits.read_splits("tfds:tiny", root)
    counts = {"train": 12, "val": 35, "test": 30, "heldout": 65}
    assert {part: len(source) for part, source in parts.items()} == counts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "not found; prepare it once: .*array_record"),
        ("mnist", "not prepared in the array_record format; prepare it once"),
        ("two words", "two words"),
        ("coloured", r"\(6, 4, 3\).*image \(H, W, 1\)"),
        ("ragged", r"\(None, None, 1\).*image \(H, W, 1\)"),
        ("unlabelled", r"'name'.*label \(\) are wanted"),
        ("letters", r"letters train row \d+: label 1\d; 0..9 is wanted"),
    ],
)
def test_load_says_in_one_line_what_is_wrong(root, name, message):
    with pytest.raises(InputError, match=message) as raised:
        digits.read_tfds(name, root)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
