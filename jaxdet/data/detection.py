"""Detection data sets: images with any number of boxes, as arrays of fixed size.

The reader of each format returns a `DetectionDataset`; `load` and `stream` turn its images into
sources.  Readers convert boxes to corners `x0 y0 x1 y1` in pixels of the original image, half-open;
an `AnnotatedImage` holds them in this form.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import image_cache, image_sizes, images, sources, threads
from jaxdet.data.images import ImageFile, Size
from jaxdet.errors import InputError, first_problem, printable
from jaxdet.types import Array

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
MIN_BOX_SIDE = 1.0  # pixels of the network's input; smaller boxes are not trained on
# Phrases that notes contain, and by which `quality_checks` sorts the notes.
UNKNOWN_CLASS = "unknown class"
REPEATED, EMPTY, OUTSIDE, TINY = (
    "already",
    "has no area",
    "is outside",
    "is smaller than one pixel",
)
OTHER_SIZE = "size is"
REPEATED_BOX = "are duplicates"
TRAINED_ON = "trained on"  # in notes on boxes that are evaluated, but not trained on


class BoxObject(NamedTuple):
    """An object as read from a file."""

    box: Sequence[float] | Array  # [4]
    label: int
    crowd: bool = False
    area: float | None = None  # square pixels; by default the area of the box
    row: int | None = None  # see `AnnotatedImage.rows`; by default the position of the object


class AnnotatedImage(NamedTuple):
    """An image and the n objects in it."""

    image: ImageFile
    boxes: np.ndarray  # [n, 4] float32, corners in pixels of the image
    labels: np.ndarray  # [n] int32
    crowd: np.ndarray  # [n] bool, objects to be ignored: crowds, or objects marked as difficult
    area: np.ndarray  # [n] float32, square pixels: the object's if the file has it, else its box's
    name: str  # for messages and pictures: the file, or the file and row
    id: int | str | None = None  # image id, in formats that have one
    size: Size | None = None  # image size that the boxes refer to, in formats that have it
    unknown: int = 0  # number of objects left out because their class is unknown
    unread: int = 0  # number of objects left out for other reasons
    rows: np.ndarray = np.zeros(0, np.int32)  # [n] number of each object in `file`, from 1
    file: str = ""  # where the objects are from; "" if that is not a file


class Remark(str):
    """A note that reports no fault, for example on data that are used unchanged."""


class ArraySizes(NamedTuple):
    """Sizes of the arrays into which an image and its boxes are converted."""

    height: int  # of the network's input
    width: int
    max_boxes: int  # for training
    true_boxes: int  # for evaluation
    letterbox: images.Letterbox = images.CENTERED


class DetectionDataset(NamedTuple):
    """The images of all splits."""

    classes: tuple[str, ...]
    splits: dict[str, list[AnnotatedImage]]
    notes: tuple[str, ...]  # one line for each row or object left out, and for each `Remark`
    class_ids: tuple[int, ...] = ()  # ids of the classes, in formats that have them


def annotated_image(
    image: ImageFile,
    objects: Sequence[BoxObject | tuple],
    name: str,
    id: int | str | None = None,
    **fields: Any,
) -> AnnotatedImage:
    """Make an `AnnotatedImage`; each object is a `BoxObject` or a tuple of its fields.

    `fields` are `size`, `unknown`, `unread` and `file` of the `AnnotatedImage`, by keyword.
    """
    found = [BoxObject(*one) for one in objects]
    rows = [number if one.row is None else one.row for number, one in enumerate(found, 1)]
    boxes = np.array([one.box for one in found], np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore", over="ignore"):  # boxes that are not finite are noted later
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        boxes = boxes.astype(np.float32)
        areas = [areas[i] if one.area is None else one.area for i, one in enumerate(found)]
        return AnnotatedImage(
            image,
            boxes,
            np.array([one.label for one in found], np.int32),
            np.array([one.crowd for one in found], bool),
            np.array(areas, np.float32),
            name,
            id,
            rows=np.array(rows, np.int32),
            **fields,
        )


def assemble(
    classes: Sequence[str],
    splits: dict[str, list[AnnotatedImage]],
    notes: Sequence[str],
    class_ids: Sequence[int] = (),
) -> DetectionDataset:
    """Make the data set of the images that a reader found; repeated images and boxes are kept once.

    If several classes have the same name, the later ones get their index appended: `cat (3)`.
    """
    names = [f"{n} ({i})" if classes.index(n) < i else n for i, n in enumerate(classes)]
    kept, found = drop_repeated_images(splits)
    for split, samples in kept.items():
        pairs = [_drop_repeated_boxes(sample) for sample in samples]
        kept[split] = [sample for sample, _ in pairs]
        found += [note for _, of_sample in pairs for note in of_sample]
    return DetectionDataset(tuple(names), kept, (*notes, *found), tuple(class_ids))


def count_unused(root: str | Path, splits: dict[str, list[AnnotatedImage]]) -> int:
    """The number of image files in a folder and its subfolders that are in none of the splits."""
    used = {
        sample.image
        for samples in splits.values()
        for sample in samples
        if isinstance(sample.image, Path)
    }
    return len({*images.scan(root)[0]} - used)


def without_unknown(dataset: DetectionDataset, unknown_classes: str) -> DetectionDataset:
    """Drop the images whose objects have all been left out, and add remarks with their number.

    If `unknown_classes` is "background", an image whose objects are all of unknown classes is kept
    as an image without objects.  If it is "error", any object of an unknown class raises
    InputError.  If it is "drop", all these images are dropped.
    """
    splits, remarks = {}, []
    for split, samples in dataset.splits.items():
        for sample in samples:
            if sample.unknown and unknown_classes == "error":
                raise InputError(
                    f"{sample.name}: number of objects of an {UNKNOWN_CLASS} must be 0, got "
                    f"{sample.unknown}; --unknown-classes drop leaves them out"
                )
        empty = [sample for sample in samples if not len(sample.boxes)]
        unread = {id(sample) for sample in empty if sample.unread}
        unknown = {id(sample) for sample in empty if sample.unknown and not sample.unread}
        dropped = unread if unknown_classes == "background" else unread | unknown
        splits[split] = [sample for sample in samples if id(sample) not in dropped]
        for own, of_kind in (
            (unknown - unread, f"of an {UNKNOWN_CLASS}"),
            (unread, "that cannot be read"),
        ):
            if own:
                end = "left out" if own <= dropped else "kept as images without objects"
                text = f"{len(own)} of {len(samples)} images have only objects {of_kind}: {end}"
                remarks.append(Remark(f"{split}: {text}"))
    return dataset._replace(splits=splits, notes=(*dataset.notes, *remarks))


def select_classes(dataset: DetectionDataset, classes: Sequence[str]) -> DetectionDataset:
    """The data set with only these classes, in this order; unchanged if `classes` is empty.

    Objects of other classes are left out and counted as `unknown`.  Raises InputError for a class
    that the data set does not have.
    """
    if not classes:
        return dataset
    for name in classes:
        if name not in dataset.classes:
            raise InputError(f"--classes must be among {', '.join(dataset.classes)}, got {name}")
    chosen = tuple(dict.fromkeys(classes))
    index = np.array([chosen.index(n) if n in chosen else -1 for n in dataset.classes], np.int32)
    splits = {
        name: [_select_labels(sample, index) for sample in samples]
        for name, samples in dataset.splits.items()
    }
    ids = dict(zip(dataset.classes, dataset.class_ids, strict=False))  # not all formats have ids
    class_ids = tuple(ids[name] for name in chosen) if ids else ()
    return dataset._replace(classes=chosen, splits=splits, class_ids=class_ids)


def match_classes(dataset: DetectionDataset, classes: Sequence[str]) -> DetectionDataset:
    """The data set with labels that are indices into `classes`.

    A data set with a class that is not in `classes` is returned unchanged.
    """
    if dataset.classes == tuple(classes) or not {*dataset.classes} <= {*classes}:
        return dataset
    index = np.array([classes.index(name) for name in dataset.classes], np.int32)
    splits = {
        name: [sample._replace(labels=index[sample.labels]) for sample in samples]
        for name, samples in dataset.splits.items()
    }
    ids = dict(zip(dataset.classes, dataset.class_ids, strict=False))  # not all formats have ids
    class_ids = tuple(ids[name] for name in classes) if len(ids) == len(classes) else ()
    return dataset._replace(classes=tuple(classes), splits=splits, class_ids=class_ids)


def _select_labels(sample: AnnotatedImage, index: np.ndarray) -> AnnotatedImage:
    """The sample with labels `index[label]`; objects whose new label is -1 become unknown."""
    labels = index[sample.labels]
    kept = _take_objects(sample._replace(labels=labels), labels >= 0)
    return kept._replace(unknown=sample.unknown + int((labels < 0).sum()))


def faults(notes: Sequence[str]) -> list[str]:
    """The notes on data that cannot be used, which are not `Remark`s."""
    return [note for note in notes if not isinstance(note, Remark)]


def split_name(name: str) -> str:
    """Convert the name of a folder or file to the name of a split: `valid2017` gives `val`."""
    plain = name.lower().rstrip("0123456789_-")
    return SPLIT_ALIASES.get(plain, plain)


def split_of(path: Path, root: Path) -> str:
    """The split that a folder between `root` and a file is named after, by default `train`."""
    names = map(split_name, path.relative_to(root).parts[:-1])
    return next((name for name in names if name in SPLITS), "train")


def declared_size(height: Any, width: Any) -> Size | None:
    """(height, width) as a file declares them; None unless both are positive integers."""
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width))
    return (height, width) if whole and height > 0 and width > 0 else None


def path_inside(root: str | Path, *names: str | Path) -> Path:
    """Join `root` and names that were read from a file; InputError if the path leaves `root`."""
    home = Path(root).absolute()
    path = Path(os.path.normpath(home.joinpath(*names)))
    if not path.is_relative_to(os.path.normpath(home)):
        shown = printable("/".join(map(str, names)))
        raise InputError(f"{shown}: must be inside {root}")
    return path


def locate(folders: Sequence[Path], name: str) -> Path:
    """Find the file called `name`, which may be a path on another machine, in one of the folders.

    The name may have backslashes.  If no folder has the file, the first part of the path is dropped
    and the search repeated, so that absolute paths of other machines are found as well.  If the
    file is nowhere, its path in the first folder is returned.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for folder in folders:
            if os.path.isfile(path := os.path.join(folder, *parts[start:])):
                return Path(path)
    return folders[0].joinpath(*parts)


