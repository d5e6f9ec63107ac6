"""Networks for CIFAR-10: sizes by hand, and properties of all of them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet import flops
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.models.cifar import (
    CifarModule,
    CifarResNet,
    Deep,
    Narrow,
    ResNet20,
    Tiniest,
    TiniestBlock,
    Tiny,
)
from jaxdet.models.lenet import LeNet
from jaxdet.profiling import summary
from tests.marks import long_for
from tests.models.helpers import outputs, paths, random_like, shaped, size

IMAGES = shaped(1, 32, 32, 3)
PADDED = partial(LeNet, form="inception", norm=True)
NETS = {
    "lenet": partial(PADDED, channels=(5,), fc_widths=(6,), extra=(4,)),
    "resnet": partial(CifarResNet, blocks=1, widths=(4, 6)),
    "tiny": partial(Tiny, stem=4, widths=(4, 6), depth=(0, 1), middle=0.5),
    "tiniest": partial(Tiniest, widths=(4, 8), depth=(0, 1)),
}
NETS = {name: partial(make, classes=3, rate=0.5) for name, make in NETS.items()}
each_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def multiply_adds(net, images=IMAGES):
    _, variables = outputs(net, images)
    return flops.count(net.apply, variables, images, convention="mac").total()


def resnet_size(*widths):
    """Parameters of three basic blocks per stage, each convolution with its norm, and `logits`."""
    first = widths[0]
    sizes = [27 * first + 2 * first]
    for before, width in zip((first, *widths), widths, strict=False):
        sizes += [9 * before * width + 2 * width] + 5 * [9 * width**2 + 2 * width]
        sizes += [before * width + 2 * width] if before != width else []
    return sum(sizes) + 10 * widths[-1] + 10


@pytest.mark.parametrize(
    "net, widths, parameters",
    [(ResNet20, (16, 32, 64), 272_474), (Narrow, (16, 32, 60), 248_778)],  # the first: pytorchcv's
)
def test_parameters_and_multiply_adds_of_resnet_20(net, widths, parameters):
    _, variables = outputs(net(), IMAGES)
    assert size(variables["params"]) == resnet_size(*widths) == parameters
    a, b, c = widths
    convolutions = 1024 * (27 * a + 6 * 9 * a * a)
    convolutions += 256 * (9 * a * b + 5 * 9 * b * b + a * b)
    convolutions += 64 * (9 * b * c + 5 * 9 * c * c + b * c)
    assert multiply_adds(net()) == convolutions + 10 * c


def test_layers_of_resnet_20():
    _, variables = outputs(ResNet20(), IMAGES)
    kernels = {p: leaf.shape for p, leaf in paths(variables["params"]).items() if "kernel" in p}
    expected = {"stem": (3, 3, 3, 16), "logits": (64, 10)}
    for i, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        for j in (1, 2, 3):
            expected[f"stage{i}_block{j}/conv1"] = (3, 3, before if j == 1 else width, width)
            expected[f"stage{i}_block{j}/conv2"] = (3, 3, width, width)
    expected["stage2_block1/around"] = (1, 1, 16, 32)
    expected["stage3_block1/around"] = (1, 1, 32, 64)
    assert kernels == {f"{name}/kernel": shape for name, shape in expected.items()}


@pytest.mark.parametrize("net", [Narrow, Tiny, Deep, Tiniest])
def test_presets_are_within_the_budget(net):
    out, variables = outputs(net(), shaped(2, 32, 32, 3))
    assert out.shape == (2, 10)
    assert size(variables["params"]) < 250_000


@pytest.fixture(scope="module", params=long_for(["lenet", "tiny", "tiniest"], {"tiny"}))
def example(request):
    """A small network of each kind, random variables, images, and a pass without dropout."""
    net = NETS[request.param]()
    images = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)
    variables = random_like(outputs(net, images)[1])
    without = jax.jit(partial(trained, net.clone(rate=0.0)))(variables, images)
    return net, variables, images, without


def trained(net, variables, images, drop=1.0, seed=0):
    """Logits and new statistics of a training pass."""
    return net.apply(
        variables,
        images,
        train=True,
        dropout_scale=drop,
        mutable="batch_stats",
        rngs={"dropout": jax.random.key(seed)},
    )


def test_every_parameter_has_a_finite_gradient_and_statistics_change(example):
    net, variables, images, _ = example

    def loss(params):
        logits, updates = trained(net, {**variables, "params": params}, images)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates

    gradient, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, updates))
    assert not [path for path, leaf in paths(gradient).items() if not leaf.any()]
    before, after = (paths(tree.get("batch_stats", {})) for tree in (variables, updates))
    assert before.keys() == after.keys()
    assert not [path for path in after if (before[path] == after[path]).any()]


def test_evaluation_is_independent_per_image_and_keeps_statistics(example):
    net, variables, images, _ = example
    apply = jax.jit(partial(net.apply, dropout_scale=1.9, mutable="batch_stats"))
    together, kept = apply(variables, images)
    assert together.shape == (6, 3) and (together.std(0) > 0).all()
    chex.assert_trees_all_equal(kept.get("batch_stats", {}), variables["batch_stats"])
    alone, _ = apply(variables, images[:1])
    chex.assert_trees_all_close(alone, together[:1], atol=1e-5)


def test_dropout_scales_with_its_factor_in_training(example):
    net, variables, images, (none, _) = example
    step = jax.jit(lambda drop: trained(net, variables, images, drop)[0])
    swept = jax.jit(jax.vmap(step))(jnp.array([0.0, 0.7, 1.5]))
    chex.assert_trees_all_close(swept[1], step(0.7), atol=1e-4)
    chex.assert_trees_all_close(swept[0], none, atol=1e-5)
    assert all((swept[i] != swept[j]).any() for i, j in ((0, 1), (1, 2)))


def test_batch_statistics_are_synchronized_over_devices(example):
    net, variables, images, together = example
    step = partial(trained, net.clone(rate=0.0, axis_name="devices"), variables)
    halves = images.reshape(2, 3, *images.shape[1:])
    logits, updates = jax.jit(jax.vmap(step, axis_name="devices"))(halves)
    spread = logits.reshape(6, 3), jax.tree.map(lambda x: x[0], updates)
    chex.assert_trees_all_close(spread, together, atol=1e-4)


@each_net
def test_every_operation_belongs_to_a_named_layer(make):
    found = summary.summarize(make(rate=0.0), shaped(1, 16, 16, 3), backward=True)
    assert not found.report.unknown
    assert all(layer.path for layer in found.layers)


@each_net
def test_parameters_stay_float32_when_computing_in_bfloat16(make):
    out, variables = outputs(make(dtype=jnp.bfloat16), shaped(2, 16, 16, 3))
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@each_net
def test_every_convolution_uses_conv_general_dilated(make):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    _, variables = outputs(make(conv_general_dilated=spy), shaped(1, 16, 16, 3))
    kernels = [leaf.shape for leaf in paths(variables["params"]).values() if leaf.ndim == 4]
    assert sorted(calls) == sorted(kernels)


@each_net
def test_without_norm_there_are_biases_and_no_statistics(make):
    _, variables = outputs(make(norm=False), shaped(1, 16, 16, 3))
    assert set(variables) == {"params"}
    found = paths(variables["params"])
    assert not [path for path in found if "norm" in path]
    assert {p for p in found if "bias" in p} == {p.replace("kernel", "bias") for p in found}


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "tanh", "sigmoid", "swish"])
def test_activation_rows_are_named_after_the_function(name):
    act = getattr(nn, name)
    x = jnp.linspace(-3, 3, 7)
    chex.assert_trees_all_equal(CifarModule(activation=act).activate(x, "conv1"), act(x))
    assert rows_of(act, x) == {f"conv1_{act.__name__}"}
    assert rows_of(partial(act), x) == {"conv1_activation"}


def rows_of(act, x):
    """Names of the layers of an activation."""
    rows = flops.count(partial(CifarModule(activation=act).activate, name="conv1"), x).by_layer
    return {path for path, _ in rows}


@pytest.mark.parametrize("name", ["lenet", "tiny", "tiniest"])
def test_the_activation_applies_to_all_submodules(name):
    net, images = NETS[name](activation=nn.elu), shaped(1, 16, 16, 3)
    rows = flops.count(net.apply, outputs(net, images)[1], images).by_layer
    last = {path.rpartition("_")[2] for path, _ in rows}
    assert "elu" in last and not {"relu", "gelu"} & last


@pytest.mark.parametrize("make", [LeNet, Tiny, Tiniest])
def test_images_too_small_for_the_pools_are_refused(make):
    with pytest.raises(
        InputError, match=r"layer \w+: its input is empty, shape [\dx]+; use a larger"
    ) as caught:
        outputs(make(), shaped(2, 1, 1, 3))
    assert "\n" not in str(caught.value)


SMALL_TINY = Tiny(stem=4, widths=(4, 6), depth=(1, 0), classes=3)

# Kernels in order: pixels of the map, pixels a side, channels in and out.
TINY = [(1024, 3, 3, 16), (1024, 3, 16, 32), *[(256, 3, 32, 32)] * 2]
TINY += [(256, 3, 32, 64), *[(64, 3, 64, 64)] * 2, (64, 3, 64, 64), *[(16, 3, 64, 64)] * 2]
DEEP = [(1024, 3, 3, 24), (1024, 1, 24, 48)]
DEEP += [(256, 1, 48, 24), (256, 3, 24, 24), (256, 1, 24, 48)] * 3 + [(256, 1, 48, 96)]
DEEP += [(64, 1, 96, 48), (64, 3, 48, 48), (64, 1, 48, 96)] * 3 + [(64, 1, 96, 128)]
DEEP += [(16, 1, 128, 64), (16, 3, 64, 64), (16, 1, 64, 128)] * 2


@pytest.mark.parametrize(
    "net, kernels, parameters, multiply_adds",
    [(Tiny(), TINY, 227_866, 22_856_320), (Deep(), DEEP, 242_146, 17_016_064)],
    ids=["tiny", "deep"],
)
def test_sizes_of_tiny_and_deep_worked_out_by_hand(net, kernels, parameters, multiply_adds):
    _, variables = outputs(net, IMAGES)
    last = kernels[-1][-1]
    with_norms = sum(k * k * c * d + 2 * d for _, k, c, d in kernels)
    assert size(variables["params"]) == with_norms + 10 * last + 10 == parameters
    found = flops.count(net.apply, variables, IMAGES, convention="mac").total()
    assert found == sum(n * k * k * c * d for n, k, c, d in kernels) + 10 * last == multiply_adds
    shapes = [leaf.shape for leaf in paths(variables["params"]).values() if leaf.ndim == 4]
    assert sorted(shapes) == sorted((k, k, c, d) for _, k, c, d in kernels)


def test_names_of_the_layers_of_tiny():
    rows = flops.count(SMALL_TINY.apply, outputs(SMALL_TINY, IMAGES)[1], IMAGES).by_layer
    inner = ("conv1", "conv1_norm", "conv1_gelu", "conv2", "conv2_norm", "conv2_gelu", "add")
    assert [path.removeprefix("Tiny/") for path, _ in rows] == [
        *("stem", "stem_norm", "stem_gelu"),
        *("stage1", "stage1_pool", "stage1_norm", "stage1_gelu"),
        *(f"stage1_block1/{name}" for name in inner),
        *("stage2", "stage2_pool", "stage2_norm", "stage2_gelu"),
        *("pool", "logits", "scale"),
    ]


@pytest.fixture(scope="module")
def tiny_example():
    """Random variables of a small network, images, and their logits."""
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    variables = random_like(outputs(SMALL_TINY, images)[1])
    return variables, images, jax.jit(SMALL_TINY.apply)(variables, images)


def test_the_scale_multiplies_the_logits(tiny_example):
    variables, images, logits = tiny_example
    larger = jax.jit(SMALL_TINY.clone(scale=1.0).apply)(variables, images)
    np.testing.assert_allclose(larger, 8 * logits, rtol=1e-5)


def test_max_and_mean_pooling_differ_on_maps_larger_than_a_pixel(tiny_example):
    variables, images, logits = tiny_example
    means = jax.jit(SMALL_TINY.clone(pool=jnp.mean).apply)(variables, images)
    assert means.shape == logits.shape and (means != logits).all()
    one = images[:, :4, :4]  # a last map of one pixel, where both are the same
    found = [jax.jit(SMALL_TINY.clone(pool=p).apply)(variables, one) for p in (jnp.max, jnp.mean)]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_block_without_its_branch_is_the_identity(tiny_example):
    variables, images, _ = tiny_example
    params = dict(variables["params"])
    block = params.pop("stage1_block1")
    norm = {name: 0 * leaf for name, leaf in block["conv2_norm"].items()}
    silent = params | {"stage1_block1": {**block, "conv2_norm": norm}}
    found = jax.jit(SMALL_TINY.apply)({**variables, "params": silent}, images)
    stats = {k: v for k, v in variables["batch_stats"].items() if "block" not in k}
    without = SMALL_TINY.clone(depth=(0, 0))
    expected = jax.jit(without.apply)({"params": params, "batch_stats": stats}, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def tiniest_block_size(width):
    """Weights and biases of three mixers of a quarter each, a norm, and the gated MLP."""
    quarter = width // 4
    mixers = (9 + 49 + 49) * quarter + 3 * quarter
    return mixers + 2 * width + width * 2 * width + 2 * width + width * width + width


def tiniest_block_multiply_adds(width):
    """Of one pixel."""
    return (9 + 49 + 49) * width // 4 + 3 * width * width


def test_sizes_of_tiniest_worked_out_by_hand():
    _, variables = outputs(Tiniest(), IMAGES)
    stem, between, last = 27 * 48 + 48 + 96, 48 * 80 + 80 + 160, 160 + 80 * 10 + 10
    parameters = stem + 3 * tiniest_block_size(48) + between + 3 * tiniest_block_size(80) + last
    assert size(variables["params"]) == parameters == 97_306
    found = flops.count(Tiniest().apply, variables, IMAGES, convention="mac").total()
    fine = 1024 * (27 * 48 + 3 * tiniest_block_multiply_adds(48))
    coarse = 256 * (48 * 80 + 3 * tiniest_block_multiply_adds(80))
    assert found == fine + coarse + 80 * 10 == 43_878_176


def test_the_fields_of_tiniest_are_its_sizes():
    net = Tiniest(widths=(8, 12, 16), depth=(0, 1, 2), classes=4)
    out, variables = outputs(net, shaped(2, 32, 48, 1))
    assert out.shape == (2, 4)
    blocks = {"stage2_block1", "stage3_block1", "stage3_block2"}
    stages = {"stage1_norm", "stage2", "stage2_norm", "stage3", "stage3_norm"}
    assert set(variables["params"]) == blocks | stages | {"stem", "last_norm", "logits"}
    assert variables["params"]["stage3_block1"]["dilated7"]["kernel"].shape == (7, 7, 1, 4)


def test_names_of_the_layers_of_a_tiniest_block():
    x = shaped(1, 8, 8, 8)
    rows = flops.count(TiniestBlock().apply, outputs(TiniestBlock(), x)[1], x).by_layer
    assert [
        path.removeprefix("TiniestBlock/") for (path, _), count in rows.items() if count.total()
    ] == [
        *("depthwise3", "depthwise7", "dilated7", "norm"),
        *("expand", "gate_relu", "gate", "project", "add"),
    ]


@pytest.mark.parametrize("way", [None, conv.conv_general_dilated], ids=["lax", "auto"])
def test_a_tiniest_block_agrees_with_torch(way):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = np.random.default_rng(0).normal(size=(2, 15, 13, 8)).astype(np.float32)
    net = TiniestBlock(activation=jax.nn.gelu, conv_general_dilated=way)
    variables = random_like(outputs(net, x)[1])
    weights = jax.tree.map(torch.tensor, variables["params"])

    def convolve(maps, name, **how):
        layer = weights[name]
        kernel = layer["kernel"].permute(3, 2, 0, 1)
        return f.conv2d(maps, kernel, layer["bias"], padding="same", **how)

    images = torch.tensor(x).permute(0, 3, 1, 2)
    same, *quarters = images.chunk(4, 1)
    how = (("depthwise3", 1), ("depthwise7", 1), ("dilated7", 2))
    mixed = [
        convolve(part, name, groups=2, dilation=gaps)
        for part, (name, gaps) in zip(quarters, how, strict=True)
    ]
    pixels = torch.cat([same, *mixed], 1).permute(0, 2, 3, 1)
    normal = f.layer_norm(pixels, (8,), weights["norm"]["scale"], weights["norm"]["bias"], 1e-5)
    values, gates = convolve(normal.permute(0, 3, 1, 2), "expand").chunk(2, 1)
    added = convolve(values * f.gelu(gates, approximate="tanh"), "project")
    expected = (images + added).permute(0, 2, 3, 1).numpy()
    found = jax.jit(net.apply)(variables, x)
    assert abs(expected - x).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_must_be_a_multiple_of_4():
    with pytest.raises(ValueError, match="equal division"):
        outputs(TiniestBlock(), shaped(1, 8, 8, 10))
