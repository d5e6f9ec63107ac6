from functools import partial

import chex
import jax
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models import layers, mobilenet, pretrained
from jaxdet.models.mobilenet import V2, BlockConfig, V3Large, V3Small
from tests.models.helpers import outputs, random_like, shaped, size

MINI = (  # a block of each kind
    BlockConfig(3, 8, 8, False, jax.nn.relu6, 1),
    BlockConfig(5, 24, 8, True, jax.nn.hard_swish, 2),
    BlockConfig(3, 24, 8, False, jax.nn.relu, 1),
)
TinyV2 = partial(V2, blocks=MINI[::2], stem=8, last=16, classes=3)
TinyV3 = partial(mobilenet.V3, blocks=MINI, stem=8, last=16, hidden=12, classes=3)


# As torchvision's documentation has them, in parameters and giga multiply-adds.
@pytest.mark.parametrize(
    "net, parameters, multiply_adds",
    [
        pytest.param(V2(), 3_504_872, 0.30, id="v2"),
        pytest.param(V3Large(), 5_483_032, 0.22, id="v3", marks=pytest.mark.long),
        pytest.param(V3Small(), 2_542_856, 0.06, id="v3_small"),
    ],
)
def test_parameters_and_multiply_adds(net, parameters, multiply_adds):
    trace = jax.make_jaxpr(net.init_with_output, return_shape=True)
    closed, (_, variables) = trace(jax.random.key(0), shaped(1, 224, 224, 3))
    assert size(variables["params"]) == parameters
    assert round(flops.count_jaxpr(closed, convention="mac").total() / 1e9, 2) == multiply_adds


@pytest.mark.parametrize(
    "net, widths",
    [(V2, (24, 32, 96, 320)), (V3Large, (24, 40, 112, 160)), (V3Small, (16, 24, 48, 96))],
    ids=["v2", "v3", "v3_small"],
)
def test_without_classes_the_last_map_of_each_resolution_is_returned(net, widths):
    maps, variables = outputs(net(classes=0), shaped(2, 64, 96, 3))
    sides = ((16, 24), (8, 12), (4, 6), (2, 3))
    assert [m.shape for m in maps] == [(2, *s, c) for s, c in zip(sides, widths, strict=True)]
    assert not {"last", "logits"} & set(variables["params"])


def test_rounding_to_multiples_of_8():
    assert [layers.round_to_8(n) for n in (3, 11, 12, 18, 19, 24)] == [8, 16, 16, 24, 24, 24]


@pytest.fixture(scope="module", params=[TinyV2, TinyV3], ids=["v2", "v3"])
def example(request):
    """A small network with random variables, and images."""
    images = np.random.default_rng(0).normal(size=(2, 17, 20, 3)).astype(np.float32)
    return request.param(), random_like(outputs(request.param(), images)[1]), images


def test_frozen_stages_have_no_gradients_and_keep_their_statistics(example):
    net, variables, images = example

    def loss(params):
        step = partial(net.clone(frozen_stages=2).apply, train=True, mutable="batch_stats")
        logits, updates = step({**variables, "params": params}, images)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updates["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite((gradient, stats))
    for module, leaves in gradient.items():
        stays = module.startswith(("stem", "block1"))
        assert any(leaf.any() for leaf in jax.tree.leaves(leaves)) != stays, module
    for module, leaves in stats.items():
        before = variables["batch_stats"][module]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, leaves)
        assert all(jax.tree.leaves(same)) == module.startswith(("stem", "block1")), module


# A reference in torch, with the names of torchvision's.


def torch_act(torch, activation):
    kinds = {"relu6": torch.nn.ReLU6, "relu": torch.nn.ReLU, "hard_silu": torch.nn.Hardswish}
    return kinds[activation.__name__]()


def torch_conv(torch, channels, width, kernel=1, stride=1, groups=1, act=None, eps=1e-5):
    """Conv2dNormActivation."""
    conv = torch.nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts = [conv, torch.nn.BatchNorm2d(width, eps=eps)]
    return torch.nn.Sequential(*parts, *([torch_act(torch, act)] if act else []))


def torch_squeeze(torch, channels):
    class Squeeze(torch.nn.Module):
        def __init__(self):
            super().__init__()
            middle = layers.round_to_8(channels // 4)
            self.fc1 = torch.nn.Conv2d(channels, middle, 1)
            self.fc2 = torch.nn.Conv2d(middle, channels, 1)

        def forward(self, x):
            y = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
            return x * torch.nn.functional.hardsigmoid(y)

    return Squeeze()


def torch_block(torch, net, row, channels):
    """InvertedResidual: a sequence `conv` (V2), its last two layers not nested, or `block` (V3)."""
    how = {"act": row.activation, "eps": net.epsilon}
    parts = []
    if row.expand != channels:
        parts.append(torch_conv(torch, channels, row.expand, **how))
    shape = (row.expand, row.expand, row.kernel, row.stride, row.expand)
    parts.append(torch_conv(torch, *shape, **how))
    parts += [torch_squeeze(torch, row.expand)] if row.squeeze else []
    last = torch_conv(torch, row.expand, row.width, eps=net.epsilon)
    parts += [last] if net.hidden else list(last)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, "block" if net.hidden else "conv", torch.nn.Sequential(*parts))

        def forward(self, x):
            y = next(self.children())(x)
            return x + y if row.stride == 1 and row.width == channels else y

    return Block()


def torch_net(torch, net):
    class MobileNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            how = {"act": net.activation, "eps": net.epsilon}
            parts, channels = [torch_conv(torch, 3, net.stem, 3, 2, **how)], net.stem
            for row in net.blocks:
                parts.append(torch_block(torch, net, row, channels))
                channels = row.width
            parts.append(torch_conv(torch, channels, net.last, **how))
            self.features = torch.nn.Sequential(*parts)
            drop = torch.nn.Dropout(0.2)
            if net.hidden:
                first = torch.nn.Linear(net.last, net.hidden)
                deep = [first, torch_act(torch, net.activation), drop]
                self.classifier = torch.nn.Sequential(
                    *deep, torch.nn.Linear(net.hidden, net.classes)
                )
            else:
                self.classifier = torch.nn.Sequential(drop, torch.nn.Linear(net.last, net.classes))

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return MobileNet().eval()


def test_logits_agree_with_torch(example):
    torch = pytest.importorskip("torch")
    net, variables, images = example
    theirs = torch_net(torch, net)
    rng = np.random.default_rng(1)
    arrays = {}
    for name, value in theirs.state_dict().items():
        low = 0.5 if name.endswith("running_var") else -0.5
        arrays[name] = np.float32(rng.uniform(low, 1, tuple(value.shape)))
    theirs.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
    ours = pretrained.assign_arrays(variables, arrays, partial(mobilenet.torch_name, net=net))
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    found = np.asarray(jax.jit(net.apply)(ours, images))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("net", [V2(), V3Large(), V3Small()], ids=["v2", "v3", "v3_small"])
def test_every_variable_has_a_name_in_torch(net):
    torch = pytest.importorskip("torch")
    _, variables = outputs(net, shaped(1, 32, 32, 3))
    with torch.device("meta"):
        names = {n for n in torch_net(torch, net).state_dict() if "num_batches" not in n}
    paths = (
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree.leaves_with_path(variables)
    )
    assert sorted(mobilenet.torch_name(path, net) for path in paths) == sorted(names)
