"""LabelMe: one JSON file per image, with the corners or points of each object in pixels.

The JSON files are in any folder.  The image of a file is at its `imagePath`, relative to the file,
or has the same name as the file; if there is no such image, the bytes in `imageData` are used.
Files in a folder named after a split belong to that split, and all others are for training.
Classes are sorted by name.

A rectangle, polygon, circle or mask is replaced by its bounding box.  Other shapes, such as points
and lines, are left out with a note.  Objects marked as `difficult`, by X-AnyLabeling or by a flag
of that name, become `crowd`.
"""

import base64
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet import tables
from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, DetectionDataset, Remark
from jaxdet.data.images import ImageFile, Size
from jaxdet.errors import InputError, printable
from jaxdet.types import Array

# A JSON file is taken for one of LabelMe if one of these keys is near its start.
KEYS, START = re.compile(rb'"(shapes|imagePath|imageData)"\s*:'), 4096  # bytes
OUTLINES = ("polygon", "rectangle", "oriented_rectangle", "rotation")  # types of shapes
FOLDERS = ("", "images")  # folders below the root that may hold the images

NamedBox = tuple[Array, str, bool, int]  # box [4], name of the class, whether difficult, number


class _Annotation(NamedTuple):
    path: Path
    image_path: str
    embedded: bool  # whether the file holds the image
    size: Size | None
    objects: list[NamedBox]
    unread: int  # number of shapes left out


def annotation_files(root: str | Path) -> list[Path]:
    """The JSON files of LabelMe in a folder and its subfolders, sorted."""
    paths = (path for path in images.walk(root) if path.suffix.lower() == ".json")
    return sorted(filter(is_annotation, paths))


def is_annotation(path: Path) -> bool:
    """Whether a file looks like a file of LabelMe; only its first bytes are read."""
    try:
        regular_files.check_regular(path)
        with path.open("rb") as file:
            return bool(KEYS.search(file.read(START)))
    except (InputError, OSError):
        return False


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder; files and shapes that are invalid are left out with a note."""
    root, notes, found = Path(root), [], []
    for path in annotation_files(root):
        try:
            annotation, faults = _read_annotation(path)
        except InputError as error:
            notes.append(str(error))
        else:
            found.append(annotation)
            notes += faults
    classes = sorted({name for one in found for _, name, _, _ in one.objects})
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[AnnotatedImage]] = {}
    for one in found:
        splits.setdefault(detection.split_of(one.path, root), []).append(
            _annotate(root, one, labels)
        )
    if count := detection.count_unused(root, splits):
        notes.append(Remark(f"{root}: {count} images have no JSON file and are not used"))
    return detection.assemble(classes, splits, notes)


def _read_annotation(path: Path) -> tuple[_Annotation, list[str]]:
    content = regular_files.read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise InputError(f"{path}: shapes must be a list, got {type(shapes).__name__}")
    objects, notes = [], []
    for number, shape in enumerate(shapes, 1):
        found = _parse_shape(shape, number)
        if isinstance(found, str):
            notes.append(f"{path} shape {number}: {found}")
        else:
            objects.append(found)
    image_path = content.get("imagePath")
    size = detection.declared_size(content.get("imageHeight"), content.get("imageWidth"))
    return _Annotation(
        path,
        image_path if isinstance(image_path, str) else "",
        isinstance(content.get("imageData"), str),
        size,
        objects,
        len(notes),
    ), notes


def _parse_shape(shape: Any, number: int) -> NamedBox | str:
    """The object of a shape, or a description of its problem."""
    fields = shape if isinstance(shape, dict) else {}
    name = fields.get("label")
    if not isinstance(name, str) or not name.strip():
        return f"label must be the name of a class, got {printable(repr(name))[:60]}"
    points, kind = fields.get("points"), fields.get("shape_type") or OUTLINES[0]
    if not isinstance(points, list) or len(points) < 2 or not all(map(_is_point, points)):
        return f"points must be at least two pairs of numbers, got {printable(str(points))[:60]}"
    box = _bounding_box(kind, np.array(points, float))
    if box is None:
        expected = ", ".join((*OUTLINES, "circle", "mask"))
        return f"shape_type must be one of {expected}, got {printable(str(kind))[:60]}"
    flags = fields.get("flags")
    marks = [fields, flags if isinstance(flags, dict) else {}]
    return box, name.strip(), any(of.get("difficult") is True for of in marks), number


def _bounding_box(kind: str, points: Array) -> Array | None:
    """The bounding box [4] of points [N, 2]; None for shapes without an area."""
    low, high = points.min(0), points.max(0)
    if kind == "circle":  # its center, and a point on it
        radius = np.hypot(*(points[1] - points[0]))
        low, high = points[0] - radius, points[0] + radius
    elif kind == "mask":  # its first and its last pixel
        high = high + 1
    elif kind not in OUTLINES:
        return None
    return np.concatenate([low, high])


def _is_point(point: Any) -> bool:
    if not isinstance(point, list) or len(point) != 2:
        return False
    return all(tables.is_number(value) and abs(value) < 1e300 for value in point)


def _annotate(root: Path, annotation: _Annotation, labels: dict[str, int]) -> AnnotatedImage:
    objects = [
        (box, labels[name], difficult, None, number)
        for box, name, difficult, number in annotation.objects
    ]
    image = _find_image(root, annotation)
    name = image.name if isinstance(image, Path) else annotation.path.name
    fields = {"size": annotation.size, "unread": annotation.unread, "file": str(annotation.path)}
    return detection.annotated_image(image, objects, printable(name), **fields)


def _find_image(root: Path, annotation: _Annotation) -> ImageFile:
    """The image file, or else the bytes in the JSON file, or else the path of the missing file."""
    path = annotation.path
    folders = [path.parent, *(root / folder for folder in FOLDERS)]
    named = detection.locate(folders, annotation.image_path or path.with_suffix(".jpg").name)
    beside = (path.with_suffix(suffix) for suffix in images.SUFFIXES)
    if found := next((one for one in (named, *beside) if one.is_file()), None):
        return found
    return partial(_embedded_image, path) if annotation.embedded else named


def _embedded_image(path: Path) -> bytes:
    content = regular_files.read_json(path)
    with regular_files.reading(path, "base64"):
        return base64.b64decode(content["imageData"])
