"""Checkpoints: orbax writes the arrays, a sha256 manifest vouches for every byte.

`checkpoints/STEP/state` is an orbax folder of host arrays (the number of devices never enters the
file) and `checkpoints/STEP/manifest.json` their hashes; both are written to `STEP.partial` and
then renamed.  Orbax restores flipped bytes without a word, so nothing is restored before its
hashes agree.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.types import Tree

MANIFEST = "manifest.json"
LOG = logging.getLogger(__name__)


class CorruptCheckpointError(Exception):
    """A checkpoint whose bytes are not those that were written."""


def save(folder, step, state, *, score=None, keep=2):
    """Write `state` as `folder/checkpoints/STEP`; afterwards keep the `keep` newest and the best.

    `score` is a pair (higher is better, lower is better) that `best` compares, or None.  A
    checkpoint of the same step is replaced.  If writing fails (disk full), what stood before
    still stands and `OSError` names the place and the reason.
    """
    place = _root(folder) / str(int(step))
    draft = place.with_suffix(".partial")
    for left in place.parent.glob("*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        _check_space(place.parent, state)
        _write(draft / "state", jax.tree.map(_to_host, state))
        manifest = {"score": score, "arrays": _arrays(state), "sha256": _hashes(draft)}
        files.write_json(draft / MANIFEST, manifest)
        _remove(place)
        draft.rename(place)
    except Exception as error:  # orbax and tensorstore raise errors of no common class
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"checkpoint {place} could not be written: {_reason(error)}") from error
    _prune(folder, keep)


def steps(folder):
    """Steps of the finished checkpoints of a run, ascending; their bytes are not looked at."""
    return sorted(int(place.name) for place in _root(folder).glob("*") if place.name.isdigit())


def best(folder, warn=LOG.warning):
    """The step with the highest score, ties by the lower second number, then the earlier step.

    None when no checkpoint carries a score.  One whose manifest cannot be read is reported through
    `warn` and does not count.
    """
    scores = {step: _score(_root(folder) / str(step), warn) for step in steps(folder)}
    ranked = [(score[0], -score[1], -step) for step, score in scores.items() if score]
    return -max(ranked)[2] if ranked else None


def restore(folder, like, which="last", warn=LOG.warning):
    """(step, state) of a checkpoint: "last", "best" or a step number.

    `like` is a state, concrete or abstract, that gives the structure.  A corrupt checkpoint is
    reported in one line through `warn`, and the newest good one is used instead.
    """
    return _first_good(folder, which, warn, lambda path: _read_state(path, like))


def restore_variables(
    folder: str | Path, like: Tree, which: str = "best", warn: Callable[[str], None] = LOG.warning
) -> tuple[int, Tree, int]:
    """(step, variables, completed epochs) of a checkpoint, whatever else it holds.

    The variables are the moving averages where they were kept.  `like` are the variables of the
    network, concrete or abstract; optimizer, hyper-parameters and bookkeeping are never looked at,
    so that checkpoints of other versions can be evaluated.
    """
    return _first_good(folder, which, warn, lambda path: _read_variables(path, like))


def _first_good(folder, which, warn, read):
    """(step, *read(path)) of the chosen checkpoint, or else of the newest that is not corrupt."""
    known = steps(folder)
    if not known:
        raise InputError(f"{folder} has no checkpoints; train it first (jaxdet train ... --out)")
    tell = _once(warn)
    first = _chosen(folder, which, known, tell)
    for step in [first] + [step for step in reversed(known) if step != first]:
        path = _root(folder) / str(step)
        try:
            return step, *read(path)
        except CorruptCheckpointError as error:
            tell(_damaged(path, error))
    raise InputError(f"{folder} has no undamaged checkpoint; train it again with --overwrite")


def _once(warn):
    """`warn` for lines that it has not said yet."""
    said = set()

    def tell(line):
        if line not in said:
            said.add(line)
            warn(line)

    return tell


def _damaged(place, error):
    return f"checkpoint {place} is damaged ({error}); the newest good one is used"


def _chosen(folder, which, known, warn):
    if which == "last":
        return known[-1]
    if which == "best":
        step = best(folder, warn)
        return known[-1] if step is None else step
    if str(which).isdigit() and int(which) in known:
        return int(which)
    raise InputError(f"--checkpoint {which}: {folder} has best, last and steps {known}")


def _root(folder):
    return Path(folder).absolute() / "checkpoints"


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf):
    """An array on the host; a random key as the integers inside it."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _blank(leaf):
    """Zeros of the shape and type that `_to_host` gives for an array, or for its abstract shape."""
    inside = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.zeros(inside.shape, inside.dtype)


