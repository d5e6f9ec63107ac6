"""Small objects in large images: a detector on whole images, in tiles, and in SAHI's slices.

    python -m benchmarks.tiles --run runs/detect --sahi /PATH/TO/ENV/bin/python

The images of a split are drawn in groups of four, which form mosaics of twice their height and
width. To the network, which resizes a mosaic to the size of its input, objects are half as large as
in the images that the run was trained on; with tiles it sees them larger. `small`, `medium` and
`large` are COCO's sizes where the mosaic has the size of one image: boxes and areas are scaled by a
half and a quarter. `apart` predicts each of the four images alone, as it was before: what the
network could find if the mosaic cost it nothing. Scores are means over `--repeats` draws of the
mosaics, with standard deviations; multiply-adds are those of one mosaic.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import jaxdet
from benchmarks.lib import harness, units
from jaxdet.data import convert, detection, formats, images, regular_files
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


class Mosaics(NamedTuple):
    """Mosaics of four images each, as a data set in a folder."""

    folder: Path
    parts: list[list[images.ImageFile]]  # the four images of each
    cell: images.Size  # height and width of the place of an image


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats")
    detector = jaxdet.load(options.run)
    if detector.system != "detect":
        raise InputError(f"--run must be a run of detect, got a run of {detector.system}")
    detector = jaxdet.load(options.run, max_detections=MAX_DETECTIONS, tiles="")
    root = options.root or getattr(detector.config, "root", "")
    dataset = detection.match_classes(formats.read(root), detector.classes)
    if options.split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise InputError(f"--split must be one of {known}, got {options.split}")
    with tempfile.TemporaryDirectory() as folder:
        mosaics = write(dataset, options.split, Path(folder) / "mosaics", options.repeats)
        table = compare(detector, mosaics, options)
    if not options.sahi:
        print("SAHI is not compared: give --sahi the Python of an environment with it")
    harness.publish(NAME, options, render, table)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def write(dataset: detection.DetectionDataset, split: str, folder: Path, repeats: int) -> Mosaics:
    """Draw mosaics `repeats` times, and write all of them in the COCO format.

    Up to three images, which remain, are left out of each draw.
    """
    samples = dataset.splits[split]
    pairs = [(sample, images.read_size(sample.image)) for sample in samples]
    usable = [found for found, _ in (detection.usable_boxes(*pair) for pair in pairs) if found]
    groups = []
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(usable))
        fours = order[: len(order) // 4 * 4].reshape(-1, 4)
        groups += [[usable[i] for i in four] for four in fours]
    if not groups:
        raise InputError(f"--split {split} must have at least 4 images, got {len(usable)}")
    height, width = np.max([found.size for found in usable], 0).tolist()
    drawn = [_mosaic(four, (height, width), number) for number, four in enumerate(groups)]
    found = detection.DetectionDataset(dataset.classes, {"test": drawn}, ())
    convert.write(convert.plan(found, "coco"), folder)
    return Mosaics(folder, [[one.image for one in four] for four in groups], (height, width))


def _mosaic(
    samples: Sequence[detection.AnnotatedImage], cell: images.Size, number: int
) -> detection.AnnotatedImage:
    """The mosaic of four images, each at the upper left of its quarter."""
    height, width = cell
    canvas = np.full((2 * height, 2 * width, 3), images.LETTERBOX_FILL, np.uint8)
    objects = []
    for (x, y), sample in zip(_corners(cell), samples, strict=True):
        pixels, _ = images.read_pixels(sample.image)
        canvas[y : y + len(pixels), x : x + len(pixels[0])] = pixels
        rows = zip(sample.boxes, sample.labels, sample.crowd, sample.area, strict=True)
        objects += [(box + np.float32([x, y, x, y]), *rest) for box, *rest in rows]
    content = io.BytesIO()
    Image.fromarray(canvas).save(content, "PNG")
    return detection.annotated_image(content.getvalue(), objects, f"{number:04d}")


def _corners(cell: images.Size) -> list[tuple[int, int]]:
    """x and y of the upper left corners of the quarters of a mosaic."""
    height, width = cell
    return [(0, 0), (width, 0), (0, height), (width, height)]


def compare(detector: jaxdet.Run, mosaics: Mosaics, options: Options) -> list[dict[str, Any]]:
    """A row per method, with its scores and multiply-adds per mosaic."""
    table, rows, single = [], {}, 0
    for tiles in ("", *options.tiles):
        experiment = detector.with_data(
            root=str(mosaics.folder), tiles=tiles, overlap=options.overlap
        )
        evaluator = detector.evaluator(experiment, "test")
        _, rows = evaluator.measure(detector.variables, detector.epoch)
        cost = evaluator.operations(detector.variables).multiply_adds
        single = single or cost
        name = f"--tiles {tiles}" if tiles else "whole"
        own = {"method": name, "multiply_adds": cost}
        table.append({**own, **summarize(rows, detector, options.repeats)})
    for name, cost, found in _peers(detector, mosaics, options):
        own = {"method": name, "multiply_adds": cost * single}
        replaced = replace_boxes(rows, found)
        table.append({**own, **summarize(replaced, detector, options.repeats)})
    return table


def _peers(
    detector: jaxdet.Run, mosaics: Mosaics, options: Options
) -> Iterable[tuple[str, int, list[Detections]]]:
    """Yield (method, predictions of the network per mosaic, boxes of each mosaic)."""
    corners = _corners(mosaics.cell)
    apart = [_shifted(detector.predict(four), corners) for four in mosaics.parts]
    yield "apart", 4, apart
    height, width = (2 * side for side in mosaics.cell)
    paths = sorted((mosaics.folder / "images" / "test").iterdir())
    for pixels in (int(tiles) for tiles in options.tiles if tiles.isdecimal() and options.sahi):
        config: Any = detector.config
        sides = [round(side * pixels / max(config.size)) for side in config.size]
        words: list[Any] = [height, width, *sides, options.overlap]
        slices = json.loads(_sahi(options.sahi, "slices", *words))
        regions = [(0, 0, width, height), *slices]
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(paths):
                with Image.open(path) as image:
                    parts = [image.crop(tuple(region)) for region in regions]
                found = _shifted(detector.predict(parts), [region[:2] for region in regions])
                np.savez(Path(folder) / f"{number:04d}.npz", **found._asdict())
            _sahi(options.sahi, "merge", folder, height, width)
            for method, name in SAHI_METHODS.items():
                merged = [
                    Detections(**np.load(Path(folder) / f"{number:04d}-{method}.merged"))
                    for number in range(len(paths))
                ]
                shape = " x ".join(map(str, sides))
                yield f"{name}, {len(slices)} slices of {shape}", len(regions), merged


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


def _shifted(found: Sequence[Detections], corners: Sequence[Sequence[int]]) -> Detections:
    """The boxes of parts of an image, whose corners (x, y) are given, in pixels of the image."""
    moved = [
        own.boxes + np.float32([*corner[:2]] * 2)[None]
        for own, corner in zip(found, corners, strict=True)
    ]
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Detections(np.concatenate(moved), *columns[1:])


def replace_boxes(rows: dict[str, np.ndarray], found: Sequence[Detections]) -> dict[str, Any]:
    """Rows with other predictions, of which the best `MAX_DETECTIONS` of each image are kept."""
    count = len(found)
    boxes = np.zeros((count, MAX_DETECTIONS, 4), np.float32)
    scores, labels = np.zeros(boxes.shape[:2], np.float32), np.zeros(boxes.shape[:2], np.int32)
    for i, own in enumerate(found):
        best = np.argsort(-own.scores, kind="stable")[:MAX_DETECTIONS]
        boxes[i, : len(best)] = own.boxes[best]
        scores[i, : len(best)], labels[i, : len(best)] = own.scores[best], own.labels[best]
    return {**rows, "boxes": boxes, "scores": scores, "labels": labels, "valid": scores > 0}


def summarize(rows: dict[str, Any], detector: jaxdet.Run, repeats: int) -> dict[str, str]:
    """Mean and standard deviation of each score over the draws, which follow each other in rows."""
    size = len(rows["size"]) // repeats
    draws = [
        scores({name: column[k * size :][:size] for name, column in rows.items()}, detector)
        for k in range(repeats)
    ]
    values = {name: [draw[name] for draw in draws] for name in SCORES}
    return {name: _mean_text(own) for name, own in values.items()}


def _mean_text(values: Sequence[float]) -> str:
    """The mean and, of several values, the standard deviation."""
    deviation = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def scores(rows: dict[str, Any], detector: jaxdet.Run) -> dict[str, float]:
    """The scores of predictions on mosaics, with sizes as if a mosaic were as large as an image."""
    half = {name: rows[name] / 2 for name in ("boxes", "true_boxes")}
    found = metrics.scores({**rows, **half, "true_area": rows["true_area"] / 4}, detector.classes)
    return {name: found[name] for name in SCORES}


if __name__ == "__main__":
    sys.exit(main())
