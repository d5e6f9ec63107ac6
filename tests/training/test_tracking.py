"""Callbacks that follow a run: scalars for TensorBoard equal `metrics.jsonl`, and profiles."""

import json

import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.training import run_dir, tracking
from jaxdet.training.progress import EvaluationEvent, StepEvent
from tests import tiny

LINE = {"step": 0, "epoch": 0, "lr": 0.5, "train": None, "time": {"train": 1.5, "eval": 2}}
LINE |= {"val": {"loss": 1 / 3, "labels": {"a b": {"map": -1}}, "confusion": [[1]], "name": "x"}}


def test_every_number_but_the_step_is_a_scalar():
    assert dict(tracking.scalars(LINE)) == {
        **{"epoch": 0, "lr": 0.5, "time/train": 1.5, "time/eval": 2},
        **{"val/loss": 1 / 3, "val/labels/a b/map": -1},
    }


def read_events(folder):
    """{tag: {step: value}}, with the steps discarded that TensorBoard's reader discards."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    found = {}
    for path in sorted(folder.glob("events.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            data = content[place + 12 : place + 12 + size]
            crc = int.from_bytes(content[place + 12 + size : place + 16 + size], "little")
            assert crc == masked_crc32c(data)
            place += 16 + size
            event = event_pb2.Event.FromString(data)
            if event.session_log.status == event_pb2.SessionLog.START:
                for values in found.values():  # as TensorBoard's reader discards them
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.mark.long  # tensorboardX imports torch where it is installed
def test_scalars_equal_metrics_after_an_interrupted_and_resumed_run(tmp_path):
    pytest.importorskip("tensorboardX")
    board = tracking.TensorBoard(tmp_path)
    lines = [LINE | {"step": step, "lr": 0.1 * step} for step in (0, 4, 8)]
    for line in lines:
        board.on_evaluation(EvaluationEvent(line, False, ""))
    board.close()
    lines[2:] = [LINE | {"step": 8, "lr": 7.0}, LINE | {"step": 12, "lr": 9.0}]
    resumed = tracking.TensorBoard(tmp_path)
    for line in lines[2:]:
        resumed.on_evaluation(EvaluationEvent(line, False, ""))
    resumed.close()
    found = read_events(tmp_path / tracking.TENSORBOARD)
    assert found["lr"] == {line["step"]: np.float32(line["lr"]) for line in lines}
    assert found["val/loss"] == dict.fromkeys((0, 4, 8, 12), np.float32(1 / 3))


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"--track tensorboard: needs tensorboardX \(pip install"):
        tracking.TensorBoard(tmp_path)


@pytest.mark.long
def test_training_is_followed_and_profiled(tmp_path):
    pytest.importorskip("tensorboardX")
    from tests.cli.test_main import main

    words = ("train", "digits", *tiny.WORDS, "--out", tmp_path / "run", "--quiet")
    assert main(*words, "--track", "tensorboard", "--profile", "1") == 0
    found = read_events(tmp_path / "run" / tracking.TENSORBOARD)
    for line in run_dir.read_metrics(tmp_path / "run"):
        for tag, value in tracking.scalars(json.loads(json.dumps(line))):
            assert found[tag][line["step"]] == np.float32(value)
    assert [*(tmp_path / "run" / tracking.PROFILE).rglob("*.xplane.pb")]


def test_a_profile_covers_the_given_number_of_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tracking.jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(tracking.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = tracking.Profile(tmp_path, 3)
    for step in range(1, 9):
        calls.append(step)
        profile.on_step(StepEvent(step, 1, 1, 1, dict))
    profile.close()
    assert calls == [1, 2, "start", 3, 4, 5, "stop", 6, 7, 8]
