"""What the configuration of objects makes of the data, without training."""

import dataclasses

import numpy as np
import pytest

from jaxdet import configs
from jaxdet.configs.objects import Config
from tests.cli.test_objects import set_of_photos


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = set_of_photos(tmp_path_factory.mktemp("photos") / "data")
    return Config(root=str(root), size=64, val_fraction=0.25, test_fraction=0.25, devices=1)


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_a_part_of_a_system_is_what_its_own_configuration_builds(config, share):
    less = dataclasses.replace(config, train_fraction=share)
    found, expected = configs.build("objects", config).part(less), configs.build("objects", less)
    assert found.files == expected.files
    for name in ("image", "label", "boxes"):
        for split in ("train", "val", "test"):
            ours, theirs = (one.splits[split].arrays[name] for one in (found, expected))
            np.testing.assert_array_equal(ours, theirs)
    assert found.splits["train"].names == expected.splits["train"].names
