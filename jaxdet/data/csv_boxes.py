"""CSV: one row per object, `file,x0,y0,x1,y1,label`, with corners in pixels.

The tables are `train.csv`, `val.csv` and `test.csv` in the folder, or a single file of another
name, which is for training.  The first row may name the columns; they are then in any order, and
other columns are ignored.  An image without objects has a row with its file alone.

Corners are half-open: the box 0 0 1 1 is the first pixel.  Paths of files are relative to the
folder of the table, or to `images/` in it.  Classes are sorted by name.
"""

import csv
import io
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, DetectionDataset, Remark
from jaxdet.errors import InputError, printable
from jaxdet.types import Array

COLUMNS = ("file", "x0", "y0", "x1", "y1", "label")
CORNERS = slice(1, 5)  # of `COLUMNS`
FOLDERS = ("", "images")  # folders beside a table that may hold the images
START = 2**16  # number of bytes that are searched for the first row


class _Object(NamedTuple):
    row: int  # line of the table, from 1
    box: Array  # [4]
    name: str  # of the class


class _Image(NamedTuple):
    file: Path
    objects: list[_Object]
    unread: int  # number of rows left out


def annotation_files(root: str | Path) -> dict[str, Path]:
    """The table of each split in a folder, as {split: path}; {} if it has none."""
    paths = [path for path in sorted(Path(root).glob("*.csv")) if not images.is_hidden(path.name)]
    found = {detection.split_name(path.stem): path for path in paths if _order(_first_row(path))}
    named = {name: path for name, path in found.items() if name in detection.SPLITS}
    return {"train": next(iter(found.values()))} if len(found) == 1 and not named else named


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder; rows that are invalid are left out with a note.

    Raises InputError for a table that cannot be read.
    """
    paths = annotation_files(root)
    tables = {split: _read_table(path) for split, path in paths.items()}
    every = [image for own, _ in tables.values() for image in own]
    classes = sorted({one.name for image in every for one in image.objects})
    labels = {name: label for label, name in enumerate(classes)}
    splits, notes = {}, []
    for split, path in paths.items():
        own, faults = tables[split]
        splits[split] = [_annotate(path, image, labels) for image in own]
        notes += faults
    if count := detection.count_unused(root, splits):
        notes.append(Remark(f"{root}: {count} images are in no CSV file and are not used"))
    return detection.assemble(classes, splits, notes)


def _first_row(path: Path) -> list[str]:
    """The first row of a table; [] if it cannot be read."""
    try:
        regular_files.check_regular(path)
        with path.open("rb") as file:
            start = file.read(START)
        encoding = "utf-16" if start.startswith(regular_files.UTF_16) else "utf-8-sig"
        lines = start.decode(encoding, errors="replace").splitlines()
        return next(csv.reader(line for line in lines if line.strip()), [])
    except (InputError, OSError, csv.Error):
        return []


def _order(first: list[str]) -> list[int] | None:
    """Positions of `COLUMNS` in a table with this first row; None for another kind of table."""
    names = [name.strip().lower() for name in first]
    if _is_heading(first):
        return [names.index(name) for name in COLUMNS]
    whole = len(first) == len(COLUMNS) and first[0].strip()
    corners = [text.strip() for text in first[CORNERS]]
    if whole and (not any(corners) or all(map(_is_number, corners))):
        return [*range(len(COLUMNS))]
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_table(path: Path) -> tuple[list[_Image], list[str]]:
    text = regular_files.read_text(path)
    with regular_files.reading(path, "CSV"):
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    order = _order(rows[0][1]) if rows else None
    if order is None:  # the file has changed since it was recognized
        raise InputError(f"{path}: must have the columns {','.join(COLUMNS)}")
    folders = [path.parent / folder for folder in FOLDERS]
    locate = lru_cache(None)(partial(detection.locate, folders))
    found: dict[Path, _Image] = {}
    notes = []
    for row, given in rows[_is_heading(rows[0][1]) :]:
        name, *rest = (given[i].strip() if i < len(given) else "" for i in order)
        if not name:
            notes.append(f"{path} row {row}: file must be the path of an image, got none")
            continue
        file, parsed = locate(name), _parse_object(row, rest)
        image = found.setdefault(file, _Image(file, [], 0))
        if isinstance(parsed, str):
            notes.append(f"{path} row {row}: {parsed}")
            found[file] = image._replace(unread=image.unread + 1)
        elif parsed:
            image.objects.append(parsed)
    return [*found.values()], notes


def _is_heading(row: list[str]) -> bool:
    return {*COLUMNS} <= {name.strip().lower() for name in row}


def _parse_object(row: int, cells: list[str]) -> _Object | str | None:
    """The object of a row, None without one, or a description of the row's problem."""
    *corners, name = cells
    if not any(cells):
        return None
    if not all(map(_is_number, corners)):
        return f"x0, y0, x1, y1 must be numbers, got {printable(' '.join(corners))[:60]!r}"
    if not name:
        return "label must be the name of a class, got none"
    return _Object(row, np.array(corners, float), name)


def _annotate(path: Path, image: _Image, labels: dict[str, int]) -> AnnotatedImage:
    objects = [(one.box, labels[one.name], False, None, one.row) for one in image.objects]
    name, fields = printable(image.file.name), {"unread": image.unread, "file": str(path)}
    return detection.annotated_image(image.file, objects, name, **fields)
