"""Task-aligned assignment: `ops.assign` against the loop it vectorises, and against PyTorch.

    python -m benchmarks.assignment --batch 16 --json FILE

Prints a Markdown table: seconds a batch of images with 8,400 cells (640 x 640 pixels at strides 8,
16 and 32), 50 true boxes and 80 classes: loops over boxes and cells in Python and NumPy
(`benchmarks.lib.reference.task_aligned`), timed on `--sample` images and multiplied; PyTorch with dense
tensors over the batch, the usual way; and `assign.task_aligned` under `vmap`, compiled.  The last
two take turns.  What they assign is compared: a difference ends the run.  On 2 CPU cores the loops
took 159 times as long as jaxdet, PyTorch 2.8 times (`results/assignment.md`).
"""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import jax
import numpy as np

from benchmarks.lib import harness, reference
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.ops import anchors, assign
from jaxdet.profiling import timing

NAME = "assignment"
COLUMNS = {
    "way": "way",
    "batch": "batch",
    "cells": "cells",
    "slots": "true boxes",
    "classes": "classes",
    "median": "median s",
    "spread": "spread s",
    "repeats": "repeats",
    "ratio": "time / jaxdet",
    "note": "note",
}
SIDE, STRIDES = 640, (8, 16, 32)
HOW = {"topk": 13, "alpha": 1.0, "beta": 6.0}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Task-aligned assignment in loops, in PyTorch and in jaxdet."""

    batch: int = 16
    """images"""
    slots: int = 50
    """true boxes an image"""
    classes: int = 80
    """classes"""
    side: int = SIDE
    """pixels of an image's side"""
    sample: int = 1
    """images that the loops are timed on"""
    seconds: float = 5.0
    """time for the repeats of each compiled way; three repeats are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Compare, time, print, write."""
    for name in ("batch", "slots", "classes", "sample"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} starts at 1")
    rows = compare(options)
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def compare(options):
    """Rows of the loops, of PyTorch and of jaxdet."""
    given = drawn(options)
    one = partial(assign.task_aligned, **HOW)
    program = jax.jit(jax.vmap(one, (0, 0, None, 0, 0, 0)))
    ours = partial(program, *jax.device_put(given))
    theirs = _torch(given) if find_spec("torch") else None
    found = ours()
    times = timing.measure_interleaved(theirs or ours, ours, seconds=options.seconds)
    rows = [_loops(options, given, found)]
    if theirs:
        _same(theirs(), found)
        rows.append({"way": "PyTorch", **times[0]._asdict()})
    else:
        rows.append({"way": "PyTorch", "note": "not installed"})
    rows.append({"way": "jaxdet", **times[1]._asdict()})
    about = {"batch": options.batch, "cells": len(given[2])}
    about |= {"slots": options.slots, "classes": options.classes}
    for row in rows:
        row |= about
        if "median" in row:
            row["ratio"] = row["median"] / rows[-1]["median"]
    return rows


def drawn(options):
    """scores, boxes, points, true boxes, labels and valid of a batch, float32."""
    draw = np.random.default_rng(0)
    shapes = [(options.side // s,) * 2 for s in STRIDES]
    points, strides = anchors.grid_centers(shapes, STRIDES)
    batch, slots = options.batch, options.slots
    side = draw.uniform(16, options.side / 3, (batch, slots, 2))
    low = draw.uniform(0, options.side - side)
    true = np.concatenate([low, low + side], -1).astype(np.float32)
    reach = draw.uniform(0.3, 4, (batch, len(points), 4)) * strides[None, :, None]
    boxes = np.concatenate([points - reach[..., :2], points + reach[..., 2:]], -1)
    scores = draw.uniform(0, 1, (batch, len(points), options.classes)).astype(np.float32)
    labels = draw.integers(0, options.classes, (batch, slots)).astype(np.int32)
    valid = np.ones((batch, slots), bool)
    return scores, boxes.astype(np.float32), points, true, labels, valid


def _loops(options, given, found):
    """The row of the loops, once what they assign was compared."""
    count = min(options.sample, options.batch)
    told, seconds = timing.timed(lambda: [_looped(given, i) for i in range(count)])
    for i, (positive, index, scores, _) in enumerate(told):
        np.testing.assert_array_equal(found.positive[i], positive)
        np.testing.assert_array_equal(np.asarray(found.index[i])[positive], index[positive])
        np.testing.assert_allclose(found.scores[i], scores, rtol=1e-3, atol=1e-5)
    note = f"{count} of {options.batch} images, multiplied"
    return {"way": "loops", "median": seconds * options.batch / count, "repeats": 1, "note": note}


def _looped(given, i):
    scores, boxes, points, true, labels, valid = given
    one = scores[i], boxes[i], points, true[i], labels[i], valid[i]
    return reference.task_aligned(*one, **HOW)


def _torch(given):
    import torch

    from benchmarks.torch_refs import assign as peer

    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in given]
    tensors[4] = tensors[4].long()
    return partial(peer.task_aligned, *tensors, **HOW)


def _same(theirs, ours):
    positive, index, scores, _ = (tensor.numpy() for tensor in theirs)
    np.testing.assert_array_equal(ours.positive, positive)
    np.testing.assert_array_equal(np.asarray(ours.index)[positive], index[positive])
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    sys.exit(main())
