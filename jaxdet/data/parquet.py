"""Detection sets in parquet files: one row per image, as on data hubs.

The columns are `image {bytes, path}`, `image_id` and `objects {bbox [n][4], category [n]}`, or a
list of such objects; boxes are left, top, width and height in pixels.  The files of a split are
`SPLIT*.parquet`, in the folder itself or in `data/`.

Categories count from 1 unless one of them is 0.  Their names are in `classes.txt`, one per line, or
in the metadata that the package `datasets` writes.  The latter count from 0: the first name, if no
object has it, is that of the whole set and is left out.  Without names, classes are numbered.

An image is read when it is needed, together with its row group.  Memory holds `CACHED_GROUPS` row
groups and those in use by threads.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import detection
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset
from jaxdet.errors import InputError
from jaxdet.ops import boxes

CACHED_GROUPS = 2  # threads reading a file in order are in at most two row groups


class _File(NamedTuple):
    """The rows of a file, without their images."""

    path: Path
    objects: list[Any]  # of each row, in any of the layouts
    image_ids: list[Any]
    images: list[Callable[[], bytes]]
    metadata: dict[bytes, bytes]  # of the schema


def parquet_files(root: str | Path) -> dict[str, list[Path]]:
    """{split: files} of a folder; empty where it has none."""
    found = {}
    for path in sorted([*Path(root).glob("*.parquet"), *Path(root).glob("data/*.parquet")]):
        found.setdefault(detection.split_name(path.stem.split("-")[0]), []).append(path)
    return found


def read(root: str | Path) -> DetectionDataset:
    """The data set in a folder; InputError without pyarrow, or where a file cannot be read."""
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
    return DetectionDataset(classes, splits, tuple(notes), class_ids)


def _read_file(path: Path, read_group: Callable) -> _File:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("parquet files need pyarrow: pip install 'jaxdet[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = {"image", "objects"} - set(schema.names)
            if missing:
                raise InputError(f"{path}: no column {' and '.join(sorted(missing))}")
            table = file.read(columns=["objects", *({"image_id"} & set(schema.names))])
            objects = table["objects"].to_pylist()
            has_ids = table.num_columns > 1
            image_ids = table["image_id"].to_pylist() if has_ids else [None] * len(table)
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(_unreadable(path, error)) from None
    images = []
    for number, count in enumerate(counts):
        group = _RowGroup(path, number, read_group)
        images += [partial(group.image, row) for row in range(count)]
    return _File(path, objects, image_ids, images, schema.metadata or {})


class _RowGroup:
    """A row group whose images are read by `read_group(group)`: by one thread, others wait."""

    def __init__(self, path: Path, number: int, read_group: Callable) -> None:
        self.path, self.number, self.read_group, self.lock = path, number, read_group, Lock()

    def image(self, row: int) -> bytes:
        """The bytes of an image; InputError where the row has none."""
        with self.lock:
            value = self.read_group(self)[row]
        value = value.as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            raise InputError("no bytes of an image")
        return content


def _read_group(group: _RowGroup) -> Any:
    """The column of images of a row group; OSError where the file cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(group.path) as file:
            return file.read_row_group(group.number, columns=["image"])["image"]
    except (OSError, pyarrow.ArrowException) as error:
        raise OSError(_unreadable(group.path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: not a readable parquet file ({' '.join(str(error).split())})"


def _read_classes(root: str | Path, files: list[_File]) -> tuple[tuple[str, ...], int]:
    """(class names, number of the first class); the module docstring has the rules."""
    every = [objects for file in files for objects in file.objects]
    used = {n for objects in every for n in _boxes_and_categories(objects)[1] if isinstance(n, int)}
    low, high = min(used, default=1), max(used, default=0)
    path = Path(root) / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    else:
        metadata = (file.metadata.get(b"huggingface") for file in files)
        names = next(filter(None, map(_names_in_metadata, metadata)), ())
        names = names[1:] if low > 0 and high < len(names) else names
    first = 0 if low == 0 and high < (len(names) or high + 1) else 1
    return tuple(names) or tuple(f"class {i}" for i in range(first, high + 1)), first


def _names_in_metadata(metadata: bytes | None) -> tuple[str, ...]:
    """Class names in the metadata of `datasets`, at any depth; empty where there are none."""
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
    """(images, notes) of a file; its categories count from `first`."""
    samples, notes = [], []
    columns = zip(file.images, file.objects, file.image_ids, strict=True)
    for row, (image, value, image_id) in enumerate(columns, 1):
        name = f"{file.path.name} row {row}"
        bboxes, categories = _boxes_and_categories(value)
        if len(categories) == 1 < len(bboxes):
            categories = categories * len(bboxes)  # one category for all boxes
        if len(bboxes) != len(categories):
            notes.append(f"{name}: {len(bboxes)} boxes, {len(categories)} categories")
            continue
        pairs = zip(bboxes, categories, strict=True)
        found = [_parse_object(*pair, class_count, first) for pair in pairs]
        notes += [f"{name}: {fault}" for fault in found if isinstance(fault, str)]
        objects = [one for one in found if not isinstance(one, str)]
        image_id = image_id if isinstance(image_id, int | str) else None
        samples.append(detection.annotated_image(image, objects, name, image_id))
    return samples, notes


def _parse_object(bbox: Any, category: Any, class_count: int, first: int) -> BoxObject | str:
    """The object of a box and a category, or what is wrong with them."""
    if not isinstance(category, int) or not first <= category < first + class_count:
        last = first + class_count - 1
        return f"{detection.UNKNOWN_CLASS} {category}, must be {first} to {last}"
    if not isinstance(bbox, list) or len(bbox) != 4 or None in bbox:
        return f"bbox must be left, top, width, height, got {bbox}"
    return boxes.from_xywh(np.array(bbox, float)), category - first, False


def _boxes_and_categories(objects: Any) -> tuple[list, list]:
    """(boxes, categories) of a row in any of the layouts; one category may be a plain number."""
    if isinstance(objects, list):
        return [one.get("bbox") for one in objects], [one.get("category") for one in objects]
    columns = objects or {}
    bboxes, categories = columns.get("bbox") or [], columns.get("category")
    if categories is None:
        return bboxes, []
    return bboxes, categories if isinstance(categories, list) else [categories]
