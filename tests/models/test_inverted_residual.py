from functools import partial

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.models import convnext
from jaxdet.models.inverted_residual import InvertedResidual, InvertedResidualNet
from tests.models.helpers import outputs, random_like, shaped, size

WIDTHS, STRIDES = (4, 6, 8), (1, 2, 1)
Mini = partial(InvertedResidualNet, widths=WIDTHS, strides=STRIDES, classes=3)


def block_size(width, depthwise, squeeze, expand=4):
    """Parameters of a block by arithmetic; each norm has two numbers per channel."""
    wide, middle = expand * width, max(1, int(squeeze * width))
    squeezing = (wide + 1) * middle + (middle + 1) * wide if squeeze else 0
    taps = 9 * wide if depthwise else 9 * wide**2
    return 2 * width * wide + taps + 2 * (2 * wide + width) + squeezing


def net_size(widths, classes, depthwise, squeezes, blocks):
    """Parameters of a network by arithmetic."""
    total, before = 49 * 3 * widths[0] + 2 * widths[0], widths[0]
    counts = (blocks,) * len(widths) if isinstance(blocks, int) else blocks
    for width, squeeze, count in zip(widths, squeezes, counts, strict=True):
        total += 9 * before * width + 2 * width + count * block_size(width, depthwise, squeeze)
        before = width
    return total + before * classes + classes


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("squeezes", [(0, 0, 0), (0, 0.25, 0.5)])
@pytest.mark.parametrize("blocks", [1, (2, 1, 3)])
def test_parameters_by_arithmetic(depthwise, squeezes, blocks):
    block = partial(InvertedResidual, depthwise=depthwise)
    net = Mini(squeezes=squeezes, blocks=blocks, block=block)
    _, variables = outputs(net, shaped(1, 32, 32, 3))
    assert size(variables["params"]) == net_size(WIDTHS, 3, depthwise, squeezes, blocks)


def test_networks_of_assignment_4():
    widths = (32, 64, 128, 256, 512)
    final = InvertedResidualNet(squeezes=(0.25,) * 5, rates=(0.2, 0, 0.2, 0, 0.2), classes=7001)
    maps, variables = outputs(final.clone(classes=0), shaped(1, 224, 224, 3))
    assert [m.shape for m in maps] == [
        (1, side, side, width) for side, width in zip((56, 56, 28, 14, 7), widths, strict=True)
    ]
    _, variables = outputs(final, shaped(1, 224, 224, 3))
    assert size(variables["params"]) == net_size(widths, 7001, True, (0.25,) * 5, 1)
    convnexts = InvertedResidualNet(
        widths=(32, 32, 64, 64, 128, 128, 128, 128),
        strides=(1, 1, 2, 1, 2, 1, 1, 1),
        block=partial(convnext.Block, depthwise=False),
        activation=nn.relu,
        classes=7001,
    )
    logits, variables = outputs(convnexts, shaped(1, 224, 224, 3))
    assert logits.shape == (1, 7001)
    assert variables["params"]["stage8_block1"]["conv"]["kernel"].shape == (7, 7, 128, 128)


def test_kernels_are_initialised_by_kaiming_normal():
    net = Mini(widths=(32, 64), strides=(1, 1), squeezes=(0.25, 0.25), classes=300)
    images = np.zeros((1, 16, 16, 3), np.float32)
    params = jax.jit(net.init)(jax.random.key(0), images)["params"]
    for where, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(where, simple=True, separator="/")
        if not name.endswith("kernel") or leaf.size < 2000:
            continue
        fan = leaf.shape[0] if leaf.ndim == 2 else leaf.size // leaf.shape[2]
        assert np.isclose(leaf.std(), (2 / fan) ** 0.5, rtol=0.1), name


@pytest.fixture(scope="module")
def example():
    """A small network with random variables, and images."""
    images = np.random.default_rng(0).normal(size=(2, 33, 40, 3)).astype(np.float32)
    net = Mini(squeezes=(0, 0.25, 0.25), rates=(0.2, 0, 0.2))
    return net, random_like(outputs(net, images)[1]), images


def test_dropout_rates_are_multiplied_in_training(example):
    net, variables, images = example

    @jax.jit
    def run(drop):
        how = {"train": True, "mutable": "batch_stats", "rngs": {"dropout": jax.random.key(0)}}
        plain, _ = net.clone(rates=()).apply(variables, images, **how)
        dropped, _ = net.apply(variables, images, dropout_scale=drop, **how)
        return dropped, plain

    np.testing.assert_allclose(*run(0.0), rtol=1e-3, atol=1e-4)
    dropped, plain = run(1.0)
    assert abs(dropped - plain).max() > 1e-3


def test_frozen_stages_have_no_gradients_and_keep_their_statistics(example):
    net, variables, images = example

    def loss(params):
        logits, updates = net.clone(frozen_stages=2, rates=()).apply(
            {**variables, "params": params}, images, train=True, mutable="batch_stats"
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, stats))
    frozen = net.stage_names()[:2]
    assert frozen == ("stem", "stage1")
    for module, leaves in gradient.items():
        stays = module.startswith(frozen)
        assert any(leaf.any() for leaf in jax.tree.leaves(leaves)) != stays, module
    for module, leaves in stats.items():
        before = variables["batch_stats"][module]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, leaves)
        assert all(jax.tree.leaves(same)) == module.startswith(frozen), module


@pytest.mark.parametrize("depthwise, dilation", [(True, 1), (False, 1), (True, 2)])
@pytest.mark.parametrize("activation", [nn.relu, nn.relu6])
def test_a_block_agrees_with_torch(depthwise, dilation, activation):
    torch = pytest.importorskip("torch")
    x = 3 * np.random.default_rng(1).normal(size=(2, 5, 7, 8)).astype(np.float32)
    how = {"depthwise": depthwise, "dilation": dilation, "squeeze": 0.25}
    block = InvertedResidual(**how, activation=activation)
    variables = random_like(outputs(block, x)[1])
    params, stats = variables["params"], variables["batch_stats"]
    act = getattr(torch.nn.functional, activation.__name__)

    def conv(y, module, groups=1):
        kernel = torch.tensor(module["kernel"].transpose(3, 2, 0, 1))
        bias = torch.tensor(module["bias"]) if "bias" in module else None
        wide = dilation if kernel.shape[-1] > 1 else 1
        how = {"padding": wide * (kernel.shape[-1] // 2), "dilation": wide}
        return torch.nn.functional.conv2d(y, kernel, bias, **how, groups=groups)

    def active(y, name, groups=1):
        norm, moved = params[f"{name}_norm"], stats[f"{name}_norm"]
        arrays = (moved["mean"], moved["var"], norm["scale"], norm["bias"])
        return torch.nn.functional.batch_norm(
            conv(y, params[name], groups), *map(torch.tensor, arrays)
        )

    given = torch.tensor(x.transpose(0, 3, 1, 2))
    name, groups = ("depthwise", 32) if depthwise else ("conv", 1)
    y = act(active(act(active(given, "expand")), name, groups))
    gate = torch.relu(conv(y.mean((2, 3), keepdim=True), params["squeeze"]["reduce"]))
    y = y * torch.sigmoid(conv(gate, params["squeeze"]["expand"]))
    expected = (given + active(y, "project")).numpy().transpose(0, 2, 3, 1)
    found = jax.jit(block.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
