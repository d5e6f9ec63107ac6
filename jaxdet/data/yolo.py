"""YOLO: `data.yaml` with class names and folders, and a text file per image.

A line is `class x y width height`, the center and sides as fractions of the image, optionally
followed by a score; or a class and the x y of three or more points, a polygon, which gives its
bounding box.  The labels of `images/a.jpg` are in `labels/a.txt`; without that file an image has no
objects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxdet.data import detection, images
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset
from jaxdet.errors import InputError
from jaxdet.ops import boxes

KEYS = ("train", "val", "test")


def read(root: str | Path) -> DetectionDataset:
    """The data set in a folder with a data.yaml."""
    root, content = Path(root), _load_yaml(Path(root) / "data.yaml")
    classes = _read_names(content, root)
    base = detection.path_inside(root, str(content.get("path") or "."))
    splits, notes = {}, []
    for key in KEYS:
        if content.get(key):
            splits[key], faults = _read_split(root, base, content[key], len(classes))
            notes += faults
    kept, repeats = detection.drop_repeated_images(splits)
    return DetectionDataset(classes, kept, (*notes, *repeats))


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must have the keys names, train and val")
    return content


def _read_names(content: dict[str, Any], root: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(
            f"{root / 'data.yaml'}: names must be a list of classes, or a mapping from all "
            "numbers from 0"
        )
    return tuple(map(str, names))


def _read_split(
    root: Path, base: Path, places: str | Sequence[str], class_count: int
) -> tuple[list[AnnotatedImage], list[str]]:
    """(images, notes) of the folders, or lists of files, of one split."""
    samples, notes = [], []
    for place in [places] if isinstance(places, str) else places:
        path = _resolve_place(root, base, place)
        if path.suffix == ".txt":
            files = [detection.path_inside(root, base, line) for line in _read_lines(path)]
        elif path.is_dir():
            files = images.list_images(path)
        else:
            raise InputError(f"{path}: no such folder, named in {root / 'data.yaml'}")
        for file in files:
            objects, faults = _read_labels(file, class_count)
            notes += faults
            samples.append(detection.annotated_image(file, objects, file.name))
    return samples, notes


def _resolve_place(root: Path, base: Path, place: str) -> Path:
    """The path of a folder or list; Roboflow writes `../train/images` for `train/images`."""
    plain = place.removeprefix("../")
    if plain != place and (base / plain).exists():
        return detection.path_inside(root, base, plain)
    return detection.path_inside(root, base, place)


def _read_labels(image: Path, class_count: int) -> tuple[list[BoxObject], list[str]]:
    """(objects, notes) of the label file of an image, whose header gives the size in pixels."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    path = Path(*parts).with_suffix(".txt")
    if not path.is_file():
        return [], []
    try:
        height, width = images.read_size(image)
    except InputError:
        return [], []  # `detection.load` notes it
    objects, notes = [], []
    for number, line in enumerate(_read_lines(path), 1):
        found = _parse_line(line.split(), class_count, width, height)
        if isinstance(found, str):
            notes.append(f"{path} row {number}: {found}")
        else:
            objects.append(found)
    return objects, notes


def _parse_line(words: list[str], class_count: int, width: int, height: int) -> BoxObject | str:
    """The object of a line, or what is wrong with it."""
    try:
        label, *numbers = map(float, words)
    except ValueError:
        label, numbers = np.nan, []
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if not (len(numbers) in (4, 5) or polygon):
        return f"must be class x y width height, got {' '.join(words)!r}"
    if not label.is_integer() or not 0 <= label < class_count:
        return f"{detection.UNKNOWN_CLASS} {words[0]}, must be 0 to {class_count - 1}"
    if polygon:
        x, y = numbers[::2], numbers[1::2]
        corners = np.array([min(x), min(y), max(x), max(y)])
    else:
        corners = boxes.from_cxcywh(np.array(numbers[:4]))
    return corners * [width, height, width, height], int(label), False


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable ({error})") from None
