"""Detection data sets in parquet files with one row per image, as the Hugging Face hub has them.

The columns are `image {bytes, path}` and `objects {bbox [n][4], category [n]}`, or for `objects` a
list of n structs; boxes are left, top, width and height in pixels.  The columns `image_id`, `width`
and `height`, and the fields `area` and `iscrowd` of objects, are optional.  The files of a split
are `SPLIT*.parquet`, in the folder itself or in `data/`.

Categories are numbered from 0 if one of them is 0, else from 1.  Their names are in `classes.txt`,
one per line, or in the metadata that the package `datasets` writes.  If the metadata have more
names than the highest category, but no object has category 0, the first name belongs to the whole
set and is left out.  Without names, classes are called `class 1`, `class 2` and so on.

An image is read when it is needed, together with its row group.  The last `CACHED_GROUPS` row
groups are kept in memory, besides the row groups that threads are using.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from jaxdet import packages, tables
from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset
from jaxdet.errors import InputError, printable
from jaxdet.ops import boxes

OPTIONAL_COLUMNS = ("image_id", "width", "height")
OBJECT_FIELDS = ("bbox", "category", "area", "iscrowd")
CLASS_LIST = "classes.txt"
MAX_CLASSES = 100_000
CACHED_GROUPS = 2  # threads that read a file in order need at most two row groups at a time


class _File(NamedTuple):
    """The rows of a file; their images are read later."""

    path: Path
    columns: dict[str, list[Any]]  # the column objects, as in the file, and `OPTIONAL_COLUMNS`
    images: list[Callable[[], bytes]]  # one function per row, which reads the image
    metadata: dict[bytes, bytes]  # metadata of the schema


def parquet_files(root: str | Path) -> dict[str, list[Path]]:
    """The parquet files of each split in a folder, as {split: paths}; {} if it has none."""
    found = {}
    every = sorted([*Path(root).glob("*.parquet"), *Path(root).glob("data/*.parquet")])
    for path in (path for path in every if not images.is_hidden(path.name)):
        found.setdefault(detection.split_name(path.stem.split("-")[0]), []).append(path)
    return found


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder.

    Raises InputError if pyarrow is not installed, or if a file cannot be read.
    """
    read_group = lru_cache(CACHED_GROUPS)(_read_group)
    files = {
        split: [_read_file(path, read_group) for path in paths]
        for split, paths in parquet_files(root).items()
    }
    classes, first = _read_classes(root, [file for of_split in files.values() for file in of_split])
    splits, notes = {}, []
    for split, of_split in files.items():
        splits[split] = []
        for file in of_split:
            samples, faults = _annotate(file, len(classes), first)
            splits[split] += samples
            notes += faults
    class_ids = tuple(range(first, first + len(classes)))
    return detection.assemble(classes, splits, notes, class_ids)


def _read_file(path: Path, read_group: Callable) -> _File:
    pyarrow, parquet = _load_pyarrow()
    regular_files.check_regular(path)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = {"image", "objects"} - set(schema.names)
            if missing:
                lacking = " and ".join(sorted(missing))
                raise InputError(f"{path}: must have columns image and objects, lacks {lacking}")
            table = file.read(columns=["objects", *({*OPTIONAL_COLUMNS} & set(schema.names))])
            columns = {name: table[name].to_pylist() for name in table.column_names}
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(_unreadable(path, error)) from None
    readers = []
    for number, count in enumerate(counts):
        group = _RowGroup(path, number, read_group)
        readers += [partial(group.image, row) for row in range(count)]
    columns |= {name: [None] * len(readers) for name in OPTIONAL_COLUMNS if name not in columns}
    return _File(path, columns, readers, schema.metadata or {})


class _RowGroup:
    """A row group; while a thread reads it, other threads that need its images wait."""

    def __init__(self, path: Path, number: int, read_group: Callable) -> None:
        self.path, self.number, self.read_group, self.lock = path, number, read_group, Lock()

    def image(self, row: int) -> bytes:
        """Read the bytes of the image in a row of this group; InputError if it has none."""
        with self.lock:
            value = self.read_group(self)[row]
        value = value.as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            raise InputError("image must be the bytes of an image file, got none")
        return content


def _read_group(group: _RowGroup) -> Any:
    """Read the column `image` of a row group; OSError if the file cannot be read."""
    pyarrow, parquet = _load_pyarrow()
    try:
        with parquet.ParquetFile(group.path) as file:
            return file.read_row_group(group.number, columns=["image"])["image"]
    except (OSError, pyarrow.ArrowException) as error:
        raise OSError(_unreadable(group.path, error)) from None


def _load_pyarrow() -> tuple[Any, Any]:
    pyarrow = packages.load("pyarrow", "parquet files")
    return pyarrow, packages.load("pyarrow.parquet", "parquet files")


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: not a readable parquet file ({' '.join(str(error).split())})"


