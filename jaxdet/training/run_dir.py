"""A run is a folder: `config.json`, `environment.json`, `metrics.jsonl`, `checkpoints/`, `plots/`.

`seconds.json` has the wall time of its processes, and a run of `objects` has `splits/`;
docs/runs.md describes all files.  A new run folder, and every file in it, is written under a
temporary name and then moved, so that a run killed at any moment leaves complete files only.  Files
are checked when they are read.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import socket
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

import jaxdet
from jaxdet import files, migrations, tables
from jaxdet.errors import InputError, printable
from jaxdet.kernels import compiler
from jaxdet.training import hosts
from jaxdet.types import Device

SCHEMA = 2  # of config.json; raised when a field changes its name or meaning
FORMER_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Options that name a file or folder, which may move.
PATHS = ("root", "split_files", "weights", "image_cache")
CONFIG, METRICS, LOCK, STREAMS = "config.json", "metrics.jsonl", "lock", "streams.json"
THRESHOLDS = "thresholds.json"  # score thresholds that `jaxdet eval --choose-threshold` stores
DRAFT = "run.partial"  # temporary name of a new run, if it must be built inside its folder
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # errors of file systems without locks
REMEDY = "restore it, or train again"
WITHOUT_METRICS = "restore or remove it: checkpoints do not need it"
STEP_OF_LINE = re.compile(rb'^{"step": (\d+)', re.MULTILINE)
MAX_RECORD = 2**32  # bytes of the arrays of one image
MAX_OWNER = 200  # longest text, in characters, about the owner of a lock


class RunConfig(NamedTuple):
    """The content of `config.json`; former names of options are replaced by the present ones."""

    system: str
    config: dict[str, Any]  # fields of the configuration
    metadata: dict[str, Any]  # classes, input shape, normalization, record of the data


class StreamedImages(TypedDict):
    """The images of a streamed split, as in `streams.json`."""

    names: list[str] | None
    left_out: list[int]  # numbers of the images that could not be used when the run began


class Metadata(TypedDict, total=False):
    """Description of a run's data, so that predicting does not need the data."""

    classes: list[str]
    input: list[int]  # height, width and channels of the network's input
    normalization: str
    category_ids: list[int]  # ids of the classes in the files of the data
    record: dict[str, list[Any]]  # data type and shape of each array of a record


class Versioned(TypedDict):
    """The part of `config.json` that all versions have."""

    schema: int


class ConfigFile(Versioned):
    """The content of `config.json`; schema 1 called the metadata `about`."""

    system: str
    config: dict[str, Any]
    metadata: NotRequired[Metadata]
    about: NotRequired[Metadata]


class Scores(TypedDict):
    """Scores of a split in an evaluation; other keys are allowed."""

    loss: float


class Times(TypedDict):
    """Seconds of training since the last evaluation, and of this evaluation."""

    train: float
    eval: float


class MetricsLine(TypedDict):
    """A line of `metrics.jsonl`: an evaluation during training."""

    step: int
    epoch: int
    train: dict[str, float] | None
    val: Scores | None
    test: NotRequired[Scores]  # with --monitor test
    time: Times


class Environment(TypedDict, total=False):
    """The content of `environment.json`."""

    packages: dict[str, str]
    devices: list[str]
    processes: NotRequired[int]  # with several
    flags: str
    compiler_options: dict[str, str]
    threads: int


class Seconds(TypedDict):
    """The content of `seconds.json`."""

    used: float


def is_occupied(folder: str | Path) -> bool:
    """Whether a path is a file, or a folder with anything but a lock or an unfinished run."""
    folder = Path(folder)
    if not folder.is_dir():
        return folder.exists()
    if (folder / DRAFT).is_dir() and not is_run(folder):
        return False
    return any(path.name not in (f"{CONFIG}.partial", LOCK) for path in folder.iterdir())


