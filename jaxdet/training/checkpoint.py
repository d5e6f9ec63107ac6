"""Checkpoints: arrays written by orbax, and a manifest with the sha256 hash of every file.

`checkpoints/STEP/state` is an orbax folder of host arrays, independent of the number of devices;
`checkpoints/STEP/manifest.json` holds the hashes, and links the checkpoint to its run: step, hash
of the configuration, number of lines of metrics.  Both are written to `STEP.partial`, which is then
renamed.  Orbax does not detect flipped bytes, so hashes are checked before anything is restored.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxdet import files
from jaxdet.config import RUN
from jaxdet.errors import InputError
from jaxdet.training import run_dir
from jaxdet.types import Array, Tree

MANIFEST = "manifest.json"
ARRAY_KEY = "/.zarray"  # of the type and shape of an array
CACHED_BYTES = 10**8  # of the index of the arrays, and of those that share a file
LOG = logging.getLogger(__name__)

Warn = Callable[[str], Any]


class CorruptCheckpointError(Exception):
    """A checkpoint cannot be read, or was changed or moved after it was written."""


class Manifest(TypedDict):
    """The content of `manifest.json`; older files lack the keys that are not required."""

    score: tuple[float, float] | None  # score (higher is better) and loss (lower is better)
    arrays: dict[str, str]  # data type and shape of every array, by path
    sha256: dict[str, str]  # hash of every file below `state`, by path
    step: NotRequired[int]
    config_sha256: NotRequired[str | None]  # see `run_dir.config_digest`
    metrics_lines: NotRequired[int]


def save(
    folder: Path | str,
    step: int,
    state: Tree,
    *,
    score: tuple[float, float] | None = None,
    keep: int = 2,
) -> Path:
    """Write `state` to `folder/checkpoints/STEP`, return this path, and delete old checkpoints.

    The `keep` newest checkpoints and the best one remain.  `score`, which `best` compares, is a
    pair of a score (higher is better) and a loss (lower is better), or None.  A checkpoint of the
    same step is replaced.  If writing fails, for example on a full disk, the previous checkpoints
    remain, and the OSError names the checkpoint and the reason.
    """
    path = _root(folder) / str(int(step))
    draft = path.with_suffix(".partial")
    for leftover in path.parent.glob("*.partial"):
        run_dir.remove(leftover)
    try:
        _check_space(path.parent, state)
        _write(draft / "state", jax.tree.map(_to_host, state))
        manifest: Manifest = {
            "step": int(step),
            "score": score,
            "config_sha256": run_dir.config_digest(folder),
            "metrics_lines": run_dir.count_metrics(folder, int(step)),
            "arrays": _describe_arrays(state),
            "sha256": _hashes(draft),
        }
        files.write_json(draft / MANIFEST, manifest)
        _remove(path)
        draft.rename(path)
    except Exception as error:  # orbax and tensorstore raise errors of no common class
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"cannot write checkpoint {path}: {_reason(error)}") from error
    _prune(folder, keep)
    return path


def copy_to_host(state: Tree) -> Tree:
    """Copy a state to the host for `save`; the copy shares no memory with the state."""
    data = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)
    return jax.tree.map(np.array, jax.device_get(data))


def steps(folder: Path | str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending; hashes are not checked."""
    found = (path for path in _root(folder).glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name))
    return sorted(int(path.name) for path in found if path.is_dir() or path.is_symlink())


def best(folder: Path | str, warn: Warn = LOG.warning) -> int | None:
    """Step of the best checkpoint, or None if no checkpoint has a score.

    The best checkpoint has the highest first number of `score`.  Ties go to the lowest second
    number, then to the lowest step.  A checkpoint whose manifest cannot be read is reported through
    `warn` and ignored.
    """
    scores = {step: _score(_root(folder) / str(step), warn) for step in steps(folder)}
    ranked = [(score[0], -score[1], -step) for step, score in scores.items() if score]
    return -max(ranked)[2] if ranked else None


def restore(
    folder: Path | str, like: Tree, which: str | int = "last", warn: Warn = LOG.warning
) -> tuple[int, Tree]:
    """(step, state) of the checkpoint `which`: "last", "best" or a step number.

    If no checkpoint has a score, "best" is the last one.
    like: a state, concrete or abstract, with the structure, shapes and types of the checkpoint.

    A damaged checkpoint is reported in one line through `warn`, and the newest undamaged one is
    used instead.  Raises InputError if there is no checkpoint `which` or no undamaged one, if it
    does not fit `like` or cannot be resumed, or if the configuration of the run has changed.
    """
    if _is_config_changed(folder):
        raise InputError(
            f"{folder} cannot be resumed: its {run_dir.CONFIG} has changed since its checkpoints "
            f"were written; restore the original file"
        )
    step, (state,) = _first_undamaged(folder, which, warn, lambda path: _read_state(path, like))
    return step, state


