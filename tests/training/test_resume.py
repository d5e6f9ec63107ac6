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

from jaxdet import configs, files, tasks
from jaxdet.cli import main as cli
from jaxdet.config import from_json, task_hparams
from jaxdet.configs.digits import Config
from jaxdet.data.sources import ArraySource
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, loop, parallel, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress
from jaxdet.types import Task
from tests import tiny

# Two epochs of three steps, accumulated by twos, with moving averages; evaluations of two batches.
ROWS = 40
CONFIG = replace(tiny.CONFIG, best="accuracy", eval_batch=20, ema=0.9, accumulate=2)


def noisy_line():
    """A line through points, as a task with all that a state keeps: noise, dropout, statistics."""

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
        rows = tasks.real_rows(batch, context)
        kept = jax.random.bernoulli(key, 0.8, x.shape) | (not context.train)
        error = jnp.square(predict(variables, x * kept) - batch["y"]) * real
        seen = parallel.psum((x * real).sum(0, keepdims=True), context.axis) / rows
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * seen
        return error.sum() / rows, ({"mean": mean}, {"loss": error.sum() / rows})

    return Task(
        init=init,
        augment=augment,
        loss=loss,
        predict=predict,
        measure=lambda found, batch: {"error": jnp.abs(found - batch["y"])},
        report=lambda rows: {"accuracy": -float(rows["error"].mean())},
    )


def line(**changes):
    """(configuration, system) of the noisy line."""
    config = replace(CONFIG, **changes)
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]])
    source = ArraySource({"x": x, "y": y, "id": np.arange(ROWS, dtype=np.int32)})
    return config, Experiment(
        noisy_line(), {"train": source, "val": source}, task_hparams(config), {}
    )


class Killed(BaseException):
    """What a test raises in place of SIGKILL: nobody catches it."""


def metrics(run):
    """Lines of metrics.jsonl but for the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in run_dir.read_metrics(run)]


def prints(state):
    """The hash of every array of a state, by name."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(path): checkpoint._to_host(leaf) for path, leaf in named}
    return {
        name: (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()[:9])
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def programs():
    """Compiled steps, and the maker of states, that the runs of `fit` share."""
    return {}


@pytest.fixture
def fit(monkeypatch, programs):
    """`fit.fit` without compiling anew for every run, and without pictures."""
    compiled, maker, chosen = parallel.compile_step, training_state.init_fn, {}

    def shared(step, among, **kwargs):
        name = (step.func, len(among), chosen["schedule"])
        return programs.setdefault(name, compiled(step, among, **kwargs))

    def made(system, config):
        return programs.setdefault(("maker", config.schedule), maker(system, config))

    def fit(folder, config, system, stop=lambda: False):
        folder.mkdir(exist_ok=True)
        chosen["schedule"] = config.schedule
        return loop.train(system, config, folder, show=Progress(quiet=True), stop=stop)

    monkeypatch.setattr(parallel, "compile_step", shared)
    monkeypatch.setattr(training_state, "init_fn", made)
    monkeypatch.setattr(training_plots, "learning_curves", lambda *_: None)
    return fit


def outcome(folder, config, system):
    """What a finished run leaves: its last state, which checkpoint is best, and its metrics."""
    like = jax.eval_shape(training_state.init_fn(system, config))
    step, state = checkpoint.restore(folder, like, warn=pytest.fail)
    return step, prints(state), checkpoint.best(folder), metrics(folder)


def after(calls):
    """A `stop` that turns true when it has been asked `calls` times."""
    count = itertools.count()
    return lambda: next(count) >= calls


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_anywhere_and_continued_ends_with_the_same_bits(tmp_path, fit, eval_first):
    given = line(eval_first=eval_first)
    asked = itertools.count()
    assert fit(tmp_path / "whole", *given, stop=lambda: next(asked) < 0)
    expected = outcome(tmp_path / "whole", *given)
    places = next(asked)
    assert places == 2 * 3 + 2 * (2 + eval_first)
    for place in range(places):
        folder = tmp_path / str(place)
        assert not fit(folder, *given, stop=after(place))
        assert fit(folder, *given)
        assert outcome(folder, *given) == expected, f"stopped at {place} of {places}"


def test_a_rate_that_dropped_is_as_low_after_a_stop_anywhere(tmp_path, fit):
    """At so low a rate the first epoch makes nothing better by a ten-thousandth."""
    given = line(schedule="plateau", lr=1e-6, drop=0.5, drop_patience=1)
    assert fit(tmp_path / "whole", *given)
    expected = outcome(tmp_path / "whole", *given)
    np.testing.assert_allclose([line["lr"] for line in expected[3]], [1e-6, 5e-7, 5e-7])
    for place in range(12):
        folder = tmp_path / str(place)
        assert not fit(folder, *given, stop=after(place))
        assert fit(folder, *given)
        assert outcome(folder, *given) == expected, f"stopped at {place}"


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_again_and_again_ends_with_the_same_bits_on_four_devices(
    tmp_path, fit, eval_first
):
    given = line(eval_first=eval_first, devices=4)
    assert fit(tmp_path / "whole", *given)
    starts = 1
    while not fit(tmp_path / "often", *given, stop=after(3)):
        starts += 1
    assert starts > 3
    assert outcome(tmp_path / "often", *given) == outcome(tmp_path / "whole", *given)


@contextmanager
def dying_at(number):
    """A process that ends at the writing or removing of a file that comes after `number` others."""
    count = itertools.count()

    def alive(*_):
        if next(count) == number:
            raise Killed

    def write(path, text, write=files.write_text):
        alive()
        write(path, text)

    def append(folder, line, append=run_dir.append_metrics):
        append(folder, line)
        alive()

    def remove(folder, **_):
        for path in folder.rglob("*.json"):
            path.unlink()
            alive()
        shutil.rmtree(folder, ignore_errors=True)
        alive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "append_metrics", append)
        patch.setattr(files, "write_text", write)
        patch.setattr(
            checkpoint, "shutil", SimpleNamespace(rmtree=remove, disk_usage=shutil.disk_usage)
        )
        yield


