from functools import partial
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models.efficientnet import (
    B0,
    B1,
    B2,
    B3,
    STAGES,
    EfficientNet,
    Lite0,
    Lite1,
    Lite2,
    MBConv,
    Stage,
    timm_name,
    torch_name,
)
from jaxdet.training import host_init
from tests.models.helpers import outputs, paths, random_like, shaped, size

SMALL = (Stage(1, 32, expand=1), Stage(1, 16, kernel=5, stride=2))  # the first one adds
Tiny = partial(EfficientNet, stages=SMALL, width=0.25, classes=3)


# The paper's networks as torchvision's documentation has them, in parameters and giga multiply-adds
# at its sizes; Lite0 to 4 by github.com/tensorflow/tpu, efficientnet/lite: 4.7 to 13.0 M.
@pytest.mark.parametrize(
    "net, side, parameters, multiply_adds",
    [
        pytest.param(Lite0(), 224, 4_652_008, 0.385, id="Lite0"),
        pytest.param(Lite1(), 240, 5_416_680, 0.6, id="Lite1", marks=pytest.mark.long),
        pytest.param(Lite2(), 260, 6_092_072, 0.86, id="Lite2", marks=pytest.mark.long),
        pytest.param(
            Lite0(width=1.4, depth=1.8), 300, 13_006_568, 2.553, id="Lite4", marks=pytest.mark.long
        ),
        pytest.param(B0(), 224, 5_288_548, 0.386, id="B0"),
        pytest.param(B1(), 240, 7_794_184, 0.687, id="B1", marks=pytest.mark.long),
        pytest.param(B2(), 288, 9_109_994, 1.088, id="B2"),
        pytest.param(B3(), 300, 12_233_232, 1.827, id="B3", marks=pytest.mark.long),
    ],
)
def test_parameters_and_multiply_adds(net, side, parameters, multiply_adds):
    trace = jax.make_jaxpr(net.init_with_output, return_shape=True)
    closed, (_, variables) = trace(jax.random.key(0), shaped(1, side, side, 3))
    assert size(variables["params"]) == parameters
    assert round(flops.count_jaxpr(closed, convention="mac").total() / 1e9, 3) == multiply_adds


@pytest.mark.parametrize("side, sides", [(64, (16, 8, 4, 2)), (65, (17, 9, 5, 3))])
@pytest.mark.parametrize("head, last", [(False, 320), (True, 1280)])
def test_without_classes_the_last_map_of_each_resolution_is_returned(side, sides, head, last):
    maps, variables = outputs(Lite0(classes=0, head=head), shaped(2, side, side, 3))
    widths = (24, 40, 112, last)
    assert [each.shape for each in maps] == [
        (2, s, s, c) for s, c in zip(sides, widths, strict=True)
    ]
    assert ("head" in variables["params"]) == head
    assert "logits" not in variables["params"]


def test_names_of_the_layers():
    _, variables = outputs(Tiny(), shaped(1, 32, 32, 3))
    params = variables["params"]
    blocks = {"stage1_block1", "stage2_block1"}
    assert set(params) == blocks | {"stem", "stem_norm", "head", "head_norm", "logits"}
    narrow = {"depthwise", "depthwise_norm", "squeeze", "project", "project_norm"}
    assert set(params["stage1_block1"]) == narrow
    assert set(params["stage2_block1"]) == narrow | {"expand", "expand_norm"}
    assert params["stage2_block1"]["depthwise"]["kernel"].shape == (5, 5, 1, 48)
    assert params["stage2_block1"]["squeeze"]["reduce"]["kernel"].shape == (1, 1, 48, 2)
    _, plain = outputs(Tiny(squeeze=0), shaped(1, 32, 32, 3))
    assert set(plain["params"]["stage1_block1"]) == narrow - {"squeeze"}
    _, bare = outputs(Tiny(norm=False), shaped(1, 32, 32, 3))
    assert set(bare) == {"params"}
    assert set(bare["params"]["stage1_block1"]["project"]) == {"kernel", "bias"}


