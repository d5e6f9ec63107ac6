"""The experiments of `objects`, without training."""

import dataclasses

import numpy as np
import pytest

from jaxdet import configs
from jaxdet.configs.objects import Config
from tests.cli.test_objects import write_objects


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = write_objects(tmp_path_factory.mktemp("images") / "data")
    return Config(root=str(root), size=64, val_fraction=0.25, test_fraction=0.25, devices=1)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
def test_a_subset_is_the_experiment_of_its_own_configuration(config, fraction):
    smaller = dataclasses.replace(config, train_fraction=fraction)
    found = configs.build("objects", config).subset(smaller)
    expected = configs.build("objects", smaller)
    assert found.files == expected.files and found.config == expected.config
    for name in ("image", "label", "boxes"):
        for split in ("train", "val", "test"):
            ours, theirs = (each.splits[split].arrays[name] for each in (found, expected))
            np.testing.assert_array_equal(ours, theirs)
    assert found.splits["train"].names == expected.splits["train"].names
