import json
import resource
from contextlib import contextmanager

import jax
import pytest

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.training import run_dir

LINES = [{"step": step, "val": {"loss": 1 / (step + 3)}} for step in (0, 5, 10, 15)]


def contents(folder):
    """Name and bytes of every file below a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "one"
    run_dir.create(folder)
    run_dir.write_config(folder, "digits", {"epochs": 3, "channels": [8, 16]}, {"classes": ["0"]})
    return folder


@contextmanager
def full_disk():
    """Limit files to 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_missing_or_empty_folder_is_vacant(tmp_path, overwrite):
    run_dir.check_vacant(tmp_path / "missing", overwrite=overwrite)
    run_dir.check_vacant(tmp_path, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_run_killed_before_its_configuration_was_written_is_vacant(tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    run_dir.check_vacant(tmp_path)


def test_a_run_is_replaced_with_overwrite_only(run):
    before = contents(run)
    with pytest.raises(InputError, match="--resume.*--overwrite.*--out"):
        run_dir.check_vacant(run)
    run_dir.check_vacant(run, overwrite=True)
    assert contents(run) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_anything_but_a_run_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("all of it")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match=str(place)):
            run_dir.check_vacant(place, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"all of it"}


def test_create_empties_the_folder(run):
    (run / "checkpoints" / "7").mkdir(parents=True)
    for _ in range(2):
        run_dir.create(run)
        assert list(run.iterdir()) == []


def test_a_text_replaces_the_previous_one(tmp_path):
    path = tmp_path / "file"
    for text in ("a long text\n" * 99, "short\n", ""):
        files.write_text(path, text)
        assert contents(tmp_path) == {"file": text.encode()}


def test_a_kill_while_writing_leaves_the_previous_text(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_dir.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            files.write_text(path, "new")
    assert path.read_text() == "old"
    files.write_text(path, "newer")
    assert contents(tmp_path) == {"file": b"newer"}


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_previous_text(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(OSError, match=str(path)), full_disk():
        files.write_text(path, "new" * 99)
    assert path.read_text() == "old"


def test_metrics_on_a_full_disk_are_an_error_that_names_the_file(run):
    with pytest.raises(OSError, match=str(run / "metrics.jsonl")), full_disk():
        for line in LINES:
            run_dir.append_metrics(run, line)


def test_a_configuration_is_read_as_written(run):
    config = {"epochs": 3, "channels": [8, 16]}
    assert run_dir.read_config(run) == ("digits", config, {"classes": ["0"]})


def test_the_configuration_file_holds_schema_and_metadata(run):
    kept = json.loads((run / "config.json").read_text())
    assert kept["schema"] == run_dir.SCHEMA
    assert kept["metadata"] == {"classes": ["0"]}


@pytest.mark.parametrize("schema", [0, run_dir.SCHEMA + 1])
def test_an_unknown_schema_is_refused_with_both_numbers(run, schema):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
    with pytest.raises(InputError, match=f"schema {schema};.* reads schemas 1 to {run_dir.SCHEMA}"):
        run_dir.read_config(run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"schema": 1, "system": "digits"}',
        '{"schema": 1, "system": "digits", "config": 3}',
        '{"schema": 2, "system": "digits", "config": {}, "metadata": 3}',
    ],
)
def test_a_damaged_configuration_is_refused_in_one_line(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(InputError, match=str(run / "config.json")) as caught:
        run_dir.read_config(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [".", "missing"])
def test_a_folder_without_configuration_is_not_a_run(tmp_path, name):
    with pytest.raises(InputError, match="is not a run"):
        run_dir.read_config(tmp_path / name)


def test_the_environment_names_versions_devices_and_flags(run, monkeypatch):
    devices = jax.local_devices()
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    run_dir.write_environment(run, devices)
    kept = json.loads((run / "environment.json").read_text())
    assert kept["packages"]["jax"] == jax.__version__
    assert len(kept["devices"]) == len(devices)
    assert kept["flags"] == "--some_flag"


def test_metrics_are_read_as_appended(run):
    assert run_dir.read_metrics(run) == []
    for count, line in enumerate(LINES, 1):
        run_dir.append_metrics(run, line)
        assert run_dir.read_metrics(run) == LINES[:count]


def test_an_incomplete_line_of_metrics_is_ignored_and_replaced(run):
    for line in LINES[:2]:
        run_dir.append_metrics(run, line)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps(LINES[2])[:-9])
    assert run_dir.read_metrics(run) == LINES[:2]
    run_dir.drop_metrics(run, 5)
    run_dir.append_metrics(run, LINES[2])
    assert run_dir.read_metrics(run) == LINES[:3]


@pytest.mark.parametrize("after, left", [(-1, 0), (0, 1), (4, 1), (5, 2), (99, 4)])
def test_drop_metrics_removes_later_steps(run, after, left):
    for line in LINES:
        run_dir.append_metrics(run, line)
    run_dir.drop_metrics(run, after)
    assert run_dir.read_metrics(run) == LINES[:left]


def test_drop_metrics_without_metrics_leaves_none(run):
    run_dir.drop_metrics(run, -1)
    assert run_dir.read_metrics(run) == []
