"""Localization data sets: images with one label and one box each.

The images are `images/LABEL/FILE`.  The table `annotations/LABEL.csv` has one row per image,
`file,x0,y0,x1,y1,label`, with the box in pixels of the original image; a header is optional.
Images of different labels may have the same file name: label and file together identify an image.
"""

import csv
import io
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxdet.config import cached_reader
from jaxdet.data import images, regular_files, sources, threads
from jaxdet.data.images import Size
from jaxdet.errors import InputError, first_problem

SPLIT_FILES = {"train": "training_data.csv", "val": "val_data.csv", "test": "test_data.csv"}
COLUMNS = "file,x0,y0,x1,y1,label"
LABEL_ORDER = ("motorcycle", "airplane", "face")  # order of assignment 0, whose split depends on it
NO_BOX = (0.0, 0.0, 0.0, 0.0)
THUMBNAIL_SIDE = 32  # pixels; enough where only the sizes of images matter

Box = tuple[float, float, float, float]
Item = TypeVar("Item")


class Annotation(NamedTuple):
    """A row of a table; only `load` checks the image, and that the box is inside it."""

    label: str
    file: str
    box: Box | None  # x0 y0 x1 y1 in pixels of the original image; None only in `external_images`
    location: str  # file and row, for messages
    path: Path | None = None  # of the image; by default images/LABEL/FILE

    @property
    def name(self) -> str:
        """The name LABEL/FILE, which identifies the image."""
        return f"{self.label}/{self.file}"


class LocalizationDataset(NamedTuple):
    """The annotations and sources of all splits."""

    annotations: dict[str, list[Annotation]]
    classes: tuple[str, ...]
    splits: dict[str, sources.ArraySource]  # sources of the usable annotations
    notes: tuple[str, ...]  # one line for each row that cannot be used


@cached_reader(
    "root", "split_files", "val_fraction", "test_fraction", "train_fraction", "split_seed", "size"
)
def read_dataset(config: Any) -> LocalizationDataset:
    """Read the data set of a configuration of `objects`."""
    annotations, notes = read_splits(config)
    classes = tuple(sorted({row.label for rows in annotations.values() for row in rows}))
    splits, first = {}, 0
    for name, rows in annotations.items():
        splits[name], faults = load(rows, config.root, config.size, classes, first_id=first)
        first += len(rows)
        notes = [*notes, *faults]
    return LocalizationDataset(annotations, classes, splits, tuple(notes))


def read_splits(config: Any) -> tuple[dict[str, list[Annotation]], list[str]]:
    """Return (annotations of each split, notes on invalid rows) for a configuration of `objects`.

    The split is read from the folder `config.split_files` or, if that is "", drawn by
    `random_split`.
    """
    check_root(config.root)
    if getattr(config, "split_files", ""):
        return read_split_files(config.split_files, config.root)
    annotations, notes = read_annotations(config.root)
    splits = random_split(
        annotations,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        train_fraction=config.train_fraction,
        seed=config.split_seed,
    )
    return splits, notes


def split_tables(
    config: Any,
) -> tuple[list[dict[str, Any]], tuple[tuple[str, str], ...], list[str]]:
    """Split the data of a configuration; return (one table row per split, files, notes).

    The columns of the table are the number of images, in total and of each label.  The files are
    the result of `format_splits`; the notes are on invalid rows.
    """
    splits, notes = read_splits(config)
    labels = sorted({row.label for rows in splits.values() for row in rows})
    counts = []
    for name, rows in splits.items():
        count = Counter(row.label for row in rows)
        counts.append({"split": name, "images": len(rows), **{k: count[k] for k in labels}})
    return counts, format_splits(splits), notes


