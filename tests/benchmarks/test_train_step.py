import json
import re
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from benchmarks import train_step
from benchmarks.lib import harness, train_steps, turns
from benchmarks.lib.train_steps import StepOptions
from jaxdet import configs
from jaxdet.configs.digits import Config
from jaxdet.models import registry
from jaxdet.tasks import sliding_window as locate
from jaxdet.training import host_init
from jaxdet.types import StepContext
from tests import tiny

pytestmark = pytest.mark.long  # it runs and times whole programs

ZERO = np.zeros(1, np.int32)
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
    work = train_steps.make_workload(train_steps.MODELS["digits"], StepOptions(3, impl="lax"))
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "lite0", "b0"])
def test_torch_classifier_has_the_same_outputs(name):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    net, _, inputs, _ = train_steps._torch_classifier(name, {"image": images, "label": ZERO})
    ours = registry.get(name).build(classes=train_steps.CLASSES)
    variables = host_init.initialize(ours.init, jax.random.key(0), images)
    copy_into(leaves(net), classifier_arrays(variables["params"]))
    with torch.no_grad():
        found = net.eval()(inputs).numpy()
    expected = jax.jit(partial(ours.apply, train=False))(variables, images)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def classifier_arrays(params):
    """Parameters of a classifier in the order of PyTorch's modules."""
    arrays = norms(params, "stem")
    blocks = (name for name in params if "block" in name)
    for block in sorted(blocks, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        layers = ("conv1", "conv2", "conv3", "around", "expand", "depthwise", "squeeze", "project")
        for layer in (name for name in layers if name in params[block]):
            if layer == "squeeze":
                arrays += [params[block][layer][part] for part in ("reduce", "expand")]
            else:
                arrays += norms(params, block, layer)
    last = [name for name in ("head", "last") if name in params]
    return arrays + [array for name in last for array in norms(params, name)] + [params["logits"]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_libraries_make_steps_in_each_precision(small, precision):
    torch = pytest.importorskip("torch")
    options = StepOptions(4, precision=precision, steps=3)
    step = train_steps.torch_step(train_steps.MODELS["digits"], options)
    losses = [step(), step()]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "bfloat16")
    try:
        train_steps.jax_step(train_steps.MODELS["digits"], options)()
        expected = {"float32": "float32", "bfloat16": "tensorfloat32"}[precision]
        assert jax.config.jax_default_matmul_precision == expected
    finally:
        jax.config.update("jax_default_matmul_precision", None)


def test_operations_are_those_of_products():
    """A dense layer of 5 to 3 features, the mean of 2 losses, and the norm of the gradient."""
    data = {"image": np.zeros((2, 5), np.float32), "label": ZERO.repeat(2), "id": ZERO.repeat(2)}
    work = train_steps.Workload(2, 0, train_steps._CrossEntropy(DenseNet()), data, {}, None)
    forward = 2 * 5 * 3 + 2
    norm = 5 * 3 + 3  # a dot product of the gradient with itself
    assert train_steps.count_operations(work) == 2 * (2 * forward + norm)  # gradients: once more


class DenseNet(nn.Module):
    """One dense layer, called as networks are."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x)


def test_command_compares_and_writes(small, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert train_step.main(["--models", "digits", *QUICK, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = {row["implementation"]: row for row in record["rows"]}
    assert set(rows) == set(train_step.IMPLEMENTATIONS)
    jit, peak = rows["jit"], record["peaks"]["float32"]
    assert jit["images_per_s"] == pytest.approx(2 / jit["median"])
    assert jit["of_peak"] == pytest.approx(jit["operations"] / jit["median"] / peak)
    assert 0 < jit["of_peak"] < 1 and jit["repeats"] >= turns.TURNS
    assert rows["torch_compiled"]["note"] in ("not asked for", "not installed")
    if find_spec("torch"):
        assert jit["ratio"] == jit["median"] / rows["torch"]["median"]
        assert jit["memory_ratio"] == jit["memory"] / rows["torch"]["memory"] > 0
        assert record["torch"]["threads"] > 0
    out = capsys.readouterr().out
    assert "| digits | float32 | 2 |" in out and "A large matrix product: float32 " in out


@pytest.mark.parametrize(
    "implementation, options, note",
    [
        ("torch", {"torch": False}, "not asked for"),
        ("torch_compiled", {"compiled": False}, "not asked for"),
        ("torch", {}, "not installed"),
    ],
)
def test_missing_says_why(implementation, options, note, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: name if options else None)
    work = SimpleNamespace(torch=len)
    assert train_step.missing(implementation, work, train_step.Options(**options)) == note


def test_models_without_a_peer_are_jaxdet_only():
    work = SimpleNamespace(torch=None)
    assert train_step.missing("torch", work, train_step.Options()) == "jaxdet only"


class FakeWorker:
    """A worker whose builds or calls fail."""

    def __init__(self, platform=None):
        self.platform, self.pid = platform, None

    def build(self, builder, model, options):
        if self.platform == "cpu":  # where PyTorch runs
            raise turns.WorkerError("RuntimeError: no compiler")
        return 1.0

    def peak(self):
        return None

    def sample(self, seconds):
        raise turns.WorkerError("its process ended with code -9")

    def close(self):
        pass


def test_failures_are_rows(small, monkeypatch):
    monkeypatch.setattr(turns, "Worker", FakeWorker)
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    options = train_step.Options(batch=2, seconds=0.0, compiled=False)
    with train_step.Peers() as peers:
        found = train_step.compare(peers, "digits", "float32", options, peak=1e9)
    rows = {row["implementation"]: row for row in found}
    assert rows["torch"]["note"] == "failed: RuntimeError: no compiler"
    assert rows["jit"]["note"] == "failed: its process ended with code -9"
    assert rows["jit"]["ratio"] is None


@pytest.mark.parametrize(
    "words, error",
    [
        (
            ["--precisions", "tf32"],
            "--precisions tf32 needs a GPU, got a CPU; choose float32 or bfloat16",
        ),
        (["--side", "-1"], "--side must be at least 0, got -1"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(words, error, capsys):
    assert train_step.main(["--models", "digits", *words]) == 2
    assert capsys.readouterr().err == f"benchmarks.train_step: error: {error}\n"


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
