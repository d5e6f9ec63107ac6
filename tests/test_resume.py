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
import pytest

from jaxdet import checkpoint, cli, configs, parallel, plots, runs, train
from jaxdet import fit as loop
from jaxdet.configs import base
from jaxdet.configs.digits import Config
from jaxdet.progress import Progress
from tests import tiny

# Two epochs of three steps, accumulated by twos, with moving averages; evaluations of two batches.
SMALL = {"rows": 40, "eval_batch": 20, "ema": 0.9, "accumulate": 2}


class Killed(BaseException):
    """What a test raises in place of SIGKILL: nobody catches it."""


def metrics(run):
    """Lines of metrics.jsonl but for the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in runs.read_metrics(run)]


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
    compiled, maker = parallel.compiled, train.maker

    def shared(step, among, **kwargs):
        return programs.setdefault((step.func, len(among)), compiled(step, among, **kwargs))

    def fit(folder, config, system, stop=lambda: False):
        folder.mkdir(exist_ok=True)
        return loop.fit(system, config, folder, show=Progress(quiet=True), stop=stop)

    monkeypatch.setattr(parallel, "compiled", shared)
    monkeypatch.setattr(train, "maker", lambda *given: programs.setdefault("maker", maker(*given)))
    monkeypatch.setattr(plots, "convergence", lambda *_: None)
    return fit


def outcome(folder, config, system):
    """What a finished run leaves: its last state, which checkpoint is best, and its metrics."""
    like = jax.eval_shape(train.maker(system, config))
    step, state = checkpoint.restore(folder, like, warn=pytest.fail)
    return step, prints(state), checkpoint.best(folder), metrics(folder)


def after(calls):
    """A `stop` that turns true when it has been asked `calls` times."""
    count = itertools.count()
    return lambda: next(count) >= calls


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_anywhere_and_continued_ends_with_the_same_bits(tmp_path, fit, eval_first):
    given = tiny.system(**SMALL, eval_first=eval_first)
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


@pytest.mark.parametrize("eval_first", [True, False])
def test_a_run_stopped_again_and_again_ends_with_the_same_bits_on_four_devices(
    tmp_path, fit, eval_first
):
    given = tiny.system(**SMALL, eval_first=eval_first, devices=4)
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

    def write(path, text, write=runs.write_text):
        alive()
        write(path, text)

    def append(folder, line, append=runs.append_metrics):
        append(folder, line)
        alive()

    def remove(folder, **_):
        for path in folder.rglob("*.json"):
            path.unlink()
            alive()
        shutil.rmtree(folder, ignore_errors=True)
        alive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "append_metrics", append)
        patch.setattr(runs, "write_text", write)
        patch.setattr(
            checkpoint, "shutil", SimpleNamespace(rmtree=remove, disk_usage=shutil.disk_usage)
        )
        yield


def test_a_run_killed_between_any_two_writes_and_continued_ends_with_the_same_bits(tmp_path, fit):
    given = tiny.system(**SMALL)
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
    config, system = tiny.system(**SMALL)
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
WORDS[WORDS.index("--epochs") + 1] = "6"


def launch(out, *words):
    """A training as a process of its own."""
    command = [sys.executable, "-m", "jaxdet.cli", "train", "digits", "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a process printed, once it has ended well."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def send(process, run, number, *, evaluations):
    """Send a signal to a training some time after its metrics have so many lines."""
    deadline = time.monotonic() + 200
    while len(runs.read_metrics(run)) < evaluations:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(number).uniform(0, 0.2))
    process.send_signal(number)


def left(run):
    """The outcome of a run, by its own configuration."""
    config = base.from_json(Config, runs.read_config(run)[1])
    return outcome(run, config, configs.build("digits", config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(run, *WORDS))
    return run


def test_a_run_asked_to_end_asked_again_and_killed_ends_with_the_same_bits(tmp_path, whole):
    run = tmp_path / "run"
    for number, evaluations in ((signal.SIGTERM, 2), (signal.SIGUSR1, 3)):
        process = launch(run, *WORDS, "--resume")
        send(process, run, number, evaluations=evaluations)
        stopped = re.search(r"stopped at step (\d+) of 126", finish(process))
        assert int(stopped[1]) == checkpoint.steps(run)[-1] < 126
    process = launch(run, "--resume")
    send(process, run, signal.SIGKILL, evaluations=4)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finish(launch(run, "--resume"))
    assert left(run) == left(whole)


@pytest.fixture
def call(monkeypatch):
    """The command line in this process, whose environment it leaves as it was."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return lambda *words: cli.main(["train", "digits", *map(str, words)])


def files(run):
    """Bytes of all that counts of a run."""
    paths = [run / "config.json", run / "metrics.jsonl", *(run / "checkpoints").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("words", [[], WORDS, ["--epochs", "6"]], ids=["none", "all", "one"])
def test_a_finished_run_is_resumed_by_doing_nothing(whole, call, words, capsys):
    before = files(whole)
    assert call("--out", whole, "--resume", *words) == 0
    assert files(whole) == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--lr", "0.5"],
        ["--eval-batch", "50"],
        ["--widths", "9"],
        ["--no-eval-first"],
        ["--epochs", "7"],
    ],
    ids=lambda words: words[0],
)
def test_another_flag_than_the_run_was_made_with_is_refused_by_name(whole, call, words, capsys):
    before = files(whole)
    assert call("--out", whole, "--resume", *words) == 2
    flag = words[0].replace("--no-", "--")
    assert capsys.readouterr().err.startswith(f"jaxdet: error: {flag} ")
    assert files(whole) == before
