"""Detection data sets: images with any number of boxes, as arrays of fixed size.

The readers of formats return a `DetectionDataset`; `load` and `stream` turn its images into
sources.  Boxes of an `AnnotatedImage` are corners in pixels of the original image, half-open; each
reader converts to them once.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import images, sources
from jaxdet.data.images import ImageFile, Size
from jaxdet.errors import InputError
from jaxdet.types import Array

SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
MIN_BOX_SIDE = 1.0  # pixels of the network's input; smaller boxes are left out
# Phrases of notes by which `quality_checks` sorts them.
UNKNOWN_CLASS = "unknown class"
REPEATED, EMPTY, OUTSIDE, TINY = (
    "already",
    "has no area",
    "is outside",
    "is smaller than one pixel",
)

BoxObject = tuple[Sequence[float] | Array, int, bool]  # box [4], label, crowd


class AnnotatedImage(NamedTuple):
    """An image and the n objects in it."""

    image: ImageFile
    boxes: np.ndarray  # [n, 4] float32, corners in pixels of the image
    labels: np.ndarray  # [n] int32
    crowd: np.ndarray  # [n] bool: not to be found: a crowd, or an object marked as difficult
    name: str  # in messages and pictures: the file, or the file and row
    id: int | str | None = None  # image id, in formats that have one


class DetectionDataset(NamedTuple):
    """The images of all splits."""

    classes: tuple[str, ...]
    splits: dict[str, list[AnnotatedImage]]
    notes: tuple[str, ...]  # one line for each row or object left out
    class_ids: tuple[int, ...] = ()  # ids of the classes, in formats that have them


def annotated_image(
    image: ImageFile, objects: Sequence[BoxObject], name: str, id: int | str | None = None
) -> AnnotatedImage:
    """The `AnnotatedImage` with these objects (corner box [4], label, crowd)."""
    boxes, labels, crowd = zip(*objects, strict=True) if objects else ((), (), ())
    return AnnotatedImage(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(crowd, bool),
        name,
        id,
    )


def split_name(name: str) -> str:
    """The name of a split given by a folder or file: `valid2017` is `val`."""
    plain = name.lower().rstrip("0123456789_-")
    return SPLIT_ALIASES.get(plain, plain)


def path_inside(root: str | Path, *names: str | Path) -> Path:
    """The path of names read from a file below `root`; InputError where it leaves `root`."""
    home = Path(root).resolve()
    path = home.joinpath(*names).resolve()
    if not path.is_relative_to(home):
        raise InputError(f"{'/'.join(map(str, names))}: leads out of {root}")
    return path


def drop_repeated_images(
    splits: dict[str, list[AnnotatedImage]],
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """(splits with each image file once, where it first occurs; a note for each image dropped)."""
    seen, notes, kept = {}, [], {}
    for name, samples in splits.items():
        kept[name] = []
        for sample in samples:
            file = sample.image
            if isinstance(file, Path) and file in seen:
                notes.append(f"{sample.name}: {file.name} is in {seen[file]} {REPEATED}")
            else:
                seen[file if isinstance(file, Path) else id(sample)] = name
                kept[name].append(sample)
    return kept, notes


def with_validation(
    splits: dict[str, list[AnnotatedImage]], fraction: float, seed: int
) -> dict[str, list[AnnotatedImage]]:
    """The splits; where `val` is missing or empty, that fraction of `train`, drawn by `seed`."""
    if "train" not in splits:
        raise InputError(f"no training images; the data have {', '.join(splits) or 'no images'}")
    if splits.get("val"):
        return splits
    order = list(splits["train"])
    random.Random(seed).shuffle(order)
    count = round(fraction * len(order))
    if not 0 < count < len(order):
        raise InputError(
            f"--val-fraction {fraction:g} of {len(order)} images leaves val or train empty"
        )
    return {**splits, "train": order[count:], "val": order[:count]}


def largest_box_count(splits: dict[str, list[AnnotatedImage]]) -> int:
    """The largest number of boxes in an image, at least 1."""
    return max([1, *(len(sample.boxes) for samples in splits.values() for sample in samples)])


def load(
    samples: Sequence[AnnotatedImage], height: int, width: int, max_boxes: int, *, first_id: int = 0
) -> tuple[sources.ArraySource, list[str]]:
    """(source of the images that can be read, notes on the images and boxes left out).

    With G = `max_boxes` the arrays are image [N, height, width, 3] uint8, letterboxed; boxes
    [N, G, 4] in its pixels; labels, valid, crowd and area [N, G], area in square pixels of the
    original; size [N, 2], original height and width; to_original [N, 4], where original =
    network x (first two) + (last two) for x and y; and id [N], counting `samples` from `first_id`.

    Boxes are clipped to their image.  Left out are boxes with a side below `MIN_BOX_SIDE`, boxes
    beyond the first G, and images that cannot be read; InputError where none is left.
    """
    function = partial(prepare, height=height, width=width, max_boxes=max_boxes)
    kept, notes = _map_usable(samples, function)
    names = [samples[number].name for number, _ in kept]
    rows = [{**row, "id": np.int32(first_id + number)} for number, row in kept]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return sources.ArraySource(columns, names=names), notes


def stream(
    samples: Sequence[AnnotatedImage], height: int, width: int, max_boxes: int, *, first_id: int = 0
) -> tuple[sources.StreamSource, list[str]]:
    """`load` as a `StreamSource`: only the headers of images are read now.

    Reading an image that turns out to be damaged raises InputError.
    """

    def check(sample: AnnotatedImage) -> tuple[bool | None, list[str]]:
        try:
            size = images.read_size(sample.image)
        except InputError as error:
            return None, [f"{sample.name}: {error}"]
        return True, _prepare_boxes(sample, size, height, width, max_boxes)[1]

    kept, notes = _map_usable(samples, check)
    usable = [number for number, _ in kept]

    def read(index: int) -> dict[str, Any]:
        row, faults = prepare(samples[usable[index]], height, width, max_boxes)
        if row is None:
            raise InputError(f"{faults[0]}; {sources.DAMAGED_WHILE_STREAMING}")
        return {**row, "id": np.int32(first_id + usable[index])}

    names = [samples[number].name for number in usable]
    return sources.StreamSource(read, len(usable), names), notes


def prepare(
    sample: AnnotatedImage, height: int, width: int, max_boxes: int
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """(arrays of one image as in `load`, or None where it cannot be read; notes)."""
    try:
        image, size = images.read_letterboxed(sample.image, height, width)
    except InputError as error:
        return None, [f"{sample.name}: {error}"]
    row, notes = _prepare_boxes(sample, size, height, width, max_boxes)
    return {"image": image, **row}, notes


def summarize(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """A table row per split and class: images, boxes, and ranges of box width and height in pixels.

    The last row of each split is that of all classes.
    """
    rows = []
    for name, samples in dataset.splits.items():
        labels = np.concatenate([s.labels for s in samples]) if samples else np.zeros(0)
        boxes = np.concatenate([s.boxes for s in samples]) if samples else np.zeros((0, 4))
        sides = boxes[:, 2:] - boxes[:, :2]
        image_counts = Counter(int(label) for s in samples for label in set(s.labels.tolist()))
        for label, title in enumerate(dataset.classes):
            own = labels == label
            row = {"split": name, "class": title}
            row |= {"images": image_counts[label], "boxes": int(own.sum())}
            row["width"], row["height"] = (_describe_range(column) for column in sides[own].T)
            rows.append(row)
        empty = sum(not len(sample.labels) for sample in samples)
        row = {"split": name, "class": "all", "images": len(samples), "boxes": len(labels)}
        rows.append(row | {"width": f"{empty} images without boxes", "height": ""})
    return rows


def _map_usable(
    samples: Sequence[AnnotatedImage], function: Callable[[AnnotatedImage], tuple[Any, list[str]]]
) -> tuple[list[tuple[int, Any]], list[str]]:
    """([(index, result)] of the images whose result is not None, all notes).

    `function` returns (result, notes) of an image; it runs in threads.
    """
    with ThreadPoolExecutor() as pool:
        results, faults = zip(*pool.map(function, samples), strict=True) if samples else ((), ())
    notes = [note for of_image in faults for note in of_image]
    kept = [(number, result) for number, result in enumerate(results) if result is not None]
    if not kept:
        first = f"; first: {notes[0]}" if notes else ""
        raise InputError(f"none of {len(samples)} images can be used{first}")
    return kept, notes


def _prepare_boxes(
    sample: AnnotatedImage, size: Size, height: int, width: int, max_boxes: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(arrays of one image of `size`, except the image itself; notes)."""
    scale, offset = images.letterbox_transform(size, height, width)
    limits = np.array([size[1], size[0]] * 2, np.float32)
    clipped = np.clip(sample.boxes, 0, limits[None])
    moved = clipped * np.tile(scale, 2)[None] + np.tile(offset, 2)[None]
    sides = moved[:, 2:] - moved[:, :2]
    usable = (sides >= MIN_BOX_SIDE).all(1)
    notes = [
        f"{sample.name}: box {' '.join(f'{v:g}' for v in box)} {_box_fault(box, limits)}"
        for box in sample.boxes[~usable]
    ]
    if usable.sum() > max_boxes:
        notes.append(
            f"{sample.name}: {usable.sum()} boxes, only the first {max_boxes} are kept; raise "
            "--max-boxes"
        )
    order = np.flatnonzero(usable)[:max_boxes]
    area = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)

    def padded(column: np.ndarray) -> np.ndarray:
        out = np.zeros((max_boxes, *column.shape[1:]), column.dtype)
        out[: len(column)] = column
        return out

    row = {
        "boxes": padded(moved[order]),
        "labels": padded(sample.labels[order]),
        "valid": padded(np.ones(len(order), bool)),
        "crowd": padded(sample.crowd[order]),
        "area": padded(area[order].astype(np.float32)),
        "size": np.array(size, np.int32),
        "to_original": np.concatenate([1 / scale, -offset / scale]).astype(np.float32),
    }
    return row, notes


def _box_fault(box: np.ndarray, limits: np.ndarray) -> str:
    """Why a box [4] of an image with `limits` (width, height, width, height) is left out."""
    if not np.isfinite(box).all():
        return "is not finite"
    if (box[2:] <= box[:2]).any():
        return EMPTY
    clipped = np.clip(box, 0, limits)
    if (clipped[2:] <= clipped[:2]).any():
        return f"{OUTSIDE} the {limits[0]:.0f} x {limits[1]:.0f} image"
    return f"{TINY} of the network's input"


def _describe_range(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.0f} to {high:.0f}, median {middle:.0f}"
