"""Stacks of convolutions, and the localizers built on them and on ResNets."""

from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.configs.objects import Config, network
from jaxdet.models import registry
from jaxdet.models.localizer import Localizer
from jaxdet.models.plain import ConvStack, deeper, simple, vgg
from jaxdet.models.resnet import ResNet18
from tests.marks import long_for
from tests.models.helpers import apply, outputs, paths, random_like, shaped, size

# Kernels by layer, with three classes; the other parameters follow: see `expected`.
SIMPLE = """
conv1 3x3x3x32  conv2 3x3x32x64  conv3 3x3x64x64
classifier: dense1 576x32  dense2 32x16  out 16x3
boxer: dense1 576x32  dense2 32x16  out 16x4
"""


DEEPER = """
conv1 3x3x3x32  conv2 3x3x32x32  conv3 3x3x32x64  conv4 3x3x64x64
conv5 3x3x64x128  conv6 3x3x128x128  conv7 3x3x128x256  conv8 3x3x256x256
conv9 1x1x256x512  conv10 3x3x512x512
classifier: dense1 25088x1024  dense2 1024x512  dense3 512x256  dense4 256x128  dense5 128x64
classifier: out 64x3
boxer: dense1 25088x1024  dense2 1024x512  dense3 512x256  dense4 256x128  dense5 128x64
boxer: out 64x4
"""


VGG = """
conv1 3x3x3x64  conv2 3x3x64x128  conv3 3x3x128x256  conv4 3x3x256x256
conv5 3x3x256x512  conv6 3x3x512x512  conv7 3x3x512x512  conv8 3x3x512x512
classifier: dense1 25088x512  dense2 512x512  out 512x3
boxer: dense1 25088x512  dense2 512x512  out 512x4
"""


RESNET18 = """
stem 7x7x3x64
stage1_block1: conv1 3x3x64x64  conv2 3x3x64x64
stage1_block2: conv1 3x3x64x64  conv2 3x3x64x64
stage2_block1: conv1 3x3x64x128  conv2 3x3x128x128  around 1x1x64x128
stage2_block2: conv1 3x3x128x128  conv2 3x3x128x128
stage3_block1: conv1 3x3x128x256  conv2 3x3x256x256  around 1x1x128x256
stage3_block2: conv1 3x3x256x256  conv2 3x3x256x256
stage4_block1: conv1 3x3x256x512  conv2 3x3x512x512  around 1x1x256x512
stage4_block2: conv1 3x3x512x512  conv2 3x3x512x512
classifier: dense1 512x512  dense2 512x512  out 512x3
boxer: dense1 512x512  dense2 512x512  out 512x4
"""


def resnet18(classes, *, dtype=None, **part):
    """The localizer that `jaxdet train objects --model resnet18` makes."""
    features = partial(ResNet18, classes=0, dtype=dtype, **part)
    return Localizer(features, classes, (512, 512), (0.5, 0.5), side=1, dtype=dtype)


NETS = {"simple": simple, "deeper": deeper, "vgg": vgg, "resnet18": resnet18}


each_net = pytest.mark.parametrize("name", long_for(NETS, {"deeper", "vgg"}))


def expected(table, *, bias=False, norm=True):
    """Shapes by path of the parameters whose kernels a table lists."""
    shapes = {}
    for line in table.strip().splitlines():
        place, _, layers = line.rpartition(": ")
        words = layers.split()
        for name, kernel in zip(words[::2], words[1::2], strict=True):
            shape = tuple(map(int, kernel.split("x")))
            branch = place in ("classifier", "boxer")
            path = "/".join(filter(None, ("" if branch else "features", place, name)))
            shapes[f"{path}/kernel"] = shape
            if branch or bias or not norm:
                shapes[f"{path}/bias"] = shape[-1:]
            if norm and not branch:
                shapes |= {f"{path}_norm/{leaf}": shape[-1:] for leaf in ("scale", "bias")}
    return shapes


def shapes(tree):
    return {path: leaf.shape for path, leaf in paths(tree).items()}


@pytest.mark.parametrize(
    "make, table, bias, with_norm, without",
    [
        (simple, SIMPLE, False, 94_583, 94_423),
        (deeper, DEEPER, False, 56_442_919, 56_440_935),
        (vgg, VGG, True, 35_446_023, 35_440_519),
        (resnet18, RESNET18, False, 12_230_727, 12_225_927),
    ],
    ids=NETS,
)
@pytest.mark.parametrize("norm", [True, False])
def test_layers_and_number_of_parameters(make, table, bias, norm, with_norm, without):
    _, variables = outputs(make(3, norm=norm), shaped(1, 64, 64, 3))
    assert shapes(variables["params"]) == expected(table, bias=bias, norm=norm)
    assert size(variables["params"]) == (with_norm if norm else without)
    assert set(variables) == ({"params", "batch_stats"} if norm else {"params"})


