from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

import jaxdet
from jaxdet.cli.main import main
from jaxdet.errors import DeviceMemoryError
from jaxdet.plots import training as training_plots
from jaxdet.training import auto_batch, loop, memory, parallel, run_dir
from jaxdet.training.progress import Progress
from tests.training.test_memory import fail
from tests.training.test_resume import ROWS, line_experiment


@pytest.mark.parametrize(
    "measure, limit, most, expected",
    [
        (lambda n: 100 + 7 * n, 450, 1000, 50),
        (lambda n: 100 + 7 * n, 106, 1000, 0),
        (lambda n: 100 + 7 * n, 107, 1000, 1),
        (lambda n: 100 + 7 * n, 115, 1000, 2),
        (lambda n: 100 + 7 * n, 10**6, 60, 60),
        (lambda n: 5, 10, 60, 60),
        (lambda n: 100 + 7 * n + 30 * (n > 20), 450, 1000, 45),
    ],
)
def test_the_largest_number_that_fits_is_found_with_few_calls(measure, limit, most, expected):
    calls = []
    found = auto_batch.largest_fitting(lambda n: calls.append(n) or measure(n), limit, most)
    assert found == expected and len(calls) <= auto_batch.MAX_COMPILATIONS
    assert len(set(calls)) == len(calls) and (not found or found in calls)


def test_a_number_that_fits_is_found_even_if_memory_does_not_grow_linearly():
    found = auto_batch.largest_fitting(lambda n: n**2, 5000, 1000)
    assert 50 <= found <= 70


@pytest.fixture(scope="module")
def experiment():
    return line_experiment(devices=2)


def test_larger_batches_need_more_memory(experiment):
    small, large = (auto_batch.step_bytes(experiment, batch) for batch in (2, 200))
    assert 0 < small < large - 198 * 3 * 4  # the rows alone


def test_the_batch_is_a_multiple_of_the_devices_and_said(experiment, monkeypatch):
    monkeypatch.setattr(auto_batch, "step_bytes", lambda _, images: 1000 + 100 * images)
    lines = []
    assert auto_batch.largest_batch(experiment, 1900, lines.append) == 18  # 9 on each device
    (line,) = lines
    assert line.startswith("--batch 18: a step needs 1.9e-06 GB of memory per device, and 1.9e-06")
    groups = replace(experiment, config=SimpleNamespace(samples_per_class=4, devices=2, batch=4))
    groups.__dict__["devices"] = experiment.devices
    assert auto_batch.largest_batch(groups, 1900) == 16
    assert auto_batch.largest_batch(experiment, 10**9) == ROWS  # no more than there are images
    with pytest.raises(
        DeviceMemoryError, match="no batch fits: with --batch 2, a step needs 1.1e-"
    ):
        auto_batch.largest_batch(experiment, 1000)


def test_memory_of_devices(monkeypatch, tmp_path):
    gpu = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 7})
    assert auto_batch.device_memory([gpu]) == 7
    own = parallel.local_devices(2)
    monkeypatch.setattr(auto_batch, "_free_memory", lambda: 100.0)
    monkeypatch.setattr(auto_batch, "_control_group", lambda: 60.0)
    assert auto_batch.device_memory(own) == 30
    monkeypatch.undo()
    assert 2**26 < auto_batch._free_memory() < 2**46
    assert auto_batch._control_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("40\n")
    assert auto_batch._control_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("100\n")
    assert auto_batch._control_group(tmp_path) == 60


def test_a_training_takes_the_batch_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(training_plots, "learning_curves", lambda *_: None)
    monkeypatch.setattr(auto_batch, "step_bytes", lambda _, images: 10**6 * images)
    run = jaxdet.train(line_experiment(), tmp_path, auto_batch=True, memory=0.0101)
    assert run.config.batch == run_dir.read_config(tmp_path).config["batch"] == 10
    assert run.step == 2 * ROWS / 10


def test_an_out_of_memory_error_names_the_batch_that_would_fit(experiment, tmp_path, monkeypatch):
    def message(fitting):
        with (
            pytest.raises(DeviceMemoryError) as error,
            memory.explained(experiment.config, "batch", fitting),
        ):
            fail()
        return str(error.value)

    assert "at --batch 16 " in (text := message(lambda: 4))
    assert "lower --batch (--batch 4 would fit); use --accumulate" in text
    for found in (lambda: 16, fail):  # what does not fit is no advice
        assert "lower --batch; use --accumulate" in message(found)
    monkeypatch.setattr(auto_batch, "step_bytes", lambda _, images: 10**6 * images)
    monkeypatch.setattr(auto_batch, "device_memory", lambda devices: 10**7 / 0.9 / 2)
    monkeypatch.setattr(loop.CompiledSteps, "__init__", fail)
    with pytest.raises(DeviceMemoryError, match=r"--batch 10 would fit"):
        loop.train(experiment, tmp_path, show=Progress(quiet=True))


@pytest.mark.parametrize(
    "words, message",
    [
        (["2"], "--memory limits --auto-batch; add --auto-batch or leave it out"),
        (["-1", "--auto-batch"], "--memory must be at least 0, got -1"),
    ],
)
def test_a_limit_is_positive_and_needs_auto_batch(tmp_path, capsys, words, message):
    assert main(["train", "digits", "--out", str(tmp_path / "run"), "--memory", *words]) == 2
    assert message in capsys.readouterr().err
    assert jax.local_device_count() > 1  # the tests above use two devices
