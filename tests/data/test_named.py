import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdet.data import digits, named
from jaxdet.types import InputError

ROWS = {"train": 12, "test": 65}


def png(value, shape):
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8).squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


with tfds.core.registered.skip_registration():  # a set is found by its files alone

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Row i shows the value i everywhere; its class is i modulo the number of classes."""

        VERSION = tfds.core.Version("1.0.0")
        SHAPE, CLASSES, LABEL = (6, 4, 1), 10, "label"

        def _info(self):
            image = tfds.features.Image(shape=self.SHAPE)
            label = tfds.features.ClassLabel(num_classes=self.CLASSES)
            features = tfds.features.FeaturesDict({"image": image, self.LABEL: label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(rows) for part, rows in ROWS.items()}

        def _generate_examples(self, rows):
            shape = tuple(side or 5 for side in self.SHAPE)
            for i in range(rows):
                yield i, {"image": png(i, shape), self.LABEL: i % self.CLASSES}

    class Coloured(Tiny):
        SHAPE = (6, 4, 3)

    class Ragged(Tiny):
        SHAPE = (None, None, 1)

    class Unlabelled(Tiny):
        LABEL = "name"

    class Letters(Tiny):
        CLASSES = 26


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    for builder in (Tiny, Coloured, Ragged, Unlabelled, Letters):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_load_reads_every_row_without_tensorflow(root):
    train, test = named.load("tiny", root)
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
    parts = digits.splits("tfds:tiny", root)
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
        named.load(name, root)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
