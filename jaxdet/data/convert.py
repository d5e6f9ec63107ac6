"""Writing detection data sets as COCO, Pascal VOC, YOLO or parquet, in the layouts of the readers.

    plan = convert.plan(formats.read("scenes"), "yolo")
    convert.write(plan, Path("scenes-yolo"))

Splits, coordinates and the order of the classes are kept: reading the result gives the same data.
Marks that a format cannot express are lost, and a remark counts them.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from jaxdet import files, packages
from jaxdet.data import detection, images, parquet, threads, voc
from jaxdet.data.coco import INSTANCES_PREFIX
from jaxdet.data.detection import AnnotatedImage, DetectionDataset, Remark
from jaxdet.data.images import Size
from jaxdet.errors import InputError
from jaxdet.ops import boxes
from jaxdet.types import Array

WITHOUT_MARKS = ("yolo",)  # formats that cannot mark objects as crowd or difficult
WITHOUT_IDS = ("yolo", "voc")  # formats without category ids and areas of objects
FIXED_SPLITS = ("yolo", "voc")  # formats whose splits have given names
PARQUET_NAMES = {"val": "validation"}
GROUP_SIZE = 64  # images per row group: a reader holds a whole row group in memory
AREA_TOLERANCE = 1e-4  # relative; areas are float32
SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2"}  # otherwise the name of the format
UNSAFE = r'\/:*?"<>|'  # characters that some systems do not allow in names of files


class PlacedImage(NamedTuple):
    """An image of the new data set."""

    sample: AnnotatedImage  # its usable boxes, in pixels of the image file
    stem: str  # of the new file; unique in the data set
    suffix: str
    size: Size


class Plan(NamedTuple):
    """A data set that can be written."""

    to: str  # a key of `WRITERS`
    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    splits: dict[str, list[PlacedImage]]
    notes: tuple[str, ...]  # on images and boxes left out, and on marks that are lost


def plan(dataset: DetectionDataset, to: str) -> Plan:
    """Check that a data set can be written in the format `to`, and choose the names of its files.

    to: a key of `WRITERS`.

    Images and boxes that cannot be used are left out with a note.  Raises InputError for splits
    and names of classes that the format cannot hold.
    """
    for name in dataset.classes:
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise InputError(
                f"class names must be printable, without spaces at either end, got {name!r}"
            )
    if to in FIXED_SPLITS and (others := [*dataset.splits.keys() - {*detection.SPLITS}]):
        raise InputError(f"--to {to}: splits must be train, val or test, got {others[0]}")
    taken: set[str] = set()
    splits, notes, renamed = {}, [*dataset.notes], 0
    for split, samples in dataset.splits.items():
        splits[split] = []
        for sample, (found, faults) in zip(
            samples, threads.map_images(_prepare, samples), strict=True
        ):
            notes += faults
            if found is not None:
                stem = _unique(found.stem, taken)
                renamed += isinstance(sample.image, Path) and stem != sample.image.stem
                splits[split].append(found._replace(stem=stem))
    if renamed and to != "parquet":
        notes.append(Remark(f"{renamed} image files are renamed, because names must be unique"))
    notes += _lost(to, dataset.class_ids, [one.sample for own in splits.values() for one in own])
    return Plan(to, dataset.classes, _class_ids(dataset), splits, tuple(notes))


def write(plan: Plan, out: Path, *, link: bool = False) -> None:
    """Write a data set into a folder, completely or not at all.

    out: a folder that is absent or empty; otherwise InputError is raised.
    link: whether image files are symbolic links to the originals rather than copies; images that
      are not files of their own, such as those inside a parquet file, are copied.
    """
    if link and plan.to == "parquet":
        raise InputError("--images link needs a format with image files, got --to parquet")
    with files.new_folder(out) as draft:
        WRITERS[plan.to](plan, draft, link)


def _prepare(sample: AnnotatedImage) -> tuple[PlacedImage | None, list[str]]:
    try:
        size = images.read_size(sample.image)
        stem, suffix = _name(sample)
    except InputError as error:
        return None, [f"{sample.name}: {error}"]
    found, notes = detection.usable_boxes(sample, size)
    return None if found is None else PlacedImage(found, stem, suffix, size), notes


def _name(sample: AnnotatedImage) -> tuple[str, str]:
    """Stem and suffix of the new file of an image, which must be readable."""
    path = sample.image if isinstance(sample.image, Path) else None
    if path and path.suffix.lower() in images.SUFFIXES:
        return path.stem, path.suffix
    content = io.BytesIO(images.file_bytes(sample.image))
    with Image.open(content, formats=images.FORMATS) as image:
        kind = str(image.format)
    return path.stem if path else sample.name, SUFFIXES.get(kind, f".{kind.lower()}")


def _unique(stem: str, taken: set[str]) -> str:
    """A stem that every file system allows, unique in `taken` regardless of case; adds it there."""
    safe = (c if c.isprintable() and c not in UNSAFE else "_" for c in stem)
    stem = "".join(safe).strip(" .") or "image"
    names = chain([stem], (f"{stem}_{number}" for number in count(2)))
    found = next(name for name in names if name.casefold() not in taken)
    taken.add(found.casefold())
    return found


def _class_ids(dataset: DetectionDataset) -> tuple[int, ...]:
    """The category ids of a data set if they ascend with the classes, else 1, 2, ..."""
    ids = dataset.class_ids
    ordered = len(ids) == len(dataset.classes) and [*ids] == sorted({*ids})
    return tuple(ids) if ordered else tuple(range(1, len(dataset.classes) + 1))


def _lost(to: str, class_ids: Sequence[int], samples: Sequence[AnnotatedImage]) -> list[Remark]:
    """Remarks on marks, areas and ids that are lost because the format cannot hold them."""
    found = []
    crowds = sum(int(one.crowd.sum()) for one in samples)
    if to in WITHOUT_MARKS and crowds:
        found.append(
            f"{crowds} objects marked as crowd or difficult become ordinary objects: {to} has no "
            f"such mark"
        )
    areas = sum(int((~np.isclose(one.area, _areas(one), AREA_TOLERANCE)).sum()) for one in samples)
    if to in WITHOUT_IDS and areas:
        found.append(f"{areas} objects lose their area: {to} has only the areas of boxes")
    if to in WITHOUT_IDS and [*class_ids] != [*range(1, len(class_ids) + 1)]:
        found.append(f"category ids are lost: {to} numbers the classes")
    return [Remark(text) for text in found]


def _areas(sample: AnnotatedImage) -> Array:
    return np.prod(sample.boxes[:, 2:] - sample.boxes[:, :2], 1)


def _place(one: PlacedImage, folder: Path, link: bool) -> None:
    """Write or link the image file."""
    path = folder / f"{one.stem}{one.suffix}"
    if not isinstance(one.sample.image, Path):
        path.write_bytes(images.file_bytes(one.sample.image))
    elif link:
        path.symlink_to(os.path.abspath(one.sample.image))
    else:
        shutil.copyfile(one.sample.image, path)


def _place_all(placed: Sequence[PlacedImage], folder: Path, link: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for _ in threads.map_images(partial(_place, folder=folder, link=link), placed):
        pass


def _write_coco(plan: Plan, root: Path, link: bool) -> None:
    categories = [
        {"id": number, "name": name}
        for number, name in zip(plan.class_ids, plan.classes, strict=True)
    ]
    (root / "annotations").mkdir()
    for split, placed in plan.splits.items():
        _place_all(placed, root / "images" / split, link)
        image_ids = _image_ids(placed)
        found, annotations = [], []
        for image_id, one in zip(image_ids, placed, strict=True):
            height, width = one.size
            image = {"id": image_id, "file_name": f"{one.stem}{one.suffix}"}
            found.append(image | {"width": width, "height": height})
            for box, label, crowd, area in _objects(one):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image_id}
                    | {"category_id": plan.class_ids[label], "bbox": boxes.to_xywh(box).tolist()}
                    | {"area": area, "iscrowd": int(crowd)}
                )
        content = {"images": found, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"{INSTANCES_PREFIX}{split}.json"
        files.write_text(path, json.dumps(content))


def _write_voc(plan: Plan, root: Path, link: bool) -> None:
    (root / voc.ANNOTATIONS).mkdir()
    (root / voc.LISTS).mkdir(parents=True)
    for split, placed in plan.splits.items():
        _place_all(placed, root / voc.IMAGES, link)
        for one in placed:
            tree = _voc_tree(one, plan.classes)
            path = root / voc.ANNOTATIONS / f"{one.stem}.xml"
            path.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
        text = "".join(f"{one.stem}\n" for one in placed)
        (root / voc.LISTS / f"{split}.txt").write_text(text, encoding="utf-8")
    lines = [voc.LABEL_MAP_HEADING, *(f"{name}:::" for name in plan.classes)]
    (root / voc.LABEL_MAP).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _voc_tree(one: PlacedImage, classes: Sequence[str]) -> ElementTree.Element:
    tree = ElementTree.Element(voc.ROOT_TAG)
    _add(tree, folder=voc.IMAGES, filename=f"{one.stem}{one.suffix}")
    height, width = one.size
    _add(ElementTree.SubElement(tree, "size"), width=width, height=height)
    for box, label, crowd, _ in _objects(one):
        node = ElementTree.SubElement(tree, "object")
        _add(node, name=classes[label], difficult=int(crowd))
        values = (box + voc.ONE_BASED_INCLUSIVE).tolist()
        texts = (int(value) if value.is_integer() else value for value in values)
        corners = ElementTree.SubElement(node, "bndbox")
        _add(corners, **dict(zip(voc.CORNERS, texts, strict=True)))
    ElementTree.indent(tree)
    return tree


def _add(node: ElementTree.Element, **fields: Any) -> None:
    for name, value in fields.items():
        ElementTree.SubElement(node, name).text = str(value)


def _write_yolo(plan: Plan, root: Path, link: bool) -> None:
    for split, placed in plan.splits.items():
        _place_all(placed, root / "images" / split, link)
        folder = root / "labels" / split
        folder.mkdir(parents=True)
        for one in placed:
            height, width = one.size
            sides = np.array([width, height] * 2)
            rows = ((label, *_center_size(box / sides)) for box, label, _, _ in _objects(one))
            text = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
            (folder / f"{one.stem}.txt").write_text(text)
    content = {split: f"images/{split}" for split in plan.splits}
    content |= {"names": dict(enumerate(plan.classes))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    files.write_text(root / "data.yaml", text)


def _center_size(box: Array) -> list[float]:
    low, high = box[:2], box[2:]
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def _write_parquet(plan: Plan, root: Path, link: bool) -> None:
    for split, placed in plan.splits.items():
        _write_table(root / f"{PARQUET_NAMES.get(split, split)}.parquet", placed)
    text = "".join(f"{name}\n" for name in plan.classes)
    (root / parquet.CLASS_LIST).write_text(text, encoding="utf-8")


def _write_table(path: Path, placed: Sequence[PlacedImage]) -> None:
    pyarrow = packages.load("pyarrow", "parquet files")
    schema, ids = _schema(pyarrow), _image_ids(placed)
    with packages.load("pyarrow.parquet", "parquet files").ParquetWriter(path, schema) as file:
        for start in range(0, len(placed), GROUP_SIZE):
            group = slice(start, start + GROUP_SIZE)
            rows = [*map(_table_row, ids[group], placed[group])]
            file.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _table_row(image_id: int, one: PlacedImage) -> dict[str, Any]:
    height, width = one.size
    path = f"{one.stem}{one.suffix}"
    columns = [*zip(*_objects(one), strict=True)] or [()] * 4
    return {
        "image": {"bytes": images.file_bytes(one.sample.image), "path": path},
        "image_id": image_id,
        "width": width,
        "height": height,
        "objects": {
            "bbox": [boxes.to_xywh(box).tolist() for box in columns[0]],
            "category": [label + 1 for label in columns[1]],
            "area": list(columns[3]),
            "iscrowd": list(columns[2]),
        },
    }


def _schema(pyarrow: Any) -> Any:
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    numbers = pyarrow.list_(pyarrow.float64())
    columns = {"bbox": pyarrow.list_(numbers), "category": pyarrow.list_(pyarrow.int64())}
    columns |= {"area": numbers, "iscrowd": pyarrow.list_(pyarrow.bool_())}
    ids = dict.fromkeys(parquet.OPTIONAL_COLUMNS, pyarrow.int64())
    return pyarrow.schema({"image": image} | ids | {"objects": pyarrow.struct(columns)})


def _image_ids(placed: Sequence[PlacedImage]) -> list[int]:
    """The ids of the images in the data if all are different integers, else 0, 1, ..."""
    ids = [one.sample.id for one in placed]
    known = [number for number in ids if isinstance(number, int)]
    return known if len({*known}) == len(ids) else [*range(len(ids))]


def _objects(one: PlacedImage) -> Iterable[tuple[Array, int, bool, float]]:
    """(corners [4] float64, label, crowd, area) of each object."""
    found = one.sample
    columns = (found.labels.tolist(), found.crowd.tolist(), found.area.tolist())
    return zip(found.boxes.astype(np.float64), *columns, strict=True)


WRITERS: dict[str, Callable[[Plan, Path, bool], None]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
    "parquet": _write_parquet,
}
