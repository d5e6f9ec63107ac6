"""A run is a folder: `config.json`, `environment.json`, `metrics.jsonl`, `checkpoints/`, `plots/`.

One with a budget of time has `seconds.json` as well.
Every file is written beside its final name and then moved there, so that a run killed at any
moment leaves whole files only.
"""

import json
import os
import platform
import shutil
import statistics
from importlib import metadata
from pathlib import Path

from jaxdet import files
from jaxdet.errors import InputError

SCHEMA = 1  # of config.json; raised when a field changes its meaning
PACKAGES = ("jaxdet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def is_occupied(folder):
    """Whether a folder has anything in it, but for a configuration that was never finished."""
    folder = Path(folder)
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != "config.json.partial" for path in folder.iterdir())


def check_vacant(folder, *, overwrite=False):
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


def create(folder):
    """An empty run folder in place of whatever run stood there."""
    folder = Path(folder)
    for path in folder.glob("*/"):  # config.json goes last: until then it is a run to replace
        shutil.rmtree(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def write_config(folder, system, fields, about):
    """Keep what `eval` and `predict` need: system, configuration, classes and input."""
    kept = {"schema": SCHEMA, "system": system, "config": fields, "about": about}
    files.write_json(Path(folder) / "config.json", kept)


def write_file(folder, path, text):
    """Keep a text in a run folder, at a path in it."""
    path = Path(folder) / path
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def is_run(folder):
    """Whether a folder is a run: whether it has a configuration."""
    return (Path(folder) / "config.json").is_file()


def read_config(folder):
    """(system name, configuration fields) of a run folder."""
    return _read(folder, lambda kept: (kept["system"], dict(kept["config"])))


def read_metadata(folder):
    """What a run folder says of its data: class names, input, normalisation."""
    return _read(folder, lambda kept: dict(kept["about"]))


def _read(folder, part):
    """`part` of what `config.json` holds; InputError where it is damaged or of another version."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is not a run: it has no config.json; give the --out of a training"
        )
    try:
        kept = json.loads(path.read_text())
        schema, found = kept["schema"], part(kept)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it or train again") from None
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA}; train again")
    return found


def write_environment(folder, devices):
    """Versions, devices and flags that the figures of this run depend on."""
    files.write_json(Path(folder) / "environment.json", environment(devices))


def read_environment(folder):
    """What `write_environment` wrote; {} where there is nothing."""
    path = Path(folder) / "environment.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def environment(devices):
    """What a figure depends on besides the code: versions, processor, devices, flags."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [device.device_kind for device in devices],
        "flags": os.environ.get("XLA_FLAGS", ""),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
    }


def append_metrics(folder, line):
    """Add one JSON object to `metrics.jsonl`, on disk when this returns."""
    files.write_synced(Path(folder) / "metrics.jsonl", "a", json.dumps(line) + "\n")


def read_metrics(folder):
    """All whole lines of `metrics.jsonl`; a line cut short by a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def epoch_seconds(metrics):
    """Median of the seconds of training an epoch, from the lines of `metrics.jsonl`, or None.

    Of two in the middle it is the lower: the first epoch has the compilation in it.
    """
    taken = [line["time"]["train"] for line in metrics if line["train"]]
    return statistics.median_low(taken) if taken else None


def total_seconds(metrics):
    """Seconds of all training and evaluation that the lines of `metrics.jsonl` tell of."""
    return sum(sum(line["time"].values()) for line in metrics)


def write_seconds(folder, seconds):
    """Keep how many seconds the processes of a run have used, all together."""
    files.write_json(Path(folder) / "seconds.json", {"used": seconds})


def read_seconds(folder):
    """What `write_seconds` kept; where there is nothing, the `total_seconds` of the metrics."""
    path = Path(folder) / "seconds.json"
    if path.is_file():
        return json.loads(path.read_text())["used"]
    return total_seconds(read_metrics(folder))


def drop_metrics(folder, after):
    """Forget the lines of steps beyond `after`: training goes on from there."""
    kept = [line for line in read_metrics(folder) if line["step"] <= after]
    files.write_text(Path(folder) / "metrics.jsonl", "".join(json.dumps(k) + "\n" for k in kept))