def summarize(root: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (one table row per label, notes on rows that cannot be used) for the data in a folder.

    The columns are the number of rows, the number of usable rows, the ranges of height and width of
    images and of boxes in pixels of the original image, and the range of box areas in percent of
    the image.  Raises InputError if no row can be used.
    """
    check_root(root)
    rows, notes = read_annotations(root)
    if not rows:
        problem = first_problem(notes)
        raise InputError(f"{root}: the tables in annotations/ have no valid rows{problem}")
    classes = sorted({row.label for row in rows})
    source, faults = load(rows, root, THUMBNAIL_SIDE, classes)
    size, label = source.arrays["size"], source.arrays["label"]
    corners = to_original(source.arrays["boxes"][:, 0], size, THUMBNAIL_SIDE)
    sides = (corners[:, 2:] - corners[:, :2])[:, ::-1]  # height, width
    area = sides.prod(1) / size.prod(1)
    table = []
    for i, name in enumerate(classes):
        own = label == i
        row = {"label": name, "rows": sum(r.label == name for r in rows), "usable": int(own.sum())}
        row["image height"], row["image width"] = map(_describe_range, size[own].T)
        row["box height"], row["box width"] = map(_describe_range, sides[own].T)
        table.append(row | {"box area %": _describe_range(100 * area[own])})
    return table, notes + faults


def load(
    annotations: Sequence[Annotation],
    root: str | Path,
    side: int,
    classes: Sequence[str],
    *,
    first_id: int = 0,
) -> tuple[sources.ArraySource, list[str]]:
    """Read the images of annotations; return (source of the usable annotations, notes on others).

    The arrays are image [N, side, side, 3] uint8; label [N], an index into `classes`; boxes [N, 1,
    4] in pixels of the resized image, zeros for an annotation without a box; size [N, 2], the
    original height and width; and id [N], where the first of `annotations` has the id `first_id`.

    Raises InputError if no annotation can be used.
    """
    kept, notes = [], []
    results = threads.map_images(partial(_read_image, root=root, side=side), annotations)
    for number, (row, result) in enumerate(zip(annotations, results, strict=True)):
        if isinstance(result, str):
            notes.append(result)
        else:
            kept.append((first_id + number, row, *result))
    if not kept:
        problem = first_problem(notes)
        raise InputError(f"{root}: none of {len(annotations)} images can be used{problem}")
    ids, rows, image, size = zip(*kept, strict=True)
    size = np.array(size, np.int32)
    corners = np.array([row.box or NO_BOX for row in rows], np.float32)
    arrays = {
        "image": np.stack(image),
        "label": np.array([classes.index(row.label) for row in rows], np.int32),
        "boxes": to_network(corners, size, side).astype(np.float32)[:, None],
        "size": size,
        "id": np.array(ids, np.int32),
    }
    return sources.ArraySource(arrays, names=[row.name for row in rows]), notes


def read_annotations(root: str | Path) -> tuple[list[Annotation], list[str]]:
    """Read `root/annotations/*.csv`; return (annotations, notes on invalid rows).

    Tables are read in the order of `label_order`.  If several rows are for the same image, only the
    first of them is valid.  Raises InputError if there are no tables.
    """
    folder = Path(root) / "annotations"
    tables = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not tables:
        raise InputError(
            f"{folder}: no tables; expected LABEL.csv for each label, with columns {COLUMNS}"
        )
    rows, notes = [], []
    for name in label_order(tables):
        own, faults = read_table(tables[name], root)
        rows += own
        notes += faults
    rows, repeats = unique_rows(rows, lambda row: row.name)
    return rows, notes + repeats


def label_order(labels: Iterable[str]) -> list[str]:
    """Sort labels into the order in which tables are read: `LABEL_ORDER`, then others by name."""
    known = {name: place for place, name in enumerate(LABEL_ORDER)}
    return sorted(labels, key=lambda name: (known.get(name, len(known)), name))


def unique_rows(
    rows: Iterable[Annotation], image: Callable[[Annotation], Hashable]
) -> tuple[list[Annotation], list[str]]:
    """Keep the first of the rows with equal `image(row)`; return (rows kept, notes on others)."""
    first, notes = {}, []
    for row in rows:
        kept = first.setdefault(image(row), row)
        if kept is not row:
            notes.append(f"{row.location}: {row.name} is in {kept.location} already, left out")
    return list(first.values()), notes


def read_table(path: str | Path, root: str | Path) -> tuple[list[Annotation], list[str]]:
    """Read one table of images in `root/images`; return (annotations, notes on invalid rows)."""
    labels = {folder.name for folder in (Path(root) / "images").glob("*/")}
    return parse_table(path, partial(_parse_row, labels=labels))


def parse_table(
    path: str | Path, parse: Callable[[list[str], str], Annotation | str], columns: str = COLUMNS
) -> tuple[list[Annotation], list[str]]:
    """Read a table; return (annotations, notes on invalid rows).

    The first row is taken as a header if it has no number and no file name of an image.  Raises
    InputError for a file that is not a readable table.

    Args:
        parse: (words of a row, location of the row) -> annotation, or a description of the problem.
        columns: the expected columns, for messages.
    """
    path, rows, notes = Path(path), [], []
    try:
        lines = list(csv.reader(io.StringIO(regular_files.read_text(path), newline="")))
    except (csv.Error, InputError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: not a readable table ({reason}); expected {columns}") from None
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and _is_header(line)):
            continue
        result = parse([word.strip() for word in line], f"{path} row {number}")
        (rows if isinstance(result, Annotation) else notes).append(result)
    return rows, notes


def read_labeled_images(
    root: str | Path, classes: Sequence[str], path: str | Path
) -> list[tuple[Path, int, Box | None]]:
    """Read a table; return [(path of the image, index of its label, box in original pixels)].

    Raises InputError for an invalid row or a label that is not in `classes`.
    """
    check_root(root)
    rows, notes = read_table(path, root)
    unknown = [row for row in rows if row.label not in classes]
    if notes:
        raise InputError(notes[0])
    if unknown:
        raise InputError(
            f"{unknown[0].location}: unknown label {unknown[0].label!r}, must be one of "
            f"{', '.join(classes)}"
        )
    folder = Path(root) / "images"
    return [(folder / row.label / row.file, classes.index(row.label), row.box) for row in rows]


def read_original(root: str | Path, name: str) -> np.ndarray:
    """Read the image `name`, LABEL/FILE, at its original size: [h, w, 3] float32 in [0, 1]."""
    return images.read_float(Path(root) / "images" / name)


def random_split(
    items: Sequence[Item],
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    train_fraction: float = 1.0,
    seed: int = 0,
) -> dict[str, list[Item]]:
    """Shuffle items, as determined by `seed`, and split them into "train", "val" and "test".

    All three fractions are of the number of all items; `train` gets at most the items that are not
    in `val` or `test`.  Raises InputError for a fraction outside [0, 1] and for an empty split.
    The defaults give the split of assignment 0.
    """
    fractions = {"val": val_fraction, "test": test_fraction, "train": train_fraction}
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise InputError(f"--{name}-fraction must be from 0 to 1, got {fraction:g}")
    items = list(items)
    random.Random(seed).shuffle(items)
    first = int((1 - val_fraction - test_fraction) * len(items) + 1e-9)
    second = int((1 - test_fraction) * len(items) + 1e-9)
    count = int(train_fraction * len(items) + 1e-9)
    splits = {"train": items[:first][:count], "val": items[first:second], "test": items[second:]}
    empty = [name for name, split in splits.items() if not split]
    if empty:
        raise InputError(
            f"every split must have images, but --val-fraction {val_fraction:g}, --test-fraction "
            f"{test_fraction:g} and --train-fraction {train_fraction:g} of {len(items)} images "
            f"leave {' and '.join(empty)} empty"
        )
    return splits


def read_split_files(
    folder: str | Path, root: str | Path
) -> tuple[dict[str, list[Annotation]], list[str]]:
    """Read `SPLIT_FILES` in a folder; return (annotations of each split, notes on invalid rows).

    The images are in `root/images`.  Raises InputError for an image in two splits.
    """
    found = {name: read_table(Path(folder) / file, root) for name, file in SPLIT_FILES.items()}
    splits = {name: rows for name, (rows, _) in found.items()}
    homes = {}
    for name, rows in splits.items():
        for row in rows:
            if homes.setdefault(row.name, name) != name:
                raise InputError(
                    f"{row.location}: {row.name} must be in one split, is also in {homes[row.name]}"
                )
    return splits, [note for _, notes in found.values() for note in notes]


def has_split(root: str | Path, folder: str | Path) -> bool:
    """Whether every row of the split in `folder` is also in the tables of `root`.

    If so, `root` holds the data set from which the split was made, even if it has been moved.
    False also if `folder` or the tables do not exist.
    """
    if not Path(folder).is_dir() or not any((Path(root) / "annotations").glob("*.csv")):
        return False
    splits, notes = read_split_files(folder, root)
    known = {(row.name, row.box) for row in read_annotations(root)[0]}
    rows = [(row.name, row.box) for of_split in splits.values() for row in of_split]
    return not notes and known.issuperset(rows)


def format_splits(splits: dict[str, list[Annotation]]) -> tuple[tuple[str, str], ...]:
    """The tables that record a split: (path in the run folder, text) of each."""
    return tuple((f"splits/{SPLIT_FILES[name]}", to_csv(rows)) for name, rows in splits.items())


def to_csv(annotations: Sequence[Annotation]) -> str:
    """The text of a table of annotations, without a header."""
    text = io.StringIO()
    lines = [[row.file, *map(_format_number, row.box or ()), row.label] for row in annotations]
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def to_network(boxes: np.ndarray, size: np.ndarray, side: int) -> np.ndarray:
    """Convert boxes [..., 4] from pixels of the original to pixels of the side x side image.

    `size` [..., 2] is the original (height, width).
    """
    return boxes * side / _width_height_twice(size)


def to_original(boxes: np.ndarray, size: np.ndarray, side: int) -> np.ndarray:
    """Convert boxes [..., 4] from pixels of the side x side image to pixels of the original.

    This is the inverse of `to_network`.
    """
    return boxes * _width_height_twice(size) / side


def _width_height_twice(size: np.ndarray) -> np.ndarray:
    return np.asarray(size, np.float32)[..., [1, 0, 1, 0]]


def check_root(root: str | Path) -> None:
    """Raise InputError unless `root` is a folder."""
    if not root:
        raise InputError("--root must be a folder with images/ and annotations/, got none")
    if not Path(root).is_dir():
        raise InputError(f"--root {root}: no such folder")


def _read_image(row: Annotation, root: str | Path, side: int) -> tuple[np.ndarray, Size] | str:
    """Return (resized image, original size) for a row, or a description of the row's problem."""
    x0, y0, x1, y1 = row.box or NO_BOX
    box = " ".join(map(_format_number, (x0, y0, x1, y1)))
    if row.box and (x1 <= x0 or y1 <= y0):
        return f"{row.location}: box {box} is empty; must have x0 < x1 and y0 < y1"
    path = row.path or Path(root) / "images" / row.label / row.file
    try:
        image, size = images.read_resized(path, side)
    except InputError as error:
        return str(error) if row.location == str(path) else f"{row.location}: {error}"
    height, width = size
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        return f"{row.location}: box {box} must be inside the {width} x {height} image"
    return image, size


def _is_header(line: Sequence[str]) -> bool:
    named = any(word.strip().lower().endswith(images.SUFFIXES) for word in line)
    return not named and all(_parse_number(word) is None for word in line)


def parse_box(corners: Sequence[str], location: str) -> Box | str:
    """Convert four words to a box; return a description of the problem if they are not a box."""
    numbers = [number for number in map(_parse_number, corners) if number is not None]
    if len(numbers) != 4:
        return f"{location}: box must be four numbers, got {' '.join(corners)!r}"
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


def _parse_row(words: list[str], location: str, labels: set[str]) -> Annotation | str:
    if len(words) != 6:
        return f"{location}: must have columns {COLUMNS}, got {len(words)} columns"
    file, *corners, label = words
    box = parse_box(corners, location)
    if isinstance(box, str):
        return box
    if label not in labels:
        return (
            f"{location}: label {label!r} has no folder of images, must be one of "
            f"{', '.join(sorted(labels))}"
        )
    if Path(file).name != file:
        return f"{location}: file {file!r} must be a plain file name"
    return Annotation(label, file, box, location)


def _parse_number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _format_number(value: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(float(value)).removesuffix(".0")


def _describe_range(values: np.ndarray) -> str:
    return f"{values.min():.0f} to {values.max():.0f}" if len(values) else "none"
