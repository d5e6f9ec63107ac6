"""Data sets made for benchmarks.

    python -m benchmarks.prepared coco-like --images 20000 --out DIR
    python -m benchmarks.prepared skewed --source SOURCE --rare Platelets --out DIR

`coco-like` is a set in the COCO format with the statistics of COCO: JPEG files of about 130 kB, a
few to dozens of objects per image, many of them small, crowds, and images without objects. Each
image is a photo of the COCO128 set in $JAXDET_DATA/coco128, or of the data set in --source, that is
cropped, mirrored, and changed in brightness and color; some images combine four photos. The boxes
are moved with the pixels. One image in 24 is for validation, as in COCO.

Images depend only on the seed and their number, so a larger set begins with the images of a smaller
one. COCO (train2017) has 7.3 objects per image; 41 % of them are small, 34 % medium and 24 % large,
and 1.2 % are crowds; 0.9 % of its images have no object. The printed table has the numbers of the
prepared set.

`skewed` is the data set in --source, in the COCO format, without most of the training images in
which there are objects of the class --rare: a fraction --keep of them, drawn at random, is left.
Other splits are unchanged.
"""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image, ImageEnhance

from benchmarks.lib import harness, units
from jaxdet import files
from jaxdet.data import convert, detection, formats, images, threads
from jaxdet.data.detection import AnnotatedImage
from jaxdet.errors import InputError

