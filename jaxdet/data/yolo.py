"""YOLO: `data.yaml` with names and places; a text file a photo, `class x y width height` a line.

Centre and sides are shares of the photo; a score may follow.  A line of a class and three points or
more, x y each, is a polygon, and its box the smallest around them.  The labels of `images/a.jpg`
are in `labels/a.txt`; a photo without that file has no objects.
"""

from pathlib import Path

import yaml

from jaxdet.data import detection, images
from jaxdet.errors import InputError

KEYS = ("train", "val", "test")


def read(root):
    """The `Scenes` of a folder with a data.yaml."""
    root, told = Path(root), _yaml(Path(root) / "data.yaml")
    classes = _names(told, root)
    base = detection.path_inside(root, str(told.get("path") or "."))
    parts, notes = {}, []
    for key in KEYS:
        if told.get(key):
            parts[key], bad = _part(root, base, told[key], len(classes))
            notes += bad
    kept, repeats = detection.drop_repeated_images(parts)
    return detection.DetectionDataset(classes, kept, (*notes, *repeats))


def _yaml(path):
    try:
        told = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable YAML ({' '.join(str(error).split())})") from None
    if not isinstance(told, dict):
        raise InputError(f"{path}: keys names, train and val are wanted")
    return told


def _names(told, root):
    names = told.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        wanted = "a list of classes, or all by number from 0, is wanted"
        raise InputError(f"{root / 'data.yaml'}: names: {wanted}")
    return tuple(map(str, names))


def _part(root, base, places, classes):
    """Scenes of the folders, or lists of files, of one part, and what was wrong."""
    found, notes = [], []
    for place in [places] if isinstance(places, str) else places:
        path = _place(root, base, place)
        if path.suffix == ".txt":
            files = [detection.path_inside(root, base, line) for line in _lines(path)]
        elif path.is_dir():
            files = images.list_images(path)
        else:
            raise InputError(f"{path}: no such folder, named in {root / 'data.yaml'}")
        for file in files:
            objects, bad = _labels(file, classes)
            notes += bad
            found.append(detection.annotated_image(file, objects, file.name))
    return found, notes


def _place(root, base, place):
    """A place that data.yaml names; Roboflow writes `../train/images` for one that is beside it."""
    plain = place.removeprefix("../")
    if plain != place and (base / plain).exists():
        return detection.path_inside(root, base, plain)
    return detection.path_inside(root, base, place)


def _labels(image, classes):
    """([(box in shares, label, False)], [what is wrong]) of the file beside an image.

    Boxes become pixels by the size in the image's header.
    """
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    path = Path(*parts).with_suffix(".txt")
    if not path.is_file():
        return [], []
    try:
        height, width = images.read_size(image)
    except InputError:
        return [], []  # `load` says what is wrong with it
    objects, bad = [], []
    for number, line in enumerate(_lines(path), 1):
        found = _object(line.split(), classes, width, height)
        if isinstance(found, str):
            bad.append(f"{path} row {number}: {found}")
        else:
            objects.append(found)
    return objects, bad


def _object(words, classes, width, height):
    """(box in pixels, label, False), or what is wrong."""
    try:
        label, *numbers = map(float, words)
    except ValueError:
        numbers = []
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if not (len(numbers) in (4, 5) or polygon):
        return f"{' '.join(words)!r}; class x y width height are wanted"
    if not label.is_integer() or not 0 <= label < classes:
        return f"{detection.UNKNOWN_CLASS} {words[0]}; 0 to {classes - 1} are known"
    if polygon:
        across, down = numbers[::2], numbers[1::2]
        x0, y0, x1, y1 = min(across), min(down), max(across), max(down)
    else:
        x, y, across, down, *_ = numbers
        x0, y0, x1, y1 = x - across / 2, y - down / 2, x + across / 2, y + down / 2
    return (x0 * width, y0 * height, x1 * width, y1 * height), int(label), False


def _lines(path):
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable ({error})") from None
