"""COCO: one JSON file per split, boxes as left, top, width and height in pixels.

The JSON files may be in three places:

- `annotations/instances_SPLIT.json` or, if there are no such files, all JSON files in
  `annotations/`; the images are in `SPLIT/`, `images/SPLIT/` or `images/`;
- `SPLIT/_annotations.coco.json` or `SPLIT/labels.json`, next to the images;
- the folder itself.

If there is only one file, and it is not named after a split, it is used as `train`.

Category ids may have gaps; the classes are in the order of their ids.  A file may lack some of the
categories.  An object without a box gets the bounding box of its polygons.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import array_cache, detection, images, labelme, regular_files
from jaxdet.data.array_cache import Arrays
from jaxdet.data.detection import AnnotatedImage, BoxObject, DetectionDataset, Remark
from jaxdet.data.images import Size
from jaxdet.errors import InputError, printable
from jaxdet.ops import boxes

BESIDE_IMAGES = ("_annotations.coco.json", "labels.json")
INSTANCES_PREFIX = "instances_"
# Folders below the root that may hold the images, with or without a folder for each split.
IMAGE_FOLDERS = ("", "images", "data", "JPEGImages")
FLAGS = {"0": False, "false": False, "": False, "1": True, "true": True}
# The classes of the data set COCO (Lin et al. 2014, arXiv:1405.0312), and their category ids.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
CLASS_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


class _File(NamedTuple):
    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]] | None  # None if there are none, as in a secret test set
    categories: dict[int, str]


class _Split(NamedTuple):
    """The N images and M objects of a file, as columns; the objects are ordered by image."""

    names: Sequence[str]  # [N], file names as in the JSON file
    ids: Sequence[int | str]  # [N]
    sizes: Sequence[Size | None]  # [N], as declared
    objects: np.ndarray  # [N], number of objects in each image
    unknown: np.ndarray  # [N], number of objects left out because their class is unknown
    unread: np.ndarray  # [N], number of objects left out for other reasons
    boxes: np.ndarray  # [M, 4] float32, corners
    labels: np.ndarray  # [M] int32
    crowd: np.ndarray  # [M] bool
    area: np.ndarray  # [M] float32
    rows: np.ndarray  # [M] int32, numbers of the annotations, from 1


LISTS = ("names", "ids", "sizes")  # fields of a `_Split` that are not arrays


def annotation_files(root: str | Path) -> dict[str, Path]:
    """The JSON file of each split in a folder, as {split: path}; {} if the folder has none."""
    root = Path(root)
    beside = [path for name in BESIDE_IMAGES for path in _visible(root.glob(f"*/{name}"))]
    found = {path.parent.name: path for path in beside}
    every = _visible((root / "annotations").glob("*.json"))  # may include captions and keypoints
    every = [path for path in every if not labelme.is_annotation(path)]
    for path in [path for path in every if path.stem.startswith(INSTANCES_PREFIX)] or every:
        found[path.stem.removeprefix(INSTANCES_PREFIX)] = path
    if not found:
        found = {_stem(path): path for path in _visible(root.glob("*.json")) if _is_coco(path)}
    found = {detection.split_name(name): path for name, path in found.items()}
    if len(found) == 1 and not found.keys() & set(detection.SPLITS):
        (path,) = found.values()
        return {"train": path}
    return found


def read(root: str | Path, cache: Path | None = None) -> DetectionDataset:
    """Read the data set in a folder.

    A split without annotations is left out with a remark, except `train`, whose images are kept as
    images without objects.  Raises InputError if two images or two categories of a file have the
    same id, or if a category has different names in two files.

    cache: folder of an `array_cache` for the content of large JSON files; None for no cache.
    """
    paths = annotation_files(root)
    arrays = array_cache.cached(partial(_read_files, paths), [*paths.values()], cache)
    categories, notes, lists = array_cache.from_bytes(arrays["texts"])
    splits = {}
    for split, of_split in lists.items():
        columns = {name: arrays[f"{split} {name}"] for name in _Split._fields if name not in LISTS}
        table = _Split(**dict(zip(LISTS, of_split, strict=True)), **columns)
        splits[split] = _annotate(Path(root), paths[split], table)
    numbers, names = zip(*categories, strict=True) if categories else ((), ())
    notes = [Remark(text) if is_remark else text for text, is_remark in notes]
    return detection.assemble(names, splits, notes, numbers)


def _read_files(paths: dict[str, Path]) -> Arrays:
    """The content of the JSON files of all splits as arrays; texts are arrays of bytes."""
    files = {name: _read_file(path) for name, path in paths.items()}
    names: dict[int, str] = {}
    for file in files.values():
        for number, name in file.categories.items():
            if names.setdefault(number, name) != name:
                raise InputError(
                    f"{file.path}: category {number} must have the same name in all files, got "
                    f"{printable(str(name))!r} and {printable(names[number])!r}"
                )
    names = dict(sorted(names.items()))
    lists, notes, arrays = {}, [], {}
    for split, file in files.items():
        if file.annotations is None and split != "train":
            notes.append((f"{file.path}: no annotations, split {split} is left out", True))
            continue
        table, faults = _read_split(file, list(names))
        notes += [(fault, False) for fault in faults]
        lists[split] = [getattr(table, name) for name in LISTS]
        columns = {name: column for name, column in table._asdict().items() if name not in LISTS}
        arrays |= {f"{split} {name}": column for name, column in columns.items()}
    return {"texts": array_cache.to_bytes((list(names.items()), notes, lists)), **arrays}


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not images.is_hidden(path.name))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".json").removeprefix(INSTANCES_PREFIX)


def _is_coco(path: Path) -> bool:
    try:
        content = regular_files.read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and {"images", "categories"} <= content.keys()


def _read_file(path: Path) -> _File:
    content = regular_files.read_json(path, _without_polygons)
    keys = content.keys() if isinstance(content, dict) else set()
    missing = sorted({"images", "categories"} - set(keys))
    if missing:
        raise InputError(
            f"{path}: must have the keys images and categories, lacks {' and '.join(missing)}"
        )
    for key in ("images", "annotations", "categories"):
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(f"{path}: {key} must be a list of objects, got {_shown(value)}")
    categories = _read_categories(content["categories"], path)
    return _File(path, content["images"], content.get("annotations") or None, categories)


def _without_polygons(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the polygons of an object with a box, to save memory."""
    if entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry


