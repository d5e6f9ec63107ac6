"""Photos with any number of boxes, whatever format they came in, as arrays of fixed size.

Readers (`coco`, `voc`, `yolo`, `parquet`) give `Scenes`; `load` makes sources of them.  Boxes of
a scene are corners in pixels of its own image, half-open; every reader converts at its door.
"""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data import images, sources
from jaxdet.errors import InputError

SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
UNKNOWN_CLASS = "unknown class"  # of a note: an object of a class that the data do not name
REPEATED, EMPTY, OUTSIDE, TINY = ("already", "has no area", "is outside", "is less than a pixel")
MIN_BOX_SIDE = 1.0  # pixels of the network's input that a side of a box must have to be learnt


class AnnotatedImage(NamedTuple):
    """One photo and what is in it."""

    image: Path | bytes | Callable  # a file, what is in it, or a function that gives that
    boxes: np.ndarray  # [n, 4] float32
    labels: np.ndarray  # [n] int32
    crowd: np.ndarray  # [n] bool: many objects in one box, or one too difficult to be asked for
    where: str  # file, and row if it has any: what messages and pictures call it
    number: int | str | None = None  # id of the photo, where the file has one


class DetectionDataset(NamedTuple):
    """All photos of a data set."""

    classes: tuple[str, ...]
    parts: dict[str, list[AnnotatedImage]]
    notes: tuple[str, ...]  # what was wrong, a line each
    numbers: tuple[int, ...] = ()  # ids of the classes, where the files have them


def annotated_image(image, objects, where, number=None):
    """A `Scene` of objects [(box [4], label, crowd)]."""
    boxes, labels, crowd = zip(*objects, strict=True) if objects else ((), (), ())
    return AnnotatedImage(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(crowd, bool),
        where,
        number,
    )


def split_name(name):
    """Name of a part as we have it, from that of a folder or file: `valid2017` is `val`."""
    plain = name.lower().rstrip("0123456789_-")
    return SPLIT_ALIASES.get(plain, plain)


def path_inside(root, *names):
    """The path of names from a data file below `root`; InputError where it leads out of it."""
    home = Path(root).resolve()
    path = home.joinpath(*names).resolve()
    if not path.is_relative_to(home):
        raise InputError(f"{'/'.join(map(str, names))}: leads out of {root}")
    return path


def drop_repeated_images(parts):
    """The same parts without photos that were there before, and a note for each of those."""
    seen, notes, kept = {}, [], {}
    for name, of_part in parts.items():
        kept[name] = []
        for one in of_part:
            if isinstance(one.image, Path) and one.image in seen:
                notes.append(f"{one.where}: {one.image.name} is in {seen[one.image]} {REPEATED}")
            else:
                seen[one.image if isinstance(one.image, Path) else id(one)] = name
                kept[name].append(one)
    return kept, notes


def with_validation(parts, share, seed):
    """The same parts; where there is no `val`, that share of `train`, drawn by `seed`, is it."""
    if "train" not in parts:
        raise InputError(f"no photos for training; the data have {', '.join(parts) or 'nothing'}")
    if parts.get("val"):
        return parts
    order = list(parts["train"])
    random.Random(seed).shuffle(order)
    count = round(share * len(order))
    if not 0 < count < len(order):
        raise InputError(
            f"--val-fraction {share:g} of {len(order)} photos leaves none for val or train"
        )
    return {**parts, "train": order[count:], "val": order[:count]}


def max_boxes(parts):
    """The largest number of boxes in a scene, at least 1."""
    return max([1, *(len(one.boxes) for of_part in parts.values() for one in of_part)])


def load(scenes, height, width, slots, *, first_id=0):
    """The source of the scenes whose photos can be used, and what is wrong: (Arrays, [note]).

    image [N, height, width, 3] uint8, fitted with its shape kept; boxes [N, G, 4] in pixels of
    it, labels, valid, crowd, area [N, G], G = `slots`; size [N, 2] original height and width;
    to_original [N, 4]: original = network x (first two) + (last two), of x and of y; id [N], which
    counts scenes from `first_id`.  Slots beyond a scene's boxes are not valid; area is in square
    pixels of the original.  Boxes are cut to their photo; what is then less than `SMALLEST` of
    the network's pixels wide or high is left out, and so is a photo that cannot be read.
    """
    kept, notes = _usable(scenes, partial(prepare, height=height, width=width, slots=slots))
    names = [scenes[number].where for number, _ in kept]
    rows = [{**row, "id": np.int32(first_id + number)} for number, row in kept]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return sources.ArraySource(columns, names=names), notes


