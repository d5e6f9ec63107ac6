"""Suppression of 10,000 boxes: `jaxdet.ops.nms` against NumPy and torchvision.

    python -m benchmarks.suppression --json FILE

Prints seconds per image of greedy NMS as usually written in NumPy (best box, one vector of IoUs,
repeat), of torchvision's C++ operator, and of the compiled `nms.nms`, without classes and with 80;
then of soft NMS, weighted NMS and weighted boxes fusion, and of NMS of a batch in one call. NumPy,
torchvision and `nms.nms` must keep the same boxes. All are timed interleaved. torchvision counts as
not installed if its operators do not load.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.lib import harness, units
from jaxdet.ops import nms
from jaxdet.profiling import timing

NAME = "suppression"
COLUMNS = {
    "implementation": "implementation",
    "boxes": "boxes",
    "max_detections": "kept",
    "median": ("median per image", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "time / jaxdet",
    "note": "note",
}
CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Suppression in NumPy, in torchvision and in jaxdet."""

    boxes: int = 10_000
    """boxes per image"""
    max_detections: int = 300
    """maximum number of boxes to keep"""
    batch: int = 16
    """images per batch"""
    seconds: float = 3.0
    """seconds for which each implementation is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "boxes", "max_detections", "batch")
    harness.publish(NAME, options, render, compare(options))


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: the rows that have a time."""
    return render({**record, "rows": [row for row in record["rows"] if row.get("median")]})


def compare(options: Options) -> list[dict[str, Any]]:
    boxes, scores, labels = random_boxes(options.boxes)
    count = options.max_detections
    arrays = jax.device_put((boxes, scores, labels))

    def compiled(fn, *args):
        program = jax.jit(partial(fn, max_detections=count))
        return lambda: jax.block_until_ready(program(*args))

    plain = compiled(nms.nms, *arrays[:2])
    torchvision = _torchvision_call(boxes, scores, count)
    kept = plain()
    expected = np.asarray(kept.indices)[np.asarray(kept.valid)]
    np.testing.assert_array_equal(expected, greedy_nms(boxes, scores, count))
    if torchvision:
        np.testing.assert_array_equal(expected, torchvision())

    batched = f"jaxdet, {options.batch} images in one call"
    stacked = jax.device_put([np.stack([column] * options.batch) for column in (boxes, scores)])
    calls = {
        "NumPy": partial(greedy_nms, boxes, scores, count),
        "jaxdet": plain,
        **({"torchvision": torchvision} if torchvision else {}),
        "jaxdet, 80 classes": compiled(nms.nms, *arrays),
        "jaxdet, soft NMS": compiled(nms.soft_nms, *arrays),
        "jaxdet, weighted NMS": compiled(nms.weighted_nms, *arrays),
        "jaxdet, weighted boxes fusion": compiled(nms.weighted_boxes_fusion, *arrays),
        batched: compiled(_batched_nms, *stacked),
    }
    for call in calls.values():
        call()
    samples = timing.sample_interleaved(list(calls.values()), seconds=options.seconds)
    rows = []
    for name, times in zip(calls, samples, strict=True):
        images = options.batch if name == batched else 1
        found = timing.summarize(0.0, [seconds / images for seconds in times])
        rows.append({"implementation": name, **found._asdict()})
    if not torchvision:
        rows.append({"implementation": "torchvision", "note": "not installed"})
    (jaxdet_s,) = (row["median"] for row in rows if row["implementation"] == "jaxdet")
    for row in rows:
        row |= {"boxes": options.boxes, "max_detections": count}
        if "median" in row:
            row["ratio"] = row["median"] / jaxdet_s
    return rows


def random_boxes(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [count, 4] of 10 to 100 pixels per side in 700 x 700, distinct scores, and labels."""
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 600, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(10, 100, (count, 2))], -1)
    scores = (draw.permutation(count) + 1) / (count + 1)
    labels = draw.integers(0, CLASSES, count)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


def greedy_nms(
    boxes: np.ndarray, scores: np.ndarray, max_detections: int, iou_threshold: float = 0.5
) -> np.ndarray:
    """Indices of the boxes [N, 4] that are kept, best first, by the usual loop in NumPy."""
    x0, y0, x1, y1 = boxes.T
    area, order, kept = (x1 - x0) * (y1 - y0), np.argsort(-scores, kind="stable"), []
    while len(order) and len(kept) < max_detections:
        best, order = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[order]) - np.maximum(x0[best], x0[order])
        height = np.minimum(y1[best], y1[order]) - np.maximum(y0[best], y0[order])
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[best] + area[order] - intersection
        order = order[intersection <= iou_threshold * union]
    return np.array(kept)


def _batched_nms(boxes, scores, *, max_detections):
    return jax.vmap(partial(nms.nms, max_detections=max_detections))(boxes, scores)


def _torchvision_call(boxes, scores, max_detections) -> Callable | None:
    """A call of torchvision's operator on JAX's device, or None if it cannot be used."""
    try:
        import torch
        from torchvision import ops
    except (ImportError, RuntimeError):
        return None
    if harness.torch_unavailable():
        return None
    from benchmarks.torch_refs import backend

    place = backend.device()
    args = (torch.from_numpy(array).to(place) for array in (boxes, scores))
    call = partial(ops.nms, *args, 0.5)
    return lambda: call()[:max_detections].cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
