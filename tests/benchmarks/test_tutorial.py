import json
from dataclasses import replace
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from benchmarks import tutorial
from benchmarks.lib import harness, synthetic
from jaxdet.configs.cifar10 import Config
from jaxdet.data import sampler
from jaxdet.training import host_init, parallel
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state

pytestmark = pytest.mark.long  # it runs and times whole programs


def test_pytorch_takes_the_same_steps():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import tutorial as torch_tutorial

    config = Config(batch=4, devices=1, lr=0.05, conv="lax")
    experiment = synthetic.cifar10_experiment(config, train=12, val=4)
    compiled = training_loop.CompiledSteps(experiment)
    init_fn = training_state.init_fn(experiment)
    state = parallel.replicate(host_init.initialize(init_fn), compiled.devices)
    data = experiment.splits["train"].arrays
    trainer = torch_tutorial.Trainer(
        data["image"], data["label"], lr=config.lr, momentum=config.momentum
    )
    for name, array in in_pytorch(state.params).items():
        getattr(trainer.net, name).load_state_dict(
            {key: torch.from_numpy(value.copy()) for key, value in array.items()}
        )
    rows = sampler.shuffled_batches(0, 0, 12, 4)
    for row in rows:
        state = compiled.steps[0](state, compiled.data, row)
    trainer.train_steps(rows)
    for name, array in in_pytorch(state.params).items():
        for key, value in array.items():
            found = getattr(getattr(trainer.net, name), key).detach().numpy()
            np.testing.assert_allclose(found, value, atol=2e-5)


def in_pytorch(params):
    """Kernels and biases of jaxdet's layers in PyTorch's layout."""
    found = {}
    for name, layer in jax.device_get(params).items():
        kernel = layer["kernel"]
        if name == "dense1":  # flattened from [C, H, W] in PyTorch, from [H, W, C] in jaxdet
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}[kernel.ndim]
        found[name] = {"weight": kernel.transpose(order), "bias": layer["bias"]}
    return found


def test_pytorch_is_evaluated_on_all_images():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import tutorial as torch_tutorial

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (7, 32, 32, 3), np.uint8)
    trainer = torch_tutorial.Trainer(images, np.zeros(7, np.int64), lr=0.0, momentum=0.9)
    with torch.no_grad():
        predicted = trainer.net(torch_tutorial.normalize(trainer.images)).argmax(1).numpy()
    labels = np.where(np.arange(7) < 5, predicted, predicted + 1)
    assert trainer.accuracy(images, labels, 3) == pytest.approx(5 / 7)


def test_total_is_computed_from_steps_and_evaluations(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--steps", "3", "--rounds", "2", "--images", "20", "--json", str(out)]
    assert tutorial.main(words) == 0
    ours, theirs = json.loads(out.read_text())["rows"]
    assert (ours["implementation"], theirs["implementation"]) == ("jaxdet", "PyTorch")
    for row in (ours, theirs) if find_spec("torch") else (ours,):
        total = 2 * 12_500 * row["step_s"] + 3 * row["evaluation_s"]
        assert row["total_s"] == pytest.approx(total) and row["repeats"] == 2
        assert row["ratio"] == row["total_s"] / theirs["total_s"]
    assert "| jaxdet |" in capsys.readouterr().out


def test_steps_and_evaluations_alternate(tmp_path):
    config = Config(epochs=tutorial.ENDLESS, eval_first=False, devices=1, eval_batch=4)
    experiment = synthetic.cifar10_experiment(replace(config, batch=4), train=8, val=4)
    train, evaluate = tutorial.jax_calls(experiment, tmp_path)
    lines = []
    for call in (train, evaluate, train, evaluate):
        call()
        metrics = tmp_path / "metrics.jsonl"
        lines.append(metrics.read_text().count("\n") if metrics.exists() else 0)
    assert lines == [0, 1, 1, 2]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [2, 4]


def test_missing_pytorch_is_a_row(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    ours, theirs = tutorial.compare(tutorial.Options(steps=1, rounds=1, images=4))
    assert theirs == {"implementation": "PyTorch", "note": "not installed"} and "ratio" not in ours


def test_zero_steps_are_refused(capsys):
    assert tutorial.main(["--steps", "0"]) == 2
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
