from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models.resnet import Bottleneck, ResNet, ResNet18, ResNet34, ResNet50
from tests.models.helpers import outputs, random_like, shaped, size

Tiny = partial(ResNet, stages=(1, 1), width=8, classes=3)


# Of torchvision's models at 224 x 224: its documentation's parameters and giga multiply-adds.
@pytest.mark.parametrize(
    "net, parameters, multiply_adds",
    [
        (ResNet18(), 11_689_512, 1.814),
        (ResNet34(), 21_797_672, 3.664),
        (ResNet50(), 25_557_032, 4.089),
    ],
)
def test_parameters_and_multiply_adds(net, parameters, multiply_adds):
    images = shaped(1, 224, 224, 3)
    _, variables = outputs(net, images)
    assert size(variables["params"]) == parameters
    found = flops.count(net.apply, variables, images, convention="mac")
    assert round(found.total() / 1e9, 3) == multiply_adds


@pytest.mark.parametrize("net, expansion", [(ResNet18, 1), (ResNet50, 4)])
def test_without_classes_the_maps_of_the_stages_are_returned(net, expansion):
    maps, _ = outputs(net(classes=0), shaped(2, 64, 96, 3))
    assert [each.shape for each in maps] == [
        (2, 16, 24, 64 * expansion),
        (2, 8, 12, 128 * expansion),
        (2, 4, 6, 256 * expansion),
        (2, 2, 3, 512 * expansion),
    ]
    logits, _ = outputs(net(classes=7), shaped(2, 64, 96, 3))
    assert logits.shape == (2, 7)


def test_odd_sides_are_rounded_up():
    maps, _ = outputs(ResNet18(classes=0), shaped(1, 65, 33, 3))
    assert [each.shape[1:3] for each in maps] == [(17, 9), (9, 5), (5, 3), (3, 2)]


def test_names_of_the_layers():
    _, variables = outputs(ResNet(stages=(2, 1), width=8, block=Bottleneck), shaped(1, 32, 32, 3))
    params = variables["params"]
    assert sorted(params) == [
        *("logits", "stage1_block1", "stage1_block2", "stage2_block1", "stem", "stem_norm")
    ]
    plain = {"conv1", "conv1_norm", "conv2", "conv2_norm", "conv3", "conv3_norm"}
    assert set(params["stage1_block2"]) == plain
    for changed in ("stage1_block1", "stage2_block1"):  # in width, in size
        assert set(params[changed]) == plain | {"around", "around_norm"}
    assert params["stage2_block1"]["conv2"]["kernel"].shape == (3, 3, 16, 16)
    norms = {path[-2].key for path, _ in jax.tree.leaves_with_path(variables["batch_stats"])}
    assert norms == {*(name for name in plain if "norm" in name), "stem_norm", "around_norm"}


@pytest.fixture(scope="module")
def example():
    """A tiny network, random variables, and images."""
    images = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    return Tiny(), random_like(outputs(Tiny(), images)[1]), images


def test_training_has_finite_gradients_and_new_statistics(example):
    net, variables, images = example

    def loss(params):
        logits, updates = net.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, stats))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), variables["batch_stats"], stats)
    assert all(jax.tree.leaves(changed))


def test_evaluation_is_independent_per_image(example):
    net, variables, images = example
    apply = jax.jit(net.apply)
    together = apply(variables, images)
    alone = jnp.concatenate([apply(variables, image[None]) for image in images])
    assert together.shape == (4, 3)
    assert together.std() > 0
    chex.assert_trees_all_close(together, alone, atol=1e-5)


def test_batch_statistics_are_synchronized_over_devices(example):
    net, variables, images = example
    train = {"train": True, "mutable": "batch_stats"}
    _, together = jax.jit(partial(net.apply, **train))(variables, images)
    step = partial(net.clone(axis_name="devices").apply, variables, **train)
    halves = images.reshape(2, 2, *images.shape[1:])
    _, updates = jax.jit(jax.vmap(step, axis_name="devices"))(halves)
    chex.assert_trees_all_close(together, jax.tree.map(lambda x: x[0], updates), atol=1e-4)


def test_parameters_stay_float32_when_computing_in_bfloat16():
    out, variables = outputs(Tiny(dtype=jnp.bfloat16, classes=0), shaped(1, 32, 32, 3))
    assert {each.dtype for each in out} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_every_convolution_uses_conv_general_dilated():
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    outputs(Tiny(conv_general_dilated=spy), shaped(1, 32, 32, 3))
    around = (1, 1, 8, 16)
    assert calls == [(7, 7, 3, 8), *[(3, 3, 8, 8)] * 2, (3, 3, 8, 16), (3, 3, 16, 16), around]
