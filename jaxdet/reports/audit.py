"""Likely label errors of the data of a run: which boxes they are, a table, a contact sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet import files, tables
from jaxdet.data import detection, images
from jaxdet.data.detection import AnnotatedImage
from jaxdet.metrics import label_errors
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array, Batch, Task

CORNERS = ("x0", "y0", "x1", "y1")
OTHER = ("suggested", *(f"suggested_{name}" for name in CORNERS), "duplicate_of")
COLUMNS = ("kind", "score", "split", "image", "file", "row", "class", *CORNERS, *OTHER)
MIN_SCORE = 0.1  # boxes with lower scores are not listed
SHOWN = 6  # boxes of each kind in the contact sheet
CELL = (2.4, 2.6)  # inches, of a box in the contact sheet
CONTEXT = 1.0  # total margin around a box in the contact sheet, as a fraction of the box's sides
MIN_CROP = 64  # smallest total margin, in pixels


class Finding(NamedTuple):
    """A likely label error."""

    row: dict[str, Any]  # of the table, with the keys `COLUMNS`
    sample: AnnotatedImage
    true: Array | None  # [4] the true box; None if it is missing
    suggested: Array  # [4] the prediction or the other true box


@dataclass(frozen=True)
class TaskWithIds:
    """A task like `task`, whose measurements also have the ids of the images."""

    task: Task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Any]:
        """The measurements of `task`, and `id [B]`."""
        return {**self.task.measure(predictions, batch), "id": batch["id"]}


def find(
    experiment: Experiment, split: str, rows: Mapping[str, Any], classes: Sequence[str]
) -> list[Finding]:
    """The likely label errors of a split, with a score of at least `MIN_SCORE`.

    rows: measurements of a `TaskWithIds`.
    """
    scores = label_errors.find(rows)
    every = [sample for own in (experiment.samples or {}).values() for sample in own]
    findings = []
    for i, (number, size) in enumerate(zip(rows["id"], rows["size"].tolist(), strict=True)):
        sample, _ = detection.usable_boxes(every[number], (size[0], size[1]))
        if sample is not None:
            image = {name: rows[name][i] for name in label_errors.NAMES}
            own = label_errors.LabelErrors(
                *(values[i] for values in scores[:-1]),
                partner={kind: of[i] for kind, of in scores.partner.items()},
            )
            findings += _in_image(sample, split, image, own, classes)
    return findings


def rank(findings: Sequence[Finding], top: int) -> list[Finding]:
    """The `top` findings of each kind, highest score first."""
    ordered = sorted(findings, key=lambda finding: -finding.row["score"])
    kinds = ([one for one in ordered if one.row["kind"] == kind] for kind in label_errors.KINDS)
    return [one for of_kind in kinds for one in of_kind[:top]]


def write(findings: Sequence[Finding], path: str | Path) -> None:
    """Write a .csv table with the file, row, score and box of each finding, and suggestions."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, tables.to_csv([finding.row for finding in findings], COLUMNS) + "\n")


def draw(findings: Sequence[Finding], path: str | Path) -> None:
    """Draw the contact sheet: the first findings of each kind, cut out of their images.

    True boxes are green; predictions, and the boxes that duplicates repeat, are red.
    """
    from jaxdet.plots import detection as detection_plots

    shown: dict[str, list] = {name: [] for name in ("titles", "true", "predicted")}
    pictures = []
    for finding in rank(findings, SHOWN):
        boxes = [box for box in (finding.true, finding.suggested) if box is not None]
        picture, offset = _crop(images.read_float(finding.sample.image), boxes)
        row = finding.row
        arrow = f" -> {row['suggested']}" if row["kind"] == "mislabeled" else ""
        place = f" row {row['row']}" if row["row"] else ""
        shown["titles"].append(
            f"{row['kind']} {row['score']:.2f}: {row['class']}{arrow}\n{row['image']}{place}"
        )
        shown["true"].append(None if finding.true is None else finding.true - offset)
        shown["predicted"].append(finding.suggested - offset)
        pictures.append(picture)
    detection_plots.gallery(pictures, Path(path), columns=SHOWN, cell=CELL, **shown)


def _in_image(
    sample: AnnotatedImage,
    split: str,
    image: Mapping[str, Array],
    errors: label_errors.LabelErrors,
    classes: Sequence[str],
) -> list[Finding]:
    """The findings in an image; `errors` has its true boxes in the order of `sample.boxes`."""
    place = {"split": split, "image": sample.name, "file": sample.file}
    findings = []
    for kind in label_errors.KINDS:
        for t, score in enumerate(getattr(errors, kind).tolist()):
            if score < MIN_SCORE:
                continue
            p = t if kind == "missing" else int(errors.partner[kind][t])
            suggested = image["true_boxes" if kind == "duplicate" else "boxes"][p]
            true = None if kind == "missing" else image["true_boxes"][t]
            box = suggested if true is None else true
            label = image["labels" if true is None else "true_labels"][t]
            row = {"kind": kind, "score": score, **place}
            row["row"] = None if true is None else int(sample.rows[t])
            row |= {"class": classes[label], **dict(zip(CORNERS, box.tolist(), strict=True))}
            if kind == "duplicate":
                row["duplicate_of"] = int(sample.rows[p])
            elif true is not None:
                row["suggested"] = classes[image["labels"][p]]
                row |= dict(zip(OTHER[1:5], suggested.tolist(), strict=True))
            findings.append(Finding(row, sample, true, suggested))
    return findings


def _crop(image: Array, boxes: Sequence[Array]) -> tuple[Array, Array]:
    """Cut boxes [4] with some context out of an image [H, W, C]; return (picture, offset [4])."""
    corners = np.stack(boxes)
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    margin = np.maximum(CONTEXT * (high - low), MIN_CROP) / 2
    limits = np.array(image.shape[1::-1])
    low = np.clip(np.floor(low - margin), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(high + margin), low + 1, limits).astype(int)
    return image[low[1] : high[1], low[0] : high[0]], np.tile(low, 2)