@pytest.mark.parametrize("name", NETS)
def test_configs_build_these_networks(name):
    configured, shape = network(Config(model=name, size=96), classes=5)
    assert shape == (1, 96, 96, 3)
    ours, theirs = (outputs(net, shaped(2, 96, 96, 3)) for net in (NETS[name](5), configured))
    assert ours == theirs
    assert ours[0][0].shape == (2, 5)


@pytest.mark.parametrize(
    "make, width, sides",
    [
        (simple, 64, {224: 3, 112: 1, 64: 1}),
        (deeper, 512, {224: 7, 112: 3, 64: 2}),
        (vgg, 512, {224: 7, 112: 3, 64: 2}),
        (resnet18, 512, {224: 7, 112: 4, 64: 2}),
    ],
    ids=NETS,
)
def test_maps_shrink_with_the_image_and_branches_do_not(make, width, sides):
    net, found = make(3), []
    for side, of_map in sides.items():
        maps, _ = outputs(net.features(), shaped(2, side, side, 3))
        last = maps[-1] if isinstance(maps, tuple) else maps
        assert last.shape == (2, of_map, of_map, width)
        (logits, box), variables = outputs(net, shaped(2, side, side, 3))
        assert (logits.shape, box.shape) == ((2, 3), (2, 4))
        found.append(shapes(variables))
    assert found[0] == found[1] == found[2]


def test_images_need_not_be_square():
    (logits, box), variables = outputs(simple(3), shaped(2, 64, 160, 3))
    assert (logits.shape, box.shape) == ((2, 3), (2, 4))
    assert shapes(variables["params"]) == expected(SIMPLE)


def test_every_layer_is_a_row_of_the_operation_table():
    images = shaped(1, 64, 64, 3)
    rows = flops.count(simple(3).apply, outputs(simple(3), images)[1], images).by_layer
    names = {path.removeprefix("Localizer/") for path, _ in rows}
    assert names >= {f"features/{kind}{i}" for kind in ("conv", "pool") for i in (1, 2, 3)}
    assert names >= {f"features/conv{i}_{after}" for after in ("norm", "relu") for i in (1, 2, 3)}
    for branch in ("classifier", "boxer"):
        assert names >= {f"{branch}/{x}" for x in ("dense1", "dense2", "dense2_relu", "out")}
    assert "pool" in names


@each_net
def test_parameters_stay_float32_when_computing_in_bfloat16(name):
    net, images = NETS[name](3, dtype=jnp.bfloat16), shaped(1, 64, 64, 3)
    _, variables = outputs(net, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    closed = jax.make_jaxpr(net.apply)(variables, images)
    assert {dtype.name for dtype in products(closed.jaxpr)} == {"bfloat16"}


def products(jaxpr):
    """Dtypes of the operands of the convolutions and matrix products of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (of.aval.dtype for of in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def test_kernels_of_a_layout():
    _, variables = outputs(ConvStack(layout="4 M2 6/1 5/7"), shaped(1, 8, 8, 3))
    kernels = {p: s for p, s in shapes(variables["params"]).items() if p.endswith("kernel")}
    assert kernels == {
        "conv1/kernel": (3, 3, 3, 4),
        "conv2/kernel": (1, 1, 4, 6),
        "conv3/kernel": (7, 7, 6, 5),
    }
    assert ConvStack(layout="4 M2 6/1 5/7").stage_names() == ("conv1", "conv2", "conv3")


def test_a_stack_is_convolution_norm_relu_and_pool():
    net, images = ConvStack(layout="4 M2"), np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    images = images.astype(np.float32)
    variables = random_like(outputs(net, images)[1])
    params, stats = (variables[of] for of in ("params", "batch_stats"))
    x = jax.lax.conv_general_dilated(
        *(images, params["conv1"]["kernel"], (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x, norm, running = np.asarray(x), params["conv1_norm"], stats["conv1_norm"]
    x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
    expected_value = np.maximum(0, x).reshape(2, 3, 2, 3, 2, 4).max((2, 4))
    np.testing.assert_allclose(apply(net, variables, images), expected_value, atol=1e-5)


@pytest.mark.parametrize(
    "model, last, stay",
    [
        ("simple", 0, ("conv1", "conv2", "conv3")),
        ("simple", 1, ("conv1", "conv2")),
        ("deeper", 2, tuple(f"conv{i + 1}" for i in range(8))),
        ("vgg", 8, ()),
        ("resnet18", 2, ("stem", "stage1", "stage2")),
        ("resnet50", 5, ()),
        ("lite0", 3, ("stem", *(f"stage{i + 1}" for i in range(4)))),
    ],
)
def test_all_but_the_last_k_stages_are_frozen(model, last, stay):
    config = Config(model=model, transfer="frozen", unfreeze_last=last)
    assert registry.stage_names(model)[: len(stay)] == stay
    assert network(config)[0].features().frozen_stages == len(stay)
    for backbone in ("scratch", "finetune"):
        free = Config(model=model, transfer=backbone, unfreeze_last=last)
        assert network(free)[0].features().frozen_stages == 0