def stream(scenes, height, width, slots, *, first_id=0):
    """What `load` makes and says, read when it is needed; of photos only the headers are read now.

    A photo that turns out damaged is an InputError when it is read.
    """
    kept, notes = _usable(scenes, partial(_measured, height=height, width=width, slots=slots))
    good = [number for number, _ in kept]

    def read(place):
        row, said = prepare(scenes[good[place]], height, width, slots)
        if row is None:
            raise InputError(f"{said[0]}; {sources.DAMAGED_WHILE_STREAMING}")
        return {**row, "id": np.int32(first_id + good[place])}

    return sources.StreamSource(read, len(good), [scenes[number].where for number in good]), notes


def _usable(scenes, look):
    """([(number, what `look` gives)] of the scenes that can be used, [what is wrong]).

    look: of a scene, (anything, or None where it cannot be used, [what is wrong]); in threads.
    """
    with ThreadPoolExecutor() as pool:
        made, said = zip(*pool.map(look, scenes), strict=True) if scenes else ((), ())
    notes = [note for of_scene in said for note in of_scene]
    kept = [(number, one) for number, one in enumerate(made) if one is not None]
    if not kept:
        first = f"; first: {notes[0]}" if notes else ""
        raise InputError(f"none of {len(scenes)} photos can be used{first}")
    return kept, notes


def _measured(one, height, width, slots):
    """(True, or None where the header cannot be read, [what is wrong]) of a scene."""
    try:
        size = images.read_size(one.image)
    except InputError as error:
        return None, [f"{one.where}: {error}"]
    return True, _boxes(one, size, height, width, slots)[1]


def summarize(found):
    """({column: value} a class and part) of `Scenes`: photos, boxes, sides in original pixels."""
    rows = []
    for name, of_part in found.parts.items():
        labels = np.concatenate([one.labels for one in of_part]) if of_part else np.zeros(0)
        boxes = np.concatenate([one.boxes for one in of_part]) if of_part else np.zeros((0, 4))
        sides = boxes[:, 2:] - boxes[:, :2]
        photos = Counter(int(label) for one in of_part for label in set(one.labels.tolist()))
        for label, title in enumerate(found.classes):
            of = labels == label
            line = {"part": name, "class": title, "photos": photos[label], "boxes": int(of.sum())}
            line["width"], line["height"] = (_range(column) for column in sides[of].T)
            rows.append(line)
        empty = sum(not len(one.labels) for one in of_part)
        line = {"part": name, "class": "all", "photos": len(of_part), "boxes": len(labels)}
        rows.append(line | {"width": f"{empty} photos without boxes", "height": ""})
    return rows


def _range(values):
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.0f} to {high:.0f}, median {middle:.0f}"


def prepare(one, height, width, slots):
    """(arrays of one scene as `load` makes them, or None, [what is wrong])."""
    try:
        image, size = images.read_letterboxed(one.image, height, width)
    except InputError as error:
        return None, [f"{one.where}: {error}"]
    row, notes = _boxes(one, size, height, width, slots)
    return {"image": image, **row}, notes


def _boxes(one, size, height, width, slots):
    """(arrays of one scene but its image, [what is wrong]); size: that of its photo."""
    scale, offset = images.letterbox_transform(size, height, width)
    limits = np.float32([size[1], size[0]] * 2)
    cut = np.clip(one.boxes, 0, limits[None])
    moved = cut * np.tile(scale, 2)[None] + np.tile(offset, 2)[None]
    sides = moved[:, 2:] - moved[:, :2]
    usable = (sides >= MIN_BOX_SIDE).all(1)
    notes = [
        f"{one.where}: box {_numbers(box)} {_fault(box, limits)}" for box in one.boxes[~usable]
    ]
    if usable.sum() > slots:
        notes.append(f"{one.where}: {usable.sum()} boxes, {slots} slots; the others are left out")
    order = np.flatnonzero(usable)[:slots]
    area = np.prod(cut[:, 2:] - cut[:, :2], axis=1)
    row = {
        "boxes": _padded(moved[order], slots),
        "labels": _padded(one.labels[order], slots),
        "valid": _padded(np.ones(len(order), bool), slots),
        "crowd": _padded(one.crowd[order], slots),
        "area": _padded(area[order].astype(np.float32), slots),
        "size": np.array(size, np.int32),
        "to_original": np.concatenate([1 / scale, -offset / scale]).astype(np.float32),
    }
    return row, notes


def _padded(column, slots):
    blank = np.zeros((slots, *column.shape[1:]), column.dtype)
    blank[: len(column)] = column
    return blank


def _fault(box, limits):
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all():
        return "is not of numbers"
    if x1 <= x0 or y1 <= y0:
        return EMPTY
    if (np.clip(box, 0, limits)[2:] <= np.clip(box, 0, limits)[:2]).any():
        return f"{OUTSIDE} of the {limits[0]:.0f} x {limits[1]:.0f} pixels"
    return f"{TINY} of the network's input"


def _numbers(box):
    return " ".join(f"{value:g}" for value in box)
