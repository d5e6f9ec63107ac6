"""Networks by name and by configuration."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import configs
from jaxdet.data.sources import ArraySource
from jaxdet.errors import InputError
from tests import tiny


def output_shape(named):
    """Shape of a network's output for the input that it is described with."""
    images = jax.ShapeDtypeStruct(named.input, jnp.float32)
    return jax.eval_shape(named.net.init_with_output, jax.random.key(0), images)[0].shape


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ng_sliding", (1, 8, 8, 4)),
        ("ng_windows", (1, 4)),
        ("lenet", (1, 10)),
        ("resnet18", (1, 1000)),
        ("resnet34", (1, 1000)),
        ("resnet50", (1, 1000)),
        ("digits", (1, 6, 6, 15)),
    ],
)
def test_a_named_network_accepts_its_input(name, expected):
    assert name in configs.NETWORK_NAMES
    assert output_shape(configs.named_network(name)) == expected


def test_every_system_is_a_name_and_every_name_has_a_network():
    assert set(configs.SYSTEMS) < set(configs.NETWORK_NAMES)
    assert all(configs.named_network(name).net for name in configs.NETWORK_NAMES)


def test_the_network_of_a_configuration_is_that_of_its_experiment():
    experiment = tiny.experiment()
    named = configs.network_of_config("digits", tiny.CONFIG)
    assert list(named.input) == [1, *experiment.metadata["input"]]
    batch = {"image": jnp.zeros(named.input)}
    images = jax.ShapeDtypeStruct(named.input, jnp.float32)
    expected = jax.eval_shape(experiment.task.init, jax.random.key(0), batch)
    found = jax.eval_shape(named.net.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


def test_an_invalid_configuration_has_no_network():
    with pytest.raises(InputError, match="--epochs"):
        configs.network_of_config("digits", replace(tiny.CONFIG, epochs=-1))


@pytest.mark.parametrize(
    "name, nearest", [("lenett", "lenet"), ("resnet-18", "resnet18"), ("digit", "digits"), ("", "")]
)
def test_an_unknown_name_lists_all_names_nearest_first(name, nearest):
    with pytest.raises(
        InputError, match=f"{name!r} is neither .* nearest first: {nearest}"
    ) as caught:
        configs.named_network(name)
    assert all(known in str(caught.value) for known in configs.NETWORK_NAMES)


@pytest.mark.parametrize("system", ["detect", "cifar10", "objects", "faces"])
def test_class_weights_are_balanced_or_given(system):
    sets = {"true_labels": np.array([[0, 0, 1], [0, 2, 2]])}
    sets["true_valid"] = np.array([[True] * 3, [True, False, False]])
    arrays = sets if system == "detect" else {"label": np.array([0, 1, 0, 0])}
    splits = {"train": ArraySource(arrays)}

    def weights(text):
        config = configs.config(system)(class_weights=text)
        module = configs.checked_module(system, config)
        return module.from_splits(config, ("a", "b", "c"), splits).task.class_weights

    assert weights("") == () and weights("1,2,.5") == (1, 2, 0.5)
    assert weights("balanced") == pytest.approx((4 / 6, 4 / 2, 1))  # class c has no objects
    with pytest.raises(InputError, match=r"one number per class \(a, b, c\), got 1,2"):
        weights("1,2")
    for text in ("1,x", "1,0,1", "even", "1,inf,1", "1,nan,1"):
        with pytest.raises(InputError, match="--class-weights must be balanced, or positive"):
            weights(text)
