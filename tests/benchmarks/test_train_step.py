import json
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.lib import harness, train_steps
from jaxdet import configs
from jaxdet.configs.digits import Config
from jaxdet.models.resnet import ResNet18
from jaxdet.tasks import sliding_window as locate
from jaxdet.training import host_init
from jaxdet.types import StepContext
from tests import tiny

QUICK = ["--batch", "2", "--seconds", "0", "--compiled", "false"]


@pytest.fixture
def small(monkeypatch):
    """The small digit locator of the tests in place of the default one."""
    sizes = {
        name: getattr(tiny.CONFIG, name) for name in ("layout", "channels", "fc_widths", "window")
    }
    monkeypatch.setitem(train_steps.MODELS, "digits", partial(train_steps.digit_locator, **sizes))
    return sizes


def copy_into(modules, arrays):
    """Give PyTorch's modules, in order, jaxdet's kernels [..., C, D], scales and biases."""
    torch = pytest.importorskip("torch")
    for module, params in zip(modules, arrays, strict=True):
        weight = np.array(params.get("kernel", params.get("scale")))
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[weight.ndim]
        module.weight.data = torch.from_numpy(weight.transpose(order).copy())
        if "bias" in params:
            module.bias.data = torch.from_numpy(np.array(params["bias"]))


def leaves(net):
    """PyTorch's modules with weights, in the order of their definition."""
    return [m for m in net.modules() if getattr(m, "weight", None) is not None]


def test_torch_digit_locator_has_the_same_outputs_and_loss(small):
    torch = pytest.importorskip("torch")
    work = train_steps.make_workload("digits", 3, "lax")
    net, loss, images, target = work.torch(work.data)
    ours = configs.network("digits", replace(Config(), **small))[0]
    variables = host_init.initialize(ours.init, jax.random.key(0), work.data["image"][:1])
    wide = [spec.name for spec in ours.plan() if spec.channels]
    names = [n for name in wide for n in (name, f"{name}_norm")][:-1]
    copy_into(leaves(net), [variables["params"][name] for name in names])
    with torch.no_grad():
        found = net.train()(images)
        value = float(loss(found, target))
    run = jax.jit(partial(ours.apply, train=True, mutable=["batch_stats"]))
    expected, _ = run(variables, work.data["image"] / 255)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)
    terms = jax.jit(lambda raw, *true: locate.loss_terms(locate.split_outputs(raw), *true))(
        expected, target.numpy()
    )
    sums = {name: float(term.sum()) for name, term in terms.items()}
    whole = sums["detection"] + sums["classification"] + 150 * sums["regression"]
    assert value == pytest.approx(whole, rel=1e-3)


