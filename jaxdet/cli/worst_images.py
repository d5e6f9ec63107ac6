"""Pictures of the images of a split with the worst errors of a detector, by kind of error."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.metrics import error_types
from jaxdet.metrics.error_types import Errors
from jaxdet.reports import examples
from jaxdet.training.experiment import Experiment

MAX_IMAGES = 6  # per kind of error


def draw(
    experiment: Experiment, split: str, rows: dict[str, Any], errors: Errors, folder: Path
) -> None:
    """Draw `KIND.png` for each kind of error that the split has, with its worst images.

    rows: as in `jaxdet.metrics.detection`; errors: the errors in `rows`.

    The pictures are inputs of the network.  Wrong boxes are red, with class and score; missed
    objects are green, with their class, and so are all objects beside misplaced and mislabeled
    boxes.
    """
    for kind, values in error_types.severity(errors, rows["scores"]).items():
        order = np.argsort(-values, kind="stable")[:MAX_IMAGES]
        order = order[values[order] > 0]
        if order.size:
            _draw_kind(experiment, split, rows, errors, kind, order, folder / f"{kind}.png")


def _draw_kind(experiment, split, rows, errors, kind, order, path) -> None:
    from jaxdet.plots import detection as detection_plots

    classes, found = experiment.metadata["classes"], examples.read_images(experiment, split, order)
    missed, with_objects = kind == "missed", kind in ("misplaced", "mislabeled")
    shown: dict[str, list] = {name: [] for name in ("titles", "true", "predicted", "texts")}
    for place, i in enumerate(order):
        wrong = np.flatnonzero(getattr(errors, kind)[i])
        objects = np.flatnonzero(rows["true_valid"][i] & ~rows["true_crowd"][i])
        count = len(wrong)
        shown["titles"].append(f"{found.names[place]}: {count} {kind}, {len(objects)} objects")
        true = wrong if missed else objects if with_objects else []
        shown["true"].append(found.to_input(place, rows["true_boxes"][i][true]))
        if missed:
            shown["texts"].append([classes[k] for k in rows["true_labels"][i][wrong]])
            continue
        shown["predicted"].append(found.to_input(place, rows["boxes"][i][wrong]))
        pairs = zip(rows["labels"][i][wrong], rows["scores"][i][wrong], strict=True)
        shown["texts"].append([f"{classes[k]} {score:.2f}" for k, score in pairs])
    shown["predicted"] = shown["predicted"] or None
    detection_plots.gallery(list(found.images), path, columns=3, cell=None, **shown)
