import errno
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from unittest.mock import Mock

import jax
import pytest

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.kernels import compiler
from jaxdet.training import run_dir

LINES = [
    {
        "step": step,
        "epoch": step // 5,
        "train": {"loss": 1 / (step + 1)} if step else None,
        "val": {"loss": 1 / (step + 3), "accuracy": step / 20},
        "time": {"train": 1.0, "eval": 0.5},
    }
    for step in (0, 5, 10, 15)
]
CONFIG = {"epochs": 3, "channels": [8, 16]}


def contents(folder):
    """Name and bytes of every file below a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "one"
    run_dir.create(folder, "digits", CONFIG, {"classes": ["0"]}).release()
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


@pytest.mark.parametrize("text", ["{}", '{"name": "web"}', '{"schema": 2}', "[1]", "{"])
def test_a_folder_with_a_configuration_of_something_else_is_never_replaced(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "index.js").write_text("all of it")
    with pytest.raises(InputError, match=f"{tmp_path} will not be replaced.*config.json"):
        run_dir.check_vacant(tmp_path, overwrite=True)
    assert contents(tmp_path).keys() == {"config.json", "index.js"}


def test_a_new_run_replaces_all_of_the_one_before(run):
    (run / "checkpoints" / "7").mkdir(parents=True)
    run_dir.append_metrics(run, LINES[0])
    with run_dir.create(run, "digits", {}, {}, [("splits/a.csv", "a\n")], overwrite=True):
        assert contents(run).keys() == {"config.json", "a.csv", "lock"}
    assert contents(run).keys() == {"config.json", "a.csv"}
    assert [path.name for path in run.parent.iterdir()] == ["one"]


def test_symbolic_links_in_a_run_are_removed_but_not_what_they_lead_to(run, tmp_path):
    for name in ("checkpoints", "plots"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text(name)
        (run / name).symlink_to(tmp_path / name)
    run_dir.create(run, "digits", {}, {}, overwrite=True).release()
    assert contents(run).keys() == {"config.json"}
    assert (tmp_path / "checkpoints" / "kept").read_text() == "checkpoints"


def test_a_run_folder_may_be_a_symbolic_link(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    run_dir.append_metrics(run, LINES[0])
    run_dir.create(link, "digits", {}, {}, overwrite=True).release()
    assert link.is_symlink() and contents(run).keys() == {"config.json"}


def test_a_run_is_built_in_its_folder_where_nothing_can_be_made_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setattr(run_dir.Path, "is_mount", lambda path: path == folder)
    for overwrite in (False, True):
        run_dir.create(folder, "digits", {}, {}, [("splits/a", "a")], overwrite=overwrite).release()
        assert {path.name for path in folder.iterdir()} == {"config.json", "splits"}
        assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_creation_killed_at_any_moment_leaves_a_run_or_room_for_one(
    tmp_path, monkeypatch, overwrite, mounted
):
    """Killed: nothing is tidied up, and the lock is lost."""
    monkeypatch.setattr(run_dir.Path, "is_mount", lambda path: mounted)
    texts = [("splits/a", "a"), ("splits/b", "b")]
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        if overwrite:
            run_dir.create(folder, "digits", {"epochs": 1}, {}, texts, overwrite=True).release()
        with killed_at(number) as was_killed:
            run_dir.create(
                folder, "digits", {"epochs": 2}, {}, texts, overwrite=overwrite
            ).release()
        run_dir.check_vacant(folder, overwrite=True)
        if run_dir.is_occupied(folder):
            assert run_dir.read_config(folder).config["epochs"] in (1, 2)
        run_dir.create(folder, "digits", {"epochs": 3}, {}, texts, overwrite=True).release()
        assert contents(folder).keys() == {"config.json", "a", "b"}
        if not was_killed:
            break
    assert number > 5


@contextmanager
def killed_at(number):
    """End the process in front of a change of the file system, after this many; a list if so."""
    count, was_killed, open_files = itertools.count(), [], []

    class Killed(BaseException):
        pass

    def checked(function):
        def call(*args, **options):
            if was_killed or next(count) == number:
                was_killed.append(function)
                raise Killed
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (files, "write_synced"),
            (run_dir.os, "replace"),
            (run_dir.Path, "replace"),
            (run_dir.Path, "unlink"),
            (run_dir.Path, "rmdir"),
            (run_dir.shutil, "rmtree"),
        ):
            patch.setattr(owner, name, checked(getattr(owner, name)))
        open_locked = run_dir._open_locked
        patch.setattr(
            run_dir,
            "_open_locked",
            lambda folder: open_files.append(open_locked(folder)) or open_files[-1],
        )
        with suppress(Killed):
            yield was_killed
        for file in open_files if was_killed else []:
            with suppress(OSError):
                os.close(file)


HOLDER = """
import sys
from jaxdet.training import run_dir