def drop_repeated_images(
    splits: dict[str, list[AnnotatedImage]],
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Keep each image file only where it first occurs; return (splits, one note per dropped image).

    Images that are not files are all kept.
    """
    seen, notes, kept = {}, [], {}
    for name, samples in splits.items():
        kept[name] = []
        for sample in samples:
            file = sample.image
            if isinstance(file, Path) and file in seen:
                notes.append(f"{sample.name}: {file.name} is in {seen[file]} {REPEATED}, left out")
            else:
                seen[file if isinstance(file, Path) else id(sample)] = name
                kept[name].append(sample)
    return kept, notes


def _drop_repeated_boxes(sample: AnnotatedImage) -> tuple[AnnotatedImage, list[str]]:
    """Keep equal boxes with equal labels once; return (image, notes)."""
    left = sample.boxes[:, 0].tolist()
    if len(set(left)) == len(left):  # as in most images; saves time
        return sample, []
    rows = np.column_stack([sample.boxes, sample.labels, sample.crowd]).tolist()
    seen = {tuple(row): number for number, row in reversed([*enumerate(rows)])}
    if len(seen) == len(rows):
        return sample, []
    first = sorted(seen.values())
    count = len(rows) - len(first)
    note = f"{sample.name}: {count} of {len(rows)} boxes {REPEATED_BOX}, left out"
    return _take_objects(sample, np.array(first)), [note]


def _take_objects(sample: AnnotatedImage, objects: np.ndarray) -> AnnotatedImage:
    """The sample with the objects at these positions, or where this mask is true."""
    names = ("boxes", "labels", "crowd", "area", "rows")
    return sample._replace(**{name: getattr(sample, name)[objects] for name in names})


def with_validation(
    splits: dict[str, list[AnnotatedImage]], fraction: float, seed: int, test_fraction: float = 0.0
) -> dict[str, list[AnnotatedImage]]:
    """Draw a missing or empty `val`, and optionally `test`, at random from `train`.

    `val` gets the fraction `fraction` of the images of `train`, and `test` gets the fraction
    `test_fraction` (0: no `test` is drawn); `seed` determines which images.  Splits that already
    have images are kept.  Raises InputError for a fraction that leaves a split empty.
    """
    fractions = {"val": fraction, "test": test_fraction}
    fractions = {n: f for n, f in fractions.items() if not splits.get(n) and (n == "val" or f)}
    if not fractions:
        return splits
    left = list(splits["train"])
    random.Random(seed).shuffle(left)
    total, found = len(left), dict(splits)
    for name, of_split in fractions.items():
        count = round(of_split * total)
        if not 0 < count < len(left):
            raise InputError(
                f"--{name}-fraction must leave images for both {name} and train, got {of_split:g} "
                f"of {total} images"
            )
        found[name], left = left[:count], left[count:]
    return {**found, "train": left}


def draw_fraction(
    samples: Sequence[AnnotatedImage], fraction: float, seed: int
) -> list[AnnotatedImage]:
    """A random choice of round(fraction * N) of N samples, at least one if N > 0, in their order.

    fraction: in (0, 1]; 1 keeps all.  `seed` determines which samples.
    """
    count = min(max(round(fraction * len(samples)), 1), len(samples))
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), count))]


def largest_box_count(splits: dict[str, list[AnnotatedImage]]) -> int:
    """The largest number of boxes in an image, at least 1."""
    return max(map(_largest, splits.values()), default=1)


def load(
    samples: Sequence[AnnotatedImage],
    height: int,
    width: int,
    max_boxes: int,
    *,
    first_id: int = 0,
    letterbox: images.Letterbox = images.CENTERED,
) -> tuple[sources.ArraySource, list[str]]:
    """Read images; return (source of the usable images, notes on images and boxes left out).

    The arrays are image [N, height, width, 3] uint8, letterboxed; size [N, 2], the original height
    and width; to_original [N, 4], a scale (sx, sy) and an offset (ox, oy) such that x in the
    original is sx * x + ox for x in the network's input, and likewise for y; and id [N], where the
    first of `samples` has the id `first_id`.

    For training, with G = `max_boxes`: boxes [N, G, 4] in pixels of `image`, clipped to it; labels,
    valid and crowd [N, G].  They leave out boxes with a side below `MIN_BOX_SIDE`, and boxes beyond
    the first G.

    For evaluation: true_boxes [N, T, 4] as in the file, in pixels of the original image;
    true_labels, true_valid, true_crowd and true_area [N, T].  T is the largest number of boxes in
    an image.  These arrays do not depend on height, width or G.

    Boxes without area or outside their image are left out.  Images are left out if they cannot be
    read, if none of their boxes can be used, or if the annotated size has another aspect ratio.
    Raises InputError if no image remains.
    """
    sizes = ArraySizes(height, width, max_boxes, _largest(samples), letterbox)
    function = partial(prepare, sizes=sizes)
    kept, notes = _map_usable(samples, function)
    names = [samples[number].name for number, _ in kept]
    rows = [{**row, "id": np.int32(first_id + number)} for number, row in kept]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return sources.ArraySource(columns, names=names), notes


def stream(
    samples: Sequence[AnnotatedImage],
    height: int,
    width: int,
    max_boxes: int,
    *,
    first_id: int = 0,
    letterbox: images.Letterbox = images.CENTERED,
    on_invalid: str = "skip",
    cache: str | Path = "",
    index: Path | None = None,
) -> tuple[sources.StreamSource, list[str]]:
    """Like `load`, but returns a `StreamSource`, which reads an image when it is used.

    This call reads only the headers of the images.

    on_invalid: what the source does with an image that turns out to be damaged later, see
      `StreamSource`.
    cache: folder of an `image_cache`; "" for no cache.
    index: folder in which `image_sizes` keeps the sizes of the images; None: all headers are read.
    """
    sizes = ArraySizes(height, width, max_boxes, _largest(samples), letterbox)
    read_image = image_cache.cached(images.read_letterboxed, cache)

    left_out, notes = [], []
    label_sets = [sample.labels for sample in samples]
    found = image_sizes.read([sample.image for sample in samples], index)
    for number in np.flatnonzero(~_surely_usable(samples, found, sizes)).tolist():
        sample, size = samples[number], found[number]
        if isinstance(size, InputError):
            row, faults = None, [f"{sample.name}: {size}"]
        else:
            row, faults = _prepare_boxes(sample, size, sizes)
        notes += faults
        if row is None:
            left_out.append(number)
        else:
            label_sets[number] = row["true_labels"][row["true_valid"]]
    if len(left_out) == len(samples):
        raise _none_usable(len(samples), notes)

    def read(number: int) -> dict[str, Any]:
        row, faults = prepare(samples[number], sizes, read_image)
        if row is None:
            raise InputError(faults[0])
        return {**row, "id": np.int32(first_id + number)}

    names = [sample.name for sample in samples]
    options = {"label_sets": label_sets, "left_out": left_out, "on_invalid": on_invalid}
    source = sources.StreamSource(read, len(samples), names, **options)
    return source, notes


def prepare(
    sample: AnnotatedImage, sizes: ArraySizes, read: Callable = images.read_letterboxed
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """Read one image; return (its arrays as in `load`, or None if it cannot be used; notes)."""
    try:
        # A default is left out, so that an `image_cache` of an earlier version stays usable.
        own = () if sizes.letterbox == images.CENTERED else (sizes.letterbox,)
        image, size = read(sample.image, sizes.height, sizes.width, *own)
    except InputError as error:
        return None, [f"{sample.name}: {error}"]
    row, notes = _prepare_boxes(sample, size, sizes)
    return row and {"image": image, **row}, notes


def usable_boxes(sample: AnnotatedImage, size: Size) -> tuple[AnnotatedImage | None, list[str]]:
    """The boxes that can be evaluated, in pixels of an image of `size`; return (sample, notes).

    Boxes that are not finite, have no area or are outside the image are left out.  The sample is
    None if it has boxes but none remains, or if the annotated size has another aspect ratio.
    """
    scaled, notes = _scale_to(sample, size)
    if scaled is None:
        return None, notes
    limits = np.array([size[1], size[0]] * 2, np.float32)
    clipped = np.clip(scaled.boxes, 0, limits[None])
    good = np.isfinite(scaled.boxes).all(1) & (clipped[:, 2:] > clipped[:, :2]).all(1)
    notes += [_box_note(sample, box, _box_fault(box, limits)) for box in scaled.boxes[~good]]
    if len(good) and not good.any():
        return None, notes
    return _take_objects(scaled, good)._replace(size=size), notes


def summarize(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """One table row per split and class: images, boxes, and ranges of box width and height.

    The ranges are in pixels of the original image.  The last row of each split covers all classes,
    and has the number of images without boxes in place of a range.
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


def _largest(samples: Sequence[AnnotatedImage]) -> int:
    return max([1, *(len(sample.boxes) for sample in samples)])


def _map_usable(
    samples: Sequence[AnnotatedImage], function: Callable[[AnnotatedImage], tuple[Any, list[str]]]
) -> tuple[list[tuple[int, Any]], list[str]]:
    """Return ([(index, result)], notes) of `function`, mapped in threads; drop results of None."""
    found = threads.map_images(function, samples)
    results, faults = zip(*found, strict=True) if samples else ((), ())
    notes = [note for of_image in faults for note in of_image]
    kept = [(number, result) for number, result in enumerate(results) if result is not None]
    if not kept:
        raise _none_usable(len(samples), notes)
    return kept, notes


def _none_usable(count: int, notes: Sequence[str]) -> InputError:
    return InputError(f"none of {count} images can be used{first_problem(notes)}")


def _surely_usable(
    samples: Sequence[AnnotatedImage], found: Sequence[Size | InputError], sizes: ArraySizes
) -> np.ndarray:
    """Quick check [N]: True only if `_prepare_boxes` would keep all boxes without a note."""
    readable = np.array([isinstance(size, tuple) for size in found], bool)
    same = [one.size in (None, size) for one, size in zip(samples, found, strict=True)]
    counts = np.array([len(sample.boxes) for sample in samples], int)
    usable = readable & np.array(same, bool) & (counts <= sizes.max_boxes)
    if not counts.any():
        return usable
    shapes = [size if isinstance(size, tuple) else (1, 1) for size in found]
    height, width = np.array(shapes, np.float64).T
    # The letterbox rounds the sides of the image to pixels, at most down by one.
    scale = np.minimum(sizes.height / height, sizes.width / width) - 1 / np.minimum(height, width)
    owner = np.repeat(np.arange(len(samples)), counts)
    boxes = np.concatenate([sample.boxes for sample in samples])
    limits = np.stack([width, height, width, height], 1)[owner]
    clipped = np.clip(boxes, 0, limits)
    sides = (clipped[:, 2:] - clipped[:, :2]) * scale[owner, None]
    large = np.isfinite(boxes).all(1) & (sides > 1.01 * MIN_BOX_SIDE).all(1)
    return usable & (np.bincount(owner[~large], minlength=len(samples)) == 0)


def _prepare_boxes(
    sample: AnnotatedImage, size: Size, sizes: ArraySizes
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """(arrays of the boxes as in `load`, or None if the image cannot be used; notes)."""
    scaled, notes = usable_boxes(sample, size)
    if scaled is None:
        return None, notes
    sample = scaled
    scale, offset = images.letterbox_transform(size, sizes.height, sizes.width, sizes.letterbox)
    limits = np.array([size[1], size[0]] * 2, np.float32)
    clipped = np.clip(sample.boxes, 0, limits[None])
    moved = clipped * np.tile(scale, 2)[None] + np.tile(offset, 2)[None]
    large = (moved[:, 2:] - moved[:, :2] >= MIN_BOX_SIDE).all(1)
    tiny = f"{TINY} of the network's input: evaluated, not {TRAINED_ON}"
    notes += [_box_note(sample, box, tiny) for box in sample.boxes[~large]]
    if large.sum() > sizes.max_boxes:
        notes.append(
            f"{sample.name}: {large.sum()} boxes, only the first {sizes.max_boxes} are "
            f"{TRAINED_ON}; raise --max-boxes"
        )
    trained = np.flatnonzero(large)[: sizes.max_boxes]

    def padded(column: np.ndarray, count: int) -> np.ndarray:
        out = np.zeros((count, *column.shape[1:]), column.dtype)
        out[: len(column)] = column
        return out

    columns = {"boxes": moved, "labels": sample.labels, "valid": large, "crowd": sample.crowd}
    row = {name: padded(column[trained], sizes.max_boxes) for name, column in columns.items()}
    columns |= {"boxes": sample.boxes, "valid": np.ones_like(large), "area": sample.area}
    row |= {f"true_{name}": padded(column, sizes.true_boxes) for name, column in columns.items()}
    row["size"] = np.array(size, np.int32)
    row["to_original"] = np.concatenate([1 / scale, -offset / scale]).astype(np.float32)
    return row, notes


def _scale_to(sample: AnnotatedImage, size: Size) -> tuple[AnnotatedImage | None, list[str]]:
    """Scale boxes from the annotated size to `size`; (None, notes) for another aspect ratio."""
    if sample.size is None or sample.size == size:
        return sample, []
    (height, width), (old_height, old_width) = size, sample.size
    shown = f"{old_width} x {old_height} in the annotations, the image is {width} x {height}"
    if abs(width * old_height - height * old_width) > max(old_height, old_width, height, width):
        turned = (old_width, old_height) == size
        why = "does the annotated size ignore the EXIF rotation?" if turned else "left out"
        return None, [f"{sample.name}: {OTHER_SIZE} {shown}: another aspect ratio, {why}"]
    factor = np.array([width / old_width, height / old_height] * 2, np.float32)
    scaled = sample._replace(
        boxes=sample.boxes * factor[None], area=sample.area * factor[0] * factor[1]
    )
    return scaled, [Remark(f"{sample.name}: {OTHER_SIZE} {shown}: boxes are scaled")]


def _box_fault(box: np.ndarray, limits: np.ndarray) -> str:
    """Why a box [4] is left out; `limits` is (width, height, width, height) of the image."""
    if not np.isfinite(box).all():
        return "is not finite"
    if (box[2:] <= box[:2]).any():
        return EMPTY
    return f"{OUTSIDE} the {limits[0]:.0f} x {limits[1]:.0f} image"


def _box_note(sample: AnnotatedImage, box: np.ndarray, fault: str) -> str:
    return f"{sample.name}: box {' '.join(f'{v:g}' for v in box)} {fault}"


def _describe_range(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.0f} to {high:.0f}, median {middle:.0f}"