def _read_categories(categories: list[dict[str, Any]], path: Path) -> dict[int, str]:
    """{id: name}; InputError for a missing id or name, or an id that is not unique."""
    found: dict[int, str] = {}
    for row, category in enumerate(categories, 1):
        number, name = _parse_id(category.get("id")), category.get("name")
        if not isinstance(number, int) or not isinstance(name, str | int | float):
            shown = _shown(category)
            raise InputError(
                f"{path} category {row}: must have an integer id and a name, got {shown}"
            )
        if number in found:
            both = f"{printable(found[number])!r} and {printable(str(name))!r}"
            raise InputError(f"{path}: category id {number} must be unique, got {both}")
        found[number] = str(name)
    return found


def _read_split(file: _File, category_ids: list[int]) -> tuple[_Split, list[str]]:
    """Convert one file to (columns, notes); InputError if two images share an id."""
    found, notes = _read_images(file)
    numbers = {image_id: number for number, image_id in enumerate(found)}
    labels = {number: label for label, number in enumerate(category_ids)}
    objects, left_out = [], np.zeros((2, len(found)), np.int32)  # of unknown classes, others
    for row, annotation in enumerate(file.annotations or [], 1):
        one = _parse_annotation(annotation, labels)
        image = numbers.get(_parse_id(annotation.get("image_id")), -1)
        if image < 0:
            one = f"image_id must be the id of an image, got {_shown(annotation.get('image_id'))}"
        if not isinstance(one, str):
            objects.append((image, row, one.box, one.label, one.crowd, one.area))
            continue
        notes.append(f"{file.path} annotation {row}: {one}")
        if image >= 0:
            left_out[int(not one.startswith(detection.UNKNOWN_CLASS)), image] += 1
    objects.sort(key=itemgetter(0))  # of one image, they keep their order
    image, rows, box, label, crowd, area = zip(*objects, strict=True) if objects else ((),) * 6
    names, sizes = zip(*found.values(), strict=True) if found else ((), ())
    corners = boxes.from_xywh(np.array(box, np.float64).reshape(-1, 4))
    area = np.array(area, np.float64)  # NaN where the file has none
    with np.errstate(invalid="ignore", over="ignore"):  # boxes that are not finite are noted later
        of_boxes = np.prod(corners[:, 2:] - corners[:, :2], 1)
        return _Split(
            names,
            [*found],
            sizes,
            np.bincount(np.array(image, np.int64), minlength=len(found)),
            *left_out,
            corners.astype(np.float32),
            np.array(label, np.int32),
            np.array(crowd, bool),
            np.where(np.isnan(area), of_boxes, area).astype(np.float32),
            np.array(rows, np.int32),
        ), notes


