"""Parquet files as data hubs keep detection sets: one row a photo, the layout of the Halo set.

Columns `image {bytes, path}`, `image_id`, `objects {bbox [n][4], category [n]}`, or a list of such
objects; boxes are left, top, width, height in pixels.  A part is a file `PART*.parquet`, here or in
a folder `data/`.

Categories count from 1, as those of the Halo set, unless one of them is 0.  Their names are in a
file `classes.txt`, one a line, or in the schema's metadata, which `datasets` writes and counts from
0: the first of these, where nothing is of it, is the name of the whole set and is left out.  Where
there are none, classes are numbers.

Photos are read when they are needed, with those of their row group, of which memory holds `HELD`
and those that threads are at.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from jaxdet.data import detection
from jaxdet.errors import InputError

CACHED_GROUPS = (
    2  # threads that go through a file in order are at the end of one group and in the next
)


class _Table(NamedTuple):
    """A file, but for its photos."""

    path: Path
    objects: list  # of each row, however they are kept
    numbers: list  # image_id of each row
    photos: list[Callable]  # of each row: what reads it
    metadata: dict  # of the schema


def parquet_files(root):
    """{part: [files]}; {} when there are none."""
    found = {}
    for path in sorted([*Path(root).glob("*.parquet"), *Path(root).glob("data/*.parquet")]):
        found.setdefault(detection.split_name(path.stem.split("-")[0]), []).append(path)
    return found


def read(root):
    """The `Scenes` of a folder."""
    column = lru_cache(CACHED_GROUPS)(_read_group)
    tables, notes, parts = {}, [], {}
    for name, paths in parquet_files(root).items():
        tables[name] = [_table(path, column) for path in paths]
    classes, first = _classes(root, [table for of_part in tables.values() for table in of_part])
    for name, of_part in tables.items():
        parts[name] = []
        for table in of_part:
            made, bad = _scenes(table, len(classes), first)
            parts[name] += made
            notes += bad
    numbers = tuple(range(first, first + len(classes)))
    return detection.DetectionDataset(classes, parts, tuple(notes), numbers)


def _table(path, column):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("parquet files want pyarrow: pip install 'jaxdet[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = {"image", "objects"} - set(schema.names)
            if missing:
                raise InputError(f"{path}: no column {' and '.join(sorted(missing))}")
            table = file.read(columns=["objects", *({"image_id"} & set(schema.names))])
            objects = table["objects"].to_pylist()
            numbers = (
                table["image_id"].to_pylist() if table.num_columns > 1 else [None] * len(table)
            )
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(_unreadable(path, error)) from None
    groups = [_Group(path, number, column) for number in range(len(rows))]
    photos = [
        partial(group.photo, row)
        for group, count in zip(groups, rows, strict=True)
        for row in range(count)
    ]
    return _Table(path, objects, numbers, photos, schema.metadata or {})


class _Group:
    """A row group, whose photos are read by `column(group)`: by one thread, the others wait."""

    def __init__(self, path, number, column):
        self.path, self.number, self.column, self.lock = path, number, column, Lock()

    def photo(self, row):
        """The bytes of one; InputError where there are none."""
        with self.lock:
            image = self.column(self)[row]
        image = image.as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes) or not data:
            raise InputError("no bytes of an image")
        return data


def _read_group(group):
    """The photos of a row group; OSError where the file, not a photo, cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(group.path) as file:
            return file.read_row_group(group.number, columns=["image"])["image"]
    except (OSError, pyarrow.ArrowException) as error:
        raise OSError(_unreadable(group.path, error)) from None


def _unreadable(path, error):
    return f"{path}: not a readable parquet file ({' '.join(str(error).split())})"


def _classes(root, tables):
    """(names, number of the first): see above."""
    told = [objects for table in tables for objects in table.objects]
    used = {number for one in told for number in _told(one)[1] if isinstance(number, int)}
    low, high = min(used, default=1), max(used, default=0)
    written = Path(root) / "classes.txt"
    if written.is_file():
        names = [line.strip() for line in written.read_text().splitlines() if line.strip()]
    else:
        metadata = (table.metadata.get(b"huggingface") for table in tables)
        names = next(filter(None, map(_named, metadata)), ())
        names = names[1:] if low > 0 and high < len(names) else names
    first = 0 if low == 0 and high < (len(names) or high + 1) else 1
    return tuple(names) or tuple(f"class {i}" for i in range(first, high + 1)), first


def _named(metadata):
    """Class names in the metadata of `datasets`, whatever the nesting; () when there are none."""
    try:
        objects = json.loads(metadata)["info"]["features"]["objects"]
    except (TypeError, KeyError, ValueError):
        return ()
    todo = [objects]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if node.get("_type") == "ClassLabel" and node.get("names"):
                return tuple(node["names"])
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return ()


def _scenes(table, classes, first):
    """([Scene], [what is wrong])."""
    made, notes = [], []
    columns = zip(table.photos, table.objects, table.numbers, strict=True)
    for row, (photo, told, number) in enumerate(columns, 1):
        where = f"{table.path.name} row {row}"
        boxes, categories = _told(told)
        if len(categories) == 1 < len(boxes):
            categories = categories * len(boxes)  # one for all
        if len(boxes) != len(categories):
            notes.append(f"{where}: {len(boxes)} boxes, {len(categories)} categories")
            continue
        found = [_object(*pair, classes, first) for pair in zip(boxes, categories, strict=True)]
        notes += [f"{where}: {one}" for one in found if isinstance(one, str)]
        objects = [one for one in found if not isinstance(one, str)]
        made.append(detection.annotated_image(photo, objects, where, _number(number)))
    return made, notes


def _number(told):
    """An id that a photo can be told by, or None."""
    return told if isinstance(told, int | str) else None


def _object(box, category, classes, first):
    """(box, label, False), or what is wrong."""
    if not isinstance(category, int) or not first <= category < first + classes:
        return f"{detection.UNKNOWN_CLASS} {category}; {first} to {first + classes - 1} are known"
    if not isinstance(box, list) or len(box) != 4 or None in box:
        return f"bbox {box}; left, top, width, height are wanted"
    x, y, width, height = box
    return (x, y, x + width, y + height), category - first, False


def _told(objects):
    """(boxes, categories) of a row, however its objects are kept; a plain category is one."""
    if isinstance(objects, list):
        return [one.get("bbox") for one in objects], [one.get("category") for one in objects]
    told = objects or {}
    boxes, categories = told.get("bbox") or [], told.get("category")
    if categories is None:
        return boxes, []
    return boxes, categories if isinstance(categories, list) else [categories]