def test_activations_and_sums_are_rows_of_the_operation_table():
    images = shaped(1, 32, 32, 3)
    rows = flops.count(Tiny().apply, outputs(Tiny(), images)[1], images).by_layer
    names = {path.removeprefix("EfficientNet/") for path, _ in rows}
    assert names >= {"stem_activation", "head_activation", "pool", "stage1_block1/add"}
    inner = ("expand_activation", "depthwise_activation", "squeeze/reduce_activation")
    assert names >= {f"stage2_block1/{x}" for x in (*inner, "squeeze/pool", "squeeze/gate")}
    assert "stage2_block1/add" not in names


def test_initial_kernels_preserve_the_variance_of_gradients():
    block = MBConv(width=96, squeeze=0)
    x = np.ones((1, 1, 1, 32), np.float32)
    params = host_init.initialize(block.init, jax.random.key(0), x)["params"]
    for part, fan in {"expand": 6 * 32, "depthwise": 9, "project": 96}.items():
        np.testing.assert_allclose(params[part]["kernel"].std(), (2 / fan) ** 0.5, rtol=0.05)


@pytest.fixture(scope="module")
def example():
    """Random variables of the tiny network, images, and their logits."""
    images = np.random.default_rng(0).uniform(size=(4, 17, 17, 3)).astype(np.float32)
    variables = random_like(outputs(Tiny(), images)[1])
    return variables, images, jax.jit(Tiny().apply)(variables, images)


def test_frozen_stages_have_no_gradients_and_keep_their_statistics(example):
    variables, images, _ = example

    def loss(params):
        step = partial(Tiny(frozen_stages=2).apply, train=True, mutable="batch_stats")
        logits, updates = step({**variables, "params": params}, images)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, stats))
    for path, leaf in paths(gradient).items():
        assert leaf.any() != path.startswith(("stem", "stage1")), path
    for path, before in paths(variables["batch_stats"]).items():
        changed = (paths(stats)[path] != before).any()
        assert changed != path.startswith(("stem", "stage1")), path


def test_frozen_stages_cost_no_backward_pass_even_where_their_maps_are_used():
    net = Tiny(stages=(*SMALL, Stage(1, 8, stride=2)), classes=0, head=True)
    images = np.ones((1, 17, 17, 3), np.float32)
    variables = random_like(outputs(net, images)[1])

    def total(params, frozen):
        step = partial(net.clone(frozen_stages=frozen).apply, train=True, mutable="batch_stats")
        maps, _ = step({**variables, "params": params}, images)
        return sum(each.sum() for each in maps)

    def cost(frozen):
        gradient = jax.grad(partial(total, frozen=frozen))
        counted = flops.count(gradient, variables["params"], convention="mac")
        return counted.total("backward")

    costs = [cost(frozen) for frozen in (0, 2, 3, 5)]
    assert all(more > less for more, less in pairwise(costs))
    assert costs[-1] == 0


def test_evaluation_is_independent_per_image_and_of_freezing(example):
    variables, images, together = example
    apply = jax.jit(Tiny(frozen_stages=2).apply)
    alone = jnp.concatenate([apply(variables, image[None]) for image in images])
    assert together.shape == (4, 3)
    assert together.std() > 0
    chex.assert_trees_all_close(together, alone, atol=1e-4)


def test_batch_statistics_are_synchronized_over_devices(example):
    variables, images, _ = example
    net = Tiny(stages=SMALL[:1], classes=0)
    train = {"train": True, "mutable": "batch_stats"}
    _, together = jax.jit(partial(net.apply, **train))(variables, images)
    step = partial(net.clone(axis_name="devices").apply, variables, **train)
    halves = images.reshape(2, 2, *images.shape[1:])
    _, updates = jax.jit(jax.vmap(step, axis_name="devices"))(halves)
    chex.assert_trees_all_close(together, jax.tree.map(lambda x: x[0], updates), atol=1e-4)


