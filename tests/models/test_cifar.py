"""ResNet-20, and the laws that all networks of CIFAR-10 keep."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet import flops
from jaxdet.errors import InputError
from jaxdet.models.cifar import CifarModule, CifarResNet, Deep, Narrow, ResNet20, Tiniest, Tiny
from jaxdet.models.lenet import LeNet
from jaxdet.profiling import summary
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
    """Parameters of three basic blocks a stage, each convolution with its norm, and `logits`."""
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
    wanted = {"stem": (3, 3, 3, 16), "logits": (64, 10)}
    for i, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        for j in (1, 2, 3):
            wanted[f"stage{i}_block{j}/conv1"] = (3, 3, before if j == 1 else width, width)
            wanted[f"stage{i}_block{j}/conv2"] = (3, 3, width, width)
    wanted["stage2_block1/around"] = (1, 1, 16, 32)
    wanted["stage3_block1/around"] = (1, 1, 32, 64)
    assert kernels == {f"{name}/kernel": shape for name, shape in wanted.items()}


@pytest.mark.parametrize("net", [Narrow, Tiny, Deep, Tiniest])
def test_presets_are_within_the_budget(net):
    out, variables = outputs(net(), shaped(2, 32, 32, 3))
    assert out.shape == (2, 10)
    assert size(variables["params"]) < 250_000


@pytest.fixture(scope="module", params=["lenet", "tiny", "tiniest"])  # Basic has its own tests
def made(request):
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
        drop=drop,
        mutable="batch_stats",
        rngs={"dropout": jax.random.key(seed)},
    )


def test_every_parameter_has_a_finite_gradient_and_statistics_change(made):
    net, variables, images, _ = made

    def loss(params):
        logits, updates = trained(net, {**variables, "params": params}, images)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates

    gradient, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, updates))
    assert not [path for path, leaf in paths(gradient).items() if not leaf.any()]
    before, after = (paths(tree.get("batch_stats", {})) for tree in (variables, updates))
    assert before.keys() == after.keys()
    assert not [path for path in after if (before[path] == after[path]).any()]


def test_evaluation_knows_no_dropout_and_no_other_image_and_keeps_statistics(made):
    net, variables, images, _ = made
    apply = jax.jit(partial(net.apply, drop=1.9, mutable="batch_stats"))
    together, kept = apply(variables, images)
    assert together.shape == (6, 3) and (together.std(0) > 0).all()
    chex.assert_trees_all_equal(kept.get("batch_stats", {}), variables["batch_stats"])
    alone, _ = apply(variables, images[:1])
    chex.assert_trees_all_close(alone, together[:1], atol=1e-5)


def test_dropout_is_in_training_alone_and_by_its_factor_traced_or_not(made):
    net, variables, images, (none, _) = made
    step = jax.jit(lambda drop: trained(net, variables, images, drop)[0])
    swept = jax.jit(jax.vmap(step))(jnp.array([0.0, 0.7, 1.5]))
    chex.assert_trees_all_close(swept[1], step(0.7), atol=1e-4)
    chex.assert_trees_all_close(swept[0], none, atol=1e-5)
    assert all((swept[i] != swept[j]).any() for i, j in ((0, 1), (1, 2)))


def test_statistics_are_those_of_all_devices(made):
    net, variables, images, together = made
    step = partial(trained, net.clone(rate=0.0, axis_name="devices"), variables)
    halves = images.reshape(2, 3, *images.shape[1:])
    logits, updates = jax.jit(jax.vmap(step, axis_name="devices"))(halves)
    spread = logits.reshape(6, 3), jax.tree.map(lambda x: x[0], updates)
    chex.assert_trees_all_close(spread, together, atol=1e-4)


@each_net
def test_every_operation_belongs_to_a_layer_with_a_name(make):
    found = summary.summarize(make(rate=0.0), shaped(1, 16, 16, 3), backward=True)
    assert not found.report.unknown
    assert all(layer.path for layer in found.layers)


@each_net
def test_bfloat16_computes_in_half_and_keeps_single_parameters(make):
    out, variables = outputs(make(dtype=jnp.bfloat16), shaped(2, 16, 16, 3))
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@each_net
def test_every_convolution_goes_through_the_given_function(make):
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
def test_an_activation_is_called_by_its_name(name):
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
def test_networks_hand_their_activation_to_all_parts(name):
    net, images = NETS[name](activation=nn.elu), shaped(1, 16, 16, 3)
    rows = flops.count(net.apply, outputs(net, images)[1], images).by_layer
    last = {path.rpartition("_")[2] for path, _ in rows}
    assert "elu" in last and not {"relu", "gelu"} & last


@pytest.mark.parametrize("make", [LeNet, Tiny, Tiniest])
def test_an_image_of_which_pools_leave_nothing_is_refused(make):
    with pytest.raises(
        InputError, match=r"layer \w+: its input is empty, [\dx]+; use a larger"
    ) as caught:
        outputs(make(), shaped(2, 1, 1, 3))
    assert "\n" not in str(caught.value)
