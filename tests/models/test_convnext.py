from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models import convnext, pretrained
from jaxdet.models.convnext import Block, ConvNeXt, Small, Tiny
from tests.models.helpers import outputs, random_like, shaped, size

WIDTHS, BLOCKS = (4, 6, 8, 10), (1, 1, 2, 1)
Mini = partial(ConvNeXt, widths=WIDTHS, blocks=BLOCKS, classes=3)


# As torchvision's documentation has them, in parameters and giga multiply-adds.
@pytest.mark.parametrize(
    "net, parameters, multiply_adds",
    [
        (Tiny(), 28_589_128, 4.456),
        pytest.param(Small(), 50_223_688, 8.684, marks=pytest.mark.long),
    ],
)
def test_parameters_and_multiply_adds(net, parameters, multiply_adds):
    trace = jax.make_jaxpr(net.init_with_output, return_shape=True)
    closed, (_, variables) = trace(jax.random.key(0), shaped(1, 224, 224, 3))
    assert size(variables["params"]) == parameters
    assert round(flops.count_jaxpr(closed, convention="mac").total() / 1e9, 3) == multiply_adds


def test_parameters_by_arithmetic():
    _, variables = outputs(Mini(), shaped(1, 64, 64, 3))
    expected = 4 * 4 * 3 * 4 + 4 + 2 * 4  # stem and its norm
    for count, width in zip(BLOCKS, WIDTHS, strict=True):
        expected += count * (8 * width**2 + (49 + 1 + 2 + 4 + 1 + 1) * width)
    for before, width in zip(WIDTHS, WIDTHS[1:], strict=False):
        expected += 2 * before + 4 * before * width + width
    assert size(variables) == expected + 2 * 10 + 3 * 10 + 3
    _, plain = outputs(Block(depthwise=False, scale=0), shaped(1, 8, 8, 6))
    assert size(plain) == 49 * 6 * 6 + 6 + 2 * 6 + 8 * 6**2 + 5 * 6


def test_without_classes_the_maps_of_the_stages_are_returned():
    maps, variables = outputs(Mini(classes=0), shaped(2, 64, 96, 3))
    sides = ((16, 24), (8, 12), (4, 6), (2, 3))
    assert [m.shape for m in maps] == [(2, *s, c) for s, c in zip(sides, WIDTHS, strict=True)]
    assert not {"norm", "logits"} & set(variables["params"])


@pytest.fixture(scope="module")
def example():
    """A small network with random variables, and images."""
    images = np.random.default_rng(0).normal(size=(2, 40, 64, 3)).astype(np.float32)
    return Mini(), random_like(outputs(Mini(), images)[1]), images


def test_frozen_stages_have_no_gradients(example):
    net, variables, images = example

    @jax.jit
    @jax.grad
    def slope(variables):
        logits = net.clone(frozen_stages=2, rate=0.5).apply(
            variables, images, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    gradient = slope({"params": variables["params"]})["params"]
    chex.assert_tree_all_finite(gradient)
    for module, leaves in gradient.items():
        stays = module.startswith(("stem", "stage1"))
        assert any(leaf.any() for leaf in jax.tree.leaves(leaves)) != stays, module


def test_stochastic_depth_drops_branches_per_image():
    x = np.random.default_rng(1).normal(size=(64, 3, 3, 4)).astype(np.float32)
    block = Block(rate=0.25, scale=1.0)
    variables = random_like(outputs(block, x)[1])
    variables = {"params": variables["params"]}
    apply = jax.jit(partial(block.apply, train=True))
    rngs = {"dropout": jax.random.key(0)}
    branch = jax.jit(block.apply)(variables, x) - x
    found = apply(variables, x, dropout_scale=1.0, rngs=rngs) - x
    kept = np.asarray(found).any((1, 2, 3))
    np.testing.assert_allclose(found[kept], branch[kept] / 0.75, rtol=1e-3, atol=1e-4)
    assert 0.6 < kept.mean() < 0.9
    whole = apply(variables, x, dropout_scale=0.0, rngs=rngs) - x
    np.testing.assert_allclose(whole, branch, rtol=1e-3, atol=1e-4)


def test_rates_rise_linearly_and_bfloat16_is_kept(example):
    net, variables, images = example
    rates = []

    def block(rate, **fields):
        rates.append(rate)
        return Block(rate=rate, **fields)

    outputs(net.clone(block=block, rate=0.4), images)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])
    params = {"params": variables["params"]}
    low = jax.eval_shape(net.clone(dtype=jnp.bfloat16).apply, params, images)
    assert low.dtype == jnp.bfloat16