def _from_host(like, leaf):
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf


def _reason(error):
    """Why writing failed, without the names of files that orbax puts before and after it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error):
    return str(error).strip().split("\n")[0]


def _write(place, state):
    import orbax.checkpoint as ocp

    with _silent("absl"), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(place, args=ocp.args.StandardSave(state))


@contextmanager
def _silent(name):
    """No word from a logger: orbax would log the traceback of an error that it also raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_state(path, like):
    """(the state at `path`,), once every hash of its manifest agrees."""
    import orbax.checkpoint as ocp

    manifest = _verified_manifest(path)
    _check_fit(path, manifest["arrays"], _arrays(like))
    state = _restore(path, ocp.args.StandardRestore(jax.tree.map(_blank, like)))
    return (jax.tree.map(_from_host, like, state),)


def _read_variables(path, like):
    """(variables, completed epochs) at `path`, once every hash of its manifest agrees."""
    import orbax.checkpoint as ocp

    _verified_manifest(path)
    state = _restore(path, ocp.args.StandardRestore())
    kept = state["ema"] if state.get("ema") else state
    variables = {"params": kept["params"]}
    if kept.get("stats"):
        variables["batch_stats"] = kept["stats"]
    _check_fit(path, _arrays(variables), _arrays(like))
    hparams = state.get("hparams", state.get("hyper", {}))  # "hyper" in schema 1
    epoch_steps = int(hparams.get("epoch_steps", 0))
    return variables, int(state["step"]) // epoch_steps if epoch_steps else 0


def _verified_manifest(path):
    """The manifest of a checkpoint whose files have the hashes that it lists."""
    manifest = _manifest(path)
    written, found = manifest["sha256"], _hashes(path)
    for name in sorted(written | found):
        if written.get(name) != found.get(name):
            state = "is missing" if name not in found else "has changed"
            raise CorruptCheckpointError(f"{name} {state}")
    return manifest


def _restore(path, args):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path / "state", args=args)
        except Exception as error:  # as above: no common class
            raise CorruptCheckpointError(_first_line(error)) from None


def _manifest(place):
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        return {name: manifest[name] for name in ("score", "arrays", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{MANIFEST}: {_first_line(error)}") from None


def _score(place, warn):
    try:
        return _manifest(place)["score"]
    except CorruptCheckpointError as error:
        warn(_damaged(place, error))
        return None


def _arrays(state):
    """Type and shape of every array of a state, concrete or abstract, by its path."""
    leaves = jax.tree.leaves_with_path(jax.tree.map(_blank, state))
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_fit(path, kept, expected):
    """Refuse arrays, by path, of other types or shapes than the configured network has."""
    if "hyper/lr" in kept and "hparams/lr" in expected:
        raise InputError(
            f"{path} is of an earlier version of jaxdet: it can be evaluated, but not be resumed; "
            f"resume it with that version, or train again"
        )
    for name in sorted(kept.keys() | expected.keys()):
        if kept.get(name) != expected.get(name):
            raise InputError(
                f"{path} does not fit the configured network: {name} must be "
                f"{expected.get(name, 'absent')}, got {kept.get(name, 'nothing')}"
            )


def _hashes(place):
    """sha256 of every file below `place/state`, by relative name."""
    files = sorted(p for p in (place / "state").rglob("*") if p.is_file())
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _prune(folder, keep):
    known = steps(folder)
    kept = {*known[-keep:], best(folder)}
    for place in _root(folder).iterdir():
        if place.name.isdigit() and int(place.name) not in kept:
            _remove(place)


def _remove(place):
    """Delete a checkpoint; cut short, it leaves no half of one under its name."""
    if place.exists():
        gone = place.with_suffix(".gone.partial")
        place.rename(gone)
        shutil.rmtree(gone)


def _check_space(place, state):
    """Refuse to begin what the disk cannot hold."""
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
