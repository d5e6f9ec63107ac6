"""Calls of several steps give the bits of single steps, and end where an evaluation is due."""

import time
from dataclasses import replace

import numpy as np
import pytest

from jaxdet import runs
from jaxdet.data.sources import StreamSource
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, loop, sweep
from jaxdet.training.progress import Callback, Progress
from tests.training.test_resume import CONFIG, after, line_experiment, outcome
from tests.training.test_sweep import CONFIG as SWEPT
from tests.training.test_sweep import QUIET
from tests.training.test_sweep import line_experiment as swept_experiment

BATCH = CONFIG.batch  # two epochs of three steps


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(training_plots, "learning_curves", lambda *_: None)


class Calls(Callback):
    """Records the step and the number of images of every call."""

    def __init__(self):
        self.seen = []

    def on_step(self, event):
        self.seen.append((event.step, event.images))


def streamed(experiment):
    """The experiment with a training set that is read record by record."""
    train = experiment.splits["train"]
    source = StreamSource(lambda i: {k: v[i] for k, v in train.arrays.items()}, len(train))
    return replace(experiment, splits={**experiment.splits, "train": source})


def train(folder, experiment, *callbacks, stop=lambda: False, looped=False):
    """`loop.train`; `looped` takes the steps of a call in one program, as on a GPU."""
    folder.mkdir(exist_ok=True)
    compiled = loop.CompiledSteps(experiment)
    assert not compiled.looped
    compiled.looped = looped
    named = {"callbacks": callbacks, "stop": stop, "compiled": compiled}
    return loop.train(experiment, folder, show=Progress(quiet=True), **named)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Outcomes of runs of single steps, by number of devices."""
    folder, found = tmp_path_factory.mktemp("single"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_plots, "learning_curves", lambda *_: None)
        for devices in (1, 4):
            experiment = line_experiment(devices=devices)
            train(folder / str(devices), experiment)
            found[devices] = outcome(folder / str(devices), experiment)
    return found


@pytest.mark.parametrize(
    "count, devices, looped, ends",
    [
        (2, 1, False, [2, 3, 5, 6]),
        (2, 1, True, [2, 3, 5, 6]),
        (50, 1, True, [3, 6]),
        (2, 4, True, [2, 3, 5, 6]),
    ],
)
def test_a_run_equals_that_of_single_steps_bit_for_bit(
    tmp_path, single, count, devices, looped, ends
):
    experiment, calls = line_experiment(steps_per_call=count, devices=devices), Calls()
    assert train(tmp_path / "run", experiment, calls, looped=looped)
    assert outcome(tmp_path / "run", experiment) == single[devices]
    images = np.diff([0, *ends]) * BATCH
    assert calls.seen == [*zip(ends, images, strict=True)]
    assert checkpoint.steps(tmp_path / "run")[-2:] == [3, 6]


def test_batches_of_a_stream_are_stacked(tmp_path, single):
    experiment = streamed(line_experiment(steps_per_call=2))
    assert train(tmp_path / "run", experiment, looped=True)
    assert outcome(tmp_path / "run", experiment) == single[1]


def test_a_run_stopped_between_any_two_calls_and_resumed_gives_the_same_bits(tmp_path, single):
    experiment = line_experiment(steps_per_call=2)
    compiled = loop.CompiledSteps(experiment)
    for number in (1, 4, 6):
        folder = tmp_path / str(number)
        folder.mkdir()
        for stop in (after(number), lambda: False):
            complete = loop.train(experiment, folder, show=QUIET, stop=stop, compiled=compiled)
        assert complete and outcome(folder, experiment) == single[1]


def test_a_run_is_resumed_with_another_number_of_steps_per_call(tmp_path, single):
    assert not train(tmp_path, line_experiment(), stop=after(4))  # within the first epoch
    several = line_experiment(steps_per_call=2)
    runs.check_same(tmp_path, CONFIG, several.config)
    assert train(tmp_path, several, looped=True)
    assert outcome(tmp_path, several) == single[1]


def test_runs_in_one_program_take_several_steps_per_call(tmp_path):
    found = {}
    for count in (1, 3):
        configs = [replace(SWEPT, steps_per_call=count, lr=lr) for lr in (1e-2, 3e-2)]
        folders = [tmp_path / f"{count}" / str(i) for i in range(2)]
        for folder in folders:
            folder.mkdir(parents=True)
        experiment = swept_experiment()
        together = sweep.VmappedRuns(experiment, configs, folders, QUIET, lambda: False)
        together.compiled.looped = count > 1
        assert together.compiled.steps_per_call == count and together.run(together=True)
        alone = [sweep.with_config(experiment, config) for config in configs]
        found[count] = [outcome(*pair) for pair in zip(folders, alone, strict=True)]
    assert found[1] == found[3]


def test_calls_of_any_number_of_steps_are_one_program():
    """So their bits are equal on every device."""
    compiled = loop.CompiledSteps(line_experiment())
    rows = np.arange(BATCH, dtype=np.int32)
    stacked = [compiled.stack([rows + i for i in range(count)]) for count in (1, 2, 64)]
    assert [count for count, _ in stacked] == [1, 2, 64]
    assert {(columns.shape, columns.dtype) for _, columns in stacked} == {((BATCH, 64), rows.dtype)}
    np.testing.assert_array_equal(stacked[1][1][:, :2], np.stack([rows, rows + 1], 1))


def test_the_number_is_one_on_a_cpu_and_elsewhere_a_call_takes_fifty_milliseconds(monkeypatch):
    compiled = loop.CompiledSteps(line_experiment())
    assert compiled.steps_per_call == 1
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def call(seconds):
        now[0] += seconds
        return np.zeros(())

    for seconds, expected in ((0.003, 17), (0.06, 1)):
        compiled.steps_per_call = compiled.timed_calls = 0  # as on a GPU
        compiled.timed(lambda: call(9.0))
        assert compiled.steps_per_call == 0
        assert [len(group) for group in compiled.by_call([1, 2])] == [1, 1]
        compiled.timed(lambda seconds=seconds: call(seconds))
        assert compiled.steps_per_call == expected
    compiled.steps_per_call = 2
    assert [*compiled.by_call([1, 2, 3])] == [[1, 2], [3]]
