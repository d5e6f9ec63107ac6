import json
from dataclasses import replace
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from benchmarks import tutorial
from benchmarks.lib import synthetic
from jaxdet.configs.cifar10 import Config
from jaxdet.data import sampler
from jaxdet.training import host_init, parallel
from jaxdet.training import loop as training_loop
from jaxdet.training import state as training_state


def test_pytorch_learns_the_same_from_the_same_batches():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import tutorial as peer

    config = Config(batch=4, devices=1, lr=0.05, conv="lax")
    system = synthetic.classified(config, train=12, val=4)
    programs = training_loop.CompiledSteps(system, config)
    state = parallel.replicate(
        host_init.initialize(training_state.init_fn(system, config)), programs.among
    )
    data = system.splits["train"].arrays
    theirs = peer.Training(data["image"], data["label"], lr=config.lr, momentum=config.momentum)
    for name, array in in_pytorch(state.params).items():
        getattr(theirs.net, name).load_state_dict(
            {key: torch.from_numpy(value.copy()) for key, value in array.items()}
        )
    rows = sampler.shuffled_batches(0, 0, 12, 4)
    for row in rows:
        state = programs.steps[0](state, programs.data, row)
    theirs.steps(rows)
    for name, array in in_pytorch(state.params).items():
        for key, value in array.items():
            found = getattr(getattr(theirs.net, name), key).detach().numpy()
            np.testing.assert_allclose(found, value, atol=2e-5)


def in_pytorch(params):
    """Kernels and biases of our layers as PyTorch lays them out."""
    found = {}
    for name, layer in jax.device_get(params).items():
        kernel = layer["kernel"]
        if name == "dense1":  # its inputs are channels of pixels there, pixels of channels here
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}[kernel.ndim]
        found[name] = {"weight": kernel.transpose(order), "bias": layer["bias"]}
    return found


def test_pytorch_is_judged_by_all_images():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import tutorial as peer

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (7, 32, 32, 3), np.uint8)
    training = peer.Training(images, np.zeros(7, np.int64), lr=0.0, momentum=0.9)
    with torch.no_grad():
        given = training.net(peer.normal(training.images)).argmax(1).numpy()
    labels = np.where(np.arange(7) < 5, given, given + 1)
    assert training.accuracy(images, labels, 3) == pytest.approx(5 / 7)


def test_the_whole_is_computed_from_steps_and_evaluations(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--steps", "3", "--rounds", "2", "--images", "20", "--json", str(out)]
    assert tutorial.main(words) == 0
    ours, theirs = json.loads(out.read_text())["rows"]
    assert (ours["way"], theirs["way"]) == ("jaxdet", "PyTorch")
    for row in (ours, theirs) if find_spec("torch") else (ours,):
        whole = 2 * 12_500 * row["step_s"] + 3 * row["evaluation_s"]
        assert row["whole_s"] == pytest.approx(whole) and row["repeats"] == 2
        assert row["ratio"] == row["whole_s"] / theirs["whole_s"]
    assert "| jaxdet |" in capsys.readouterr().out


def test_steps_and_evaluations_take_turns(tmp_path):
    config = Config(epochs=tutorial.MANY, eval_first=False, devices=1, eval_batch=4)
    system = synthetic.classified(replace(config, batch=4), train=8, val=4)
    train_them, judge = tutorial.in_jaxdet(system, config, tmp_path)
    lines = []
    for call in (train_them, judge, train_them, judge):
        call()
        metrics = tmp_path / "metrics.jsonl"
        lines.append(metrics.read_text().count("\n") if metrics.exists() else 0)
    assert lines == [0, 1, 1, 2]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [2, 4]


def test_without_pytorch_there_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(tutorial, "find_spec", lambda name: None)
    ours, theirs = tutorial.compare(tutorial.Options(steps=1, rounds=1, images=4))
    assert theirs == {"way": "PyTorch", "note": "not installed"} and "ratio" not in ours


def test_no_steps_are_refused(capsys):
    assert tutorial.main(["--steps", "0"]) == 2
    assert "--steps, --rounds and --images start at 1" in capsys.readouterr().err
