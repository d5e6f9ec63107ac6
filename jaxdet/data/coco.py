"""COCO: one JSON file per split, boxes as left, top, width and height in pixels.

Either `annotations/instances_SPLIT.json` (without any, every `annotations/SPLIT.json`), with the
images in `SPLIT/`, `images/SPLIT/` or `images/`; or `SPLIT/_annotations.coco.json` beside the
images.  Category ids may have gaps; classes are in the order of their ids.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import tables
from jaxdet.data import detection
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset
from jaxdet.errors import InputError
from jaxdet.ops import boxes

ROBOFLOW_FILE = "_annotations.coco.json"
INSTANCES_PREFIX = "instances_"
REQUIRED_KEYS = ("images", "annotations", "categories")


def annotation_files(root: str | Path) -> dict[str, Path]:
    """{split: JSON file} of a folder; empty where it has none."""
    root = Path(root)
    found = {path.parent.name: path for path in sorted(root.glob(f"*/{ROBOFLOW_FILE}"))}
    every = sorted((root / "annotations").glob("*.json"))  # captions and keypoints among them
    for path in [path for path in every if path.stem.startswith(INSTANCES_PREFIX)] or every:
        found[path.stem.removeprefix(INSTANCES_PREFIX)] = path
    return {detection.split_name(name): path for name, path in found.items()}


def read(root: str | Path) -> DetectionDataset:
    """The data set in a folder; InputError unless all splits have the same categories."""
    splits, notes, first = {}, [], {}
    for name, path in annotation_files(root).items():
        content = _load_json(path)
        categories = _read_categories(content, path)
        first = first or categories
        if categories != first:
            raise InputError(f"{path}: categories differ from those of other splits")
        splits[name], faults = _read_split(Path(root), path, content, list(categories))
        notes += faults
    kept, repeats = detection.drop_repeated_images(splits)
    return DetectionDataset(tuple(first.values()), kept, (*notes, *repeats), tuple(first))


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    missing = sorted(set(REQUIRED_KEYS) - set(content if isinstance(content, dict) else ()))
    if missing:
        raise InputError(f"{path}: missing keys: {', '.join(missing)}")
    for key in REQUIRED_KEYS:
        value = content[key]
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(f"{path}: {key} must be a list of objects")
    return content


def _read_categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """{id: name} in the order of ids; categories without objects count too."""
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        return {category["id"]: str(category["name"]) for category in categories}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: each category must have an id and a name ({error})") from None


def _read_split(
    root: Path, path: Path, content: dict[str, Any], category_ids: list[int]
) -> tuple[list[AnnotatedImage], list[str]]:
    """(images, notes) of one file."""
    objects, notes = {}, []
    image_ids = {image.get("id") for image in content["images"]}
    for row, annotation in enumerate(content["annotations"], 1):
        found = _parse_annotation(annotation, category_ids, image_ids)
        if isinstance(found, str):
            notes.append(f"{path} annotation {row}: {found}")
        else:
            objects.setdefault(annotation["image_id"], []).append(found)
    samples = []
    for row, image in enumerate(content["images"], 1):
        if "id" not in image or not image.get("file_name"):
            notes.append(f"{path} image {row}: must have an id and a file_name")
            continue
        image_id, name = image["id"], image["file_name"]
        file = _find_image(root, path, str(name))
        samples.append(detection.annotated_image(file, objects.get(image_id, []), name, image_id))
    return samples, notes


def _parse_annotation(
    annotation: dict[str, Any], category_ids: list[int], image_ids: set
) -> BoxObject | str:
    """The object of an annotation, or what is wrong with it."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(tables.is_number, box)):
        return f"bbox must be left, top, width, height, got {box!r}"
    if annotation.get("category_id") not in category_ids:
        return f"{detection.UNKNOWN_CLASS} {annotation.get('category_id')!r}, not in categories"
    if annotation.get("image_id") not in image_ids:
        return f"image {annotation.get('image_id')!r} is not in images"
    label = category_ids.index(annotation["category_id"])
    return boxes.from_xywh(np.array(box, float)), label, bool(annotation.get("iscrowd", 0))


def _find_image(root: Path, path: Path, name: str) -> Path:
    """The path of an image: the first of the usual folders that has it."""
    split = path.stem.removeprefix(INSTANCES_PREFIX)
    folders = (path.parent, root / split, root / "images" / split, root / "images", root)
    places = [detection.path_inside(root, folder.relative_to(root), name) for folder in folders]
    return next((place for place in places if place.is_file()), places[0])
