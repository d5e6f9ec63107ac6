"""The experiments and networks of `cifar10`, without training."""

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
    """Ids of the images of each split."""
    splits = configs.build("cifar10", config).splits
    return {name: source.arrays["id"].tolist() for name, source in splits.items()}


def test_splits_are_disjoint_and_complete(config):
    found = ids(config)
    assert {name: len(own) for name, own in found.items()} == {"train": 27, "val": 9, "test": 12}
    assert sorted(sum(found.values(), [])) == list(range(48))
    assert sorted(found["test"]) == list(range(36, 48)) != found["test"]


def test_the_split_depends_on_its_seed_only(config):
    once, again, other = (ids(replace(config, split_seed=seed, seed=9)) for seed in (0, 0, 1))
    assert once == again == ids(config)
    assert sorted(once["val"]) != sorted(other["val"])


def test_without_validation_all_training_images_are_trained_on(config):
    whole = replace(config, val_fraction=0.0, monitor="test")
    found = ids(whole)
    assert sorted(found["train"]) == list(range(36)) and found["test"] == ids(config)["test"]
    assert configs.build("cifar10", whole).scored_splits == ("test",)
    watched = replace(config, monitor="test")
    assert configs.build("cifar10", watched).scored_splits == ("val", "test")


@pytest.mark.parametrize("fraction, count", [(1e-9, 1), (0.1, 3), (0.5, 14), (1.0, 27)])
def test_a_subset_is_the_experiment_of_its_own_configuration(config, fraction, count):
    smaller = replace(config, train_fraction=fraction)
    found = configs.build("cifar10", config).subset(smaller)
    expected = configs.build("cifar10", smaller)
    assert found.config == expected.config
    for name in ("train", "val", "test"):
        ours, theirs = found.splits[name], expected.splits[name]
        jax.tree.map(np.testing.assert_array_equal, ours.arrays, theirs.arrays)
        assert ours.names == theirs.names
    assert ids(smaller)["train"] == ids(config)["train"][:count]
    assert ids(smaller)["val"] == ids(config)["val"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_but_resnet20_is_within_the_limit_of_parameters(model):
    net, shape = configs.network("cifar10", Config(model=model))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 10)
    counted = time_budget.count_parameters(variables)
    assert (counted > Config().max_params) == (model == "resnet20")
    if model == "resnet20":
        with pytest.raises(InputError, match=f"--max-params must be at least {counted}"):
            configs.build("cifar10", Config(model=model))


def test_channels_and_fc_widths_are_the_models_unless_given():
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
def test_training_images_are_augmented_by_the_options(config, change):
    experiment = configs.build("cifar10", replace(config, **change))
    before, after = (
        evaluator.samples(experiment, "train", 9, train=train) for train in (False, True)
    )
    assert (before["image"] != after["image"]).any((1, 2, 3)).all() == bool(change)
    assert after["image"].min() >= 0 and after["image"].max() <= 1
    np.testing.assert_array_equal(before["target"], after["target"])


REFUSED = {
    "--val-fraction must be above 0, got 0: validation images select": {"val_fraction": 0.0},
    "--val-fraction must be at least 0 and below 1, got 1": {"val_fraction": 1.0},
    "--val-fraction must leave images for training, got 0.99 of 36 images": {"val_fraction": 0.99},
    "--train-fraction must be above 0 and at most 1, got 0": {"train_fraction": 0.0},
    "--train-fraction must be above 0 and at most 1, got 1.5": {"train_fraction": 1.5},
    "--dropout must be at least 0 and below 1, got 1": {"dropout": 1.0},
    "--label-smoothing must be at least 0 and below 1, got -0.1": {"label_smoothing": -0.1},
    "--cutout must be at least 0 and below 1, got 1": {"cutout": 1.0},
    "--brightness-contrast must be at least 0 and below 1, got 1": {"brightness_contrast": 1.0},
    "--color-jitter must be at least 0 and below 1, got 1": {"color_jitter": 1.0},
    "--crop-padding must be from 0 to 32 pixels, got -1": {"crop_padding": -1},
    "--crop-padding must be from 0 to 32 pixels, got 33": {"crop_padding": 33},
    "--mixup-alpha must be at least 0, got -1": {"mixup_alpha": -1.0},
    "each value of --channels must be at least 1, got 0 3": {"channels": (0, 3)},
    "--channels, --fc-widths and --norm need --model tutorial": {"norm": True, "model": "tiny"},
    "--activation needs a --model other than resnet20": {"activation": "elu", "model": "narrow"},
    "no CIFAR-10 in gone": {"root": "gone"},
    "--root must be given": {"root": ""},
    "--max-params must be at least 0, got -1": {"max_params": -1},
}


@pytest.mark.parametrize("message, change", REFUSED.items(), ids=REFUSED)
def test_an_invalid_option_is_named_in_one_line(config, message, change):
    with pytest.raises(InputError) as caught:
        configs.build("cifar10", replace(config, **change))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_dropout_rate_is_traced(dropout):
    """Runs that differ in it share one program."""
    for model in MODELS:
        net, _ = configs.network("cifar10", Config(model=model, dropout=dropout))
        assert net.rate == 1.0
