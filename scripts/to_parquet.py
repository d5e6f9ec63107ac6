#!/usr/bin/env python
"""Convert a detection data set to parquet files as `jaxdet.data.parquet` reads them.

    python scripts/to_parquet.py ROOT OUT

ROOT is a folder or tfds:NAME, as for `jaxdet train detect --root`.  The script writes
OUT/train.parquet, OUT/validation.parquet and so on, and OUT/classes.txt.  The files have one row
per image, with the columns `image {bytes, path}`, `image_id`, `width` and `height` (empty if the
annotations lack them), and `objects {bbox, category, area, iscrowd}`.  Boxes are left, top, width
and height in pixels; categories are numbered from 1; difficult objects are marked as crowds.  Rows
that cannot be used are left out with a message.  Needs pyarrow.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdet.data import formats, images
from jaxdet.data.detection import AnnotatedImage, Remark
from jaxdet.errors import InputError
from jaxdet.ops import boxes

FILE_NAMES = {"val": "validation"}
GROUP_SIZE = 64  # images per row group: a reader holds a whole row group in memory


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of the command line; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python scripts/to_parquet.py ROOT OUT", file=sys.stderr)
        return 2
    try:
        counts, notes = convert(arguments[0], Path(arguments[1]))
    except (InputError, OSError) as error:
        print(f"to_parquet: error: {error}", file=sys.stderr)
        return 2
    for note in notes:
        kind = "remark" if isinstance(note, Remark) else "left out"
        print(f"{kind}: {note}", file=sys.stderr)
    print(counts)
    return 0


def convert(root: str, out: Path) -> tuple[dict[str, int], list[str]]:
    """Write the files; returns (number of images of each split, notes on the data)."""
    dataset = formats.read(root)
    out.mkdir(parents=True, exist_ok=True)
    counts, notes = {}, [*dataset.notes]
    for split, samples in dataset.splits.items():
        path = out / f"{FILE_NAMES.get(split, split)}.parquet"
        counts[split], faults = _write_file(path, samples)
        notes += faults
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in dataset.classes))
    return counts, notes


def _write_file(path: Path, samples: list[AnnotatedImage]) -> tuple[int, list[str]]:
    """Write the file of a split, completely or not at all; returns (number of images, notes)."""
    from pyarrow import Table, parquet

    count, notes, draft = 0, [], path.with_name(f"{path.name}.part")
    with parquet.ParquetWriter(draft, _schema()) as file:
        for start in range(0, len(samples), GROUP_SIZE):
            rows = []
            for image_id, sample in enumerate(samples[start : start + GROUP_SIZE], start):
                try:
                    rows.append(_to_row(image_id, sample))
                except InputError as error:
                    notes.append(f"{sample.name}: {error}")
            file.write_table(Table.from_pylist(rows, schema=_schema()))
            count += len(rows)
    draft.replace(path)
    return count, notes


def _to_row(image_id: int, sample: AnnotatedImage) -> dict[str, Any]:
    """A row of the table; raises InputError if the image file cannot be read."""
    height, width = sample.size or (None, None)
    return {
        "image": {"bytes": images.file_bytes(sample.image), "path": sample.name},
        "image_id": image_id,
        "width": width,
        "height": height,
        "objects": {
            "bbox": boxes.to_xywh(sample.boxes.astype(float)).tolist(),
            "category": [label + 1 for label in sample.labels.tolist()],
            "area": sample.area.tolist(),
            "iscrowd": sample.crowd.tolist(),
        },
    }


def _schema() -> Any:
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    bbox, category = pa.list_(pa.list_(pa.float64())), pa.list_(pa.int64())
    flags = {"area": pa.list_(pa.float64()), "iscrowd": pa.list_(pa.bool_())}
    objects = pa.struct({"bbox": bbox, "category": category} | flags)
    ids = dict.fromkeys(("image_id", "width", "height"), pa.int64())
    return pa.schema({"image": image} | ids | {"objects": objects})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
