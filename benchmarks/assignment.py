"""Task-aligned assignment: `assign.task_aligned` against Python loops and PyTorch.

    python -m benchmarks.assignment --batch 16 --json FILE

Times a batch of images with 8,400 cells (640 x 640 pixels at strides 8, 16 and 32), 50 true boxes
and 80 classes, and prints the seconds per batch of three implementations: loops over boxes and
cells in Python and NumPy (`benchmarks.lib.reference.task_aligned`), timed on `--sample` images and
extrapolated; PyTorch with dense tensors over the batch, the usual way; and the compiled
`assign.task_aligned` under `vmap`. Calls of the last two are interleaved. The run fails if the
assignments differ.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from benchmarks.lib import harness, reference, units
from jaxdet.ops import anchors, assign
from jaxdet.profiling import timing

NAME = "assignment"
COLUMNS = {
    "implementation": "implementation",
    "batch": "batch",
    "cells": "cells",
    "boxes": "true boxes",
    "classes": "classes",
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "time / jaxdet",
    "note": "note",
}
SIDE, STRIDES = 640, (8, 16, 32)
SETTINGS = {"topk": 13, "alpha": 1.0, "beta": 6.0}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Task-aligned assignment in loops, in PyTorch and in jaxdet."""

    batch: int = 16
    """images per batch"""
    boxes: int = 50
    """true boxes per image"""
    classes: int = 80
    """number of classes"""
    side: int = SIDE
    """side of an image in pixels"""
    sample: int = 1
    """number of images on which the loops are timed"""
    seconds: float = 5.0
    """seconds for which each compiled implementation is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "batch", "boxes", "classes", "sample")
    harness.publish(NAME, options, render, compare(options))


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(options: Options) -> list[dict[str, Any]]:
    inputs = random_inputs(options)
    task_aligned = partial(assign.task_aligned, **SETTINGS)
    program = jax.jit(jax.vmap(task_aligned, (0, 0, None, 0, 0, 0)))
    jax_call = partial(program, *jax.device_put(inputs))
    missing = harness.torch_unavailable()
    torch_call = None if missing else _torch_call(inputs)
    found = jax_call()
    times = timing.measure_interleaved(torch_call or jax_call, jax_call, seconds=options.seconds)
    rows = [_time_loops(options, inputs, found)]
    if torch_call:
        expected = [tensor.cpu().numpy() for tensor in torch_call()]
        _assert_equal(found, *expected[:3])
        rows.append({"implementation": "PyTorch", **times[0]._asdict()})
    else:
        rows.append({"implementation": "PyTorch", "note": missing})
    rows.append({"implementation": "jaxdet", **times[1]._asdict()})
    for row in rows:
        row |= {"batch": options.batch, "cells": len(inputs[2])}
        row |= {"boxes": options.boxes, "classes": options.classes}
        if "median" in row:
            row["ratio"] = row["median"] / rows[-1]["median"]
    return rows


def random_inputs(options: Options) -> tuple[np.ndarray, ...]:
    """Arguments of `assign.task_aligned` for a batch: scores, predicted boxes, points, targets."""
    draw = np.random.default_rng(0)
    shapes = [(options.side // s, options.side // s) for s in STRIDES]
    points, strides = anchors.grid_centers(shapes, STRIDES)
    batch, count = options.batch, options.boxes
    side = draw.uniform(16, options.side / 3, (batch, count, 2))
    low = draw.uniform(0, options.side - side)
    true = np.concatenate([low, low + side], -1).astype(np.float32)
    ltrb = draw.uniform(0.3, 4, (batch, len(points), 4)) * strides[None, :, None]
    boxes = np.concatenate([points - ltrb[..., :2], points + ltrb[..., 2:]], -1)
    scores = draw.uniform(0, 1, (batch, len(points), options.classes)).astype(np.float32)
    labels = draw.integers(0, options.classes, (batch, count)).astype(np.int32)
    valid = np.ones((batch, count), bool)
    return scores, boxes.astype(np.float32), points, true, labels, valid


def _time_loops(options, inputs, found):
    """The row of the loops; fails if their assignments differ from jaxdet's."""
    count = min(options.sample, options.batch)
    scores, boxes, points, *true = inputs

    def loop(i):
        image = scores[i], boxes[i], points, *(array[i] for array in true)
        return reference.task_aligned(*image, **SETTINGS)

    assigned, seconds = timing.timed(lambda: [loop(i) for i in range(count)])
    for i, (positive, index, target_scores, _) in enumerate(assigned):
        image = jax.tree.map(itemgetter(i), found)
        _assert_equal(image, positive, index, target_scores)
    note = f"extrapolated from {count} of {options.batch} images"
    median = seconds * options.batch / count
    return {"implementation": "loops", "median": median, "repeats": 1, "note": note}


def _torch_call(inputs):
    import torch

    from benchmarks.torch_refs import assign as torch_assign
    from benchmarks.torch_refs import backend

    place = backend.device()
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(place) for array in inputs]
    tensors[4] = tensors[4].long()
    return backend.blocked(partial(torch_assign.task_aligned, *tensors, **SETTINGS), place)


def _assert_equal(found, positive, index, scores):
    np.testing.assert_array_equal(found.positive, positive)
    np.testing.assert_array_equal(np.asarray(found.indices)[positive], index[positive])
    np.testing.assert_allclose(found.scores, scores, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    sys.exit(main())
