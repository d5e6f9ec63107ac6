"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/` and `ImageSets/Main/{train,val,test}.txt`.

Corners count pixels from 1 and are inclusive: 1 1 1 1 is the first pixel.  Objects marked difficult
become `crowd`.  Everingham et al. 2010.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from jaxdet.data import detection, images
from jaxdet.data.detection import DetectionDataset
from jaxdet.errors import InputError

SETS = ("train", "val", "test")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
ONE_BASED_INCLUSIVE = np.array([1, 1, 0, 0])  # less this, corners are zero-based and half-open

ClassObject = tuple[np.ndarray, str, bool]  # box [4], class, difficult


def find_root(root: str | Path) -> Path | None:
    """The folder with Annotations/: `root`, or one directly below it; None where there is none."""
    folders = [Path(root), *sorted(path for path in Path(root).glob("*/"))]
    return next((path for path in folders if (path / "Annotations").is_dir()), None)


def read(root: str | Path) -> DetectionDataset:
    """The data set in a folder.

    Classes are sorted by name; without ImageSets every image is in `train`.
    """
    folder = find_root(root)
    if folder is None:
        raise InputError(f"{root}: no folder Annotations")
    splits, notes, names = {}, [], set()
    for split, stems in _read_image_sets(folder).items():
        splits[split] = []
        for stem in stems:
            try:
                image, objects = _read_annotation(folder, stem)
            except InputError as error:
                notes.append(str(error))
                continue
            names |= {name for _, name, _ in objects}
            splits[split].append((image, objects, stem))
    classes = tuple(sorted(names))
    samples = {
        split: [
            detection.annotated_image(
                image, [(box, classes.index(name), crowd) for box, name, crowd in objects], stem
            )
            for image, objects, stem in entries
        ]
        for split, entries in splits.items()
    }
    kept, repeats = detection.drop_repeated_images(samples)
    return DetectionDataset(classes, kept, (*notes, *repeats))


def _read_image_sets(root: Path) -> dict[str, list[str]]:
    """{split: stems of its images}."""
    folder = root / "ImageSets" / "Main"
    found = {name: folder / f"{name}.txt" for name in SETS if (folder / f"{name}.txt").is_file()}
    if not found:
        return {"train": sorted(path.stem for path in (root / "Annotations").glob("*.xml"))}
    return {
        name: [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        for name, path in found.items()
    }


def _read_annotation(root: Path, stem: str) -> tuple[Path, list[ClassObject]]:
    """(path of the image, objects) of one file."""
    path = detection.path_inside(root, "Annotations", f"{stem}.xml")
    try:
        text = path.read_text()
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: XML entities are not supported")
        tree = ElementTree.fromstring(text)
        objects = [_parse_object(node, path, i) for i, node in enumerate(tree.findall("object"), 1)]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, listed in ImageSets") from None
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable XML ({error})") from None
    return _find_image(root, stem, tree.findtext("filename") or ""), objects


def _find_image(root: Path, stem: str, file_name: str) -> Path:
    """The image named like its annotation, or else by the annotation's `filename`."""
    folder = root / "JPEGImages"
    for suffix in (".jpg", ".jpeg", ".png"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    path = detection.path_inside(folder, file_name or f"{stem}.jpg")
    return path if path.suffix.lower() in images.SUFFIXES else folder / f"{stem}.jpg"


def _parse_object(node: ElementTree.Element, path: Path, number: int) -> ClassObject:
    place = f"{path} object {number}"
    name, box = node.findtext("name"), node.find("bndbox")
    if not name or box is None:
        raise InputError(f"{place}: must have a name and a bndbox")
    try:
        corners = np.array([float(box.findtext(corner, "")) for corner in CORNERS])
    except (TypeError, ValueError):
        raise InputError(f"{place}: bndbox must have numbers {', '.join(CORNERS)}") from None
    difficult = node.findtext("difficult", "0").strip() == "1"
    return corners - ONE_BASED_INCLUSIVE, name.strip(), difficult