def check_vacant(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise InputError for an occupied folder, unless it is a run and `overwrite` is given."""
    folder = Path(folder)
    if not is_occupied(folder):
        return
    if not is_run(folder):
        raise InputError(
            f"{folder} is not a run (no {CONFIG}) and will not be replaced; choose another --out"
        )
    try:
        files.load_json(folder / CONFIG, ConfigFile)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} will not be replaced: its {CONFIG} was not written for a run "
            f"({files.reason(error)}); choose another --out, or remove the folder yourself"
        ) from None
    if not overwrite:
        raise InputError(
            f"{folder} exists; continue it with --resume, replace it with --overwrite, "
            f"or choose another --out"
        )


class Lock:
    """An exclusive lock for writing to a run folder, held until released or until the process ends.

    Raises InputError, which names the owner, if another process holds it.  Reading needs no lock.
    On a file system without locks, another process is only detected if it runs on the same host and
    its id is in the lock file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.file: int | None = _open_locked(self.folder)
        os.ftruncate(self.file, 0)
        os.write(self.file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self.file is not None:
            if _is_at(self.folder / LOCK, self.file):
                (self.folder / LOCK).unlink()
            os.close(self.file)
            self.file = None


def _open_locked(folder: Path) -> int:
    """File descriptor of a folder's lock file; InputError if another process holds the lock."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(file, MAX_OWNER).decode(errors="replace") or "another process"
            if error.errno in WITHOUT_LOCKS and not _runs_here(owner):
                return file
            os.close(file)
            raise InputError(
                f"{folder} is being trained by {printable(owner)}; wait for it, or choose another "
                f"--out"
            ) from None
        if _is_at(path, file):
            return file
        os.close(file)  # meanwhile, its owner has removed it or moved its folder


def _runs_here(owner: str) -> bool:
    """Whether the owner of a lock is another running process of this host."""
    found = re.fullmatch(r"process (\d+) on (.+)", owner)
    if not found or found[2] != socket.gethostname() or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _is_at(path: Path, file: int) -> bool:
    """Whether a path refers to this open file."""
    return path.exists() and os.path.samestat(os.stat(path), os.fstat(file))


def create(
    folder: str | Path,
    system: str,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    texts: Iterable[tuple[str, str]] = (),
    *,
    fill: Callable[[Path], object] = lambda draft: None,
    overwrite: bool = False,
) -> Lock:
    """Create a run folder and return its lock; see `check_vacant` for `overwrite`.

    texts: (relative path, text) of further files.
    fill: called with the folder before it is moved to its final place, to add more to it.

    The new folder is built under another name and moved when it is complete; a run that is
    overwritten is removed only then.
    """
    folder = Path(os.path.realpath(folder))
    draft = _make_draft(folder)
    lock = Lock(draft)
    try:
        check_vacant(folder, overwrite=overwrite)
        _empty(draft)
        for name, text in texts:
            write_text(draft, name, text)
        write_config(draft, system, config, metadata)
        fill(draft)
        if folder.is_dir():
            with Lock(folder):
                _empty(folder, draft)
        _move(draft, folder)
    except BaseException:
        _empty(draft)
        lock.release()
        draft.rmdir()
        raise
    lock.folder = folder
    return lock


def _make_draft(folder: Path) -> Path:
    """A folder in which to build a run: next to its final place or, if that fails, inside it."""
    draft = folder.with_name(f"{folder.name}.partial")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir() or os.access(folder.parent, os.W_OK) and not folder.is_mount():
            return draft
        draft.rmdir()
    except OSError:
        if not folder.is_dir():
            raise
    draft = folder / DRAFT
    draft.mkdir(exist_ok=True)
    return draft


def copy_records(folder: Path, other: Path) -> None:
    """Copy splits, metrics, versions and times of a run to another run folder."""
    for name in ("environment.json", METRICS, "seconds.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, other / name)
    if (folder / "splits").is_dir():
        shutil.copytree(folder / "splits", other / "splits", dirs_exist_ok=True)


def _move(draft: Path, folder: Path) -> None:
    """Move a draft to its final place, an empty or missing folder; moves `config.json` last."""
    if draft.parent != folder:
        draft.replace(folder)
        return
    for path in sorted(draft.iterdir(), key=lambda path: path.name == CONFIG):
        path.replace(folder / path.name)
    draft.rmdir()


def _empty(folder: Path, draft: Path | None = None) -> None:
    """Remove everything but the lock and a draft; `config.json`, which marks a run, last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        if path.name != LOCK and path != draft:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder; of a symbolic link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_config(
    folder: str | Path, system: str, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write `config.json`, which resuming and evaluation need besides the checkpoints."""
    content = {"schema": SCHEMA, "system": system, "config": config, "metadata": metadata}
    files.write_json(Path(folder) / CONFIG, content)


def write_text(folder: str | Path, name: str, text: str) -> None:
    """Write a text file in a run folder, at a relative path."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run, that is, has a `config.json`."""
    return (Path(folder) / CONFIG).exists()


def read_config(folder: str | Path) -> RunConfig:
    """The content of `config.json`; options and values that were renamed have their new names.

    Raises InputError if the file is missing, damaged, unreadable, or of a newer schema.
    """
    path = Path(folder) / CONFIG
    if not is_run(folder):
        raise InputError(f"{folder} is not a run: it has no {CONFIG}; give the --out of a run")
    schema = _read(path, Versioned)["schema"]
    if not 1 <= schema <= SCHEMA:
        raise InputError(
            f"{path} has schema {schema}{_writer(folder)}; jaxdet {jaxdet.__version__} reads "
            f"schemas 1 to {SCHEMA}: install the version that wrote it"
        )
    content = _read(path, ConfigFile)
    system, config = content["system"], content["config"]
    metadata = content.get("about" if schema == 1 else "metadata")
    _check_record(path, metadata or {})
    if metadata is None:
        raise InputError(f"{path} must have 'metadata'; {REMEDY}")
    try:
        if schema == 1:
            config = migrations.migrate_names(system, config)
            metadata = migrations.migrate_metadata(system, config, metadata)
        return RunConfig(system, migrations.migrate_values(system, config), metadata)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {REMEDY}") from None


def read_thresholds(folder: str | Path) -> dict[str, Any] | None:
    """The content of `thresholds.json`; None without the file, InputError if it is damaged."""
    path = Path(folder) / THRESHOLDS
    return _read(path, dict[str, Any]) if path.exists() else None


def _writer(folder: str | Path) -> str:
    """The words " of jaxdet VERSION", for the version that wrote a run; "" if it is not known."""
    try:
        environment = files.load_json(Path(folder) / "environment.json", Environment)
    except (OSError, ValueError):
        return ""
    version = environment.get("packages", {}).get("jaxdet", "")
    return f" of jaxdet {version}" if version else ""


def _check_record(path: Path, metadata: Metadata) -> None:
    """Raise InputError for an entry of `record` that is not the type and shape of an array."""
    for name, spec in metadata.get("record", {}).items():
        try:
            kind, shape = spec
            fits = all(type(n) is int and n >= 0 for n in shape)
            fits = fits and np.dtype(kind).itemsize * math.prod(shape) <= MAX_RECORD
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(
                f"{path} is damaged (metadata.record.{name} must be the type and shape of an "
                f"array, got {spec!r:.80}); {REMEDY}"
            )


def config_digest(folder: str | Path) -> str | None:
    """sha256 of the content of `config.json` without `PATHS`; None if it cannot be read."""
    try:
        content = files.load_json(Path(folder) / CONFIG, ConfigFile)
    except (OSError, ValueError):
        return None
    config = {name: value for name, value in content["config"].items() if name not in PATHS}
    text = json.dumps(content | {"config": config}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, kind: Any) -> Any:
    """The content of a JSON file of a run; InputError if it is damaged or cannot be read."""
    try:
        return files.load_json(path, kind)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} {files.problem(error)}; {REMEDY}") from None


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Description of the data of a run folder, see `Metadata`; raises as `read_config` does."""
    return read_config(folder).metadata


def read_streams(folder: str | Path) -> dict[str, StreamedImages]:
    """The images of each streamed split of a run; {} without any, InputError for a bad file."""
    path = Path(folder) / STREAMS
    return _read(path, dict[str, StreamedImages]) if path.exists() else {}


def write_environment(folder: str | Path, devices: Sequence[Device]) -> None:
    """Write versions, devices and flags, on which scores and times of a run depend."""
    files.write_json(Path(folder) / "environment.json", environment(devices))


def read_environment(folder: str | Path) -> dict[str, Any]:
    """The content of `environment.json`; {} without a file, InputError for a bad one."""
    path = Path(folder) / "environment.json"
    return _read(path, Environment) if path.exists() else {}


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """The conditions of a measurement: versions, processor, devices, flags, compiler options."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "packages": {"jaxdet": jaxdet.__version__, **versions},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": _cpu_threads(),
        "devices": [device.device_kind for device in devices],
        **({"processes": hosts.count()} if hosts.count() > 1 else {}),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "compiler_options": compiler.compiler_options() or {},
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
    }


def environment_changes(folder: str | Path, devices: Sequence[Device]) -> list[str]:
    """Changes of the environment, since a run was written, that affect the last bits of results.

    Each is text such as "threads 16, now 2".  The number of threads and the options of the compiler
    matter on a CPU only.
    """
    alone: dict[str, Any] = {"processes": 1}
    before = alone | _flag_as_option(read_environment(folder))
    now = alone | environment(devices)
    on_cpu = {"threads", "compiler_options"} if devices[0].platform == "cpu" else set()
    kinds = {"devices", "processes", "flags", *on_cpu}
    pairs = {name: (before[name], now[name]) for name in sorted(kinds & before.keys())}
    versions = before.get("packages", {})
    pairs |= {
        name: (versions[name], now["packages"][name])
        for name in ("jax", "jaxlib")
        if name in versions
    }
    return [
        f"{name} {_short(old)}, now {_short(new)}"
        for name, (old, new) in pairs.items()
        if old != new
    ]


def _flag_as_option(before: dict[str, Any]) -> dict[str, Any]:
    """The environment with options of the compiler in place of the flag of earlier versions."""
    if "flags" not in before or "compiler_options" in before:
        return before
    flags = before["flags"].split()
    options = compiler.OPTIONS if FORMER_FLAG in flags else {}
    flags = " ".join(flag for flag in flags if flag != FORMER_FLAG)
    return before | {"flags": flags, "compiler_options": options}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"


def _version(package: str) -> str:
    """The version of an installed package; "" where it has no metadata."""
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return ""


def _cpu_threads() -> int:
    """Number of threads of XLA on a CPU: NPROC, or the processors that the process may use."""
    given = os.environ.get("NPROC", "")
    if given.isdecimal():
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def append_metrics(folder: str | Path, line: Mapping[str, Any]) -> None:
    """Append a JSON object to `metrics.jsonl`; it is on disk when this returns."""
    files.write_synced(Path(folder) / METRICS, "a", json.dumps(line) + "\n")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """All complete lines of `metrics.jsonl`; a last line cut short by a kill is left out.

    Raises InputError for an unreadable file, a damaged line, and steps that do not increase.
    """
    path = Path(folder) / METRICS
    try:
        lines = files.read_text(path).split("\n")[:-1] if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} {files.problem(error)}; {WITHOUT_METRICS}") from None
    metrics: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        try:
            metrics.append(files.parse_json(text, MetricsLine))
            if not scored_splits(metrics[-1]):
                raise ValueError("val or test must have scores, got neither")
            steps = [line["step"] for line in metrics[-2:]]
            if steps != sorted(set(steps)):
                raise ValueError(f"step must be above {steps[0]}, got {steps[1]}")
        except ValueError as error:
            place = f"{path}, line {number}"
            raise InputError(f"{place} is damaged ({error}); {WITHOUT_METRICS}") from None
    return metrics


