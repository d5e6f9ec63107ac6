"""Suppression of 10,000 boxes to 300: `ops.nms` against NumPy and, where it loads, torchvision.

    python -m benchmarks.suppression --json FILE

Prints a Markdown table: seconds an image of greedy NMS as it is usually written in NumPy (the best
box, one vector of overlaps, repeat), of torchvision's C++ operation, and of `nms.nms` compiled,
without classes and with 80; then of the soft and of the merging ways, and of a batch of images in
one call, as seconds an image.  The first three must keep the same boxes; all take turns.
torchvision is a row "not installed" also where its operations do not load.  On 2 CPU cores NumPy
took 1.4 times as long as jaxdet (`results/suppression.md`).
"""

import sys
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from benchmarks.lib import harness
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.ops import nms
from jaxdet.profiling import timing

NAME = "suppression"
COLUMNS = {
    "way": "way",
    "boxes": "boxes",
    "size": "kept",
    "median": "median s",
    "spread": "spread s",
    "repeats": "repeats",
    "ratio": "time / jaxdet",
    "note": "note",
}
CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Suppression in NumPy, in torchvision and in jaxdet."""

    boxes: int = 10_000
    """boxes of the image"""
    size: int = 300
    """boxes to keep at most"""
    batch: int = 16
    """images of the batch"""
    seconds: float = 3.0
    """time for the repeats of each way; three repeats are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Compare, time, print, write."""
    if min(options.boxes, options.size, options.batch) < 1:
        raise InputError("--boxes, --size and --batch start at 1")
    rows = compare(options)
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def compare(options):
    """Rows of all ways."""
    boxes, scores, labels = drawn(options.boxes)
    given, size = jax.device_put((boxes, scores, labels)), options.size

    def ours(way, *args, **how):
        program = jax.jit(partial(way, max_detections=size, **how))
        return lambda: jax.block_until_ready(program(*args))

    hard = ours(nms.nms, *given[:2])
    calls = {"NumPy": partial(greedy, boxes, scores, size), "jaxdet": hard}
    theirs = _torchvision(boxes, scores, size)
    if theirs:
        calls["torchvision"] = theirs
    kept = hard()
    for call in (calls["NumPy"], theirs or calls["NumPy"]):
        np.testing.assert_array_equal(kept.index[np.asarray(kept.valid)], call())
    calls["jaxdet, 80 classes"] = ours(nms.nms, *given)
    calls["jaxdet, soft"] = ours(nms.soft_nms, *given)
    calls["jaxdet, weighted"] = ours(nms.weighted_nms, *given)
    calls["jaxdet, fused"] = ours(nms.weighted_boxes_fusion, *given)
    several = f"jaxdet, {options.batch} images in one call"
    many = jax.device_put([np.stack([column] * options.batch) for column in (boxes, scores)])
    together = jax.jit(jax.vmap(partial(nms.nms, max_detections=size)))
    calls[several] = lambda: jax.block_until_ready(together(*many))
    for call in calls.values():
        call()
    taken = timing.sample_interleaved(list(calls.values()), seconds=options.seconds)
    images = {several: options.batch}  # a row has the seconds of one image
    rows = [
        {"way": way, **timing.summarize(0.0, [t / images.get(way, 1) for t in times])._asdict()}
        for way, times in zip(calls, taken, strict=True)
    ]
    if not theirs:
        rows.append({"way": "torchvision", "note": "not installed"})
    (one,) = (row["median"] for row in rows if row["way"] == "jaxdet")
    for row in rows:
        row |= {"boxes": options.boxes, "size": size}
        if "median" in row:
            row["ratio"] = row["median"] / one
    return rows


def drawn(count):
    """Boxes [count, 4] of 10 to 100 pixels a side in 700, distinct scores, labels."""
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 600, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(10, 100, (count, 2))], -1)
    scores = (draw.permutation(count) + 1) / (count + 1)
    labels = draw.integers(0, CLASSES, count)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


def greedy(boxes, scores, size, threshold=0.5):
    """Indices of at most `size` boxes, best first, as NumPy code usually finds them."""
    x0, y0, x1, y1 = boxes.T
    area, order, kept = (x1 - x0) * (y1 - y0), np.argsort(-scores, kind="stable"), []
    while len(order) and len(kept) < size:
        best, order = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[order]) - np.maximum(x0[best], x0[order])
        height = np.minimum(y1[best], y1[order]) - np.maximum(y0[best], y0[order])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        order = order[shared <= threshold * (area[best] + area[order] - shared)]
    return np.array(kept)


def _torchvision(boxes, scores, size):
    """A call of torchvision's operation, or None where there is none."""
    try:
        import torch
        from torchvision import ops
    except (ImportError, RuntimeError):
        return None
    given = torch.from_numpy(boxes), torch.from_numpy(scores)
    return lambda: ops.nms(*given, 0.5)[:size].numpy()


if __name__ == "__main__":
    sys.exit(main())
