"""A run is a folder: `config.json`, `environment.json`, `metrics.jsonl`, `checkpoints/`, `plots/`.

A run with a time budget has `seconds.json` as well.  Every file is written beside its final name
and then moved there, so that a run killed at any moment leaves whole files only.
"""

import json
import os
import platform
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jaxdet
from jaxdet import files, migrations
from jaxdet.errors import InputError
from jaxdet.types import Device

SCHEMA = 2  # of config.json; raised when a field changes its name or meaning
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunConfig(NamedTuple):
    """What `config.json` holds, by present names."""

    system: str
    config: dict[str, Any]  # fields of the configuration
    metadata: dict[str, Any]  # classes, input shape, normalization, record of the data


def is_occupied(folder: str | Path) -> bool:
    """Whether a folder holds anything but a configuration that was never finished."""
    folder = Path(folder)
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != "config.json.partial" for path in folder.iterdir())


def check_vacant(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something, unless it is a run and `overwrite` is given."""
    folder = Path(folder)
    if not is_occupied(folder):
        return
    if not is_run(folder):
        raise InputError(f"{folder} is not a run (no config.json) and will not be replaced")
    if not overwrite:
        raise InputError(
            f"{folder} exists; continue it with --resume, replace it with --overwrite, "
            f"or choose another --out"
        )


def create(folder: str | Path) -> None:
    """An empty run folder in place of any run that stood there."""
    folder = Path(folder)
    for path in folder.glob("*/"):  # config.json goes last: until then it is a run to replace
        shutil.rmtree(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def write_config(
    folder: str | Path, system: str, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write `config.json`: what resuming and evaluation need besides the checkpoints."""
    content = {"schema": SCHEMA, "system": system, "config": config, "metadata": metadata}
    files.write_json(Path(folder) / "config.json", content)


def write_text(folder: str | Path, name: str, text: str) -> None:
    """Write a text file in a run folder, at a relative path."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run: whether it has a configuration."""
    return (Path(folder) / "config.json").is_file()


def read_config(folder: str | Path) -> RunConfig:
    """What `config.json` holds; files of schema 1 are translated.

    InputError where it is missing, damaged, or of a newer schema.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is not a run: it has no config.json; give the --out of a training"
        )
    try:
        content = json.loads(path.read_text())
        schema, system = int(content["schema"]), str(content["system"])
        config = dict(content["config"])
        metadata = dict(content["about" if schema == 1 else "metadata"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it or train again") from None
    if schema > SCHEMA or schema < 1:
        raise InputError(
            f"{path} has schema {schema}; jaxdet {jaxdet.__version__} reads schemas 1 to {SCHEMA}: "
            f"install the version that wrote it"
        )
    if schema == 1:
        config = migrations.migrate_names(system, config)
        metadata = migrations.migrate_metadata(system, config, metadata)
    return RunConfig(system, migrations.migrate_values(system, config), metadata)


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Classes, input shape and the like of a run folder."""
    return read_config(folder).metadata


def write_environment(folder: str | Path, devices: Sequence[Device]) -> None:
    """Write versions, devices and flags, on which the figures of a run depend."""
    files.write_json(Path(folder) / "environment.json", environment(devices))


def read_environment(folder: str | Path) -> dict[str, Any]:
    """What `write_environment` wrote; {} without a file."""
    path = Path(folder) / "environment.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """What figures depend on besides the code: versions, processor, devices, flags."""
    versions = {name: packages.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "packages": {"jaxdet": jaxdet.__version__, **versions},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [device.device_kind for device in devices],
        "flags": os.environ.get("XLA_FLAGS", ""),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
    }


def append_metrics(folder: str | Path, line: Mapping[str, Any]) -> None:
    """Append a JSON object to `metrics.jsonl`; it is on disk when this returns."""
    files.write_synced(Path(folder) / "metrics.jsonl", "a", json.dumps(line) + "\n")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """All complete lines of `metrics.jsonl`; one cut short by a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def drop_metrics(folder: str | Path, after: int) -> None:
    """Remove the lines of steps beyond `after`, where training continues."""
    kept = [line for line in read_metrics(folder) if line["step"] <= after]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_text(Path(folder) / "metrics.jsonl", text)


def best_line(metrics: Iterable[Mapping[str, Any]], score: str) -> Mapping[str, Any]:
    """The line of `metrics.jsonl` with the highest validation `score`; {} without any.

    Ties go to the lower loss, as for the best checkpoint.
    """
    return max(metrics, key=lambda line: (line["val"][score], -line["val"]["loss"]), default={})


def epoch_seconds(metrics: Iterable[Mapping[str, Any]]) -> float | None:
    """Median training seconds per epoch from the lines of `metrics.jsonl`; None without any.

    Of an even number it is the lower one: the first epoch includes compilation.
    """
    seconds = [line["time"]["train"] for line in metrics if line["train"]]
    return statistics.median_low(seconds) if seconds else None


def total_seconds(metrics: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of all training and evaluation in the lines of `metrics.jsonl`."""
    return sum(sum(line["time"].values()) for line in metrics)


def write_seconds(folder: str | Path, seconds: float) -> None:
    """Write the seconds that all processes of a run have used."""
    files.write_json(Path(folder) / "seconds.json", {"used": seconds})


def read_seconds(folder: str | Path) -> float:
    """What `write_seconds` wrote; without a file, the `total_seconds` of the metrics."""
    path = Path(folder) / "seconds.json"
    if path.is_file():
        return json.loads(path.read_text())["used"]
    return total_seconds(read_metrics(folder))