def restore_variables(
    folder: Path | str, like: Tree, which: str | int = "best", warn: Warn = LOG.warning
) -> tuple[int, Tree, int]:
    """(step, variables, completed epochs) of the checkpoint `which`, see `restore`.

    like: variables of the network, concrete or abstract.

    The variables are the moving averages if the checkpoint has them.  Besides the variables, only
    the step and the length of an epoch are read, so that checkpoints of other versions can be
    evaluated.
    """
    if _is_config_changed(folder):
        warn(
            f"{Path(folder) / run_dir.CONFIG} has changed since the checkpoints of the run were "
            f"written: scores may differ from the scores in training"
        )
    step, found = _first_undamaged(folder, which, warn, lambda path: _read_variables(path, like))
    return step, *found


def read_variables(
    folder: Path | str, which: str | int = "best", warn: Warn = LOG.warning
) -> tuple[int, Tree]:
    """(step, variables) of the checkpoint `which`, with the shapes that the checkpoint has.

    `restore_variables` also checks the shapes against a network.
    """
    step, (variables, _) = _first_undamaged(folder, which, warn, _read_own_variables)
    return step, variables


def export(folder: Path | str, step: int, like: Tree, out: Path | str) -> Path:
    """Copy the part of a checkpoint that evaluation needs to the run folder `out`.

    Returns the path of the new checkpoint, which `restore_variables` can read and `restore` cannot.
    Raises InputError if the checkpoint is damaged.
    """
    path = _root(folder) / str(step)
    try:
        return save(out, step, _read_evaluated(path, like), score=_manifest(path)["score"])
    except CorruptCheckpointError as error:
        raise InputError(
            f"checkpoint {path} is damaged ({error}); choose another --checkpoint"
        ) from None


def copy(trained: Path, folder: Path) -> None:
    """Copy the checkpoints of the run `trained` to the run `folder`, which has the same network.

    The manifests of the copies name the configuration of `folder`.  If `folder` already has
    checkpoints, nothing is copied.
    """
    if (folder / "checkpoints").is_dir():
        return
    draft = folder / "checkpoints.partial"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(_root(trained), draft)
    for path in draft.glob(f"*/{MANIFEST}"):
        manifest = files.load_json(path, Manifest)
        own = {"config_sha256": run_dir.config_digest(folder), "metrics_lines": 0}
        files.write_json(path, manifest | own)
    draft.rename(folder / "checkpoints")


def count_lost_metrics(folder: Path | str) -> int:
    """Number of lines that `metrics.jsonl` has lost since the last checkpoint."""
    for step in reversed(steps(folder)):
        try:
            written = _manifest(_root(folder) / str(step)).get("metrics_lines", 0)
        except CorruptCheckpointError:
            continue
        return max(0, written - run_dir.count_metrics(folder, step))
    return 0


def _is_config_changed(folder: Path | str) -> bool:
    """Whether the configuration of the run differs from every one that its checkpoints record."""
    present, written = run_dir.config_digest(folder), set()
    for step in steps(folder):
        try:
            written.add(_manifest(_root(folder) / str(step)).get("config_sha256"))
        except CorruptCheckpointError:
            continue
    return present is not None and bool(written) and not written & {present, None}


def _first_undamaged(
    folder: Path | str, which: str | int, warn: Warn, read: Callable[[Path], tuple]
) -> tuple[int, tuple]:
    """(step, read(path)) of the chosen checkpoint or, if damaged, of the newest good one."""
    known = steps(folder)
    if not known:
        raise InputError(
            f"{folder} has no checkpoints; train it first: jaxdet train ... --out {folder}"
        )
    warn = _once(warn)
    first = _resolve(folder, which, known, warn)
    digest = None if _is_config_changed(folder) else run_dir.config_digest(folder)
    for step in [first] + [step for step in reversed(known) if step != first]:
        path = _root(folder) / str(step)
        try:
            if digest and _manifest(path).get("config_sha256", digest) not in (digest, None):
                raise CorruptCheckpointError("it belongs to another run")
            return step, read(path)
        except CorruptCheckpointError as error:
            warn(_damage_line(path, error))
    raise InputError(f"{folder} has no undamaged checkpoint; train it again with --overwrite")


def _once(warn: Warn) -> Warn:
    """A function that passes each line on to `warn` only once."""
    seen: set[str] = set()

    def warn_once(line):
        if line not in seen:
            seen.add(line)
            warn(line)

    return warn_once


