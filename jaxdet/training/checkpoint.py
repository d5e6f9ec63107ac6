"""Checkpoints: arrays written by orbax, and a manifest with the sha256 hash of every file.

`checkpoints/STEP/state` is an orbax folder of host arrays, independent of the number of devices;
`checkpoints/STEP/manifest.json` holds the hashes.  Both are written to `STEP.partial`, which is
then renamed.  Orbax does not detect flipped bytes, so hashes are checked before anything is
restored.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.types import Array, Tree

MANIFEST = "manifest.json"
LOG = logging.getLogger(__name__)

Warn = Callable[[str], Any]


class CorruptCheckpointError(Exception):
    """The bytes of a checkpoint are not those that were written."""


def save(
    folder: Path | str,
    step: int,
    state: Tree,
    *,
    score: tuple[float, float] | None = None,
    keep: int = 2,
) -> Path:
    """Write `state` to `folder/checkpoints/STEP`, the returned path; delete older checkpoints.

    The `keep` newest checkpoints and the best one are kept.  `score` is a pair (higher is better,
    lower is better) that `best` compares, or None.  A checkpoint of the same step is replaced.  If
    writing fails, for example on a full disk, the previous checkpoints remain, and the OSError
    names the checkpoint and the reason.
    """
    path = _root(folder) / str(int(step))
    draft = path.with_suffix(".partial")
    for leftover in path.parent.glob("*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        _check_space(path.parent, state)
        _write(draft / "state", jax.tree.map(_to_host, state))
        manifest = {"score": score, "arrays": _describe_arrays(state), "sha256": _hashes(draft)}
        files.write_json(draft / MANIFEST, manifest)
        _remove(path)
        draft.rename(path)
    except Exception as error:  # orbax and tensorstore raise errors of no common class
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"cannot write checkpoint {path}: {_reason(error)}") from error
    _prune(folder, keep)
    return path


def steps(folder: Path | str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending; hashes are not checked."""
    return sorted(int(path.name) for path in _root(folder).glob("*") if path.name.isdigit())


def best(folder: Path | str, warn: Warn = LOG.warning) -> int | None:
    """The step with the highest score; ties go to the lower second number, then the earlier step.

    None if no checkpoint has a score.  A checkpoint whose manifest cannot be read is reported
    through `warn` and ignored.
    """
    scores = {step: _score(_root(folder) / str(step), warn) for step in steps(folder)}
    ranked = [(score[0], -score[1], -step) for step, score in scores.items() if score]
    return -max(ranked)[2] if ranked else None


def restore(
    folder: Path | str, like: Tree, which: str | int = "last", warn: Warn = LOG.warning
) -> tuple[int, Tree]:
    """(step, state) of the checkpoint `which`: "last", "best" or a step number.

    like: a state, concrete or abstract, with the structure, shapes and types of the checkpoint.

    A damaged checkpoint is reported in one line through `warn`, and the newest undamaged one is
    used instead.  InputError where there is none, or where it does not fit `like`.
    """
    step, (state,) = _first_undamaged(folder, which, warn, lambda path: _read_state(path, like))
    return step, state


def restore_variables(
    folder: Path | str, like: Tree, which: str | int = "best", warn: Warn = LOG.warning
) -> tuple[int, Tree, int]:
    """(step, variables, completed epochs) of the checkpoint `which`, see `restore`.

    like: variables of the network, concrete or abstract.

    The variables are the moving averages if the checkpoint has them.  The states of optimizer and
    bookkeeping are ignored, so that checkpoints of other versions can be evaluated.
    """
    step, found = _first_undamaged(folder, which, warn, lambda path: _read_variables(path, like))
    return step, *found


def _first_undamaged(
    folder: Path | str, which: str | int, warn: Warn, read: Callable[[Path], tuple]
) -> tuple[int, tuple]:
    """(step, read(path)) of the chosen checkpoint, or else of the newest undamaged one."""
    known = steps(folder)
    if not known:
        raise InputError(f"{folder} has no checkpoints; train it first (jaxdet train ... --out)")
    warn = _once(warn)
    first = _resolve(folder, which, known, warn)
    for step in [first] + [step for step in reversed(known) if step != first]:
        path = _root(folder) / str(step)
        try:
            return step, read(path)
        except CorruptCheckpointError as error:
            warn(_damage_line(path, error))
    raise InputError(f"{folder} has no undamaged checkpoint; train it again with --overwrite")


def _once(warn: Warn) -> Warn:
    """`warn`, called once per line."""
    seen: set[str] = set()

    def warn_once(line):
        if line not in seen:
            seen.add(line)
            warn(line)

    return warn_once


