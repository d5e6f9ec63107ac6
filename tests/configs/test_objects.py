"""The experiments of `objects`, without training."""

import dataclasses

import numpy as np
import pytest

from jaxdet import configs
from jaxdet.configs import objects
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


def test_the_report_has_labels_in_the_order_of_the_data_and_labels_without_images():
    labels = {name: {"count": 2, "correct": 1, "accuracy": 0.5} for name in ("airplane", "face")}
    labels |= {"motorcycle": {"count": 0, "correct": 0}}
    lines = objects.report({"accuracy": 0.5, "labels": labels}, "val").splitlines()
    assert lines == [
        "*** validation set accuracy",
        "Mean accuracy for all labels: 0.5",
        "    Mean accuracy for label motorcycle: no sample",
        "             0 over 0 samples",
        "    Mean accuracy for label airplane: 0.5",
        "             1 over 2 samples",
        "    Mean accuracy for label face: 0.5",
        "             1 over 2 samples",
        "accuracy 0.5",
    ]