NAME = "prepared"
VAL_EVERY = 24  # number of images for each validation image; COCO has 118,287 and 5,000
CROWDS, EMPTY = 0.012, 0.009  # fractions of objects and of images
TILED = 0.05  # fraction of images made of four
FILLED = 0.6  # fraction of a box that its object fills; in COCO, the area is the object's
MIN_CROP = 0.8  # smallest side of a crop, as a fraction
MIN_VISIBLE = 0.3  # fraction of a box that must be inside the crop
QUALITY = 96  # of JPEG, for about 130 kB
SMALL, MEDIUM = 32**2, 96**2  # upper limits of areas in COCO's sizes, in square pixels
COLUMNS = {
    "split": "split",
    "images": "images",
    "file_bytes": ("mean file", "B"),
    "objects": "objects per image",
    "small": "small",
    "medium": "medium",
    "large": "large",
    "crowds": "crowds",
    "empty": "empty images",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prepare a data set for benchmarks."""

    kind: tyro.conf.Positional[Literal["coco-like", "skewed"]] = "coco-like"
    """data set to prepare"""
    out: Path = Path("coco-like")
    """folder of the data set; it must be empty or absent"""
    images: int = 1000
    """coco-like: number of images of both splits"""
    source: Path | None = None
    """folder with a detection data set, whose images are changed or left out; by default
    $JAXDET_DATA/coco128"""
    rare: str = ""
    """skewed: name of the class that becomes rare"""
    keep: float = 0.1
    """skewed: fraction of the training images with this class that is kept, at least one image"""
    seed: int = 0
    """seed of all random changes"""


class ChangedImage(NamedTuple):
    """An image of the prepared set."""

    jpeg: bytes
    size: images.Size
    boxes: np.ndarray  # [n, 4], corners
    labels: np.ndarray  # [n]
    crowd: np.ndarray  # [n]


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    """Prepare the data set, then print its statistics."""
    harness.require_positive(options, "images")
    if options.out.exists() and any(options.out.iterdir()):
        raise InputError(f"--out must be an empty or absent folder, got {options.out}")
    root = options.source or Path(os.environ.get("JAXDET_DATA", "")) / "coco128"
    if not root.is_dir():
        raise InputError(f"--source must be a folder with a detection data set, got {root}")
    dataset = formats.read(root)
    if options.kind == "skewed":
        dataset = skewed(dataset, options.rare, options.keep, options.seed)
        convert.write(convert.plan(dataset, "coco"), options.out)
        rows = detection.summarize(dataset)
        names = ("split", "class", "images", "boxes")
        harness.write_tables(units.markdown_table(rows, {name: name for name in names}))
        return
    sources = [sample for own in dataset.splits.values() for sample in own if len(sample.boxes)]
    numbers = np.arange(options.images)
    of_val = numbers % VAL_EVERY == VAL_EVERY - 1
    splits = {"train": numbers[~of_val], "val": numbers[of_val]}
    rows = [
        write_split(options.out, name, own.tolist(), sources, dataset.classes, options.seed)
        for name, own in splits.items()
        if len(own)
    ]
    harness.write_tables(units.markdown_table(rows, COLUMNS))


def skewed(
    dataset: detection.DetectionDataset, rare: str, keep: float, seed: int
) -> detection.DetectionDataset:
    """The data set with a fraction `keep` of its training images with objects of the class `rare`.

    Raises InputError for an unknown class, for a fraction outside 0 to 1, and if no training image
    has the class.
    """
    if rare not in dataset.classes:
        raise InputError(
            f"--rare must be one of {', '.join(dataset.classes)}, got {rare or 'none'}"
        )
    if not 0 <= keep <= 1:
        raise InputError(f"--keep must be from 0 to 1, got {keep:g}")
    train, label = dataset.splits.get("train", []), dataset.classes.index(rare)
    having = [number for number, sample in enumerate(train) if label in sample.labels]
    if not having:
        raise InputError(f"--source must have training images with {rare}, got none")
    random = np.random.default_rng(seed)
    dropped = {*random.permutation(having)[max(round(keep * len(having)), 1) :].tolist()}
    left = [sample for number, sample in enumerate(train) if number not in dropped]
    return dataset._replace(splits={**dataset.splits, "train": left})


def write_split(
    folder: Path,
    split: str,
    numbers: Sequence[int],
    sources: Sequence[AnnotatedImage],
    classes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Write the images `numbers` and the annotations of a split; returns its row of the table."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    entries, annotations, areas, sizes = [], [], [], []
    make = partial(changed_image, sources, seed)
    for number, found in zip(numbers, threads.map_images(make, numbers), strict=True):
        name, (height, width) = f"{number:012d}.jpg", found.size
        (folder / split / name).write_bytes(found.jpeg)
        sizes.append(len(found.jpeg))
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for box, label, crowd in zip(found.boxes, found.labels, found.crowd, strict=True):
            x0, y0, x1, y1 = np.round(box, 2).tolist()
            areas.append(FILLED * (x1 - x0) * (y1 - y0))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": areas[-1],
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    files.write_json(folder / "annotations" / f"instances_{split}.json", content)
    with_objects = {annotation["image_id"] for annotation in annotations}
    small, medium = np.array(areas) < SMALL, np.array(areas) < MEDIUM
    return {
        "split": split,
        "images": len(entries),
        "file_bytes": float(np.mean(sizes)),
        "objects": len(annotations) / len(entries),
        "small": float(small.mean()),
        "medium": float((medium & ~small).mean()),
        "large": float((~medium).mean()),
        "crowds": float(np.mean([annotation["iscrowd"] for annotation in annotations])),
        "empty": 1 - len(with_objects) / len(entries),
    }


def changed_image(sources: Sequence[AnnotatedImage], seed: int, number: int) -> ChangedImage:
    """Make image `number`: a changed source or, sometimes, four of them at half their size."""
    random = np.random.default_rng((seed, number))
    image, boxes, labels, crowd = _changed_source(sources, random)
    if random.random() < TILED:
        corners = [(x, y) for y in (0, image.height // 2) for x in (0, image.width // 2)]
        parts = [_changed_source(sources, random) for _ in corners]
        for corner, (part, *_) in zip(corners, parts, strict=True):
            image.paste(part.resize((image.width // 2, image.height // 2)), corner)
        moved = [
            own * np.tile([image.width / 2 / part.width, image.height / 2 / part.height], 2)[None]
            + np.tile(corner, 2)[None]
            for corner, (part, own, *_) in zip(corners, parts, strict=True)
        ]
        boxes = np.concatenate(moved)
        labels, crowd = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    if random.random() < EMPTY:
        boxes, labels, crowd = boxes[:0], labels[:0], crowd[:0]
    return ChangedImage(encode(image), (image.height, image.width), boxes, labels, crowd)


def _changed_source(
    sources: Sequence[AnnotatedImage], random: np.random.Generator
) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray]:
    """Crop, mirror and recolor a random source; return (image, boxes, labels, crowd)."""
    sample = sources[random.integers(len(sources))]
    with Image.open(io.BytesIO(images.file_bytes(sample.image))) as opened:
        whole = opened.convert("RGB")
    sides = np.array(whole.size)
    size = np.rint(sides * random.uniform(MIN_CROP, 1, 2)).astype(int)
    low = np.rint((sides - size) * random.random(2)).astype(int)
    image = whole.crop((*low.tolist(), *(low + size).tolist()))
    corners = sample.boxes.astype(np.float64).reshape(-1, 2, 2)  # box, corner, (x, y)
    inside = np.clip(corners, low, low + size)
    before, after = (np.prod(each[:, 1] - each[:, 0], 1) for each in (corners, inside))
    boxes = (inside - low).reshape(-1, 4)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Color):
        image = enhance(image).enhance(random.uniform(0.7, 1.3))
    kept = (after > 0) & (after >= MIN_VISIBLE * before)
    crowd = sample.crowd | (random.random(len(kept)) < CROWDS)
    return image, boxes[kept], sample.labels[kept], crowd[kept]


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
