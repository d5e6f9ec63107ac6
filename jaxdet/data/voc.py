"""Pascal VOC: one XML file per image, and optionally a list of the images of each split.

The XML files are in `Annotations/`, in any other folder, or next to the images.  The image of an
XML file has the same name or, if there is none, the `filename` given in the XML file.  It is
searched for near the XML file, then in the whole folder.

The lists are `ImageSets/Main/{train,val,test}.txt`; without train.txt, `trainval.txt` lists the
training images.  Images that are in no list are not used.  Without lists, XML files in a folder
named after a split belong to that split, and all others are for training.

The classes in `labelmap.txt`, a list that CVAT and Datumaro write, come first; the other classes
follow, sorted by name.

Corners are in pixels, counted from 1 and inclusive: the box 1 1 1 1 is the first pixel.  Objects
marked as difficult become `crowd`.  Everingham et al. 2010.
"""

import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from jaxdet.data import detection, images, regular_files
from jaxdet.data.detection import AnnotatedImage, DetectionDataset, Remark
from jaxdet.data.images import Size
from jaxdet.errors import InputError, printable

TRAINVAL = "trainval"
LISTS = Path("ImageSets", "Main")
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
ONE_BASED_INCLUSIVE = np.array([1, 1, 0, 0])  # subtract it to get zero-based, half-open corners
ROOT_TAG = "annotation"
LABEL_MAP = "labelmap.txt"  # lines `class:color:parts:actions`
LABEL_MAP_HEADING, BACKGROUND = "# label:color_rgb:parts:actions", "background"

ClassObject = tuple[np.ndarray, str, bool]  # box [4], name of the class, whether difficult


class _Annotation(NamedTuple):
    path: Path
    file_name: str
    size: Size | None
    objects: list[ClassObject]


class _Folder(NamedTuple):
    """The XML files and images in a folder and its subfolders."""

    root: Path
    annotations: dict[str, list[Path]]  # XML files by their name without the ending
    images: dict[str, list[Path]]  # images by their name without the ending


def find_root(root: str | Path) -> Path | None:
    """Find the folder with ImageSets/Main/ or Annotations/: `root`, or a folder directly below it.

    If there is no such folder, returns `root`, or None if there are no XML files in it.
    """
    folders = [Path(root), *sorted(path for path in Path(root).glob("*/"))]
    for name in (LISTS, ANNOTATIONS):
        if found := [path for path in folders if (path / name).is_dir()]:
            return found[0]
    return Path(root) if _list_folder(Path(root)).annotations else None


def read(root: str | Path) -> DetectionDataset:
    """Read the data set in a folder.

    Invalid XML files are left out with a note.  Raises InputError if there are no XML files.
    """
    home = find_root(root)
    if home is None:
        raise InputError(f"{root}: no XML files; expected one XML file per image")
    folder = _list_folder(home)
    notes: list[str] = []
    found: dict[str, list[_Annotation]] = {}
    for split, paths in _split_paths(folder, notes).items():
        found[split] = []
        for path in paths:
            try:
                found[split].append(_read_annotation(path))
            except InputError as error:
                notes.append(str(error))
    every = [one for own in found.values() for one in own]
    names = {name for one in every for _, name, _ in one.objects}
    listed = [name for name in _read_label_map(home) if name in names or name != BACKGROUND]
    classes = (*listed, *sorted(names - {*listed}))
    numbers = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [_annotate(folder, one, numbers) for one in own] for split, own in found.items()
    }
    return detection.assemble(classes, splits, notes)


def _read_label_map(root: Path) -> list[str]:
    """The classes in `labelmap.txt`, in their order; [] without the file."""
    path = root / LABEL_MAP
    lines = regular_files.read_lines(path) if path.is_file() else []
    names = [line.rsplit(":", 3)[0] for _, line in lines if line != LABEL_MAP_HEADING]
    return list(dict.fromkeys(names))


def _list_folder(root: Path) -> _Folder:
    found = _Folder(root, {}, {})
    for path in images.walk(root):
        suffix = path.suffix.lower()
        if suffix == ".xml":
            found.annotations.setdefault(path.stem, []).append(path)
        elif suffix in images.SUFFIXES:
            found.images.setdefault(path.stem, []).append(path)
    return found