def count_metrics(folder: str | Path, step: int) -> int:
    """Number of lines of `metrics.jsonl` up to a step, damaged or not."""
    path = Path(folder) / METRICS
    content = path.read_bytes() if path.is_file() else b""
    return sum(int(number) <= step for number in STEP_OF_LINE.findall(content))


def drop_metrics(folder: str | Path, after: int) -> None:
    """Remove the lines of `metrics.jsonl` beyond step `after`, at which training resumes."""
    kept = [line for line in read_metrics(folder) if line["step"] <= after]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_text(Path(folder) / METRICS, text)


def best_line(metrics: Iterable[Mapping[str, Any]], score: str) -> Mapping[str, Any]:
    """The line of `metrics.jsonl` with the highest validation `score`; {} if there are no lines.

    Ties go to the lower loss, as for the best checkpoint.  For a run without validation it is the
    last line.  Raises InputError for an unknown score.
    """
    lines = list(metrics)
    if lines and not all(line["val"] for line in lines):
        return lines[-1]
    return max(
        lines,
        key=lambda line: (score_value(line["val"], score), -line["val"]["loss"]),
        default={},
    )


def scored_splits(line: Mapping[str, Any]) -> list[str]:
    """The splits with scores in a line of `metrics.jsonl`, "val" before "test"."""
    return [split for split in ("val", "test") if line.get(split)]


