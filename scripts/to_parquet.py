#!/usr/bin/env python
"""A detection set of any format as parquet files in the layout of the Halo set (seed 002).

    python scripts/to_parquet.py ROOT OUT

ROOT is a folder, or tfds:NAME, as `jaxdet train detect --root` takes it.  Writes OUT/train.parquet,
OUT/validation.parquet, ... and OUT/classes.txt: a row a photo with `image {bytes, path}`,
`image_id` and `objects {bbox, category}`; boxes are left, top, width, height in pixels, categories
count from 1.  The layout has no place for flags: boxes of crowds and of difficult objects become
boxes as all others, and are counted in what is printed.  Rows that cannot be used are named and
left out.  Needs pyarrow.
"""

import sys
from pathlib import Path

from jaxdet.data import formats, images
from jaxdet.errors import InputError

TITLES = {"val": "validation"}
GROUP = 64  # photos in a row group: what is in memory, here and where photos are streamed


def write(root, out):
    """Write the files; returns ({part: number of photos}, [what is left out], boxes with flags)."""
    found = formats.read(root)
    out.mkdir(parents=True, exist_ok=True)
    counts, notes, flags = {}, [*found.notes], 0
    for part, photos in found.parts.items():
        counts[part], bad = _file(out / f"{TITLES.get(part, part)}.parquet", photos)
        notes += bad
        flags += sum(int(one.crowd.sum()) for one in photos)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in found.classes))
    return counts, notes, flags


def row(number, one):
    """One photo as a record of the table; InputError where there are no bytes of it."""
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in one.boxes.tolist()]
    return {
        "image": {"bytes": images.file_bytes(one.image), "path": one.where},
        "image_id": number,
        "objects": {"bbox": boxes, "category": [label + 1 for label in one.labels.tolist()]},
    }


def _file(path, photos):
    """Write a file of photos, whole or not at all; returns (their number, [what is left out])."""
    from pyarrow import Table, parquet

    count, notes, half = 0, [], path.with_name(f"{path.name}.part")
    with parquet.ParquetWriter(half, _schema()) as file:
        for start in range(0, len(photos), GROUP):
            rows = []
            for number, one in enumerate(photos[start : start + GROUP], start):
                try:
                    rows.append(row(number, one))
                except InputError as error:
                    notes.append(f"{one.where}: {error}")
            file.write_table(Table.from_pylist(rows, schema=_schema()))
            count += len(rows)
    half.replace(path)
    return count, notes


def _schema():
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    boxes, numbers = pa.list_(pa.list_(pa.float64())), pa.list_(pa.int64())
    objects = pa.struct({"bbox": boxes, "category": numbers})
    return pa.schema({"image": image, "image_id": pa.int64(), "objects": objects})


def main(words):
    """Run with two words; returns the exit code."""
    if len(words) != 2:
        print("usage: python scripts/to_parquet.py ROOT OUT", file=sys.stderr)
        return 2
    try:
        counts, notes, flags = write(words[0], Path(words[1]))
    except (InputError, OSError) as error:
        print(f"to_parquet: error: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    print(counts)
    if flags:
        print(f"boxes of crowds or difficult objects, now as all others: {flags}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
