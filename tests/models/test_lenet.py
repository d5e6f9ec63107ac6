import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.errors import InputError
from jaxdet.models.lenet import Doubled, ExtraBoth, ExtraConv, ExtraDense, LeNet, Parallel, Smaller
from tests.models.helpers import random_like, size

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def shapes(net=None, images=IMAGES):
    return jax.eval_shape((net or LeNet()).init, jax.random.key(0), images)


def test_parameters():
    params = shapes()["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (5, 5, 3, 6),
        "conv2": (5, 5, 6, 16),
        "dense1": (400, 120),
        "dense2": (120, 84),
        "logits": (84, 10),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 62_006


def test_operations_worked_out_by_hand():
    found = flops.count(LeNet().apply, shapes(), IMAGES)
    multiplications = {
        path.removeprefix("LeNet/"): c.multiplications for (path, _), c in found.by_layer.items()
    }
    assert {name: number for name, number in multiplications.items() if number} == {
        "conv1": 28 * 28 * 6 * 75,
        "conv2": 10 * 10 * 16 * 150,
        "dense1": 400 * 120,
        "dense2": 120 * 84,
        "logits": 84 * 10,
    }
    whole = found.sum()
    assert whole.multiplications == whole.additions == whole.multiply_adds == 651_720
    assert whole.maxima == 11_236
    assert found.total() == 1_314_676


def loss(params, images):
    """Cross-entropy with the first class."""
    return -jax.nn.log_softmax(LeNet().apply({"params": params}, images))[:, 0].mean()


def test_gradients_are_finite_on_a_blank_image_too():
    params = random_like(shapes())["params"]
    draw = np.random.default_rng(0).uniform(size=(3, 32, 32, 3))
    for images in (draw, jnp.zeros((3, 32, 32, 3))):
        gradient = jax.jit(jax.grad(loss))(params, images)
        chex.assert_tree_all_finite(gradient)
        assert any(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "size, features", [((16, 16), 16), ((32, 32), 400), ((33, 47), 5 * 8 * 16)]
)
def test_any_size_from_16_pixels(size, features):
    images = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    out, variables = jax.eval_shape(LeNet().init_with_output, jax.random.key(0), images)
    assert out.shape == (2, 10)
    assert variables["params"]["dense1"]["kernel"].shape == (features, 120)


def test_channels_classes_and_dtype():
    net = LeNet(channels=(4, 5, 6), fc_widths=(7,), classes=3, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert (out.shape, out.dtype) == ((2, 3), jnp.bfloat16)
    assert sorted(variables["params"]) == ["conv1", "conv2", "conv3", "dense1", "logits"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_every_convolution_uses_conv_general_dilated():
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    shapes(LeNet(conv_general_dilated=spy))
    assert calls == [(5, 5, 3, 6), (5, 5, 6, 16)]


# The variants: pixels of the map, pixels a side of the kernel, channels in and out.
FIRST, SECOND = (28 * 28, 5, 3, 6), (10 * 10, 5, 6, 16)
EXTRA = (5 * 5, 3, 16, 16)
BRANCHES = (  # 1x1, 3x3, 5x5 and, after a pool, 1x1
    *((32 * 32, 1, 3, 2), (32 * 32, 3, 3, 2), (32 * 32, 5, 3, 1), (32 * 32, 1, 3, 1)),
    *((16 * 16, 1, 6, 4), (16 * 16, 3, 6, 4), (16 * 16, 5, 6, 4), (16 * 16, 1, 6, 4)),
)
TWICE = (
    *((30 * 30, 3, 3, 6), (28 * 28, 3, 6, 6)),
    *((12 * 12, 3, 6, 16), (10 * 10, 3, 16, 16)),
)
VARIANTS = {
    "tutorial": (LeNet, (FIRST, SECOND), (400, 120, 84, 10), 62_006),
    "doubled": (
        Doubled,
        ((28 * 28, 5, 3, 12), (10 * 10, 5, 12, 32)),
        (800, 240, 168, 10),
        244_962,
    ),
    "convolution": (ExtraConv, (FIRST, SECOND, EXTRA), (400, 120, 84, 10), 64_326),
    "dense": (ExtraDense, (FIRST, SECOND), (400, 120, 84, 84, 10), 69_146),
    "both": (ExtraBoth, (FIRST, SECOND, EXTRA), (400, 120, 84, 84, 10), 71_466),
    "3x3": (Smaller, TWICE, (400, 120, 84, 10), 62_832),
    "inception": (Parallel, BRANCHES, (8 * 8 * 16, 120, 84, 10), 135_038),
}


@pytest.mark.parametrize("net, convolutions, dense, parameters", VARIANTS.values(), ids=VARIANTS)
def test_sizes_of_the_variants_worked_out_by_hand(net, convolutions, dense, parameters):
    layers = list(zip(dense, dense[1:], strict=False))
    weights = [k * k * c * d for _, k, c, d in convolutions] + [a * b for a, b in layers]
    biases = sum(d for *_, d in convolutions) + sum(dense[1:])
    variables = shapes(net())
    assert size(variables) == sum(weights) + biases == parameters < 250_000
    kernels = [p["kernel"] for p in jax.tree.leaves(variables, is_leaf=lambda p: "kernel" in p)]
    assert sorted(kernel.size for kernel in kernels) == sorted(weights)
    products = sum(n * k * k * c * d for n, k, c, d in convolutions)
    found = flops.count(net().apply, variables, IMAGES, convention="mac")
    assert found.total() == products + sum(a * b for a, b in layers)


def test_the_pool_is_not_doubled_with_the_convolution_and_its_activation():
    rows = flops.count(Smaller().apply, shapes(Smaller()), IMAGES).by_layer
    names = [path.removeprefix("LeNet/") for path, _ in rows]
    first = ["conv1a", "conv1a_relu", "conv1b", "conv1b_relu", "conv1_pool"]
    assert names[:10] == first + [name.replace("1", "2") for name in first]


def test_norm_follows_every_convolution_and_no_dense_layer():
    variables = shapes(LeNet(norm=True, extra=(8,)))
    assert sorted(variables["batch_stats"]) == ["conv1_norm", "conv2_norm", "conv3_norm"]
    assert set(variables["params"]["conv1"]) == {"kernel"}
    assert variables["params"]["conv3"]["kernel"].shape == (3, 3, 16, 8)


@pytest.mark.parametrize(
    "net, images, said",
    [
        (
            LeNet(),
            (2, 15, 15, 3),
            "layer dense1: its input is empty, shape 2x0; use a larger --input",
        ),
        (LeNet(), (2, 3, 32, 3), "layer dense1: its input is empty, shape 2x0"),
        (
            LeNet(fc_widths=(), channels=(4,) * 3),
            (1, 32, 32, 3),
            "layer logits: its input is empty, shape 1x0; .* fewer pools",
        ),
        (LeNet(form="7x7"), (1, 32, 32, 3), "form must be 5x5, 3x3 or inception, got '7x7'"),
        (Parallel(channels=(4, 3)), (1, 32, 32, 3), "--channels must be at least 4 .*, got 3"),
    ],
)
def test_sizes_too_small_are_refused(net, images, said):
    with pytest.raises(InputError, match=said) as caught:
        shapes(net, jax.ShapeDtypeStruct(images, jnp.float32))
    assert "\n" not in str(caught.value)


def torch_tutorial(torch, params):
    """The tutorial's module with our weights; its flattened maps have channels first."""
    widths = params["conv1"]["kernel"].shape[-1], params["conv2"]["kernel"].shape[-1]
    first = np.asarray(params["dense1"]["kernel"]).reshape(5, 5, widths[1], -1)
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in params.items()}
    kernels["dense1"] = first.transpose(2, 0, 1, 3).reshape(25 * widths[1], -1)
    relu, pool = torch.nn.ReLU(), torch.nn.MaxPool2d(2, 2)
    layers = {
        **{"conv1": torch.nn.Conv2d(3, widths[0], 5), "conv2": torch.nn.Conv2d(*widths, 5)},
        **{k: torch.nn.Linear(*kernels[k].shape) for k in ("dense1", "dense2", "logits")},
    }
    for name, layer in layers.items():
        kernel = torch.tensor(kernels[name])
        kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        layer.weight.data, layer.bias.data = kernel, torch.tensor(params[name]["bias"])
    conv1, conv2, dense1, dense2, logits = layers.values()
    features = (conv1, relu, pool, conv2, relu, pool, torch.nn.Flatten())
    return torch.nn.Sequential(*features, dense1, relu, dense2, relu, logits)


@pytest.mark.parametrize("net", [LeNet(), Doubled()], ids=["tutorial", "doubled"])
def test_logits_agree_with_the_tutorial_in_torch(net):
    torch = pytest.importorskip("torch")
    variables = random_like(shapes(net))
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = torch_tutorial(torch, variables["params"])
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert expected.std() > 0.1
    for apply in (net.apply, jax.jit(net.apply)):
        chex.assert_trees_all_close(apply(variables, images), expected, atol=1e-5)