def test_torch_resnet18_has_the_same_outputs():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import networks

    net, ours = networks.resnet18(10).eval(), ResNet18(classes=10)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = host_init.initialize(ours.init, jax.random.key(0), images)
    params, names = variables["params"], ("conv1", "conv1_norm", "conv2", "conv2_norm", "around")
    arrays = [params["stem"], params["stem_norm"]]
    for block in (f"stage{i}_block{j}" for i in range(1, 5) for j in (1, 2)):
        found = [params[block].get(name) for name in (*names, "around_norm")]
        arrays += [each for each in found if each is not None]
    copy_into(leaves(net), [*arrays, params["logits"]])
    with torch.no_grad():
        found = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = jax.jit(partial(ours.apply, train=False))(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_command_compares_and_writes(small, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert train_step.main(["--models", "digits", *QUICK, "--json", str(out)]) == 0
    rows = {row["implementation"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(train_step.IMPLEMENTATIONS)
    for name in ("jit", "pmap") if len(jax.devices()) in (1, 2) else ("jit",):
        assert rows[name]["images_per_s"] == pytest.approx(2 / rows[name]["median"])
    assert rows["torch_compiled"]["note"] in ("not asked for", "not installed")
    if find_spec("torch"):
        assert rows["jit"]["ratio"] == rows["jit"]["median"] / rows["torch"]["median"]
    assert "| digits | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "implementation, options, note",
    [
        ("torch", {"bfloat16": True}, "jaxdet only"),
        ("torch_compiled", {"compiled": False}, "not asked for"),
        ("torch", {}, "not installed"),
    ],
)
def test_missing_says_why(implementation, options, note, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: name if options else None)
    work = SimpleNamespace(torch=len)
    assert train_step.missing(implementation, work, train_step.Options(**options)) == note


def test_failure_of_pytorch_is_a_row(small, monkeypatch):
    def fail(work):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setitem(train_steps.BUILDERS, "torch", fail)
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    options = train_step.Options(batch=2, seconds=0.0, compiled=False)
    rows = {row["implementation"]: row for row in train_step.compare("digits", options)}
    assert rows["torch"]["note"] == "failed: no compiler"
    assert rows["jit"]["ratio"] is None


def test_unknown_model_is_refused_in_one_line(capsys):
    assert train_step.main(["--models", "vgg"]) == 2
    assert "--models must be among digits" in capsys.readouterr().err


def norms(params, *path):
    """Parameters of a layer and of its batch norm."""
    *home, name = path
    for key in home:
        params = params[key]
    return [params[name], params[f"{name}_norm"]]


def test_torch_localizer_has_the_same_loss():
    torch = pytest.importorskip("torch")
    work = train_steps.localizer(2, None, None, model="simple", side=64)
    net, loss, images, target = work.torch(work.data)
    ours = configs.network("objects", configs.config("objects")(size=64))[0]
    variables = host_init.initialize(
        ours.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)
    )
    params = variables["params"]
    arrays = [a for i in (1, 2, 3) for a in norms(params["features"], f"conv{i}")]
    for branch in ("classifier", "boxer"):
        arrays += [params[branch][name] for name in ("dense1", "dense2", "out")]
    copy_into(leaves(net), arrays)
    with torch.no_grad():
        value = float(loss(net.eval()(images), target))
    context = StepContext(False, jnp.int32(0), jnp.int32(0), work.hparams)
    batch = work.task.augment(None, work.data | {"real": np.ones(2, np.float32)}, context)
    expected, _ = jax.jit(lambda v, b: work.task.loss(v, b, None, context))(variables, batch)
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_torch_detector_has_the_same_loss():
    torch = pytest.importorskip("torch")
    work = train_steps.detector(1, None, None)
    net, loss, images, target = work.torch(work.data)
    config = configs.config("detect")(weights="-", freeze_stages=3, freeze_bn=True)
    ours = configs.network("detect", config)[0]
    variables = host_init.initialize(
        ours.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)
    )
    copy_into(leaves(net), detector_arrays(variables["params"]))
    small = images[:, :, :64, :96], (target[0] / 4, *target[1:])
    with torch.no_grad():
        found = net.eval()(small[0].contiguous(memory_format=torch.channels_last))
        value = float(loss(found, small[1]))
    context = StepContext(False, jnp.int32(0), jnp.int32(0), work.hparams)
    data = work.data | {"image": work.data["image"][:, :64, :96], "real": np.ones(1, np.float32)}
    batch = work.task.augment(None, data | {"boxes": data["boxes"] / 4}, context)
    expected, _ = jax.jit(lambda v, b: work.task.loss(v, b, None, context))(variables, batch)
    assert value == pytest.approx(float(expected), rel=1e-3)


def detector_arrays(params):
    """Parameters of the detector in the order of PyTorch's modules."""
    features, neck, head = (params[name] for name in ("features", "neck", "head"))
    arrays = norms(features, "stem")
    blocks = sorted(name for name in features if "block" in name)
    for block in blocks:
        for layer in ("expand", "depthwise", "project"):
            if layer in features[block]:
                arrays += norms(features, block, layer)
    levels = (1, 2, 3)
    arrays += [a for i in levels for a in norms(neck, f"lateral{i}")]
    arrays += [a for i in levels for a in norms(neck, f"out{i}", "conv")]
    arrays += [a for i in levels for a in norms(head, f"level{i}_stem")]
    for i in levels:
        for branch in ("class1", "class2", "box1", "box2"):
            arrays += norms(head, f"level{i}_{branch}")
    arrays += [head[f"level{i}_classes"] for i in levels]
    return arrays + [head[f"level{i}_sides"] for i in levels]
