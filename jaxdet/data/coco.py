"""COCO: one JSON file a part, boxes as left, top, width, height in pixels.

`annotations/instances_PART.json` (where there is none, every `annotations/PART.json`) with the
photos in `PART/`, `images/PART/` or `images/`; or `PART/_annotations.coco.json` with the photos
beside it.  Category numbers may have gaps; classes are in the order of their numbers.
"""

import json
from pathlib import Path

from jaxdet.data import detection
from jaxdet.errors import InputError

ROBOFLOW_FILE = "_annotations.coco.json"
INSTANCES_PREFIX = "instances_"  # how the name of a file with boxes begins
REQUIRED_KEYS = ("images", "annotations", "categories")


def annotation_files(root):
    """{part: JSON file} of a folder; {} when it has none."""
    root = Path(root)
    found = {path.parent.name: path for path in sorted(root.glob(f"*/{ROBOFLOW_FILE}"))}
    every = sorted((root / "annotations").glob("*.json"))  # captions and keypoints beside them
    for path in [path for path in every if path.stem.startswith(INSTANCES_PREFIX)] or every:
        found[path.stem.removeprefix(INSTANCES_PREFIX)] = path
    return {detection.split_name(name): path for name, path in found.items()}


def read(root):
    """The `Scenes` of a folder; all parts must have the same categories."""
    parts, notes, first = {}, [], None
    for name, path in annotation_files(root).items():
        told = _json(path)
        categories = _categories(told, path)
        first = first or categories
        if categories != first:
            raise InputError(f"{path}: other categories than the parts before it")
        parts[name], bad = _part(Path(root), path, told, list(categories))
        notes += bad
    kept, repeats = detection.drop_repeated_images(parts)
    return detection.DetectionDataset(tuple(first.values()), kept, (*notes, *repeats), tuple(first))


def _json(path):
    try:
        told = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    missing = sorted(set(REQUIRED_KEYS) - set(told if isinstance(told, dict) else ()))
    if missing:
        raise InputError(f"{path}: no {', '.join(missing)} in it")
    for name in REQUIRED_KEYS:
        if not isinstance(told[name], list) or not all(isinstance(x, dict) for x in told[name]):
            raise InputError(f"{path}: {name}: a list of objects is wanted")
    return told


def _categories(told, path):
    """{number: name} in the order of the numbers; those without objects count too."""
    try:
        return {c["id"]: str(c["name"]) for c in sorted(told["categories"], key=lambda c: c["id"])}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: categories: an id and a name are wanted ({error})") from None


def _part(root, path, told, numbers):
    """([Scene], [what is wrong])."""
    objects, notes = {}, []
    known = {image.get("id") for image in told["images"]}
    for row, one in enumerate(told["annotations"], 1):
        found = _object(one, numbers, known)
        if isinstance(found, str):
            notes.append(f"{path} annotation {row}: {found}")
        else:
            objects.setdefault(one["image_id"], []).append(found)
    made = []
    for row, image in enumerate(told["images"], 1):
        if "id" not in image or not image.get("file_name"):
            notes.append(f"{path} image {row}: an id and a file_name are wanted")
            continue
        number, name = image["id"], image["file_name"]
        file = _file(root, path, str(name))
        made.append(detection.annotated_image(file, objects.get(number, []), name, number))
    return made, notes


def _object(one, numbers, known):
    """(box, label, crowd) of an annotation, or what is wrong with it."""
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {box!r}; left, top, width, height are wanted"
    if one.get("category_id") not in numbers:
        return f"{detection.UNKNOWN_CLASS} {one.get('category_id')!r}, not in categories"
    if one.get("image_id") not in known:
        return f"image {one.get('image_id')!r} is not in images"
    x, y, width, height = map(float, box)
    label = numbers.index(one["category_id"])
    return (x, y, x + width, y + height), label, bool(one.get("iscrowd", 0))


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _file(root, path, name):
    """Where a photo is: the first of the usual places that has it."""
    title = path.stem.removeprefix(INSTANCES_PREFIX)
    homes = (path.parent, root / title, root / "images" / title, root / "images", root)
    places = [detection.path_inside(root, home.relative_to(root), name) for home in homes]
    return next((place for place in places if place.is_file()), places[0])
