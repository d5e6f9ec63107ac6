"""Identities and splits of faces."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jaxdet.configs.faces import Config
from jaxdet.data import faces
from jaxdet.errors import InputError

IDENTITIES, EACH = 5, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five identities with ten grayscale images each."""
    root = tmp_path_factory.mktemp("faces") / "data"
    random = np.random.default_rng(0)
    for identity in range(IDENTITIES):
        folder = root / f"s{identity}"
        folder.mkdir(parents=True)
        for number in range(EACH):
            pixels = random.integers(256, size=(12, 10)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.pgm")
    return root


@pytest.fixture
def config(root):
    return Config(root=str(root), size=32)


def splits(config):
    """{split: names of its images}."""
    return {name: list(s.names) for name, s in faces.read_dataset(config).splits.items()}


def counts(names):
    """The numbers of images that identities have among `names`."""
    return set(Counter(name.split("/")[0] for name in names).values())


def test_images_of_every_identity_are_split(config):
    found = splits(config)
    assert {name: counts(own) for name, own in found.items()} == {
        "train": {7},
        "val": {1},
        "test": {2},
    }
    assert len(set(sum(found.values(), []))) == IDENTITIES * EACH
    assert found == splits(config)
    assert found != splits(replace(config, split_seed=1))


def test_identities_that_are_not_trained_are_a_split_of_their_own(config):
    dataset = faces.read_dataset(replace(config, identities=3))
    found = {name: list(source.names) for name, source in dataset.splits.items()}
    assert {name.split("/")[0] for name in found["train"]} == {"s0", "s1", "s2"}
    assert {name.split("/")[0] for name in found["others"]} == {"s3", "s4"}
    assert counts(found["others"]) == {EACH}
    assert dataset.classes == ("s0", "s1", "s2")
    assert set(dataset.splits["others"].arrays["label"]) == {3, 4}
    with pytest.raises(InputError, match="--identities must be at most 5 for .*, got 9"):
        faces.read_dataset(replace(config, identities=9))


def test_an_empty_validation_split_becomes_the_training_split(config):
    found = splits(replace(config, val_fraction=0.0, test_fraction=0.3))
    assert found["val"] == found["train"] and counts(found["test"]) == {3}


def test_splits_of_the_data_are_kept(root, config, tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / name).symlink_to(root)
    found = splits(replace(config, root=str(tmp_path)))
    assert {len(names) for names in found.values()} == {IDENTITIES * EACH}


def test_data_with_train_and_dev_are_not_split(root, config, tmp_path):
    """The test images lie directly in their folder, as in assignment 4, and are ignored."""
    for name in ("train", "dev"):
        (tmp_path / name).symlink_to(root)
    shutil.copytree(root / "s0", tmp_path / "test")
    dataset = faces.read_dataset(replace(config, root=str(tmp_path)))
    assert dataset.notes == ()
    assert {name: len(source) for name, source in dataset.splits.items()} == {
        "train": IDENTITIES * EACH,
        "val": IDENTITIES * EACH,
        "test": IDENTITIES * EACH,
    }


@pytest.mark.parametrize("fraction, count", [(0.01, 1), (0.5, 4), (0.7, 5)])
def test_a_fraction_of_each_identity_is_used_for_training(config, fraction, count):
    whole, found = splits(config), splits(replace(config, train_fraction=fraction))
    assert counts(found["train"]) == {count}
    assert {*found["train"]} < {*whole["train"]}
    assert {*found["train"]} < {*splits(replace(config, train_fraction=0.9))["train"]}
    assert (found["val"], found["test"]) == (whole["val"], whole["test"])


def test_a_stream_equals_the_data_in_memory(config):
    pytest.importorskip("grain")
    config = replace(config, identities=3)
    held, streamed = (faces.read_dataset(replace(config, stream=on)) for on in (False, True))
    assert held.classes == streamed.classes and held.splits.keys() == streamed.splits.keys()
    for name, source in held.splits.items():
        assert not streamed.splits[name].arrays and streamed.splits[name].names == source.names
        np.testing.assert_array_equal(streamed.splits[name].labels, source.labels)
        for key, column in streamed.splits[name].first(99).arrays.items():
            np.testing.assert_array_equal(column, source.arrays[key])


def test_identities_without_a_training_image_are_refused(root, config, tmp_path):
    """A folder without files makes no identity; one without a readable image is refused."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for path in (data / "s1").iterdir():
        path.unlink()
    config = replace(config, root=str(data))
    dataset = faces.read_dataset(config)
    assert dataset.classes == ("s0", "s2", "s3", "s4")
    assert dataset.notes == (f"{data}/s1: no files in it",)
    for path in (data / "s3").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(InputError, match="data: no training image of s3 can be used; add one"):
        faces.read_dataset(config)


def test_a_missing_root_is_refused():
    for read in (lambda: faces.summarize(""), lambda: faces.read_dataset(Config())):
        with pytest.raises(
            InputError, match="--root must be a folder or tar file with one folder of images"
        ):
            read()