with run_dir.Lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(run):
    """Another process that trains in the run."""
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_run_that_another_process_trains_is_refused_with_the_process(run, holder):
    before = contents(run)
    expected = f"{run} is being trained by process {holder.pid} on "
    with pytest.raises(InputError, match=expected):
        run_dir.Lock(run)
    with pytest.raises(InputError, match=expected):
        run_dir.create(run, "digits", {}, {}, overwrite=True)
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["one"]
    assert run_dir.read_config(run).system == "digits"  # reading goes on


def test_the_lock_of_a_killed_process_is_free(run, holder):
    holder.kill()
    holder.wait()
    assert (run / "lock").exists()
    with run_dir.Lock(run):
        pass
    assert contents(run).keys() == {"config.json"}


def test_two_locks_in_one_process_exclude_each_other(run):
    with run_dir.Lock(run), pytest.raises(InputError, match="is being trained by process"):
        run_dir.Lock(run)
    run_dir.Lock(run).release()


def test_a_file_system_without_locks_is_refused_to_a_second_process_of_the_host(
    run, holder, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_dir.fcntl, "flock", fail)
    with pytest.raises(InputError, match=f"is being trained by process {holder.pid} on "):
        run_dir.Lock(run)
    elsewhere = f"process {holder.pid} on another-host"
    (run / "lock").write_text(elsewhere)
    with run_dir.Lock(run):
        pass
    holder.kill()
    holder.wait()
    (run / "lock").write_text(f"process {holder.pid} on {socket.gethostname()}")
    with run_dir.Lock(run):
        pass


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
    config = {"box_loss": "mse", "epochs": 3, "channels": [8, 16]}  # added: see `migrations.ABSENT`
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
    assert kept["compiler_options"] == compiler.OPTIONS


@pytest.mark.parametrize(
    "flags, changed",
    [
        (run_dir.FORMER_FLAG, ""),
        (f"--xla_a=1 {run_dir.FORMER_FLAG}", "flags --xla_a=1, now none"),
        ("", f"compiler_options none, now {compiler.YNN_FUSION}="),  # the library, at that time
    ],
)
def test_a_flag_that_became_a_compiler_option_is_no_change(run, monkeypatch, flags, changed):
    monkeypatch.setenv("XLA_FLAGS", "")
    devices = jax.local_devices()
    kept = run_dir.environment(devices) | {"flags": flags}
    del kept["compiler_options"]
    (run / "environment.json").write_text(json.dumps(kept))
    found = run_dir.environment_changes(run, devices)
    assert len(found) == bool(changed) and "".join(found).startswith(changed)


def test_a_change_of_the_number_of_threads_is_named(run, monkeypatch):
    devices = jax.local_devices()
    assert run_dir.environment_changes(run, devices) == []  # nothing was written
    monkeypatch.setenv("NPROC", "3")
    run_dir.write_environment(run, devices)
    assert run_dir.environment_changes(run, devices) == []
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    assert run_dir.environment_changes(run, devices) == ["threads 3, now 2"]
    assert run_dir.environment_changes(run, devices[:2])[0].startswith("devices cpu cpu cpu cpu,")


def test_metrics_are_read_as_appended(run):
    assert run_dir.read_metrics(run) == []
    for count, line in enumerate(LINES, 1):
        run_dir.append_metrics(run, line)
        assert run_dir.read_metrics(run) == LINES[:count]


def test_metrics_that_cannot_be_read_are_not_called_damaged(run, monkeypatch):
    (run / "metrics.jsonl").touch()
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(files, "read_text", Mock(side_effect=refused))
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read \(Permission denied\); "):
        run_dir.read_metrics(run)


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
