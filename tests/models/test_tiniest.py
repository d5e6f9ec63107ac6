import jax
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.kernels import conv
from jaxdet.models.cifar import Tiniest, TiniestBlock
from tests.models.helpers import outputs, random_like, shaped, size

IMAGES = shaped(1, 32, 32, 3)


def block_size(width):
    """Weights and biases of three mixers of a quarter each, a norm, and the gated MLP."""
    quarter = width // 4
    mixers = (9 + 49 + 49) * quarter + 3 * quarter
    return mixers + 2 * width + width * 2 * width + 2 * width + width * width + width


def block_multiply_adds(width):
    """Of one pixel."""
    return (9 + 49 + 49) * width // 4 + 3 * width * width


def test_sizes_worked_out_by_hand():
    _, variables = outputs(Tiniest(), IMAGES)
    stem, between, last = 27 * 48 + 48 + 96, 48 * 80 + 80 + 160, 160 + 80 * 10 + 10
    parameters = stem + 3 * block_size(48) + between + 3 * block_size(80) + last
    assert size(variables["params"]) == parameters == 97_306
    found = flops.count(Tiniest().apply, variables, IMAGES, convention="mac").total()
    fine = 1024 * (27 * 48 + 3 * block_multiply_adds(48))
    coarse = 256 * (48 * 80 + 3 * block_multiply_adds(80))
    assert found == fine + coarse + 80 * 10 == 43_878_176


def test_sizes_are_fields():
    net = Tiniest(widths=(8, 12, 16), depth=(0, 1, 2), classes=4)
    out, variables = outputs(net, shaped(2, 32, 48, 1))
    assert out.shape == (2, 4)
    blocks = {"stage2_block1", "stage3_block1", "stage3_block2"}
    stages = {"stage1_norm", "stage2", "stage2_norm", "stage3", "stage3_norm"}
    assert set(variables["params"]) == blocks | stages | {"stem", "last_norm", "logits"}
    assert variables["params"]["stage3_block1"]["dilated7"]["kernel"].shape == (7, 7, 1, 4)


def test_names_of_the_layers_of_a_block():
    x = shaped(1, 8, 8, 8)
    rows = flops.count(TiniestBlock().apply, outputs(TiniestBlock(), x)[1], x).by_layer
    assert [
        path.removeprefix("TiniestBlock/") for (path, _), count in rows.items() if count.total()
    ] == [
        *("depthwise3", "depthwise7", "dilated7", "norm"),
        *("expand", "gate_relu", "gate", "project", "add"),
    ]


@pytest.mark.parametrize("way", [None, conv.conv_general_dilated], ids=["lax", "auto"])
def test_a_block_is_that_of_torch(way):
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


def test_channels_that_four_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="equal division"):
        outputs(TiniestBlock(), shaped(1, 8, 8, 10))