def _damage_line(path: Path, error: Exception) -> str:
    return f"checkpoint {path} is damaged ({error}); using the newest undamaged one"


def _resolve(folder: Path | str, which: str | int, known: list[int], warn: Warn) -> int:
    """The step that `which` refers to; InputError if no checkpoint has it."""
    if which == "last":
        return known[-1]
    if which == "best":
        step = best(folder, warn)
        return known[-1] if step is None else step
    if str(which).isdigit() and int(which) in known:
        return int(which)
    raise InputError(
        f"--checkpoint must be best, last or one of the steps {', '.join(map(str, known))} of "
        f"{folder}, got {which}"
    )


def _root(folder: Path | str) -> Path:
    return Path(folder).absolute() / "checkpoints"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Array) -> np.ndarray:
    """Copy an array, or the key data of a random key, to the host."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _blank(leaf: Any) -> np.ndarray:
    """Zeros with the shape and type of `_to_host(leaf)`; leaf may be abstract."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.zeros(data.shape, data.dtype)


def _from_host(like: Any, leaf: np.ndarray) -> Array:
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf


def _reason(error: Exception) -> str:
    """The reason why writing failed, without the file names that orbax adds."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


# Orbax writes the arrays, in zarr format in an OCDBT key-value store.  They are read by
# tensorstore, on which orbax is based: orbax needs a second to be imported, and more to read a
# detector.


def _own_process() -> Any:
    """Options with which orbax does not wait for other processes that train the same run."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _write(path: Path, state: Tree) -> None:
    import orbax.checkpoint as ocp

    own = _own_process()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=own)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=own)
    with _silent("absl"), _silent_threads(), checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave(state))


