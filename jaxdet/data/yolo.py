"""YOLO: a YAML file with class names and the folders of splits, and one text file per image.

The YAML file is data.yaml, dataset.yaml or the only one in the folder that describes a data set.
Without a YAML file, the class names are the lines of classes.txt, and a folder named after a split
holds the images of that split; if there is no such folder, all images are for training.  The labels
of `images/a.jpg` are in `labels/a.txt`, or in `a.txt` next to the image.  An image without a label
file has no objects.

A line of a label file is `class x y width height`, where x and y are the center of the box, and all
four numbers are fractions of the image's sides.  Further values depend on the YAML file:

- with `kpt_shape`: keypoints, and a score after them;
- with `task: detect` or `task: track`: anything, which is ignored;
- with `task: segment` or `task: obb`: a score; lines with more values are polygons, `class x y x y`
  and so on;
- with neither: a score.  Longer lines are interpreted together.  If all longer lines have seven
  values, and the last value is an integer, they have a score and a track id.  If all longer lines
  have the same number of values, and every point is in its box, they have keypoints.  Otherwise
  they are polygons.

A polygon is replaced by its bounding box.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset, Remark
from jaxdet.data.images import Size
from jaxdet.errors import InputError, printable
from jaxdet.ops import boxes
from jaxdet.types import Array

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")
MAX_CLASSES = 100_000
SHORT = (5, 6)  # number of values of a line with a box, or with a box and its score
TRIANGLE = 7  # number of values of a polygon of three points, or of a box, score and track id
POINT_SLACK = 0.1  # a keypoint may lie outside its box by this fraction of the box's sides
FRACTION_SLACK = 0.05  # a point may lie outside its image by this fraction of the image's sides

Row = tuple[int, list[str]]  # number of a line, from 1; its words


class _Folder(NamedTuple):
    """The content of the YAML file, or of the list of classes."""

    root: Path
    file: Path
    classes: tuple[str, ...]
    first: int  # number of the first class, 0 or 1
    content: dict[str, Any]  # content of the YAML file; {} without one


class _Labels(NamedTuple):
    image: Path
    size: Size | None  # None if the image cannot be read, or if it has no label file
    rows: list[Row] | None  # None if it has no label file
    file: Path | None = None


def find_yaml(root: str | Path) -> Path | None:
    """Find the YAML file of a folder: one of `YAML_NAMES`, or the only one that describes data.

    None if there is no such file, or several.
    """
    for name in YAML_NAMES:
        if (Path(root) / name).is_file():
            return Path(root) / name
    every = [*Path(root).glob("*.yaml"), *Path(root).glob("*.yml")]
    found = [path for path in every if not images.is_hidden(path.name) and _describes_data(path)]
    return found[0] if len(found) == 1 else None


def _describes_data(path: Path) -> bool:
    try:
        content = regular_files.read_yaml(path)
    except InputError:
        return False
    return isinstance(content, dict) and "train" in content and bool({"names", "nc"} & {*content})


def find_class_list(root: str | Path) -> Path | None:
    """Find the file with the class names in a folder without a YAML file; None if there is none."""
    paths = [Path(root) / name for name in CLASS_LISTS]
    return next((path for path in paths if path.is_file()), None)


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder; InputError if no training image has a label file."""
    folder = _read_folder(Path(root))
    labels, notes = {}, []
    for split, places in _split_places(folder).items():
        files, faults = _list_files(folder, places)
        labels[split] = [_read_labels(folder.root, file) for file in files]
        notes += faults
    missing = {split: sum(one.rows is None for one in own) for split, own in labels.items()}
    for split, count in missing.items():
        if count == len(labels[split]) and split != "train" and count:
            notes.append(Remark(f"{split}: no image has a label file: the split is left out"))
            del labels[split]
        elif count and count == len(labels[split]):
            first = labels[split][0].image
            raise InputError(
                f"{split}: no image has a label file, labels/NAME.txt or NAME.txt next to the "
                f"image; first image: {first}"
            )
        elif count:
            text = f"{count} of {len(labels[split])} images have no label file"
            notes.append(Remark(f"{split}: {text} and are read as images without objects"))
    parse, remarks = _row_parser(
        folder, [r for own in labels.values() for one in own for r in one.rows or []]
    )
    notes += remarks
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, own in labels.items():
        pairs = [_annotate(one, folder, parse) for one in own]
        splits[split] = [sample for sample, _ in pairs]
        notes += [note for _, of_image in pairs for note in of_image]
    return detection.assemble(folder.classes, splits, notes)


