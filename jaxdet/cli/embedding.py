"""Embeddings of image files by a run of faces, and thresholds that belong to them."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdet import configs, files
from jaxdet.cli import common
from jaxdet.errors import InputError
from jaxdet.ops import embeddings
from jaxdet.training import checkpoint, evaluator, run_dir
from jaxdet.training import state as training


class Embedder(NamedTuple):
    """A restored network."""

    classes: Sequence[str]  # the people it has learnt
    made: dict  # what tells it from others: run, step, manifest (sha256 of all its hashes)
    embed: Callable  # N paths -> [N, D] float32 on the host


class Threshold(NamedTuple):
    """A likeness from which two images are taken for one person."""

    value: float
    path: Path | None = None  # where it was found
    found: dict | None = None  # kind, join, embedder


def restored(folder, which):
    """The `Embedder` of checkpoint `which` of a run; the data it was trained on are not read."""
    config = common.kept_config(folder, "faces")
    about = {"record": _record(config.size)} | run_dir.read_metadata(folder)
    system = configs.without_data("faces", config, about)
    like = jax.eval_shape(training.init_fn(system, config))
    step, state = checkpoint.restore(folder, like, which, common.warn)
    answer = jax.jit(lambda variables, batch: system.task.predict(variables, batch)["embedding"])
    answer = partial(answer, evaluator.eval_variables(state))
    embed = partial(_embed, answer, system.read, config.eval_batch)
    return Embedder(about["classes"], made(folder, step), embed)


def made(folder, step):
    """What tells the network of a checkpoint from others."""
    manifest = Path(folder) / "checkpoints" / str(step) / checkpoint.MANIFEST
    return {
        "run": Path(folder).absolute().name,
        "step": step,
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }


def _record(side):
    """What a record of faces is like, for runs of earlier versions, which do not say it."""
    return {"image": ["uint8", [side, side, 3]], "label": ["int32", []], "id": ["int32", []]}


def _embed(answer, read, batch, paths):
    """Embeddings [N, D] of image files."""
    found = common.answered(answer, read, batch, paths)
    good = np.isfinite(found).all(1)
    if not good.all():
        raise InputError(f"{paths[good.argmin()]}: embedding not finite: the network has diverged")
    return found


def threshold(text, kind):
    """The `Threshold` that a text is, or that a file by this name holds; seed 004's if empty."""
    if not text and kind == "cosine":
        return Threshold(embeddings.THRESHOLD)
    if not text:
        raise InputError(f"--threshold: a number, or a file by `verify dev`, for --kind {kind}")
    try:
        value = float(text)
    except ValueError:
        return _kept(Path(text))
    if not math.isfinite(value):
        raise InputError(f"--threshold {text}: a finite number, or a file by `verify dev`")
    return Threshold(value)


def _kept(path):
    """The `Threshold` that `keep` wrote."""
    try:
        kept = _read(path, "kind", "join")
    except OSError as error:
        why = error.strerror
        raise InputError(f"--threshold {path}: neither a number nor a file ({why})") from None
    return Threshold(kept.pop("threshold"), path, kept)


def scored(path):
    """`embedder` and `scores` of a file that `keep` wrote."""
    try:
        kept = _read(path, "scores")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(kept["scores"], dict) or not {"part", "accuracy"} <= kept["scores"].keys():
        raise InputError(f"{path}: no scores in it; run `verify dev` again")
    return kept


def _read(path, *names):
    """Threshold, embedder and what else is named of a file that `keep` wrote."""
    try:
        kept = json.loads(path.read_text())
        named = {name: kept["embedder"][name] for name in ("run", "step", "manifest")}
        found = {name: kept[name] for name in names}
        return {**found, "threshold": float(kept["threshold"]), "embedder": named}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of `verify dev` ({error!r})") from None


def keep(path, value, embedder, scores, **how):
    """Write a threshold, with what it belongs to, where `threshold` finds it, and its scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"threshold": value, **how, "embedder": embedder.made, "scores": scores}
    files.write_json(path, kept)


def agreed(limit, embedder, **how):
    """The value of a `Threshold`; InputError where it was found in another way than `how`."""
    if limit.found is None:
        return limit.value
    for name, wanted in how.items():
        if limit.found[name] != wanted:
            raise InputError(f"{limit.path}: found with --{name} {limit.found[name]}, not {wanted}")
    kept, made = limit.found["embedder"], embedder.made
    if (kept["step"], kept["manifest"]) != (made["step"], made["manifest"]):
        raise InputError(
            f"{limit.path}: found with checkpoint {kept['step']} of run {kept['run']!r}, which is "
            f"not checkpoint {made['step']} of {made['run']!r}; run `verify dev` with this one"
        )
    return limit.value
