import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import configs, files
from jaxdet.config import from_json, task_hparams
from jaxdet.configs.digits import Config
from jaxdet.data.sources import ArraySource
from jaxdet.plots import training as training_plots
from jaxdet.tasks.base import real_rows
from jaxdet.training import checkpoint, loop, parallel, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress
from tests import tiny
from tests.cli.test_main import main

# Two epochs of three steps, two steps per update, with moving averages; evaluations of two batches.
ROWS = 40
CONFIG = replace(tiny.CONFIG, best="accuracy", eval_batch=20, ema=0.9, accumulate=2)


def noisy_line():
    """Linear regression with everything that a state keeps: noise, dropout, batch statistics."""

    def init(key, batch):
        params = {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.zeros((1, 1))}
        return {"params": params, "batch_stats": {"mean": jnp.zeros((1, 3))}}

    def augment(keys, batch, context):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return batch | {"image": batch["x"] + 0.1 * noise}

    def predict(variables, x):
        x = x - variables["batch_stats"]["mean"]
        return x @ variables["params"]["kernel"] + variables["params"]["bias"]

    def loss(variables, batch, key, context):
        real, x = batch["real"][:, None], batch["image"]
        rows = real_rows(batch, context)
        kept = jax.random.bernoulli(key, 0.8, x.shape) | (not context.train)
        error = jnp.square(predict(variables, x * kept) - batch["y"]) * real
        mean = parallel.psum((x * real).sum(0, keepdims=True), context.axis) / rows
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * mean
        return error.sum() / rows, ({"mean": mean}, {"loss": error.sum() / rows})

    return tiny.FunctionTask(
        init=init,
        augment=augment,
        loss=loss,
        predict=predict,
        measure=lambda found, batch: {"error": jnp.abs(found - batch["y"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line_experiment(**changes):
    """The experiment of the noisy line."""
    config = replace(CONFIG, **changes)
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]])
    source = ArraySource({"x": x, "y": y, "id": np.arange(ROWS, dtype=np.int32)})
    splits = {"train": source, "val": source}
    return Experiment(noisy_line(), splits, task_hparams(config), {}, config)


class Killed(BaseException):
    """Raised by a test in place of SIGKILL; nothing catches it."""


def metrics(run):
    """Lines of metrics.jsonl without the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in run_dir.read_metrics(run)]


def fingerprint(state):
    """Type, shape and hash of every array of a state, by name."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(path): checkpoint._to_host(leaf) for path, leaf in named}
    return {
        name: (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()[:9])
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def cache():
    """Compiled steps and initial states that the runs of `train` share."""
    return {}


@pytest.fixture
def train(monkeypatch, cache):
    """`loop.train`, which compiles once for all runs and draws no curves."""
    compile_step, init_fn, current = parallel.compile_step, training_state.init_fn, {}

    def cached_compile_step(step, devices, **kwargs):
        name = (step.func, len(devices), current["schedule"])
        return cache.setdefault(name, compile_step(step, devices, **kwargs))

    def cached_init_fn(experiment):
        return cache.setdefault(("init", experiment.config.schedule), init_fn(experiment))

    def train(folder, experiment, stop=lambda: False, callbacks=()):
        folder.mkdir(exist_ok=True)
        current["schedule"] = experiment.config.schedule
        show = Progress(quiet=True)
        return loop.train(experiment, folder, show=show, stop=stop, callbacks=callbacks)

    monkeypatch.setattr(parallel, "compile_step", cached_compile_step)
    monkeypatch.setattr(training_state, "init_fn", cached_init_fn)
    monkeypatch.setattr(training_plots, "learning_curves", lambda *_: None)
    return train


def outcome(folder, experiment):
    """Result of a complete run: last state, best step, metrics."""
    like = jax.eval_shape(training_state.init_fn(experiment))
    step, state = checkpoint.restore(folder, like, warn=pytest.fail)
    return step, fingerprint(state), checkpoint.best(folder), metrics(folder)


def after(calls):
    """A `stop` that returns True after `calls` calls."""
    count = itertools.count()
    return lambda: next(count) >= calls


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_anywhere_and_resumed_gives_the_same_bits(tmp_path, train, eval_first):
    experiment = line_experiment(eval_first=eval_first)
    calls = itertools.count()
    assert train(tmp_path / "whole", experiment, stop=lambda: next(calls) < 0)
    expected = outcome(tmp_path / "whole", experiment)
    count = next(calls)
    assert count == 2 * 3 + 2 * (2 + eval_first)
    for number in range(count):
        folder = tmp_path / str(number)
        assert not train(folder, experiment, stop=after(number))
        assert train(folder, experiment)
        assert outcome(folder, experiment) == expected, f"stopped at {number} of {count}"


def test_a_learning_rate_lowered_by_a_plateau_survives_a_stop_anywhere(tmp_path, train):
    """At so low a rate the first epoch improves nothing by a ten-thousandth."""
    experiment = line_experiment(schedule="plateau", lr=1e-6, lr_decay=0.5, plateau_patience=1)
    assert train(tmp_path / "whole", experiment)
    expected = outcome(tmp_path / "whole", experiment)
    np.testing.assert_allclose([line["lr"] for line in expected[3]], [1e-6, 5e-7, 5e-7])
    for number in range(12):
        folder = tmp_path / str(number)
        assert not train(folder, experiment, stop=after(number))
        assert train(folder, experiment)
        assert outcome(folder, experiment) == expected, f"stopped at {number}"


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_again_and_again_gives_the_same_bits_on_four_devices(
    tmp_path, train, eval_first
):
    experiment = line_experiment(eval_first=eval_first, devices=4)
    assert train(tmp_path / "whole", experiment)
    starts = 1
    while not train(tmp_path / "often", experiment, stop=after(3)):
        starts += 1
    assert starts > 3
    assert outcome(tmp_path / "often", experiment) == outcome(tmp_path / "whole", experiment)


@contextmanager
def killed_at(number):
    """Kill the process when it writes or removes a file, after doing so `number` times."""
    count = itertools.count()

    def check():
        if next(count) == number:
            raise Killed

    def write(path, text, write=files.write_text):
        check()
        write(path, text)

    def append(folder, line, append=run_dir.append_metrics):
        append(folder, line)
        check()

    def remove(folder, **_):
        for path in folder.rglob("*.json"):
            path.unlink()
            check()
        shutil.rmtree(folder, ignore_errors=True)
        check()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "append_metrics", append)
        patch.setattr(files, "write_text", write)
        for module in (checkpoint, run_dir):
            own = SimpleNamespace(rmtree=remove, disk_usage=shutil.disk_usage)
            patch.setattr(module, "shutil", own)
        yield


def test_a_run_killed_between_any_two_writes_and_resumed_gives_the_same_bits(tmp_path, train):
    experiment = line_experiment()
    train(tmp_path / "whole", experiment)
    expected, kills = outcome(tmp_path / "whole", experiment), 0
    for number in itertools.count():
        folder = tmp_path / str(number)
        train(folder, experiment, stop=after(0))  # saves step 0, which its evaluation will replace
        try:
            with killed_at(number):
                train(folder, experiment)
            break
        except Killed:
            kills += 1
        assert train(folder, experiment)
        assert outcome(folder, experiment) == expected, f"killed at write {number}"
    assert kills > 8


def test_a_run_that_saves_often_and_is_killed_gives_the_same_bits(tmp_path, train):
    experiment = line_experiment()
    train(tmp_path / "whole", experiment)
    expected = outcome(tmp_path / "whole", experiment)
    experiment = line_experiment(save_minutes=0.0)

    def kill(due):
        if not due():
            return False
        raise Killed

    for calls in (1, 4, 6):
        folder = tmp_path / str(calls)
        with pytest.raises(Killed):
            train(folder, experiment, partial(kill, after(calls)))
        assert train(folder, experiment)
        assert outcome(folder, experiment) == expected


# From here on, runs are those of the command; what is terminated or killed is a process.

OPTIONS = [*tiny.WORDS, "--ema", "0.9", "--accumulate", "2"]
OPTIONS[OPTIONS.index("--epochs") + 1] = "4"


def launch(out, *options):
    """A training in a process of its own, which is compiled as in this one."""
    command = [sys.executable, "-m", "jaxdet", "train", "digits", "--out", str(out), *options]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process):
    """The output of a process that must succeed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def send(process, run, number, *, evaluations):
    """Send a signal some time after a training has recorded this many evaluations."""
    deadline = time.monotonic() + 200
    while len(run_dir.read_metrics(run)) < evaluations:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(number).uniform(0, 0.2))
    process.send_signal(number)


def outcome_of_command(run):
    """The outcome of a run, with the configuration of its folder."""
    config = from_json(Config, run_dir.read_config(run).config)
    return outcome(run, configs.build("digits", config))


def call(*options):
    """Exit code of `jaxdet train digits` in this process."""
    return main("train", "digits", *options)


def assert_stopped(run, out):
    """A training has said at which step it was stopped, before its end, and has saved that step."""
    (step,) = re.findall(r"stopped at step (\d+) of 84", out)
    assert int(step) == checkpoint.steps(run)[-1] < 84


@pytest.mark.long
def test_a_run_terminated_preempted_and_killed_gives_the_same_bits(tmp_path, capsys, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert call("--out", whole, *OPTIONS) == 0
    process = launch(run, *OPTIONS, "--resume")
    send(process, run, signal.SIGTERM, evaluations=1)
    assert_stopped(run, finish(process))

    def preempted(folder, line, append=run_dir.append_metrics):
        append(folder, line)
        signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "append_metrics", preempted)
        assert call("--out", run, "--resume") == 0
    assert_stopped(run, capsys.readouterr().out)

    process = launch(run, "--resume")
    send(process, run, signal.SIGKILL, evaluations=3)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert call("--out", run, "--resume") == 0
    assert outcome_of_command(run) == outcome_of_command(whole)


@pytest.fixture
def few_digits():
    """Epochs of three steps."""
    with tiny.few_digits():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on few digits."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with tiny.few_digits():
        assert call("--out", run, *OPTIONS) == 0
    return run


def run_files(run):
    """The bytes of the configuration, metrics and checkpoints of a run."""
    paths = [run / "config.json", run / "metrics.jsonl", *(run / "checkpoints").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("options", [[], OPTIONS, ["--epochs", "4"]], ids=["none", "all", "one"])
def test_resuming_a_complete_run_changes_nothing(whole, options, capsys):
    before = run_files(whole)
    assert call("--out", whole, "--resume", *options) == 0
    assert run_files(whole) == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "0.5"],
        ["--eval-batch", "50"],
        ["--channels", "9"],
        ["--no-eval-first"],
        ["--epochs", "7"],
    ],
    ids=lambda options: options[0],
)
def test_an_option_that_differs_from_the_run_is_refused_by_name(whole, options, capsys):
    before = run_files(whole)
    assert call("--out", whole, "--resume", *options) == 2
    flag = options[0].replace("--no-", "--")
    assert capsys.readouterr().err.startswith(f"jaxdet: error: {flag} ")
    assert run_files(whole) == before
