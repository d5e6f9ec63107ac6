"""Detection data sets of any format; the reader is chosen by name or by the files in the folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxdet.data import (
    coco,
    csv_boxes,
    cvat,
    detection,
    labelme,
    parquet,
    regular_files,
    voc,
    yolo,
)
from jaxdet.data import tfds as tfds_data
from jaxdet.data.detection import DetectionDataset
from jaxdet.errors import InputError

READERS = {
    "yolo": yolo,
    "coco": coco,
    "parquet": parquet,
    "cvat": cvat,
    "labelme": labelme,
    "voc": voc,
    "csv": csv_boxes,
}
EXPECTED = (
    "data.yaml (YOLO), annotations/*.json or SPLIT/_annotations.coco.json (COCO), "
    "Annotations/*.xml (VOC), *.parquet, one JSON file per image (LabelMe), annotations.xml (CVAT) "
    "or SPLIT.csv"
)


def read(
    root: str | Path,
    format: str = "auto",
    unknown_classes: str = "drop",
    *,
    classes: Sequence[str] = (),
    argument: str = "--root",
    cache: Path | None = None,
) -> DetectionDataset:
    """Read the data set in a folder, or `tfds:NAME`, a prepared set of tensorflow-datasets.

    `format` is a key of `READERS`, or "auto", which tries all of them.  `classes` is passed on to
    `detection.select_classes`, and `unknown_classes` to `detection.without_unknown`.

    Raises InputError if `root` is not a folder, or if it holds no data of that format; the message
    calls the folder `argument`.

    cache: folder of an `array_cache`, which COCO's reader uses; None for no cache.
    """
    if str(root).startswith(tfds_data.PREFIX):
        dataset = tfds_data.read_detection(str(root).removeprefix(tfds_data.PREFIX))
    else:
        if not root or not Path(root).is_dir():
            raise InputError(f"{argument} must be a folder of data, got {root or 'none'}")
        with regular_files.reading(root, "" if format == "auto" else f"{format} data"):
            dataset = _read_folder(Path(root), format, argument, cache)
    dataset = detection.select_classes(dataset, classes)
    return detection.without_unknown(dataset, unknown_classes)


def _read_folder(root: Path, format: str, argument: str, cache: Path | None) -> DetectionDataset:
    present: dict[str, Callable[[Path], Any]] = {  # in the order in which "auto" tries the formats
        "yolo": yolo.find_yaml,
        "coco": coco.annotation_files,
        "parquet": parquet.parquet_files,
        "cvat": cvat.annotation_files,
        "labelme": labelme.annotation_files,
        "voc": voc.find_root,
        "csv": csv_boxes.annotation_files,
    }
    if format == "auto":
        names = (name for name, find in present.items() if find(root))
        found = next(names, "yolo" if yolo.find_class_list(root) else "")
    else:
        found = format if present[format](root) or _is_labelimg(root, format) else ""
    if not found:
        kind = "data of a known format" if format == "auto" else f"{format} data"
        raise InputError(f"{argument} {root}: no {kind}; expected {EXPECTED}")
    return coco.read(root, cache) if found == "coco" else READERS[found].read(root)


def _is_labelimg(root: Path, format: str) -> bool:
    """Whether the folder has YOLO data with a list of classes in place of a YAML file."""
    return format == "yolo" and yolo.find_class_list(root) is not None