def _read_classes(root: str | Path, files: list[_File]) -> tuple[tuple[str, ...], int]:
    """Return (class names, number of the first class), by the rules in the module docstring."""
    every = [objects for file in files for objects in file.columns["objects"]]
    fields = [_object_fields(objects) for objects in every]
    used = {n for of_row in fields for n in of_row["category"] if _is_integer(n) and n >= 0}
    low, high = min(used, default=1), max(used, default=0)
    path = Path(root) / CLASS_LIST
    if path.is_file():
        names = [name for _, name in regular_files.read_lines(path)]
    else:
        metadata = (file.metadata.get(b"huggingface") for file in files)
        names = next(filter(None, map(_names_in_metadata, metadata)), ())
        names = names[1:] if low > 0 and high < len(names) else names
    if not names and high > MAX_CLASSES:
        raise InputError(
            f"{root}: without class names, categories must be at most {MAX_CLASSES}, got {high}; "
            f"list the names in {CLASS_LIST}"
        )
    first = 0 if low == 0 and high < (len(names) or high + 1) else 1
    return tuple(names) or tuple(f"class {i}" for i in range(first, high + 1)), first


def _names_in_metadata(metadata: bytes | None) -> tuple[str, ...]:
    """Find class names anywhere in the metadata that `datasets` writes; () if there are none."""
    try:
        objects = json.loads(metadata or "")["info"]["features"]["objects"]
    except (TypeError, KeyError, ValueError):
        return ()
    nodes = [objects]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if node.get("_type") == "ClassLabel" and node.get("names"):
                return tuple(node["names"])
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return ()


def _annotate(file: _File, class_count: int, first: int) -> tuple[list[AnnotatedImage], list[str]]:
    """Convert a file to (images, notes); categories are numbered from `first`."""
    samples, notes = [], []
    columns = zip(*(file.columns[n] for n in ("objects", *OPTIONAL_COLUMNS)), strict=True)
    for row, (image, values) in enumerate(zip(file.images, columns, strict=True), 1):
        name = f"{file.path.name} row {row}"
        objects, image_id, width, height = values
        given = objects.get("bbox", []) if isinstance(objects, dict) else objects
        if not isinstance(given, list | None):
            shown = printable(str(objects))[:60]
            notes.append(f"{name}: objects must have the lists bbox and category, got {shown}")
            continue
        fields = _object_fields(objects)
        bboxes, categories = fields["bbox"], fields["category"]
        if len(bboxes) != len(categories):
            shown = f"{len(bboxes)} boxes and {len(categories)} categories"
            notes.append(f"{name}: must have one category per box, got {shown}")
            continue
        found = [
            _parse_object(dict(zip(fields, one, strict=True)), class_count, first, number)
            for number, one in enumerate(zip(*fields.values(), strict=True), 1)
        ]
        faults = [fault for fault in found if isinstance(fault, str)]
        unknown = sum(fault.startswith(detection.UNKNOWN_CLASS) for fault in faults)
        notes += [f"{name}: {fault}" for fault in faults]
        samples.append(
            detection.annotated_image(
                image,
                [one for one in found if not isinstance(one, str)],
                name,
                image_id if isinstance(image_id, int | str) else None,
                size=detection.declared_size(height, width),
                file=str(file.path),
                unknown=unknown,
                unread=len(faults) - unknown,
            )
        )
    return samples, notes


def _parse_object(
    fields: dict[str, Any], class_count: int, first: int, number: int
) -> BoxObject | str:
    """An object made of the fields of one box, or a description of the problem."""
    category, bbox, area = fields["category"], fields["bbox"], fields["area"]
    if not _is_integer(category) or not first <= category < first + class_count:
        last = first + class_count - 1
        return f"{detection.UNKNOWN_CLASS} {printable(str(category))}, must be {first} to {last}"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(tables.is_number, bbox)):
        return f"bbox must be numbers left, top, width, height, got {printable(str(bbox))}"
    crowd = fields["iscrowd"] in (1, True)
    area = area if tables.is_number(area) and area >= 0 else None
    return BoxObject(boxes.from_xywh(np.array(bbox, float)), category - first, crowd, area, number)


def _object_fields(objects: Any) -> dict[str, list[Any]]:
    """{field: list of n values or None} from a row's objects, in either layout."""
    if isinstance(objects, list):
        rows = [one if isinstance(one, dict) else {} for one in objects]
        return {name: [one.get(name) for one in rows] for name in OBJECT_FIELDS}
    given: dict[str, Any] = objects if isinstance(objects, dict) else {}
    columns = {name: given.get(name) for name in OBJECT_FIELDS}
    bboxes = columns["bbox"] if isinstance(columns["bbox"], list) else []
    found = {"bbox": bboxes}
    for name in OBJECT_FIELDS[1:]:
        value: Any = columns[name]
        column: list[Any] = value if isinstance(value, list) else [value]
        if name == "category" and columns[name] is None:
            column = []
        elif len(column) == 1 < len(bboxes):
            column = column * len(bboxes)
        elif name != "category" and len(column) != len(bboxes):
            column = [None] * len(bboxes)
        found[name] = column
    return found


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