def _read(path: Path, like: Tree) -> Any:
    """Restore the arrays of the checkpoint at `path` that are in `like`, a tree of blank arrays."""
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHED_BYTES}})

    def open_array(names: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(names, simple=True, separator=".")
        spec = {"driver": "zarr", "kvstore": {**_store(path), "path": f"{name}/"}}
        return tensorstore.open(spec, open=True, read=True, context=context)

    with _named_as_corrupt():
        opened = jax.tree_util.tree_map_with_path(open_array, like)
        reading = jax.tree.map(lambda array: array.result().read(), opened)
        return jax.tree.map(lambda values: np.asarray(values.result()), reading)


def _read_shapes(path: Path) -> dict[str, str]:
    """Types and shapes of the arrays at `path`, see `_describe`; names are separated by dots."""
    import tensorstore

    with _named_as_corrupt():
        store = tensorstore.KvStore.open(_store(path)).result()
        keys = [key.decode() for key in store.list().result()]
        keys = [key for key in keys if key.endswith(ARRAY_KEY)]
        read = [store.read(key) for key in keys]
        found = [json.loads(each.result().value) for each in read]
    return {
        key.removesuffix(ARRAY_KEY): f"{np.dtype(array['dtype']).name}{array['shape']}"
        for key, array in zip(keys, found, strict=True)
    }


def _store(path: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/state/"}}


@contextmanager
def _named_as_corrupt() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as in `save`: no common class
        raise CorruptCheckpointError(_first_line(error)) from None


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


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Drop the error reports of orbax's threads; the error of a failed write is raised anyway."""
    report = sys.unraisablehook

    def report_others(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_others
    yield
    sys.unraisablehook = report


def _read_state(path: Path, like: Tree) -> tuple[Tree]:
    """The state at `path`, after all hashes of its manifest are checked."""
    saved = _verified_arrays(path)
    _check_resumable(path, saved)
    _check_fit(path, saved, _describe_arrays(like))
    state = _read(path, jax.tree.map(_blank, like))
    return (jax.tree.map(_from_host, like, state),)


def _read_variables(path: Path, like: Tree) -> tuple[Tree, int]:
    """(variables, completed epochs) at `path`, after all hashes of its manifest are checked."""
    state = _read_evaluated(path, like)
    variables = {"params": state["params"]}
    if "batch_stats" in like:
        variables["batch_stats"] = state["stats"]
    epoch_steps = int(state["hparams"].get("epoch_steps", 0))
    return variables, int(state["step"]) // epoch_steps if epoch_steps else 0


def _read_own_variables(path: Path) -> tuple[Tree, int]:
    """`_read_variables` with the shapes of the checkpoint."""
    saved = _verified_arrays(path)
    averages = any(name.startswith("ema/") for name in saved)
    found = _variables_of(saved, "ema/" if averages else "")
    blank = {tuple(name.split("/")): _parse_array(text) for name, text in found.items()}
    own = traverse_util.unflatten_dict(blank)
    stats = {"batch_stats": own["stats"]} if own.get("stats") else {}
    return _read_variables(path, {"params": own["params"], **stats})


def _read_evaluated(path: Path, like: Tree) -> dict[str, Any]:
    """The part of the state at `path` that evaluation needs, with moving averages if it has any."""
    saved = _verified_arrays(path)
    averages = any(name.startswith("ema/") for name in saved)
    blank = jax.tree.map(_blank, like)
    kept = {"params": blank["params"], "stats": blank.get("batch_stats", {})}
    _check_fit(path, _variables_of(saved, "ema/" if averages else ""), _describe_arrays(kept))
    number = np.zeros((), np.int32)
    item = {"step": number, **({"ema": kept} if averages else kept)}
    lengths = "hparams" if "hparams/epoch_steps" in saved else "hyper"  # the name in schema 1
    if f"{lengths}/epoch_steps" in saved:
        item[lengths] = {"epoch_steps": number}
    state = _read(path, item)
    kept = state["ema"] if averages else state
    return {
        "step": state["step"],
        "params": kept["params"],
        "stats": kept["stats"],
        "hparams": state.get(lengths, {}),
    }


def _variables_of(saved: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The parameters and batch statistics below a prefix, with names without the prefix."""
    own = {name.removeprefix(prefix): of for name, of in saved.items() if name.startswith(prefix)}
    return {name: of for name, of in own.items() if name.startswith(("params/", "stats/"))}


def _verified_arrays(path: Path) -> dict[str, str]:
    """Types and shapes of the arrays at `path`; CorruptCheckpointError if any file is wrong."""
    manifest = _manifest(path)
    written, found = manifest["sha256"], _hashes(path)
    for name in sorted(written | found):
        if written.get(name) != found.get(name):
            state = "is missing" if name not in found else "has changed"
            raise CorruptCheckpointError(f"{name} {state}")
    arrays = manifest["arrays"]
    if _read_shapes(path) != {name.replace("/", "."): of for name, of in arrays.items()}:
        raise CorruptCheckpointError(f"{MANIFEST}: its list of arrays differs from the files")
    step = manifest.get("step", int(path.name))
    if step != int(path.name):
        raise CorruptCheckpointError(f"it belongs to step {step}")
    return arrays


def _manifest(path: Path) -> Manifest:
    try:
        return files.load_json(path / MANIFEST, Manifest)
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{MANIFEST}: {files.reason(error)}") from None


def _score(path: Path, warn: Warn) -> tuple[float, float] | None:
    try:
        return _manifest(path)["score"]
    except CorruptCheckpointError as error:
        warn(_damage_line(path, error))
        return None


def _describe_arrays(state: Tree) -> dict[str, str]:
    """Type and shape of every array of a state, concrete or abstract, by path."""
    leaves = jax.tree.leaves_with_path(state)
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): _describe(leaf) for path, leaf in leaves}


def _describe(leaf: Any) -> str:
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return f"{data.dtype}{list(data.shape)}"


def _parse_array(text: str) -> jax.ShapeDtypeStruct:
    """The array that a text such as float32[3, 8] describes."""
    dtype, _, shape = text.removesuffix("]").partition("[")
    return jax.ShapeDtypeStruct([int(side) for side in shape.split(", ") if side], dtype)


def _check_resumable(path: Path, saved: Mapping[str, str]) -> None:
    """Raise InputError for a state that cannot be resumed with any network."""
    if "hyper/lr" in saved:
        problem = "was written by an earlier version of jaxdet"
    elif not any(name.startswith("bookkeeping/") for name in saved):
        problem = "was exported for evaluation, without the state of the optimizer,"
    else:
        return
    raise InputError(
        f"{path} {problem} and cannot be resumed: evaluate it with this version, or start a new "
        f"run from its variables with --weights {RUN}DIR"
    )


def _check_fit(path: Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raise InputError unless the arrays, {path: type and shape}, are the expected ones."""
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
    for step in {*known} - {*known[-keep:], best(folder)}:
        _remove(_root(folder) / str(step))


def _remove(path: Path) -> None:
    """Delete a checkpoint; an interruption leaves no partial checkpoint under its name."""
    if path.is_dir() or path.is_symlink():
        trash = path.with_suffix(".gone.partial")
        path.rename(trash)
        run_dir.remove(trash)
    elif path.exists():
        path.rename(path.with_suffix(".other"))


def _check_space(path: Path, state: Tree) -> None:
    """Raise OSError before writing if the disk has no space for the state."""
    path.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
