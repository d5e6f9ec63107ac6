"""Small objects in large images: a detector on whole images, in tiles, and in SAHI's slices.

    python -m benchmarks.tiles --run runs/detect --sahi /PATH/TO/ENV/bin/python

The images of a split are drawn in groups of four, which form mosaics of twice their height and
width. To the network, which resizes a mosaic to the size of its input, objects are half as large as
in the images that the run was trained on; in tiles it sees them larger. `small`, `medium` and
`large` are COCO's sizes where the mosaic has the size of one image: boxes and areas are scaled by a
half and a quarter. `apart` predicts each of the four images alone, as it was before: the scores
that the network has without the mosaic. Scores are means over `--repeats` draws of the mosaics,
with standard deviations if there are several; multiply-adds are those of one mosaic.

SAHI (Akyon et al. 2022, arXiv:2202.06934) cuts a mosaic into slices of the same size and overlap as
the tiles of `--tiles` in pixels, in an environment of its own; the network predicts for each slice
and for the whole mosaic, and SAHI merges the boxes: by NMS, which it chooses for detectors with a
score threshold below .1, or by greedy merging, its default for others.
"""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

import jaxdet
from benchmarks.lib import harness, units
from jaxdet import flops
from jaxdet.data import detection, formats, images, regular_files
from jaxdet.errors import InputError
from jaxdet.metrics import detection as metrics
from jaxdet.types import Detections