def _split_paths(folder: _Folder, notes: list[str]) -> dict[str, list[Path]]:
    """The XML files of each split; problems are appended to `notes`."""
    names = (*detection.SPLITS, TRAINVAL)
    lists = {name: folder.root / LISTS / f"{name}.txt" for name in names}
    lists = {name: path for name, path in lists.items() if path.is_file()}
    if "train" not in lists and TRAINVAL in lists:
        lists = {"train": lists[TRAINVAL]} | lists
    lists.pop(TRAINVAL, None)
    if lists:
        return {split: _read_list(folder, path, notes) for split, path in lists.items()}
    splits: dict[str, list[Path]] = {}
    for path in sorted(path for own in folder.annotations.values() for path in own):
        splits.setdefault(detection.split_of(path, folder.root), []).append(path)
    stems = folder.images.keys() - folder.annotations.keys()
    if count := sum(len(folder.images[stem]) for stem in stems):
        notes.append(Remark(f"{folder.root}: {count} images have no XML file and are not used"))
    return splits


def _read_list(folder: _Folder, path: Path, notes: list[str]) -> list[Path]:
    """The XML files of the names in a list; appends a note to `notes` for each missing file."""
    found = []
    for number, line in regular_files.read_lines(path):
        whole, first = _listed_stem(folder, line), _listed_stem(folder, line.split()[0])
        stem = whole if whole in folder.annotations else first
        paths = folder.annotations.get(stem, [])
        place = f"{path} row {number}"
        if not paths:
            try:
                expected = detection.path_inside(folder.root, ANNOTATIONS, f"{stem}.xml")
                notes.append(f"{printable(place)}: {printable(str(expected))}: no such file")
            except InputError as error:
                notes.append(f"{printable(place)}: {error}")
            continue
        usual = folder.root / ANNOTATIONS / f"{stem}.xml"
        found.append(usual if usual in paths else paths[0])
    return found


def _listed_stem(folder: _Folder, name: str) -> str:
    """Remove the ending of an image or XML file from a name in a list, if it has one."""
    if name in folder.annotations:
        return name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (*images.SUFFIXES, ".xml") else name


def _read_annotation(path: Path) -> _Annotation:
    tree = regular_files.read_xml(path)
    with regular_files.reading(path, "XML"):
        if tree.tag != ROOT_TAG:
            shown = printable(tree.tag)[:60]
            raise InputError(f"{path}: root element must be {ROOT_TAG}, got {shown}")
        nodes = enumerate(tree.findall("object"), 1)
        objects = [_parse_object(node, path, number) for number, node in nodes]
        return _Annotation(path, tree.findtext("filename") or "", _declared_size(tree), objects)


def _declared_size(tree: ElementTree.Element) -> Size | None:
    """(height, width); None unless both are positive."""
    try:
        height, width = (int(float(tree.findtext(f"size/{s}", "0"))) for s in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _parse_object(node: ElementTree.Element, path: Path, number: int) -> ClassObject:
    place = f"{path} object {number}"
    name, box = node.findtext("name"), node.find("bndbox")
    if not name or not name.strip() or box is None:
        shown = "no bndbox" if box is None else f"name {name!r}"
        raise InputError(f"{place}: must have a name and a bndbox, got {shown}")
    try:
        corners = np.array([float(box.findtext(corner, "")) for corner in CORNERS])
    except (TypeError, ValueError):
        shown = printable(" ".join(box.findtext(corner, "none") for corner in CORNERS))[:60]
        raise InputError(
            f"{place}: bndbox must have numbers {', '.join(CORNERS)}, got {shown}"
        ) from None
    difficult = node.findtext("difficult", "0").strip().lower() in ("1", "true")
    return corners - ONE_BASED_INCLUSIVE, name.strip(), difficult


def _annotate(folder: _Folder, annotation: _Annotation, numbers: dict[str, int]) -> AnnotatedImage:
    """Convert an XML file to an annotated image; `numbers` maps class names to labels."""
    objects = [(box, numbers[name], crowd) for box, name, crowd in annotation.objects]
    stem = annotation.path.stem
    image = _find_image(folder, annotation)
    fields = {"size": annotation.size, "file": str(annotation.path)}
    return detection.annotated_image(image, objects, printable(stem), **fields)


def _find_image(folder: _Folder, annotation: _Annotation) -> Path:
    """The image of an XML file, or the path in JPEGImages/ where it should be."""
    name = annotation.file_name.replace("\\", "/").rpartition("/")[2]
    beside = annotation.path.parent
    for stem in (annotation.path.stem, os.path.splitext(name)[0]):
        for own in (beside, folder.root / IMAGES, beside.parent / "images"):
            if found := [path for path in folder.images.get(stem, []) if path.parent == own]:
                return found[0]
        if found := folder.images.get(stem, []):
            return max(found, key=lambda path: len(os.path.commonpath([path, beside])))
    suffix = os.path.splitext(name)[1]
    return folder.root / IMAGES / f"{annotation.path.stem}{suffix or '.jpg'}"
