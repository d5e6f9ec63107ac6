import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdet.data import digits
from jaxdet.errors import InputError
from tests.data.test_mnist import encoded, write


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


def test_embedded_scans_look_like_their_class(embedded):
    image, label = embedded.arrays["image"].astype(float), embedded.arrays["label"]
    half = len(label) // 2
    means = np.array([image[:half][label[:half] == digit].mean(axis=0) for digit in range(10)])
    distance = ((image[half:, None] - means[None]) ** 2).sum(axis=(2, 3))
    assert (distance.argmin(axis=1) == label[half:]).mean() > 0.85


def ids(source):
    return source.arrays["id"]


@pytest.fixture(scope="module", params=["embedded", "mnist"])
def whole(request, tmp_path_factory):
    """(name, root, counts of every part) of a source."""
    if request.param == "embedded":
        return "embedded", None, {"train": 1297, "val": 200, "test": 300, "heldout": 500}
    images, labels = np.ones((70, 4, 3), np.uint8), np.arange(70, dtype=np.uint8) % 10
    changed = {"t10k_images": encoded(images), "t10k_labels": encoded(labels)}
    root = write(tmp_path_factory.mktemp("mnist"), **changed)
    return "mnist", root, {"train": 5, "val": 40, "test": 30, "heldout": 70}


def test_splits_part_the_set_and_ids_tell_every_row(whole):
    name, root, counts = whole
    parts = digits.read_splits(name, root)
    assert {part: len(source) for part, source in parts.items()} == counts
    np.testing.assert_array_equal(ids(parts["train"]), np.arange(counts["train"]))
    every = np.concatenate([ids(parts["train"]), ids(parts["heldout"])])
    np.testing.assert_array_equal(every, np.arange(len(every)))
    rejoined = np.concatenate([ids(parts["val"]), ids(parts["test"])])
    np.testing.assert_array_equal(np.sort(rejoined), ids(parts["heldout"]))


def test_a_row_keeps_its_id_in_every_part(whole):
    name, root, _ = whole
    parts = digits.read_splits(name, root)
    for record in parts["test"]:
        same = parts["heldout"][record["id"] - len(parts["train"])]
        np.testing.assert_array_equal(record["image"], same["image"])
        assert record["label"] == same["label"]


def test_the_seed_draws_the_test_digits_and_nothing_else(whole):
    name, root, _ = whole
    first, again, other = (digits.read_splits(name, root, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(ids(first["test"]), ids(again["test"]))
    assert set(ids(first["test"])) != set(ids(other["test"]))
    for part in ("train", "heldout"):
        np.testing.assert_array_equal(first[part].arrays["image"], other[part].arrays["image"])


def test_all_classes_are_in_every_part_of_the_embedded_set():
    for source in digits.read_splits("embedded").values():
        assert set(source.arrays["label"]) == set(range(10))


def test_too_few_digits_to_hold_out(tmp_path):
    with pytest.raises(InputError, match="mnist: 3 test digits; 60 or more"):
        digits.read_splits("mnist", write(tmp_path))


@pytest.mark.parametrize("name", ["cifar", "mnist", "tfds:", "tfds", "embedded:x", ""])
def test_a_source_not_known_or_without_its_root(name):
    with pytest.raises(InputError, match="one of embedded, mnist, tfds:NAME"):
        digits.read_splits(name)


def test_the_scans_are_those_of_scikit_learn():
    expected = load_digits()
    scans, label = digits._load_scans()
    np.testing.assert_array_equal(scans, expected.images)
    np.testing.assert_array_equal(label, expected.target)