NAME = "tiles"
SCORES = ("map", "map50", "map_small", "map_medium", "map_large")
COLUMNS = {
    "method": "method",
    "multiply_adds": ("multiply-adds", ""),
    **{name: name for name in SCORES},
}
MERGING_SCRIPT = Path(__file__).parent / "lib" / "sahi_merge.py"
SAHI_METHODS = {"nms": "SAHI, NMS", "greedy_nmm": "SAHI, greedy merging"}
MAX_DETECTIONS = 100  # per image, as COCO counts


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Scores of a detector on mosaics, with tiles and without."""

    run: Path = Path("runs/detect")
    """run folder of a detector"""
    split: str = "test"
    """split whose images form the mosaics"""
    root: str = ""
    """folder of the data; default: as in the run"""
    tiles: tuple[str, ...] = ("2x2", "640")
    """values of --tiles of `jaxdet eval`"""
    overlap: float = 0.2
    """overlap of tiles and slices, as a fraction of their sides"""
    repeats: int = 1
    """number of draws of the mosaics"""
    sahi: str = ""
    """Python of an environment with the package sahi; default: without this comparison"""


class Mosaic(NamedTuple):
    """An image of four images."""

    sample: detection.AnnotatedImage
    parts: list[images.ImageFile]  # the four images
    corners: list[tuple[int, int]]  # x and y of their upper left corners


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats")
    detector = load(options)
    root = options.root or getattr(detector.config, "root", "")
    dataset = detection.match_classes(formats.read(root), detector.classes)
    if options.split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise InputError(f"--split must be one of {known}, got {options.split}")
    mosaics = draw(dataset.splits[options.split], options.repeats)
    truth = true_rows([mosaic.sample for mosaic in mosaics])
    table = []
    for name, cost, found in (*tiled(mosaics, options), *peers(detector, mosaics, options)):
        own = summarize({**truth, **predicted_rows(found)}, detector.classes, options.repeats)
        table.append({"method": name, "multiply_adds": cost, **own})
    if not options.sahi:
        print("SAHI is not compared: give --sahi the Python of an environment with it")
    # no folders of this machine in the record
    same = replace(options, run=Options.run, root="", sahi=options.sahi and "python")
    harness.publish(NAME, same, render, table)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def load(options: Options, tiles: str = "") -> jaxdet.Run:
    found = jaxdet.load(options.run)
    if found.system != "detect":
        raise InputError(f"--run must be a run of detect, got a run of {found.system}")
    changes = {"tiles": tiles, "overlap": options.overlap, "max_detections": MAX_DETECTIONS}
    return jaxdet.load(options.run, **changes)


def draw(samples: Sequence[detection.AnnotatedImage], repeats: int) -> list[Mosaic]:
    """The mosaics of all draws, one after the other; of each, up to three images are left out."""
    pairs = [(sample, images.read_size(sample.image)) for sample in samples]
    usable = [found for found, _ in (detection.usable_boxes(*pair) for pair in pairs) if found]
    if len(usable) < 4:
        raise InputError(f"--split must have at least 4 images, got {len(usable)}")
    height, width = np.max([np.array(found.size) for found in usable], 0).tolist()
    mosaics = []
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(usable))
        fours = order[: len(order) // 4 * 4].reshape(-1, 4)
        mosaics += [_mosaic([usable[i] for i in four], (height, width)) for four in fours]
    return mosaics


def _mosaic(samples: Sequence[detection.AnnotatedImage], cell: images.Size) -> Mosaic:
    """The mosaic of four images, each at the upper left of its quarter of the size `cell`."""
    height, width = cell
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    canvas = np.full((2 * height, 2 * width, 3), images.LETTERBOX_FILL, np.uint8)
    objects = []
    for (x, y), sample in zip(corners, samples, strict=True):
        pixels, _ = images.read_pixels(sample.image)
        canvas[y : y + len(pixels), x : x + len(pixels[0])] = pixels
        rows = zip(sample.boxes, sample.labels, sample.crowd, sample.area, strict=True)
        objects += [(box + np.array([x, y, x, y]), *rest) for box, *rest in rows]
    content = io.BytesIO()
    Image.fromarray(canvas).save(content, "PNG")
    sample = detection.annotated_image(content.getvalue(), objects, "mosaic", size=canvas.shape[:2])
    return Mosaic(sample, [one.image for one in samples], corners)


def tiled(
    mosaics: Sequence[Mosaic], options: Options
) -> Iterator[tuple[str, int, list[Detections]]]:
    """Yield (method, multiply-adds, boxes of each mosaic), without tiles and with `--tiles`."""
    for tiles in ("", *options.tiles):
        run = load(options, tiles)
        found = run.predict([mosaic.sample.image for mosaic in mosaics])
        cost = multiply_adds(run, mosaics[0].sample.image)
        yield f"--tiles {tiles}" if tiles else "whole", cost, found


def multiply_adds(run: jaxdet.Run, image: images.ImageFile) -> int:
    """Multiply-adds of the prediction for an image."""
    shape = jax.ShapeDtypeStruct((1, *run.prepare(image).image.shape), np.float32)
    return flops.count(run.predict_fn(), run.variables, shape).sum().multiply_adds


def peers(
    run: jaxdet.Run, mosaics: Sequence[Mosaic], options: Options
) -> Iterator[tuple[str, int, list[Detections]]]:
    """Yield as `tiled` does, for the images apart and for SAHI at each of `--tiles` in pixels."""
    cost, config = multiply_adds(run, mosaics[0].sample.image), run.config
    apart = [shifted(run.predict(mosaic.parts), mosaic.corners) for mosaic in mosaics]
    yield "apart", 4 * cost, apart
    height, width = mosaics[0].sample.size or (0, 0)
    for pixels in (int(tiles) for tiles in options.tiles if tiles.isdecimal() and options.sahi):
        size = config.size
        sides = [round(side * pixels / max(size)) for side in size]
        words = [*(height, width, *sides), options.overlap]
        slices = json.loads(_sahi(options.sahi, "slices", *words))
        regions = [(0, 0, width, height), *map(tuple, slices)]
        with tempfile.TemporaryDirectory() as folder:
            for number, mosaic in enumerate(mosaics):
                with Image.open(io.BytesIO(images.file_bytes(mosaic.sample.image))) as image:
                    parts = [image.crop(region) for region in regions]
                found = shifted(run.predict(parts), [region[:2] for region in regions])
                np.savez(Path(folder) / f"{number:04d}.npz", **found._asdict())
            _sahi(options.sahi, "merge", folder, height, width)
            for method, name in SAHI_METHODS.items():
                merged = [
                    Detections(**np.load(Path(folder) / f"{number:04d}-{method}.merged"))
                    for number in range(len(mosaics))
                ]
                shape = " x ".join(map(str, sides))
                name = f"{name}, {len(slices)} slices of {shape}"
                yield name, len(regions) * cost, merged


def _sahi(python: str, *words: Any) -> str:
    """The output of `lib/sahi_merge.py`; InputError with the last line of its error if it fails."""
    with regular_files.reading(f"--sahi {python}"):
        done = subprocess.run(
            [python, str(MERGING_SCRIPT), *map(str, words)], capture_output=True, text=True
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"--sahi {python}: failed: {last}")
    return done.stdout


def shifted(found: Sequence[Detections], corners: Sequence[Sequence[int]]) -> Detections:
    """The boxes of parts of an image, whose corners (x, y) are given, in pixels of the image."""
    moved = [
        own.boxes + np.tile(np.float32(corner), 2)[None]
        for own, corner in zip(found, corners, strict=True)
    ]
    _, scores, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return Detections(np.concatenate(moved), scores, labels)


def true_rows(samples: Sequence[detection.AnnotatedImage]) -> dict[str, np.ndarray]:
    """The true boxes of images as `rows` of `metrics.detection`."""
    count = max(len(sample.boxes) for sample in samples)
    names = ("boxes", "labels", "crowd", "area")
    rows = {f"true_{n}": [_padded(getattr(own, n), count) for own in samples] for n in names}
    rows["true_valid"] = [_padded(np.ones_like(own.crowd), count) for own in samples]
    rows["size"] = [np.array(own.size) for own in samples]
    return {name: np.stack(column) for name, column in rows.items()}


def predicted_rows(found: Sequence[Detections]) -> dict[str, np.ndarray]:
    """The best `MAX_DETECTIONS` boxes of each image as `rows` of `metrics.detection`."""
    rows: dict[str, list[np.ndarray]] = {"boxes": [], "scores": [], "labels": [], "valid": []}
    for own in found:
        best = np.argsort(-own.scores, kind="stable")[:MAX_DETECTIONS]
        columns = {name: column[best] for name, column in own._asdict().items()}
        columns["valid"] = np.ones(len(best), bool)
        for name, column in columns.items():
            rows[name].append(_padded(column, MAX_DETECTIONS))
    return {name: np.stack(column) for name, column in rows.items()}


def _padded(column: np.ndarray, count: int) -> np.ndarray:
    return np.pad(column, [(0, count - len(column)), *[(0, 0)] * (column.ndim - 1)])


def summarize(rows: dict[str, Any], classes: Sequence[str], repeats: int) -> dict[str, str]:
    """Mean and standard deviation of each score over the draws, which follow each other in rows."""
    size = len(rows["size"]) // repeats
    draws = [
        scores({name: column[k * size :][:size] for name, column in rows.items()}, classes)
        for k in range(repeats)
    ]
    return {name: _mean_text([own[name] for own in draws]) for name in SCORES}


def _mean_text(values: Sequence[float]) -> str:
    """The mean and, of several values, the standard deviation."""
    deviation = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def scores(rows: dict[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """The scores of predictions on mosaics, with sizes as if a mosaic were as large as an image."""
    half = {name: rows[name] / 2 for name in ("boxes", "true_boxes")}
    found = metrics.scores({**rows, **half, "true_area": rows["true_area"] / 4}, classes)
    return {name: found[name] for name in SCORES}


if __name__ == "__main__":
    sys.exit(main())
