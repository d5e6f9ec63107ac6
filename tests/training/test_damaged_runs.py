"""Every kind of damage to the files of a run is named in one line, and never passes in silence."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet import runs
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, run_dir
from jaxdet.training import state as training_state
from tests.test_golden_runs import GOLDENS

GOLDEN = GOLDENS / "schema2" / "digits"
FIRST, LAST = checkpoint.steps(GOLDEN)  # the second one is the best
MANIFEST = f"checkpoints/{LAST}/manifest.json"
OBJECTS = ("config.json", "environment.json", "seconds.json", MANIFEST)


@pytest.fixture
def run(tmp_path):
    """A copy of a golden run that a test may damage."""
    return shutil.copytree(GOLDEN, tmp_path / "run")


@pytest.fixture(scope="module")
def like():
    """The shapes of the variables of the run."""
    experiment = runs.without_data(GOLDEN, runs.read_config(GOLDEN))
    state = jax.eval_shape(training_state.init_fn(experiment))
    return training_state.join_variables(state.params, state.stats)


def read(run, like):
    """(step, lines) of reading everything that commands read of a run: lines warn, or refuse.

    The step is that of the restored checkpoint, None where none is.
    """
    lines, step = [], None
    for part in (
        runs.read_config,
        run_dir.read_metrics,
        run_dir.read_environment,
        run_dir.read_seconds,
        partial(checkpoint.restore_variables, like=like, which="best", warn=lines.append),
    ):
        try:
            found = part(run)
        except InputError as error:
            lines.append(str(error))
        else:
            step = found[0] if part.__class__ is partial else step
    if lost := checkpoint.count_lost_metrics(run):
        lines.append(f"metrics.jsonl has lost {lost} lines")
    return step, list(dict.fromkeys(lines))


def check_named(run, like, name, step=LAST):
    """The damage is told in one line that names the file, and the checkpoint `step` is used."""
    found, lines = read(run, like)
    assert found == step
    assert lines and all("\n" not in line and len(line) < 600 for line in lines)
    assert any(name in line for line in lines), lines


def test_an_undamaged_run_is_read_without_a_word(run, like):
    assert read(run, like) == (LAST, [])


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


CONTENTS = {
    "empty": b"",
    "cut": b'{"schema": 2, "sys',
    "binary": bytes(range(256)),
    "NUL": b"\0" * 100,
    "UTF-16": '{"step": 1}'.encode("utf-16"),
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
    "twice": b"{} {}",
}
PLACES = {"FIFO": fifo, "folder": folder, "device": device}


@pytest.mark.parametrize("content", [*CONTENTS, *PLACES])
@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_with_something_else_in_it(run, like, name, content):
    path = run / name
    if content in PLACES:
        PLACES[content](path)
    else:
        path.write_bytes(CONTENTS[content])
    step = FIRST if name == MANIFEST else LAST
    check_named(run, like, name if name != MANIFEST else "manifest.json", step)


def entries():
    """(file, path of an entry) of the entries that the reader knows of."""
    yield from (("config.json", path) for path in ("schema", "system", "config", "metadata"))
    yield from (("config.json", f"metadata/{key}") for key in ("classes", "input", "record"))
    yield from (("environment.json", key) for key in ("packages", "devices", "flags"))
    yield "seconds.json", "used"
    yield from ((MANIFEST, key) for key in ("step", "arrays", "sha256", "metrics_lines"))


VALUES = {"null": None, "list": [1, [2]], "text": "a", "number": 1.5, "object": {"a": {}}}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name, entry", [*entries()])
def test_an_entry_of_another_type(run, like, name, entry, value):
    path = run / name
    content = json.loads(path.read_text())
    *parents, key = entry.split("/")
    place = content
    for parent in parents:
        place = place[parent]
    if value in ("text", "number") and type(place[key]) is type(VALUES[value]):
        pytest.skip("of its type")
    place[key] = VALUES[value]
    path.write_text(json.dumps(content))
    if name == MANIFEST:
        check_named(run, like, "manifest.json", FIRST)
    else:
        check_named(run, like, name)


@pytest.mark.parametrize("key", ["step", "epoch", "train", "val", "time"])
@pytest.mark.parametrize("value", [*VALUES, "absent"])
def test_an_entry_of_the_metrics_of_another_type(run, like, key, value):
    path = run / "metrics.jsonl"
    first, *lines = path.read_text().splitlines()
    line = json.loads(lines[0])
    if (key, value) == ("train", "null"):
        pytest.skip("of its type")
    line = {k: v for k, v in line.items() if k != key}
    if value != "absent":
        line = {key: VALUES[value], **line}
    path.write_text("\n".join([first, json.dumps(line), *lines[1:], ""]))
    check_named(run, like, "metrics.jsonl, line 2")


METRICS = {
    "a line lost": lambda lines: lines[1:],
    "all lines lost": lambda lines: [],
    "a line doubled": lambda lines: [*lines, lines[-1]],
    "lines swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a line cut": lambda lines: [lines[0], lines[1][:40], *lines[2:]],
    "an empty line": lambda lines: [lines[0], "", *lines[1:]],
    "deep": lambda lines: [*lines, "[" * 100_000],
}


@pytest.mark.parametrize("damage", METRICS)
def test_metrics_that_are_not_those_that_were_written(run, like, damage):
    path = run / "metrics.jsonl"
    lines = METRICS[damage](path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))
    check_named(run, like, "metrics.jsonl")


OPTIONS = {
    "mask_loss_by": "everything",
    "schedule": "sometimes",
    "best": "worst",
    "lr": "high",
    "epochs": 2.5,
    "batch": True,
    "channels": [1.5],
    "scale": [1],
    "layout": None,
    "seed": 2**70,
    "unknown": 1,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_the_run_cannot_have(run, like, name):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"][name] = OPTIONS[name]
    path.write_text(json.dumps(content))
    lines = read(run, like)[1]
    assert any(name in line or f"--{name.replace('_', '-')}" in line for line in lines), lines
    assert any(
        "has changed since the checkpoints of the run were written" in line for line in lines
    )


@pytest.mark.parametrize(
    "entry, value",
    [("classes", [str(n) for n in range(9)]), ("record", {"image": ["float32", [-1]]})],
)
def test_metadata_that_do_not_fit(run, like, entry, value):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["metadata"][entry] = value
    path.write_text(json.dumps(content))
    check_named(run, like, "config.json")


def swap(run):
    root = run / "checkpoints"
    (root / str(FIRST)).rename(root / "swapped")
    (root / str(LAST)).rename(root / str(FIRST))
    (root / "swapped").rename(root / str(LAST))


def test_checkpoints_that_are_swapped_are_both_refused(run, like):
    swap(run)
    step, lines = read(run, like)
    assert step is None
    assert [f"it belongs to step {LAST}" in line for line in lines].count(True) == 1
    assert [f"it belongs to step {FIRST}" in line for line in lines].count(True) == 1
    assert "no undamaged checkpoint" in lines[-1]


def test_a_checkpoint_of_another_step_is_passed_over(run, like):
    (run / "checkpoints" / str(LAST)).rename(run / "checkpoints" / str(LAST + 1))
    check_named(run, like, f"it belongs to step {LAST}", FIRST)


def test_a_checkpoint_of_another_run_is_passed_over(run, like, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "config.json").read_text())
    content["config"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(content))
    path = other / MANIFEST
    manifest = json.loads(path.read_text()) | {"config_sha256": run_dir.config_digest(other)}
    path.write_text(json.dumps(manifest))
    shutil.rmtree(run / "checkpoints" / str(LAST))
    shutil.copytree(path.parent, run / "checkpoints" / str(LAST))
    check_named(run, like, "it belongs to another run", FIRST)


def test_data_that_have_moved_are_no_damage(run, like):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"]["root"] = "/elsewhere"
    path.write_text(json.dumps(content, sort_keys=True))
    assert read(run, like) == (LAST, [])


def test_a_run_whose_configuration_has_changed_is_not_resumed(run, like):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"]["lr"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cannot be resumed: its config\.json has changed"):
        checkpoint.restore(run, like)


def test_manifests_of_earlier_versions_lack_step_configuration_and_metrics(run, like):
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        for key in ("step", "config_sha256", "metrics_lines"):
            del manifest[key]
        path.write_text(json.dumps(manifest))
    assert read(run, like) == (LAST, [])


def test_symbolic_links_to_checkpoints_are_followed(run, like, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    step = tmp_path / "elsewhere" / str(LAST)
    step.rename(tmp_path / "far")
    step.symlink_to(tmp_path / "far")
    assert read(run, like) == (LAST, [])
    state = {"x": np.zeros(1)}
    for number in (LAST, LAST + 1, LAST + 2):
        checkpoint.save(run, number, state, score=(2.0, 0.0))
    assert checkpoint.steps(run) == [LAST, LAST + 1, LAST + 2]
    assert (tmp_path / "far" / "manifest.json").is_file()  # what was linked is not ours to remove


def test_a_link_to_nothing_is_a_damaged_checkpoint(run, like):
    (run / "checkpoints" / str(LAST + 1)).symlink_to(run / "nothing")
    check_named(run, like, f"checkpoints/{LAST + 1} is damaged", LAST)


def test_files_beside_the_checkpoints_are_ignored(run, like):
    for name in ("5", str(LAST + 9), "05", "²", "notes.txt"):
        (run / "checkpoints" / name).write_text("mine")
    assert checkpoint.steps(run) == [FIRST, LAST]
    assert read(run, like) == (LAST, [])
    checkpoint.save(run, LAST + 9, {"x": np.zeros(1)}, score=(0.0, 0.0))
    assert (run / "checkpoints" / f"{LAST + 9}.other").read_text() == "mine"
    assert Path(run / "checkpoints" / "5").read_text() == "mine"
