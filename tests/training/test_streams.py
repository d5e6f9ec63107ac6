"""Runs that stream their images, while files are damaged or vanish."""

import time
from dataclasses import replace

import numpy as np
import pytest

from jaxdet import runs
from jaxdet.configs import detect
from jaxdet.data.sources import StreamSource, UnreadableError
from jaxdet.errors import InputError
from jaxdet.plots import training as training_plots
from jaxdet.training import checkpoint, evaluator, loop, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.progress import Callback, Progress
from tests.training.test_resume import CONFIG, ROWS, after, line_experiment, outcome

pytest.importorskip("grain")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(training_plots, "learning_curves", lambda *_: None)


class Disk(Callback):
    """Files of which those in `later` cannot be read after the first epoch."""

    def __init__(self, *later):
        self.later, self.unreadable = later, set()
        self.lines, self.waits = [], []

    def on_step(self, event):
        self.waits.append(event.data_wait)

    def on_evaluation(self, event):
        self.lines.append(event.text)
        if event.metrics["epoch"] == 1:
            self.unreadable.update(self.later)


def streamed(disk, left_out=(), **options):
    """The noisy line, two epochs of three steps, whose records are read from a disk.

    One record in seven has a rare class, and is sampled more often.
    """
    experiment = line_experiment(sampling="balanced")
    arrays = experiment.splits["train"].arrays

    def read(number):
        if number in disk.unreadable:
            raise InputError(f"{number}.jpg: no such image")
        return {name: column[number] for name, column in arrays.items()}

    names = [f"{number}.jpg" for number in range(ROWS)]
    sets = [np.array([number % 7 == 0]) for number in range(ROWS)]
    source = StreamSource(read, ROWS, names, label_sets=sets, left_out=left_out, **options)
    return replace(experiment, splits={"train": source, "val": source})


def train(folder, experiment, *callbacks, **options):
    return loop.train(experiment, folder, show=Progress(quiet=True), callbacks=callbacks, **options)


def test_a_run_resumed_after_an_image_has_vanished_gives_the_same_bits(tmp_path, caplog):
    disk = Disk(5)
    whole = streamed(disk)
    for name in ("whole", "halves"):
        runs.create(tmp_path / name, whole).release()
    options = {"compiled": loop.CompiledSteps(whole)}
    assert train(tmp_path / "whole", whole, disk, **options)
    assert caplog.messages == ["5.jpg: no such image; left out"]
    disk.unreadable.clear()
    assert not train(tmp_path / "halves", whole, disk, stop=after(9), **options)
    assert 3 < checkpoint.steps(tmp_path / "halves")[-1] < 6
    # A reader that starts now leaves the image out, which would change the order of the others.
    anew = streamed(disk, left_out=[5])
    assert len(anew.splits["train"]) == ROWS - 1
    kept = runs.with_kept_streams(tmp_path / "halves", anew)
    assert len(kept.splits["train"]) == ROWS
    assert train(tmp_path / "halves", kept, disk, **options)
    assert outcome(tmp_path / "halves", kept) == outcome(tmp_path / "whole", whole)


def test_the_time_that_the_devices_wait_for_data_is_shown_and_recorded(tmp_path):
    disk = Disk()
    read = (experiment := streamed(disk)).splits["train"].read
    experiment.splits["train"].read = lambda number: time.sleep(0.01) or read(number)
    assert train(tmp_path, experiment, disk)
    before, *lines = run_dir.read_metrics(tmp_path)
    assert "data" not in before["time"]
    for line, text in zip(lines, disk.lines[1:], strict=True):
        waited = line["time"]["data"] / line["time"]["train"]
        assert 0 < waited <= 1 and f" | {waited:.0%} waiting for data | " in text
    assert len(disk.waits) == 6 and all(0 < fraction <= 1 for fraction in disk.waits)


def test_with_on_invalid_error_the_run_is_saved_before_it_ends(tmp_path):
    disk = Disk(5)
    experiment = streamed(disk, on_invalid="error")
    options = {"compiled": loop.CompiledSteps(experiment)}
    with pytest.raises(UnreadableError, match=r"^5\.jpg: no such image; .* is saved in ") as error:
        train(tmp_path, experiment, disk, **options)
    assert f" step {checkpoint.steps(tmp_path)[-1]} is saved" in str(error.value)
    disk.unreadable.clear()
    assert train(tmp_path, experiment, **options)
    assert checkpoint.steps(tmp_path)[-1] == 6


def test_images_must_be_those_that_the_run_began_with(tmp_path):
    experiment = streamed(Disk())
    runs.create(tmp_path / "run", experiment).release()
    source = experiment.splits["train"]
    fewer = StreamSource(source.read, ROWS - 1, source.every_name[1:])
    with pytest.raises(InputError, match=r"0\.jpg is missing \(1 missing, 0 new\); restore"):
        runs.with_kept_streams(tmp_path / "run", replace(experiment, splits={"train": fewer}))
    turned = StreamSource(source.read, ROWS, source.every_name[::-1])
    with pytest.raises(InputError, match=r"images of train have changed .*: their order differs;"):
        runs.with_kept_streams(tmp_path / "run", replace(experiment, splits={"train": turned}))
    memory = line_experiment()
    assert runs.with_kept_streams(tmp_path / "run", memory).splits == memory.splits
    (tmp_path / "run" / run_dir.STREAMS).write_text("{")
    with pytest.raises(InputError, match="streams.json is damaged"):
        runs.with_kept_streams(tmp_path / "run", experiment)


def test_only_a_streamed_run_may_change_options_of_reading_when_it_is_resumed():
    kept = detect.Config(stream=True, on_invalid="error")
    changed = replace(kept, on_invalid="skip", steps_per_call=3, image_cache="/new")
    runs.check_same("run", kept, changed)
    options = {"steps_per_call": 0, "on_invalid": "error", "image_cache": ""}
    assert runs.changeable(kept) == options
    kept = replace(kept, stream=False)
    with pytest.raises(InputError, match="--on-invalid must be error to resume .*, got skip"):
        runs.check_same("run", kept, replace(kept, on_invalid="skip"))
    assert runs.changeable(CONFIG) == {"steps_per_call": 0}


def test_an_evaluation_leaves_unreadable_images_out_of_its_means():
    disk = Disk()
    experiment = streamed(disk)
    variables = training_state.variables_of(training_state.init_fn(experiment)())
    disk.unreadable.update([3, ROWS - 1])
    losses, rows = evaluator.Evaluator(experiment, "val").measure(variables, 0)
    left = np.delete(np.arange(ROWS), [3, ROWS - 1])
    held = replace(experiment, splits={"val": line_experiment().splits["train"].take(left)})
    expected, expected_rows = evaluator.Evaluator(held, "val").measure(variables, 0)
    assert losses["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    np.testing.assert_array_equal(rows["error"], expected_rows["error"])
