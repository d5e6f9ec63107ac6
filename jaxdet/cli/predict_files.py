"""Detections in the formats of other tools: YOLO text files, COCO results, and crops."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdet.api import Detections, Run
from jaxdet.ops import boxes
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array


def write_yolo(path: Path, found: Detections, size: tuple[int, int]) -> None:
    """Write one line per box: its class, its center and sides as fractions of the image, its score.

    `size` is the height and width of the image.
    """
    height, width = size
    lines = []
    for (x0, y0, x1, y1), score, label in zip(*found, strict=True):
        shape = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in (*shape, score))]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_crops(
    folder: Path, stem: str, picture: np.ndarray, found: Detections, classes: Sequence[str]
) -> None:
    """Crop a picture [h, w, C] in [0, 1] to each box, and write it as `STEM_NUMBER_CLASS.png`.

    Boxes without a pixel are skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.rint(picture * 255).astype(np.uint8)
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if x1 > x0 and y1 > y0:
            name = f"{stem}_{i:02d}_{classes[label]}.png".replace("/", "_")
            Image.fromarray(pixels[y0:y1, x0:x1]).save(folder / name)


def coco_results(
    found: Detections, categories: Sequence[tuple[int, str]], image_id: Any, file_name: str
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format.

    `categories` has the (id, name) of each label.
    """
    results = []
    for box, score, label in zip(boxes.to_xywh(found.boxes.astype(float)), *found[1:], strict=True):
        category_id, name = categories[label]
        results.append(
            {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": category_id,
                "category": name,
                "bbox": box.tolist(),
                "score": float(score),
            }
        )
    return results


def categories(run: Run, experiment: Experiment) -> list[tuple[int, str]]:
    """The (COCO id, name) of each class.

    The ids are taken from the data, else from the run's record, else they are 1, 2 and so on.
    """
    ids = experiment.metadata.get("category_ids") or run.recorded.get("category_ids")
    return list(zip(ids or range(1, len(run.classes) + 1), run.classes, strict=True))


def image_ids(titles: Sequence[str], known: Mapping[str, int | str]) -> list[int | str]:
    """COCO ids of the images with these titles.

    If every image has its own id in `known {title: id}`, these ids are used; else the file names,
    if they are different numbers, as in COCO; else the positions of the images, from 0.
    """
    if len({known.get(title) for title in titles} - {None}) == len(titles):
        return [known[title] for title in titles]
    stems = [Path(title).stem for title in titles]
    if all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(len(stems)))


def rounded(box: Array | Sequence[float]) -> list[float]:
    """The corners of a box, rounded to a hundredth of a pixel."""
    return [round(float(value), 2) for value in box]
