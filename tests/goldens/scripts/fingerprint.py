"""Fingerprints of the last checkpoint of run folders, read from orbax's files alone.

    python fingerprint.py RUN [RUN ...]

prints a JSON object {name of RUN: {"step", "params", "stats", "ema", "all"}}: sha256 of the bytes
of all arrays of each, and of the three one after the other, in the order of their sorted paths;
"arrays" and "numbers" count them.  Nothing of jaxdet is imported: old and new runs are read alike.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

PARTS = ("params", "stats", "ema")


def restored(run, step=None):
    """(step, state as nested dicts of arrays) of a checkpoint of a run, by default the last."""
    import orbax.checkpoint as ocp

    root = Path(run).absolute() / "checkpoints"
    step = step or max(int(place.name) for place in root.iterdir() if place.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        return step, checkpointer.restore(root / str(step) / "state")


def leaves(tree, path=""):
    """{"a/b/kernel": array} of nested dicts."""
    if not isinstance(tree, dict):
        return {path: np.asarray(tree)}
    return {k: v for name, of in tree.items() for k, v in leaves(of, f"{path}/{name}").items()}


def fingerprint(run, step=None):
    """The hashes, by name."""
    step, state = restored(run, step)
    found, whole = {"step": step}, hashlib.sha256()
    arrays = {part: leaves(state.get(part) or {}) for part in PARTS}
    for part, of_part in arrays.items():
        one = hashlib.sha256()
        for path in sorted(of_part):
            content = np.ascontiguousarray(of_part[path]).tobytes()
            one.update(content)
            whole.update(content)
        found[part] = one.hexdigest()
    every = [array for of_part in arrays.values() for array in of_part.values()]
    counts = {"arrays": len(every), "numbers": int(sum(array.size for array in every))}
    return {**found, "all": whole.hexdigest(), **counts}


if __name__ == "__main__":
    print(json.dumps({Path(run).name: fingerprint(run) for run in sys.argv[1:]}, indent=2))
