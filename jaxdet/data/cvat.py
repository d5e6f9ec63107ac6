"""CVAT for images 1.1: one XML file for all images, with the corners of each box in pixels.

The XML file is in the folder itself, or is `annotations.xml` in a folder below it.  The images are
in `images/`, `images/SUBSET/` or next to the file.  The split of an image is its `subset`; without
one, the split after which the file or its folder is named; otherwise `train`.  The classes are the
labels of the task or project, in their order.

A polygon, ellipse, mask or rotated box is replaced by its bounding box.  Other shapes, such as
points and polylines, are left out with a note; tags of whole images are ignored.  Objects with a
true attribute `difficult` or `is_crowd` become `crowd`.
"""

import re
from collections.abc import Callable
from math import cos, hypot, radians, sin
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset
from jaxdet.data.images import Size
from jaxdet.errors import InputError, printable
from jaxdet.types import Array

ROOT_TAG = "annotations"
FIRST_TAG, START = re.compile(rb"<([A-Za-z]\w*)[\s/>]"), 4096  # searched for in the first bytes
CROWD_ATTRIBUTES = ("difficult", "is_crowd", "iscrowd")
IGNORED = "tag"  # the class of a whole image


def annotation_files(root: str | Path) -> list[Path]:
    """The XML files of CVAT in a folder, or in the folders directly below it, sorted."""
    root = Path(root)
    for pattern in ("*.xml", "*/annotations.xml"):
        paths = [path for path in sorted(root.glob(pattern)) if not images.is_hidden(path.name)]
        if found := [path for path in paths if _first_tag(path) == ROOT_TAG]:
            return found
    return []


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder; objects that are invalid are left out with a note.

    Raises InputError for a file that cannot be read, and for a file of CVAT for video.
    """
    root, notes = Path(root), []
    trees = {path: _read_tree(path) for path in annotation_files(root)}
    declared = [name for tree in trees.values() for name in _declared_classes(tree)]
    used = {
        name
        for tree in trees.values()
        for image in tree.findall("image")
        for node in image
        if node.tag != IGNORED and (name := (node.get("label") or "").strip())
    }
    classes = list(dict.fromkeys(declared)) or sorted(used)
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[AnnotatedImage]] = {}
    for path, tree in trees.items():
        for row, node in enumerate(tree.findall("image"), 1):
            if not node.get("name"):
                notes.append(f"{path} image {row}: must have a name, got none")
                continue
            sample, faults = _annotate(root, path, node, labels)
            splits.setdefault(_split(root, path, node), []).append(sample)
            notes += faults
    return detection.assemble(classes, splits, notes)


def _first_tag(path: Path) -> str:
    """The name of the first element of an XML file; "" if it cannot be read."""
    try:
        regular_files.check_regular(path)
        with path.open("rb") as file:
            found = FIRST_TAG.search(file.read(START))
    except (InputError, OSError):
        return ""
    return found[1].decode() if found else ""


def _read_tree(path: Path) -> Element:
    tree = regular_files.read_xml(path)
    if tree.find("track") is not None:
        raise InputError(
            f"{path}: must be in the format CVAT for images 1.1, got tracks of CVAT for video"
        )
    return tree


def _declared_classes(tree: Element) -> list[str]:
    """The labels of a task, job or project, without the points of skeletons."""
    labels = tree.findall("meta/*/labels/label")
    names = [label.findtext("name", "").strip() for label in labels if label.find("parent") is None]
    return [name for name in names if name]


def _split(root: Path, path: Path, image: Element) -> str:
    subset = detection.split_name(image.get("subset", ""))
    stem = detection.split_name(path.stem)
    named = (name for name in (subset, stem) if name in detection.SPLITS)
    return next(named, detection.split_of(path, root))


def _annotate(
    root: Path, path: Path, node: Element, labels: dict[str, int]
) -> tuple[AnnotatedImage, list[str]]:
    name, subset = node.get("name", ""), node.get("subset", "").strip("./\\")
    objects, notes, unknown = [], [], 0
    shapes = [shape for shape in node if shape.tag != IGNORED]
    for number, shape in enumerate(shapes, 1):
        found = _parse_shape(shape, labels)
        if isinstance(found, str):
            notes.append(printable(f"{path} image {name} object {number}: ") + found)
            unknown += found.startswith(detection.UNKNOWN_CLASS)
        else:
            objects.append(found._replace(row=number))
    folders = [home / inner for home in (path.parent, root) for inner in _folders(subset)]
    sample = detection.annotated_image(
        detection.locate(folders, name),
        objects,
        printable(name),
        size=_declared_size(node),
        unknown=unknown,
        unread=len(notes) - unknown,
        file=str(path),
    )
    return sample, notes


def _folders(subset: str) -> list[str]:
    """Folders that may hold the images of a subset."""
    name = subset.replace("\\", "/").rpartition("/")[2]
    return [f"images/{name}", "images", name, ""]


def _declared_size(image: Element) -> Size | None:
    sides = [image.get(name, "") for name in ("height", "width")]
    height, width = (int(side) if side.isdecimal() and len(side) < 10 else None for side in sides)
    return detection.declared_size(height, width)


def _parse_shape(shape: Element, labels: dict[str, int]) -> BoxObject | str:
    """The object of a shape, or a description of its problem."""
    name = shape.get("label", "").strip()
    if shape.tag not in SHAPES:
        return f"shape must be one of {', '.join(SHAPES)}, got {printable(shape.tag)[:60]}"
    try:
        box = SHAPES[shape.tag](shape)
    except (KeyError, ValueError) as error:
        return f"{shape.tag} must have numbers as coordinates ({regular_files.one_line(error)})"
    if name not in labels:
        return f"{detection.UNKNOWN_CLASS} {printable(name)[:60]!r}, not in labels"
    marks = [node for node in shape.findall("attribute") if node.get("name") in CROWD_ATTRIBUTES]
    crowd = any((node.text or "").strip().lower() in ("true", "1") for node in marks)
    return BoxObject(box, labels[name], crowd)


def _box(shape: Element) -> Array:
    x0, y0, x1, y1 = (float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    angle = _angle(shape)
    if not angle:
        return np.array([x0, y0, x1, y1])
    c, s, width, height = abs(cos(angle)), abs(sin(angle)), x1 - x0, y1 - y0
    half = (width * c + height * s) / 2, (width * s + height * c) / 2
    return _around((x0 + x1) / 2, (y0 + y1) / 2, *half)


def _ellipse(shape: Element) -> Array:
    x, y, rx, ry = (float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
    c, s = cos(_angle(shape)), sin(_angle(shape))
    return _around(x, y, hypot(rx * c, ry * s), hypot(rx * s, ry * c))


def _polygon(shape: Element) -> Array:
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    points = np.array([[float(x), float(y)] for x, y in pairs])
    return np.concatenate([points.min(0), points.max(0)])


def _mask(shape: Element) -> Array:
    left, top, width, height = (
        float(shape.attrib[name]) for name in ("left", "top", "width", "height")
    )
    return np.array([left, top, left + width, top + height])


def _angle(shape: Element) -> float:
    return radians(float(shape.get("rotation", "0")))


def _around(x: float, y: float, dx: float, dy: float) -> Array:
    return np.array([x - dx, y - dy, x + dx, y + dy])


SHAPES: dict[str, Callable[[Element], Array]] = {
    "box": _box,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
}