def test_bfloat16_is_close_to_float32_and_keeps_its_parameters(example):
    variables, images, exact = example
    net = Tiny(dtype=jnp.bfloat16)
    found = jax.jit(net.apply)(variables, images)
    assert found.dtype == jnp.bfloat16
    chex.assert_trees_all_close(found.astype(jnp.float32), exact, atol=0.05 * abs(exact).max())
    _, shapes = outputs(net, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_every_convolution_uses_conv_general_dilated():
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    _, variables = outputs(Tiny(conv_general_dilated=spy), shaped(1, 32, 32, 3))
    kernels = [leaf.shape for leaf in paths(variables).values() if leaf.ndim == 4]
    assert sorted(calls) == sorted(kernels)


# Of a variable here, in EfficientNet-PyTorch, and in timm.
NAMES = """
stem/kernel                         _conv_stem.weight                 conv_stem.weight
stem_norm/scale                     _bn0.weight                       bn1.weight
head_norm/var                       _bn1.running_var                  bn2.running_var
stage1_block1/depthwise/kernel      _blocks.0._depthwise_conv.weight  blocks.0.0.conv_dw.weight
stage1_block1/depthwise_norm/bias   _blocks.0._bn1.bias               blocks.0.0.bn1.bias
stage1_block1/project/kernel        _blocks.0._project_conv.weight    blocks.0.0.conv_pw.weight
stage1_block1/project_norm/mean     _blocks.0._bn2.running_mean       blocks.0.0.bn2.running_mean
stage2_block2/expand_norm/mean      _blocks.2._bn0.running_mean       blocks.1.1.bn1.running_mean
stage2_block2/depthwise_norm/scale  _blocks.2._bn1.weight             blocks.1.1.bn2.weight
stage7_block1/squeeze/reduce/bias   _blocks.15._se_reduce.bias        blocks.6.0.se.conv_reduce.bias
stage7_block1/project/kernel        _blocks.15._project_conv.weight   blocks.6.0.conv_pwl.weight
stage7_block1/project_norm/scale    _blocks.15._bn2.weight            blocks.6.0.bn3.weight
logits/bias                         _fc.bias                          classifier.bias
"""


@pytest.mark.parametrize("path, torch, timm", [row.split() for row in NAMES.strip().splitlines()])
def test_names_in_weight_files(path, torch, timm):
    kind = "batch_stats" if path.endswith(("mean", "var")) else "params"
    assert torch_name(f"{kind}/{path}") == torch
    assert timm_name(f"{kind}/{path}") == timm


@pytest.mark.parametrize("names", [torch_name, timm_name])
def test_array_names_are_unique(names):
    _, variables = outputs(B0(), np.zeros((1, 32, 32, 3), np.float32))
    given = [names(path) for path in paths(variables)]
    assert len(set(given)) == len(given)


def test_deeper_networks_have_later_names_in_torch():
    path = "params/stage7_block2/project_norm/bias"
    assert torch_name(path, B1().scaled_stages()) == "_blocks.22._bn2.bias"
    for unknown in (path, "params/neck/kernel"):
        with pytest.raises(KeyError, match=unknown.split("/")[1]):
            torch_name(unknown)


class TorchReference:
    """EfficientNet-PyTorch's forward pass; `weights` are drawn where they are first needed."""

    def __init__(self, activation, squeeze):
        self.torch = pytest.importorskip("torch")
        self.f = self.torch.nn.functional
        self.activation, self.squeeze = getattr(self.f, activation), squeeze
        self.random = self.torch.Generator().manual_seed(0)
        self.weights = {}

    def draw(self, name, *shape, scale=1.0):
        self.weights[name] = scale * self.torch.randn(shape, generator=self.random)
        return self.weights[name]

    def conv(self, x, name, width, kernel=1, stride=1, groups=1, bias=False):
        fan = kernel**2 * x.shape[1] // groups
        shape = (width, x.shape[1] // groups, kernel, kernel)
        weight = self.draw(f"{name}.weight", *shape, scale=fan**-0.5)
        outer = [-(-side // stride) * stride - stride + kernel - side for side in x.shape[:1:-1]]
        pads = [pad for total in outer for pad in (max(total, 0) // 2, (max(total, 0) + 1) // 2)]
        bias = self.draw(f"{name}.bias", width) if bias else None
        return self.f.conv2d(self.f.pad(x, pads), weight, bias, stride, groups=groups)

    def norm(self, x, name):
        """Batch norm with statistics near those of x."""
        var, mean = self.torch.var_mean(x, (0, 2, 3), correction=0)
        self.weights[f"{name}.running_mean"] = mean = mean + 0.1
        self.weights[f"{name}.running_var"] = var = 1.2 * var + 0.1
        weight = self.draw(f"{name}.weight", len(mean))
        bias = self.draw(f"{name}.bias", len(mean))
        return self.f.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def block(self, x, name, stage, stride):
        y, channels = x, x.shape[1]
        wide = stage.expand * channels
        if stage.expand > 1:
            y = self.norm(self.conv(y, f"{name}._expand_conv", wide), f"{name}._bn0")
            y = self.activation(y)
        y = self.conv(y, f"{name}._depthwise_conv", wide, stage.kernel, stride, groups=wide)
        y = self.activation(self.norm(y, f"{name}._bn1"))
        if self.squeeze:
            z = y.mean((2, 3), keepdim=True)
            z = self.activation(self.conv(z, f"{name}._se_reduce", channels // 4, bias=True))
            y = y * self.conv(z, f"{name}._se_expand", wide, bias=True).sigmoid()
        y = self.norm(self.conv(y, f"{name}._project_conv", stage.width), f"{name}._bn2")
        return x + y if stride == 1 and stage.width == channels else y

    def __call__(self, images, stages, classes):
        x = self.torch.from_numpy(images).permute(0, 3, 1, 2)
        x = self.activation(self.norm(self.conv(x, "_conv_stem", 32, 3, 2), "_bn0"))
        strides = [(each, 1 if j else each.stride) for each in stages for j in range(each.blocks)]
        for i, (stage, stride) in enumerate(strides):
            x = self.block(x, f"_blocks.{i}", stage, stride)
        x = self.activation(self.norm(self.conv(x, "_conv_head", 1280), "_bn1"))
        weight = self.draw("_fc.weight", classes, 1280, scale=1280**-0.5)
        return x.mean((2, 3)) @ weight.T + self.draw("_fc.bias", classes)


def pop_weight(path, leaf, weights):
    """A leaf's values among torch's, which are pop_weight away."""
    value = weights.pop(torch_name(path)).numpy()
    value = value.transpose(*range(2, value.ndim), 1, 0) if value.ndim > 1 else value
    assert value.shape == leaf.shape, path
    return value


# Where a stride of two divides the side, there is more padding at the end; elsewhere on both.
@pytest.mark.parametrize(
    "net, reference, height, width",
    [
        (Lite0(classes=5), ("relu6", False), 64, 33),
        (B0(classes=5, stages=STAGES[:4]), ("silu", True), 33, 48),
    ],
    ids=["Lite0", "B0"],
)
def test_outputs_agree_with_torch(net, reference, height, width):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    reference = TorchReference(*reference)
    expected = reference(images, net.stages, net.classes).numpy()
    _, shapes = outputs(net, images)
    variables = jax.tree.map_with_path(
        lambda path, leaf: pop_weight("/".join(key.key for key in path), leaf, reference.weights),
        shapes,
    )
    assert not reference.weights
    assert expected.std() > 0.1
    chex.assert_trees_all_close(jax.jit(net.apply)(variables, images), expected, atol=1e-4)