def test_rates_squeezes_and_strides_per_stage():
    seen = []

    def block(**fields):
        seen.append({name: fields.get(name) for name in ("rate", "squeeze", "dilation")})
        return Block(**fields)

    own = {"strides": (2, 1), "rates": (0.0, 0.5), "squeezes": (0, 0.5), "dilations": (1, 2)}
    net = ConvNeXt(widths=(4, 6), blocks=(1, 2), classes=0, block=block, **own)
    maps, variables = outputs(net, shaped(1, 64, 32, 3))
    assert [m.shape for m in maps] == [(1, 8, 4, 4), (1, 8, 4, 6)]
    one, *others = seen
    assert one == {"rate": 0.0, "squeeze": None, "dilation": None}
    assert others == [{"rate": 0.5, "squeeze": 0.5, "dilation": 2}] * 2
    squeeze = variables["params"]["stage2_block1"]["squeeze"]
    assert size(squeeze) == (24 + 1) * 3 + (3 + 1) * 24


@pytest.mark.parametrize("dilation", [1, 2])
def test_dilation_spaces_the_pixels_that_a_block_sees(dilation):
    x = np.random.default_rng(2).normal(size=(1, 15, 15, 4)).astype(np.float32)
    block = Block(dilation=dilation, scale=1.0)
    variables = {"params": random_like(outputs(block, x)[1])["params"]}
    seen = jax.jit(jax.grad(lambda x: block.apply(variables, x)[0, 7, 7].sum()))(x)
    down, across = np.nonzero(np.asarray(seen).any((0, 3)))
    assert set(down) == set(across) == set(range(7 - 3 * dilation, 8 + 3 * dilation, dilation))


# A reference in torch, with the names of the paper's code.


def torch_net(torch):
    nn = torch.nn

    def norm(x, layer):
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class TorchBlock(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(torch.ones(width))

        def forward(self, x):
            y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            y = self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(y)))
            return x + y.permute(0, 3, 1, 2)

    class TorchConvNeXt(nn.Module):
        def __init__(self):
            super().__init__()
            down = [[nn.Conv2d(3, WIDTHS[0], 4, 4), nn.LayerNorm(WIDTHS[0], eps=1e-6)]]
            for before, width in zip(WIDTHS, WIDTHS[1:], strict=False):
                down.append([nn.LayerNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)])
            self.downsample_layers = nn.ModuleList(nn.ModuleList(pair) for pair in down)
            self.stages = nn.ModuleList(
                nn.Sequential(*(TorchBlock(width) for _ in range(count)))
                for count, width in zip(BLOCKS, WIDTHS, strict=True)
            )
            self.norm, self.head = nn.LayerNorm(WIDTHS[-1], eps=1e-6), nn.Linear(WIDTHS[-1], 3)

        def forward(self, x):
            for down, stage in zip(self.downsample_layers, self.stages, strict=True):
                for layer in down:
                    x = norm(x, layer) if isinstance(layer, nn.LayerNorm) else layer(x)
                x = stage(x)
            return self.head(self.norm(x.mean((2, 3))))

    return TorchConvNeXt().eval()


def test_logits_agree_with_torch(example):
    torch = pytest.importorskip("torch")
    net, variables, images = example
    theirs, rng = torch_net(torch), np.random.default_rng(1)
    arrays = {
        name: np.float32(rng.uniform(-0.5, 1, tuple(value.shape)))
        for name, value in theirs.state_dict().items()
    }
    theirs.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
    names = partial(convnext.torch_name, modules=convnext.PAPER_MODULES)
    ours = pretrained.assign_arrays({"params": variables["params"]}, arrays, names)
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    found = np.asarray(jax.jit(net.apply)(ours, images))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize(
    "path, paper, timm",
    [
        ("stem/kernel", "downsample_layers.0.0.weight", "stem.0.weight"),
        ("stem_norm/scale", "downsample_layers.0.1.weight", "stem.1.weight"),
        ("stage2_reduce_norm/bias", "downsample_layers.1.0.bias", "stages.1.downsample.0.bias"),
        ("stage2_reduce/bias", "downsample_layers.1.1.bias", "stages.1.downsample.1.bias"),
        ("stage3_block2/gamma", "stages.2.1.gamma", "stages.2.blocks.1.gamma"),
        ("stage3_block2/norm/bias", "stages.2.1.norm.bias", "stages.2.blocks.1.norm.bias"),
        (
            "stage1_block1/depthwise/bias",
            "stages.0.0.dwconv.bias",
            "stages.0.blocks.0.conv_dw.bias",
        ),
        (
            "stage4_block3/expand/kernel",
            "stages.3.2.pwconv1.weight",
            "stages.3.blocks.2.mlp.fc1.weight",
        ),
        ("norm/scale", "norm.weight", "head.norm.weight"),
        ("logits/kernel", "head.weight", "head.fc.weight"),
    ],
)
def test_names_in_weight_files(path, paper, timm):
    assert convnext.torch_name(f"params/{path}", convnext.PAPER_MODULES) == paper
    assert convnext.torch_name(f"params/{path}", convnext.TIMM_MODULES) == timm
