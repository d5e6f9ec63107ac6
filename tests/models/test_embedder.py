from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models import mobilenet
from jaxdet.models.convnext import ConvNeXt
from jaxdet.models.embedder import Embedder
from jaxdet.models.inverted_residual import InvertedResidualNet
from jaxdet.models.resnet import ResNet, ResNet18
from tests.marks import long_for
from tests.models.helpers import outputs, random_like, shaped, size
from tests.models.test_mobilenet import TinyV3

BACKBONES = {
    "resnet": partial(ResNet, stages=(1, 1), width=4, classes=0),
    "mobilenet": partial(TinyV3, classes=0),
    "convnext": partial(ConvNeXt, widths=(4, 6), blocks=(1, 1), classes=0),
    "bottlenecks": partial(InvertedResidualNet, widths=(4, 6), strides=(1, 2), classes=0),
}
LAST = {"resnet": 8, "mobilenet": 8, "convnext": 6, "bottlenecks": 6}
each_backbone = pytest.mark.parametrize("name", long_for(BACKBONES, {"mobilenet", "convnext"}))


def example(name, **fields):
    """An embedder with random variables, and images."""
    images = np.random.default_rng(0).normal(size=(2, 32, 40, 3)).astype(np.float32)
    net = Embedder(BACKBONES[name], **{"classes": 3, "dim": 5, **fields})
    return net, random_like(outputs(net, images)[1]), images