def _read_folder(root: Path) -> _Folder:
    path = find_yaml(root)
    if path is None:
        path = find_class_list(root)
        if path is None:
            raise InputError(f"{root}: has no data.yaml and no classes.txt; expected one of them")
        names = tuple(name for _, name in regular_files.read_lines(path))
        return _Folder(root, path, names, 0, {})
    content = regular_files.read_yaml(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{path}: must be a mapping with names, train and val, got {kind}")
    return _Folder(root, path, *_read_names(content, path), content)


def _read_names(content: dict[str, Any], path: Path) -> tuple[tuple[str, ...], int]:
    """(class names, number of the first class); InputError for invalid names or a wrong `nc`."""
    names, count = content.get("names"), content.get("nc")
    shown = printable(repr(names))[:60]
    if names is None and isinstance(count, int) and 0 < count <= MAX_CLASSES:
        names = [f"class {i}" for i in range(count)]
    first = 0
    if isinstance(names, dict):
        by_number = {int(key) if str(key).isdecimal() else key: names[key] for key in names}
        first = 0 if 0 in by_number else 1
        numbers = range(first, first + len(by_number))
        names = [by_number[i] for i in numbers] if by_number.keys() == set(numbers) else None
    if not isinstance(names, list) or not 0 < len(names) <= MAX_CLASSES:
        raise InputError(
            f"{path}: names must be a list of class names, or a mapping from the numbers 0, 1, ... "
            f"or 1, 2, ... to class names, got {shown}"
        )
    if any(isinstance(name, list | dict) for name in names):
        raise InputError(f"{path}: names must be strings, got {shown}")
    if isinstance(count, int) and count != len(names):
        raise InputError(f"{path}: nc must be {len(names)}, the number of names, got {count}")
    return tuple(map(str, names)), first


def _split_places(folder: _Folder) -> dict[str, list[str]]:
    """{split: folders, or text files that list images}; InputError for values other than paths."""
    if folder.file.suffix not in (".yaml", ".yml"):
        return _folders_by_name(folder.root)
    found = {}
    for key in detection.SPLITS:
        value = folder.content.get(key)
        value = folder.content.get("valid") if key == "val" and value is None else value
        if value in (None, "", []):
            continue
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) for place in places):
            shown = printable(repr(value)[:60])
            raise InputError(f"{folder.file}: {key} must be a path or a list of paths, got {shown}")
        found[key] = places
    return found


def _folders_by_name(root: Path) -> dict[str, list[str]]:
    """Folders named after splits, in `images` or the root; without any, the root is `train`."""
    for home in (root / "images", root):
        inner = sorted(path for path in home.glob("*/") if not images.is_hidden(path.name))
        names = {path: detection.split_name(path.name) for path in inner}
        found = {split: [str(path)] for path, split in names.items() if split in detection.SPLITS}
        if found:
            return found
    return {"train": ["."]}


def _list_files(folder: _Folder, places: Sequence[str]) -> tuple[list[Path], list[str]]:
    files, notes = [], []
    for place in places:
        path = _find_place(folder, place)
        if path.is_dir():
            found, remarks = images.scan(path)
            files += found
            notes += map(Remark, remarks)
            continue
        homes = [path.parent, *_homes(folder)]
        files += [detection.locate(homes, line) for _, line in regular_files.read_lines(path)]
    return files, notes


def _find_place(folder: _Folder, place: str) -> Path:
    """The folder or list of images that the YAML file calls `place`.

    For a path from another machine, its last parts are searched for in the folders of `_homes`.
    """
    parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for home in _homes(folder):
            if os.path.exists(path := home.joinpath(*parts[start:])):
                return path
    if os.path.exists(folder.root / place):
        return detection.path_inside(folder.root, place)  # raises InputError if it is outside
    raise InputError(f"{printable(place)}: no such folder or file, named in {folder.file}")