def test_a_run_killed_between_any_two_writes_and_continued_ends_with_the_same_bits(tmp_path, fit):
    given = line()
    fit(tmp_path / "whole", *given)
    expected, deaths = outcome(tmp_path / "whole", *given), 0
    for number in itertools.count():
        folder = tmp_path / str(number)
        fit(folder, *given, stop=after(0))  # saves step 0, which its evaluation will replace
        try:
            with dying_at(number):
                fit(folder, *given)
            break
        except Killed:
            deaths += 1
        assert fit(folder, *given)
        assert outcome(folder, *given) == expected, f"killed at write {number}"
    assert deaths > 8


def test_a_run_killed_anywhere_that_saves_often_ends_with_the_same_bits(tmp_path, fit):
    config, system = line()
    fit(tmp_path / "whole", config, system)
    config = replace(config, save_minutes=0.0)

    def kill(asked):
        if not asked():
            return False
        raise Killed

    for calls in (1, 4, 6):
        with pytest.raises(Killed):
            fit(tmp_path / str(calls), config, system, partial(kill, after(calls)))
        assert fit(tmp_path / str(calls), config, system)
        assert outcome(tmp_path / str(calls), config, system) == outcome(
            tmp_path / "whole", config, system
        )


# From here on: processes of their own, really killed.

WORDS = [*tiny.WORDS, "--ema", "0.9", "--accumulate", "2"]
WORDS[WORDS.index("--epochs") + 1] = "4"


def launch(out, *words):
    """A training as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "jaxdet",
        "train",
        "digits",
        "--out",
        str(out),
        *words,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a process printed, once it has ended well."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def send(process, run, number, *, evaluations):
    """Send a signal to a training some time after its metrics have so many lines."""
    deadline = time.monotonic() + 200
    while len(run_dir.read_metrics(run)) < evaluations:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(number).uniform(0, 0.2))
    process.send_signal(number)


def left(run):
    """The outcome of a run, by its own configuration."""
    config = from_json(Config, run_dir.read_config(run)[1])
    return outcome(run, config, configs.build("digits", config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(run, *WORDS))
    return run


def test_a_run_asked_to_end_asked_again_and_killed_ends_with_the_same_bits(tmp_path, whole):
    run = tmp_path / "run"
    for number, evaluations in ((signal.SIGTERM, 1), (signal.SIGUSR1, 2)):
        process = launch(run, *WORDS, "--resume")
        send(process, run, number, evaluations=evaluations)
        stopped = re.search(r"stopped at step (\d+) of 84", finish(process))
        assert int(stopped[1]) == checkpoint.steps(run)[-1] < 84
    process = launch(run, "--resume")
    send(process, run, signal.SIGKILL, evaluations=3)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finish(launch(run, "--resume"))
    assert left(run) == left(whole)


@pytest.fixture
def call(monkeypatch):
    """The command line in this process, whose environment it leaves as it was."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return lambda *words: cli.main(["train", "digits", *map(str, words)])


def run_files(run):
    """Bytes of all that counts of a run."""
    paths = [run / "config.json", run / "metrics.jsonl", *(run / "checkpoints").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("words", [[], WORDS, ["--epochs", "4"]], ids=["none", "all", "one"])
def test_a_finished_run_is_resumed_by_doing_nothing(whole, call, words, capsys):
    before = run_files(whole)
    assert call("--out", whole, "--resume", *words) == 0
    assert run_files(whole) == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--lr", "0.5"],
        ["--eval-batch", "50"],
        ["--channels", "9"],
        ["--no-eval-first"],
        ["--epochs", "7"],
    ],
    ids=lambda words: words[0],
)
def test_another_flag_than_the_run_was_made_with_is_refused_by_name(whole, call, words, capsys):
    before = run_files(whole)
    assert call("--out", whole, "--resume", *words) == 2
    flag = words[0].replace("--no-", "--")
    assert capsys.readouterr().err.startswith(f"jaxdet: error: {flag} ")
    assert run_files(whole) == before