def score_value(scores: Mapping[str, Any], name: str) -> float:
    """The score called `name`.  Raises InputError, which names `--best`, if there is none."""
    value: Any = scores.get(name)
    if not tables.is_number(value):
        known = ", ".join(key for key, each in scores.items() if tables.is_number(each))
        raise InputError(f"--best must be one of {known}, got {name}")
    return value


def epoch_seconds(metrics: Iterable[Mapping[str, Any]]) -> float | None:
    """Median training seconds per epoch from the lines of `metrics.jsonl`; None without any.

    For an even number of epochs it is the lower of the two middle values, since the first epoch
    includes compilation.
    """
    seconds = [line["time"]["train"] for line in metrics if line["train"]]
    return statistics.median_low(seconds) if seconds else None


def total_seconds(metrics: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of all training and evaluation in the lines of `metrics.jsonl`."""
    return sum(line["time"]["train"] + line["time"]["eval"] for line in metrics)


def write_seconds(folder: str | Path, seconds: float) -> None:
    """Write the seconds that all processes of a run have used."""
    files.write_json(Path(folder) / "seconds.json", {"used": seconds})


def read_seconds(folder: str | Path) -> float:
    """The seconds that `write_seconds` wrote; without a file, `total_seconds` of the metrics."""
    path = Path(folder) / "seconds.json"
    if path.exists():
        return _read(path, Seconds)["used"]
    return total_seconds(read_metrics(folder))
