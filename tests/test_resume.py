import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdet import checkpoint, cli, parallel, plots, runs, train
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
def fit():
    """`train.fit` whose runs share compiled programs, which a process of its own makes anew."""
    compiled, maker, steps, makers = parallel.compiled, train.maker, {}, []

    def shared(step, among, **kwargs):
        return steps.setdefault((step.func, len(among)), compiled(step, among, **kwargs))

    def same(*args):
        makers[:] = makers or [maker(*args)]
        return makers[0]

    def fit(folder, config, system, stop=lambda: False):
        folder.mkdir(exist_ok=True)
        return train.fit(system, config, folder, show=Progress(quiet=True), stop=stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "compiled", shared)
        patch.setattr(train, "maker", same)
        patch.setattr(plots, "convergence", lambda *_: None)
        yield fit


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


@pytest.fixture
def die(monkeypatch):
    """die(n): from now on the n-th writing or removing of a file is the last thing that happens."""

    def arm(number):
        count = itertools.count()

        def mortal(function):
            def then_die(*args, **kwargs):
                function(*args, **kwargs)
                if next(count) == number:
                    raise Killed

            return then_die

        def remove(folder, **_):
            """Half of a folder, and only then the rest."""
            for path in list(folder.rglob("*.json")):
                mortal(Path.unlink)(path)
            mortal(shutil.rmtree)(folder, ignore_errors=True)

        monkeypatch.setattr(runs, "append_metrics", mortal(originals["append_metrics"]))
        monkeypatch.setattr(runs, "write_text", mortal(originals["write_text"]))
        monkeypatch.setattr(checkpoint, "shutil", SimpleNamespace(rmtree=remove))

    originals = {name: getattr(runs, name) for name in ("append_metrics", "write_text")}
    yield arm
