"""Verification thresholds, and files that store them with their checkpoint and options."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.ops import embeddings
from jaxdet.training import checkpoint

FORMER_NAMES = {"kind": "metric", "join": "reduce", "embedder": "checkpoint"}  # in files


class Threshold(NamedTuple):
    """The lowest similarity at which two images are accepted as the same identity."""

    value: float
    path: Path | None = None  # file that it was read from; None if it was given as a number
    found_with: dict[str, Any] | None = None  # metric, reduce and checkpoint in that file


def parse(text: str, metric: str) -> Threshold:
    """Parse a threshold, given as a number or as the path of a threshold file.

    The empty text means the default threshold for cosine similarity.  Raises InputError for other
    texts, and for an empty text with another metric.
    """
    if not text and metric == "cosine":
        return Threshold(embeddings.THRESHOLD)
    expected = "a finite number, or a file that `jaxdet verify dev --out` wrote"
    if not text:
        raise InputError(f"--threshold must be {expected}; --metric {metric} has no default")
    try:
        value = float(text)
    except ValueError:
        return _read_threshold(Path(text))
    if not math.isfinite(value):
        raise InputError(f"--threshold must be {expected}, got {text}")
    return Threshold(value)


def check_fits(threshold: Threshold, checkpoint_id: dict[str, Any], **options: str) -> float:
    """Return the value of a threshold, after checking that it fits the options and the checkpoint.

    `options` are `metric` and, if it matters, `reduce`.  Raises InputError if the threshold was
    found with other options or another checkpoint.
    """
    found = threshold.found_with
    if found is None:
        return threshold.value
    for name, value in options.items():
        if found[name] != value:
            raise InputError(
                f"{threshold.path}: threshold was found with --{name} {found[name]}, got --{name} "
                f"{value}; give --{name} {found[name]}, or find a threshold for --{name} {value} "
                f"with `jaxdet verify dev`"
            )
    kept = found["checkpoint"]
    if (kept["step"], kept["manifest"]) != (checkpoint_id["step"], checkpoint_id["manifest"]):
        raise InputError(
            f"{threshold.path}: threshold was found with checkpoint {kept['step']} of run "
            f"{kept['run']!r}, got checkpoint {checkpoint_id['step']} of {checkpoint_id['run']!r}; "
            f"find a threshold for this checkpoint with `jaxdet verify dev`"
        )
    return threshold.value


def identify_checkpoint(folder: str | Path, step: int) -> dict[str, Any]:
    """The identity of a checkpoint: name of the run, step, and sha256 of the manifest."""
    manifest = Path(folder) / "checkpoints" / str(step) / checkpoint.MANIFEST
    return {
        "run": Path(folder).absolute().name,
        "step": step,
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }


def write(
    path: Path,
    value: float,
    checkpoint_id: dict[str, Any],
    scores: dict[str, Any],
    *,
    metric: str,
    reduce: str,
) -> None:
    """Write a threshold with its checkpoint, options and scores, to a file that `parse` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"metric": metric, "reduce": reduce}
    content = {"threshold": value, **options, "checkpoint": checkpoint_id, "scores": scores}
    files.write_json(path, content)


def read_scores(path: Path) -> dict[str, Any]:
    """Read a file that `write` wrote, as a dict with the keys `checkpoint` and `scores`.

    Raises InputError if the file cannot be read, or has no scores on held-out images.
    """
    try:
        content = _read(path, "scores")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    scores = content["scores"]
    if not isinstance(scores, dict) or not {"part", "held_out_accuracy"} <= scores.keys():
        raise InputError(
            f"{path}: has no scores on held-out images; write it again with `jaxdet verify dev "
            f"--out` or `jaxdet verify test --truth ... --out`"
        )
    return content


def _read_threshold(path: Path) -> Threshold:
    try:
        content = _read(path, "metric", "reduce")
    except OSError as error:
        why = error.strerror
        raise InputError(f"--threshold must be a number or a file, got {path} ({why})") from None
    return Threshold(content.pop("threshold"), path, content)


def _read(path: Path, *names: str) -> dict[str, Any]:
    """Read `threshold`, `checkpoint` and the entries `names` of a file of any jaxdet version."""
    try:
        content = json.loads(path.read_text())
        content = {FORMER_NAMES.get(name, name): value for name, value in content.items()}
        checkpoint_id = {name: content["checkpoint"][name] for name in ("run", "step", "manifest")}
        found = {name: content[name] for name in names}
        return {
            **found,
            "threshold": float(content["threshold"]),
            "checkpoint": checkpoint_id,
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: must be a file that `jaxdet verify` wrote with --out ({error!r})"
        ) from None