def _read_images(file: _File) -> tuple[dict[int | str, tuple[str, Size | None]], list[str]]:
    """({id: (file name, declared size)}, notes); InputError if two images share an id."""
    found, notes = {}, []
    for row, image in enumerate(file.images, 1):
        image_id, name = _parse_id(image.get("id")), image.get("file_name")
        if image_id is None or not isinstance(name, str) or not name:
            notes.append(
                f"{file.path} image {row}: must have an id and a file_name, got {_shown(image)}"
            )
        elif image_id in found:
            both = f"{printable(found[image_id][0])} and {printable(name)}"
            raise InputError(f"{file.path}: image id {image_id} must be unique, got {both}")
        else:
            found[image_id] = name, _declared_size(image)
    return found, notes


def _annotate(root: Path, path: Path, split: _Split) -> list[AnnotatedImage]:
    """Find the image files that the JSON file `path` lists; return them with their objects."""
    first, *others = _image_folders(root, path)
    folders = [first, *filter(Path.is_dir, others)]
    ends = np.cumsum(split.objects)
    counts = np.stack([ends - split.objects, ends, split.unknown, split.unread], 1)
    samples = []
    for number, (start, end, unknown, unread) in enumerate(counts.tolist()):
        name, size = split.names[number], split.sizes[number]
        samples.append(
            AnnotatedImage(
                detection.locate(folders, name),
                split.boxes[start:end],
                split.labels[start:end],
                split.crowd[start:end],
                split.area[start:end],
                printable(name),
                split.ids[number],
                size and (size[0], size[1]),
                unknown,
                unread,
                split.rows[start:end],
                str(path),
            )
        )
    return samples


def _parse_annotation(annotation: dict[str, Any], labels: dict[int, int]) -> BoxObject | str:
    """The object (its box is left, top, width, height), or a description of its problem."""
    box = _parse_box(annotation)
    if box is None:
        shown = _shown(annotation.get("bbox"))
        expected = "left, top, width, height (or segmentation must be polygons)"
        return f"bbox must be {expected}, got {shown}"
    category_id = _parse_id(annotation.get("category_id"))
    if category_id not in labels:
        shown = _shown(annotation.get("category_id"))
        return f"{detection.UNKNOWN_CLASS} {shown}, not in categories"
    crowd = False
    for name in ("iscrowd", "ignore"):
        flag = _parse_flag(annotation.get(name, False))
        if flag is None:
            return f"{name} must be 0 or 1, got {_shown(annotation[name])}"
        crowd |= flag
    area: Any = annotation.get("area")
    area = area if _is_number(area) and area >= 0 else None
    return BoxObject(box, labels[category_id], crowd, area)


def _parse_box(annotation: dict[str, Any]) -> Sequence[float] | np.ndarray | None:
    """Left, top, width, height of the box or, without one, of the polygons; None if malformed."""
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        return box
    polygons = annotation.get("segmentation")
    if box not in (None, []) or not isinstance(polygons, list) or not polygons:
        return None
    if not all(isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 for one in polygons):
        return None
    numbers = [number for one in polygons for number in one]
    if not all(map(_is_number, numbers)):
        return None
    points = np.array(numbers, float).reshape(-1, 2)
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])


def _parse_id(value: Any) -> int | str | None:
    """A whole number or its text as an integer, other texts unchanged, other values as None."""
    if type(value) is int:  # by far the most
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if (
        isinstance(value, str)
        and len(value) < 20
        and value.isdecimal()
        and (value == "0" or value[0] != "0")
    ):
        return int(value)
    return value if isinstance(value, str) else None


def _parse_flag(value: Any) -> bool | None:
    """A flag such as 0, true, null or "0" as a boolean; None for other values."""
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower())
    return bool(value) if value in (0, 1, None) else None


def _declared_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width); None unless both are positive integers."""
    sides = [_parse_id(image.get(name)) for name in ("height", "width")]
    height, width = (side if isinstance(side, int) and side > 0 else None for side in sides)
    return (height, width) if height and width else None


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def _image_folders(root: Path, path: Path) -> Sequence[Path]:
    """Folders that may hold the images of the JSON file `path`, in order of search."""
    split = _stem(path)
    below = [root / folder / split for folder in IMAGE_FOLDERS] + [path.parent / "data"]
    return [path.parent, *below, *(root / folder for folder in IMAGE_FOLDERS)]


def _shown(value: Any) -> str:
    text = printable(repr(value)) if not isinstance(value, list | dict) else printable(str(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
