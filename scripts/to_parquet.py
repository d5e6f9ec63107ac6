#!/usr/bin/env python
"""A detection set of any format as parquet files in the layout of the Halo set (seed 002).

    python scripts/to_parquet.py ROOT OUT

Writes OUT/train.parquet, OUT/validation.parquet, ... and OUT/classes.txt: a row a photo with
`image {bytes, path}`, `image_id` and `objects {bbox, category}`; boxes are left, top, width, height
in pixels, categories count from 1.  Needs pyarrow.
"""

import sys
from pathlib import Path

from jaxdet.data import formats
from jaxdet.errors import InputError

TITLES = {"val": "validation"}


def write(root, out):
    """Write the files; returns {part: number of photos}."""
    import pyarrow
    from pyarrow import parquet

    found = formats.read(root)
    out.mkdir(parents=True, exist_ok=True)
    for part, photos in found.parts.items():
        rows = [row(number, one) for number, one in enumerate(photos)]
        path = out / f"{TITLES.get(part, part)}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in found.classes))
    return {part: len(photos) for part, photos in found.parts.items()}


def row(number, one):
    """One photo as a record of the table."""
    packed = one.image if isinstance(one.image, bytes) else one.image.read_bytes()
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in one.boxes.tolist()]
    return {
        "image": {"bytes": packed, "path": one.where},
        "image_id": number,
        "objects": {"bbox": boxes, "category": [label + 1 for label in one.labels.tolist()]},
    }


def main(words):
    """Run with two words; returns the exit code."""
    if len(words) != 2:
        print("usage: python scripts/to_parquet.py ROOT OUT", file=sys.stderr)
        return 2
    try:
        print(write(Path(words[0]), Path(words[1])))
    except (InputError, OSError) as error:
        print(f"to_parquet: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
