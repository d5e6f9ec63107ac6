"""What the configuration of cifar10 makes of the data, and which networks it has."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import configs
from jaxdet.configs import cifar10
from jaxdet.configs.cifar10 import Config
from jaxdet.errors import InputError
from jaxdet.training import evaluator, time_budget
from tests import datasets

MODELS = get_args(cifar10.Model)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = datasets.write_image_folder(tmp_path_factory.mktemp("images") / "data")
    return Config(root=str(root), val_fraction=0.25)


def ids(config):
    """Numbers of the images of each part."""
    splits = configs.build("cifar10", config).splits
    return {part: source.arrays["id"].tolist() for part, source in splits.items()}


def test_no_image_is_in_two_parts_and_none_is_lost(config):
    parts = ids(config)
    assert {part: len(of) for part, of in parts.items()} == {"train": 27, "val": 9, "test": 12}
    assert sorted(sum(parts.values(), [])) == list(range(48))
    assert sorted(parts["test"]) == list(range(36, 48)) != parts["test"]


def test_the_split_is_that_of_its_seed(config):
    once, again, other = (ids(replace(config, split_seed=seed, seed=9)) for seed in (0, 0, 1))
    assert once == again == ids(config)
    assert sorted(once["val"]) != sorted(other["val"])


@pytest.mark.parametrize("share, count", [(1e-9, 1), (0.1, 3), (0.5, 14), (1.0, 27)])
def test_a_part_of_a_system_is_what_its_own_configuration_builds(config, share, count):
    less = replace(config, train_fraction=share)
    found, expected = configs.build("cifar10", config).part(less), configs.build("cifar10", less)
    for part in ("train", "val", "test"):
        ours, theirs = found.splits[part], expected.splits[part]
        jax.tree.map(np.testing.assert_array_equal, ours.arrays, theirs.arrays)
        assert ours.names == theirs.names
    assert ids(less)["train"] == ids(config)["train"][:count]
    assert ids(less)["val"] == ids(config)["val"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_an_image_and_has_no_more_parameters_than_it_may(model):
    net, shape = configs.network("cifar10", Config(model=model))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 10)
    counted = time_budget.count_parameters(variables)
    assert (counted > Config().max_params) == (model == "resnet20")
    if model == "resnet20":
        with pytest.raises(InputError, match=f"has {counted} parameters"):
            configs.build("cifar10", Config(model=model))


def test_widths_and_dense_are_those_of_the_tutorial_unless_given():
    def outputs(**sizes):
        net, shape = configs.network("cifar10", Config(**sizes))
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
        return {name: layer["bias"].shape[0] for name, layer in variables["params"].items()}

    names = ("conv1", "conv2", "dense1", "dense2", "logits")
    assert outputs() == dict(zip(names, (6, 16, 120, 84, 10), strict=True))
    assert outputs(model="doubled") == dict(zip(names, (12, 32, 240, 168, 10), strict=True))
    found = outputs(channels=(4, 5), fc_widths=(7, 8))
    assert found == dict(zip(names, (4, 5, 7, 8, 10), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": True, "crop_padding": 4, "cutout": 0.5, "brightness_contrast": 0.2},
        {"color_jitter": 0.5},
    ],
)
def test_training_images_are_changed_as_asked_for(config, change):
    system = configs.build("cifar10", replace(config, **change))
    before, after = (evaluator.samples(system, "train", 9, train=train) for train in (False, True))
    assert (before["image"] != after["image"]).any((1, 2, 3)).all() == bool(change)
    assert after["image"].min() >= 0 and after["image"].max() <= 1
    np.testing.assert_array_equal(before["wanted"], after["wanted"])


REFUSED = {
    "--val-fraction 0:": {"val_fraction": 0.0},
    "--val-fraction 1:": {"val_fraction": 1.0},
    "--val-fraction 0.99 of 36 images": {"val_fraction": 0.99},
    "--train-fraction 0:": {"train_fraction": 0.0},
    "--train-fraction 1.5:": {"train_fraction": 1.5},
    "--dropout 1:": {"dropout": 1.0},
    "--label-smoothing -0.1:": {"label_smoothing": -0.1},
    "--cutout 1:": {"cutout": 1.0},
    "--brightness-contrast 1:": {"brightness_contrast": 1.0},
    "--color-jitter 1:": {"color_jitter": 1.0},
    "--crop -1:": {"crop_padding": -1},
    "--crop-padding 33:": {"crop_padding": 33},
    "--mixup -1:": {"mixup_alpha": -1.0},
    "--channels and --fc-widths:": {"channels": (0, 3)},
    "--channels, --fc-widths and --norm are not for --model tiny": {"norm": True, "model": "tiny"},
    "--activation is not for --model narrow": {"activation": "elu", "model": "narrow"},
    "no CIFAR-10 in gone": {"root": "gone"},
    "CIFAR-10 is not anywhere": {"root": ""},
    "--max-params -1:": {"max_params": -1},
}


@pytest.mark.parametrize("said, change", REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line_by_name(config, said, change):
    with pytest.raises(InputError) as caught:
        configs.build("cifar10", replace(config, **change))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_networks_take_their_dropout_from_the_state(dropout):
    """One program then serves runs that differ in it."""
    for model in MODELS:
        net, _ = configs.network("cifar10", Config(model=model, dropout=dropout))
        assert net.rate == 1.0