def _damage_line(path: Path, error: Exception) -> str:
    return f"checkpoint {path} is damaged ({error}); using the newest undamaged one"


def _resolve(folder: Path | str, which: str | int, known: list[int], warn: Warn) -> int:
    """The step that `which` refers to."""
    if which == "last":
        return known[-1]
    if which == "best":
        step = best(folder, warn)
        return known[-1] if step is None else step
    if str(which).isdigit() and int(which) in known:
        return int(which)
    raise InputError(
        f"--checkpoint must be best, last or one of the steps {known} of {folder}, got {which}"
    )


def _root(folder: Path | str) -> Path:
    return Path(folder).absolute() / "checkpoints"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Array) -> np.ndarray:
    """An array on the host; the key data of a random key."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _blank(leaf: Any) -> np.ndarray:
    """Zeros with the shape and type of `_to_host(leaf)`; leaf may be abstract."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.zeros(data.shape, data.dtype)


def _from_host(like: Any, leaf: np.ndarray) -> Array:
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf


def _reason(error: Exception) -> str:
    """Why writing failed, without the file names that orbax adds."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _write(path: Path, state: Tree) -> None:
    import orbax.checkpoint as ocp

    with _silent("absl"), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave(state))


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Silence a logger: orbax logs the traceback of an error that it also raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_state(path: Path, like: Tree) -> tuple[Tree]:
    """The state at `path`, once all hashes of its manifest were checked."""
    import orbax.checkpoint as ocp

    manifest = _verified_manifest(path)
    _check_fit(path, manifest["arrays"], _describe_arrays(like))
    state = _restore(path, ocp.args.StandardRestore(jax.tree.map(_blank, like)))
    return (jax.tree.map(_from_host, like, state),)


def _read_variables(path: Path, like: Tree) -> tuple[Tree, int]:
    """(variables, completed epochs) at `path`, once all hashes of its manifest were checked."""
    import orbax.checkpoint as ocp

    _verified_manifest(path)
    state = _restore(path, ocp.args.StandardRestore())
    kept = state["ema"] if state.get("ema") else state
    variables = {"params": kept["params"]}
    if kept.get("stats"):
        variables["batch_stats"] = kept["stats"]
    _check_fit(path, _describe_arrays(variables), _describe_arrays(like))
    hparams = state.get("hparams", state.get("hyper", {}))  # "hyper" in schema 1
    epoch_steps = int(hparams.get("epoch_steps", 0))
    return variables, int(state["step"]) // epoch_steps if epoch_steps else 0


def _verified_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, once its hashes were checked against the files."""
    manifest = _manifest(path)
    written, found = manifest["sha256"], _hashes(path)
    for name in sorted(written | found):
        if written.get(name) != found.get(name):
            state = "is missing" if name not in found else "has changed"
            raise CorruptCheckpointError(f"{name} {state}")
    return manifest


def _restore(path: Path, args: Any) -> Any:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path / "state", args=args)
        except Exception as error:  # as in `save`: no common class
            raise CorruptCheckpointError(_first_line(error)) from None


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return {name: manifest[name] for name in ("score", "arrays", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{MANIFEST}: {_first_line(error)}") from None


def _score(path: Path, warn: Warn) -> list[float] | None:
    try:
        return _manifest(path)["score"]
    except CorruptCheckpointError as error:
        warn(_damage_line(path, error))
        return None


def _describe_arrays(state: Tree) -> dict[str, str]:
    """Type and shape of every array of a state, concrete or abstract, by path."""
    leaves = jax.tree.leaves_with_path(jax.tree.map(_blank, state))
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_fit(path: Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Refuse arrays whose types or shapes, by path, are not the expected ones."""
    if "hyper/lr" in saved and "hparams/lr" in expected:
        raise InputError(
            f"{path} is of an earlier version of jaxdet: it can be evaluated, but not be resumed; "
            f"resume it with that version, or train again"
        )
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise InputError(
                f"{path} does not fit the configured network: {name} must be "
                f"{expected.get(name, 'absent')}, got {saved.get(name, 'nothing')}"
            )


def _hashes(path: Path) -> dict[str, str]:
    """sha256 of every file below `path/state`, by relative name."""
    found = sorted(p for p in (path / "state").rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def _prune(folder: Path | str, keep: int) -> None:
    known = steps(folder)
    kept = {*known[-keep:], best(folder)}
    for path in _root(folder).iterdir():
        if path.name.isdigit() and int(path.name) not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint; if interrupted, no incomplete one remains under its name."""
    if path.exists():
        trash = path.with_suffix(".gone.partial")
        path.rename(trash)
        shutil.rmtree(trash)


def _check_space(path: Path, state: Tree) -> None:
    """Raise OSError before writing if the disk has no space for the state."""
    path.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
