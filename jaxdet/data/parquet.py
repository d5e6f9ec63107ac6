"""Parquet files as data hubs keep detection sets: one row a photo, the layout of the Halo set.

Columns `image {bytes, path}`, `image_id`, `objects {bbox [n][4], category [n]}`; boxes are left,
top, width, height in pixels, categories count from 1.  A part is a file `PART*.parquet`, here or
in a folder `data/`.  Names of the classes come from the schema's metadata where it has them
(`datasets` writes it), or from a file `classes.txt`, one a line; else they are numbers.
"""

import json
from pathlib import Path

from jaxdet.data import scenes
from jaxdet.errors import InputError


def files(root):
    """{part: [files]}; {} when there are none."""
    found = {}
    for path in sorted([*Path(root).glob("*.parquet"), *Path(root).glob("data/*.parquet")]):
        found.setdefault(scenes.part(path.stem.split("-")[0]), []).append(path)
    return found


def read(root):
    """The `Scenes` of a folder."""
    tables, notes, parts = {}, [], {}
    for name, paths in files(root).items():
        tables[name] = [(path, _table(path)) for path in paths]
    every = [table for of_part in tables.values() for _, table in of_part]
    classes = _classes(root, every)
    for name, of_part in tables.items():
        parts[name] = []
        for path, table in of_part:
            made, bad = _scenes(path, table, len(classes))
            parts[name] += made
            notes += bad
    return scenes.Scenes(classes, parts, tuple(notes))


def _table(path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("parquet files want pyarrow: pip install 'jaxdet[data]'") from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from None
    missing = {"image", "objects"} - set(table.column_names)
    if missing:
        raise InputError(f"{path}: no column {' and '.join(sorted(missing))}")
    return table


def _classes(root, tables):
    """Names, from the schema or from classes.txt, or as many numbers as there are categories."""
    told = Path(root) / "classes.txt"
    if told.is_file():
        return tuple(line.strip() for line in told.read_text().splitlines() if line.strip())
    for table in tables:
        named = _named((table.schema.metadata or {}).get(b"huggingface"))
        if named:
            return named
    largest = 0
    for table in tables:
        for objects in table["objects"].to_pylist():
            largest = max([largest, *_listed(objects["category"])])
    return tuple(f"class {i + 1}" for i in range(largest))


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


def _scenes(path, table, classes):
    """([Scene], [what is wrong])."""
    made, notes = [], []
    for row, record in enumerate(table.to_pylist(), 1):
        where = f"{path.name} row {row}"
        data = (record["image"] or {}).get("bytes")
        if not data:
            notes.append(f"{where}: no bytes of an image")
            continue
        objects = []
        told = record["objects"] or {"bbox": [], "category": []}
        boxes, categories = told["bbox"] or [], _listed(told["category"])
        if len(categories) == 1 < len(boxes):
            categories = categories * len(boxes)  # one for all
        if len(boxes) != len(categories):
            notes.append(f"{where}: {len(boxes)} boxes, {len(categories)} categories")
            continue
        for box, category in zip(boxes, categories, strict=True):
            if not 1 <= category <= classes or len(box) != 4:
                notes.append(f"{where}: box {box}, category {category}; 1 to {classes} is wanted")
                continue
            x, y, width, height = box
            objects.append(((x, y, x + width, y + height), category - 1, False))
        made.append(scenes.scene(data, objects, where))
    return made, notes


def _listed(category):
    """Categories as a list, also where a photo with one object has a plain number."""
    if category is None:
        return []
    return [category] if isinstance(category, int) else list(category)