@each_backbone
def test_embed_and_classify_compose_to_the_call(name):
    net, variables, images = example(name)

    @jax.jit
    def every(variables, images):
        embedding, logits = net.apply(variables, images)
        alone = net.apply(variables, images, method="embed")
        return embedding, logits, alone, net.apply(variables, alone, method="classify")

    embedding, logits, alone, classified = every(variables, images)
    chex.assert_shape((embedding, logits), [(2, 5), (2, 3)])
    np.testing.assert_array_equal(embedding, alone)
    np.testing.assert_array_equal(logits, classified)
    weights = variables["params"]["logits"]
    expected = embedding @ weights["kernel"] + weights["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert embedding.std() > 1e-4


@each_backbone
def test_parameters_by_arithmetic(name):
    images, last = shaped(1, 32, 32, 3), LAST[name]
    features = size(outputs(BACKBONES[name](), images)[1]["params"])
    for dim, hidden in [(5, ()), (0, ()), (5, (7, 9))]:
        net = Embedder(BACKBONES[name], 3, dim=dim, hidden=hidden)
        (embedding, _), variables = outputs(net, images)
        chain = [dim or last, *hidden, 3]
        expected = features + (last + 1) * dim
        expected += sum((a + 1) * b for a, b in zip(chain, chain[1:], strict=False))
        assert size(variables["params"]) == expected
        assert embedding.shape == (1, dim or last)


def test_sizes_with_7001_identities():
    for features, parameters, last in [
        (partial(ResNet18, classes=0), 11_176_512, 512),
        (partial(mobilenet.V2, classes=0), 1_811_712, 320),
    ]:
        _, variables = outputs(Embedder(features, 7001), shaped(1, 224, 224, 3))
        expected = parameters + (last + 1) * 512 + 513 * 7001
        assert size(variables["params"]) == expected


@each_backbone
def test_embeddings_and_logits_are_float32_in_any_dtype(name):
    low = {"dtype": jnp.bfloat16}
    net = Embedder(partial(BACKBONES[name], **low), 3, dim=5, **low)
    found, variables = outputs(net, shaped(1, 32, 32, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves((found, variables))} == {jnp.dtype("float32")}


def test_classifier_dropout_leaves_embeddings_unchanged():
    net, variables, images = example("convnext", hidden=(7,), rates=(0.5, 0.5))

    @jax.jit
    def run(drop):
        rngs = {"dropout": jax.random.key(1)}
        return net.apply(variables, images, train=True, dropout_scale=drop, rngs=rngs)

    plain, dropped, whole = jax.jit(net.apply)(variables, images), run(1.0), run(0.0)
    np.testing.assert_allclose(dropped[0], plain[0], rtol=1e-3, atol=1e-5)
    assert abs(dropped[1] - plain[1]).max() > 1e-3
    chex.assert_trees_all_close(whole, plain, rtol=1e-3, atol=1e-5)


def test_a_backbone_has_its_own_dropout_rates():
    rated = partial(BACKBONES["bottlenecks"], rates=(0.5, 0.5), norm=False)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    net = Embedder(rated, 3, dim=5)
    variables = {"params": random_like(outputs(net, images)[1])["params"]}

    @jax.jit
    def run(drop):
        rngs = {"dropout": jax.random.key(1)}
        return net.apply(variables, images, train=True, dropout_scale=drop, rngs=rngs)[0]

    plain = jax.jit(partial(net.apply, method="embed"))(variables, images)
    np.testing.assert_array_equal(run(0.0), run(1.0))
    assert abs(run(0.0) - plain).max() > 1e-4


@pytest.mark.parametrize("name", long_for(["convnext", "bottlenecks"], {"convnext"}))
def test_gradients_reach_every_layer_and_are_finite(name):
    net, variables, images = example(name, hidden=(7,))

    @jax.jit
    @jax.grad
    def slope(params):
        (embedding, logits), _ = net.apply(
            {**variables, "params": params}, images, train=True, mutable="batch_stats"
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean() + (embedding**2).mean()

    gradient = slope(variables["params"])
    chex.assert_tree_all_finite(gradient)
    for module in ("features", "embedding", "logits"):
        assert any(leaf.any() for leaf in jax.tree.leaves(gradient[module])), module


def test_every_layer_is_a_row_of_the_operation_table():
    net, variables, images = example("resnet")
    rows = flops.count(net.apply, variables, images).by_layer
    names = {path.removeprefix("Embedder/") for path, _ in rows}
    assert names >= {"features/stem", "features/stage2_block1/conv2", "pool", "embedding", "logits"}


def test_bnneck_is_the_batch_norm_of_the_embedding_without_shifts():
    net, variables, images = example("resnet", bnneck=True)
    bare, _, _ = example("resnet")
    norm = variables["params"]["embedding_norm"]
    assert set(norm) == {"scale"}
    scale = np.linspace(0.5, 2, 5, dtype=np.float32)
    variables["params"]["embedding_norm"] = {"scale": scale}
    rest = {
        kind: {name: tree for name, tree in trees.items() if name != "embedding_norm"}
        for kind, trees in variables.items()
    }

    @jax.jit
    def run(variables, rest):
        trained, moved = net.apply(variables, images, train=True, mutable="batch_stats")
        plain, _ = bare.apply(rest, images, train=True, mutable="batch_stats")
        return trained[0], plain[0], moved["batch_stats"], net.apply(variables, images)[0]

    trained, plain, moved, evaluated = jax.device_get(run(variables, rest))
    deviation = np.sqrt(plain.var(0) + 1e-5)
    expected = scale * (plain - plain.mean(0)) / deviation
    np.testing.assert_allclose(trained, expected, rtol=0.02)  # a variance of two squared means
    before = variables["batch_stats"]["embedding_norm"]["mean"]
    expected = 0.9 * before + 0.1 * plain.mean(0)
    np.testing.assert_allclose(moved["embedding_norm"]["mean"], expected, rtol=1e-4, atol=1e-6)
    stats = variables["batch_stats"]["embedding_norm"]
    plain = np.asarray(jax.jit(partial(bare.apply, method="embed"))(rest, images))
    expected = scale * (plain - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-5)


def test_class_variances_leave_the_logits_unchanged():
    net, variables, images = example("resnet", variances=True)
    spread = variables["params"]["gaussians"]["log"]
    assert spread.shape == (3, 5)
    plain = jax.tree.map(lambda leaf: leaf, variables)
    del plain["params"]["gaussians"]
    expected = example("resnet")[0].apply(plain, images)
    chex.assert_trees_all_equal(net.apply(variables, images), expected)
    fresh = net.init(jax.random.key(0), images)["params"]["gaussians"]["log"]
    np.testing.assert_array_equal(fresh, 0)