def _homes(folder: _Folder) -> list[Path]:
    """Folders to which paths in the YAML file may be relative.

    The folders below the root that the entry `path`, or its last parts, name; then the root.
    """
    base = folder.content.get("path")
    if not isinstance(base, str):
        return [folder.root]
    parts = [part for part in base.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    below = [folder.root.joinpath(*parts[start:]) for start in range(len(parts))]
    return [*(path for path in below if path.is_dir()), folder.root]


def _read_labels(root: Path, image: Path) -> _Labels:
    """Read an image's label file, and the size of the image from its header."""
    path = _label_path(root, image)
    if path is None:
        return _Labels(image, None, None)
    rows = [(number, line.split()) for number, line in regular_files.read_lines(path)]
    try:
        return _Labels(image, images.read_size(image), rows, path)
    except InputError:
        return _Labels(image, None, rows, path)  # `detection.load` adds a note on such an image


def _label_path(root: Path, image: Path) -> Path | None:
    """The label file of an image, in a folder `labels` or next to the image; None without one."""
    parts = image.parts
    own = len(parts) - len(image.relative_to(root).parts) if image.is_relative_to(root) else 0
    for place in reversed(range(own, len(parts) - 1)):
        if parts[place] == "images":
            changed = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
            if changed.is_file():
                return changed
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() else None


Parser = Callable[[list[float]], Array | None]


def _row_parser(folder: _Folder, rows: Sequence[Row]) -> tuple[Parser, list[str]]:
    """(parser, remarks); the parser returns corners [4] as fractions or, for a bad row, None."""
    lengths = Counter(len(words) for _, words in rows)
    content, longer = folder.content, sum(n for length, n in lengths.items() if length > SHORT[-1])
    if shape := content.get("kpt_shape"):
        if not (
            isinstance(shape, list)
            and len(shape) == 2
            and all(isinstance(n, int) and 0 < n < 1000 for n in shape)
        ):
            raise InputError(
                f"{folder.file}: kpt_shape must be two integers in 1..999, got {shape!r:.60}"
            )
        count = shape[0] * shape[1]
        remark = f"{longer} label rows are read as boxes with {shape[0]} keypoints"
        return _box_parser(4, 4 + count, 5 + count), [Remark(remark)] if longer else []
    task = content.get("task")
    if task in ("segment", "obb"):
        return _parse_polygon_or_box, [Remark(f"{longer} label rows are read as polygons")]
    if task in ("detect", "track"):
        return _box_parser(*range(4, 1000)), []
    long_rows = [words for _, words in rows if len(words) > SHORT[-1]]
    if not long_rows:
        return _box_parser(4, 5), []
    name = folder.file.name
    if all(len(words) == TRIANGLE and words[-1].isdecimal() for words in long_rows):
        return _box_parser(4, 5, 6), [
            Remark(f"{longer} label rows are read as box, score and track id")
        ]
    if len(lengths.keys() - set(SHORT)) == 1 and all(map(_has_points_in_its_box, long_rows)):
        text = f"{longer} label rows are read as boxes with keypoints"
        return _box_parser(*range(4, 1000)), [
            Remark(f"{text}; with `task: segment` in {name} they are polygons")
        ]
    return _parse_polygon_or_box, [Remark(f"{longer} label rows are read as polygons")]


def _has_points_in_its_box(words: Sequence[str]) -> bool:
    """Whether a row has a box in the image, and keypoints in the box or (unlabeled) at 0 0."""
    try:
        values = np.array(words[1:], float)
    except ValueError:
        return False
    if len(values) < 8 or len(values) % 2:
        return False
    corners, points = boxes.from_cxcywh(values[:4]), values[4:].reshape(-1, 2)
    slack = POINT_SLACK * values[2:4]
    inside = ((points >= corners[:2] - slack) & (points <= corners[2:] + slack)).all(1)
    whole = (corners >= -FRACTION_SLACK).all() and (corners <= 1 + FRACTION_SLACK).all()
    return bool(whole and (inside | (points == 0).all(1)).all())


def _box_parser(*counts: int) -> Parser:
    """A parser that reads the first four values as a box; rows must have one of `counts` values."""
    return lambda values: boxes.from_cxcywh(np.array(values[:4])) if len(values) in counts else None


def _parse_polygon_or_box(values: list[float]) -> Array | None:
    if len(values) in (4, 5):
        return boxes.from_cxcywh(np.array(values[:4]))
    if len(values) < 6 or len(values) % 2:
        return None
    if not all(-FRACTION_SLACK <= value <= 1 + FRACTION_SLACK for value in values):
        return None
    x, y = values[::2], values[1::2]
    return np.array([min(x), min(y), max(x), max(y)])


def _annotate(labels: _Labels, folder: _Folder, parse: Parser) -> tuple[AnnotatedImage, list[str]]:
    objects, notes, unknown = [], [], 0
    file = str(labels.file or "")
    for number, words in labels.rows or [] if labels.size else []:
        found = _parse_row(words, folder, parse, labels.size)
        if isinstance(found, str):
            notes.append(printable(f"{file} row {number}: ") + found)
            unknown += found.startswith(detection.UNKNOWN_CLASS)
        else:
            objects.append(found._replace(row=number))
    fields = {"unknown": unknown, "unread": len(notes) - unknown, "file": file}
    name = printable(labels.image.name)
    return detection.annotated_image(labels.image, objects, name, **fields), notes


def _parse_row(words: list[str], folder: _Folder, parse: Parser, size: Size) -> BoxObject | str:
    """An object in an image of `size`, or a description of the row's problem."""
    try:
        label, *values = map(float, words)
    except ValueError:
        label, values = np.nan, []
    corners = parse(values)
    if corners is None:
        shown = printable(" ".join(words))
        return f"must be class x y width height, got {shown[:80]!r}"
    last = folder.first + len(folder.classes) - 1
    if not label.is_integer() or not folder.first <= label <= last:
        return f"{detection.UNKNOWN_CLASS} {words[0][:20]}, must be {folder.first} to {last}"
    height, width = size
    return BoxObject(corners * [width, height, width, height], int(label) - folder.first)
