"""`jaxdet data preview SYSTEM`: draw training inputs with their true boxes."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from jaxdet import configs
from jaxdet.cli import common
from jaxdet.cli.options import Preview
from jaxdet.config import TrainConfig
from jaxdet.tasks.detect import DetectionTask
from jaxdet.training import evaluator
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array, Batch

MIN_FRACTION = 0.1  # the title of a mixed image names classes with at least this fraction


def run(system: str, options: Preview, config: TrainConfig) -> int:
    """Draw the first inputs of the first epoch, after augmentation; returns the exit code."""
    common.check_picture(options.out, options.count)
    experiment = configs.build(system, config)
    shown = _shown(experiment, options.count, train=True, seed=config.seed)
    many = isinstance(experiment.task, DetectionTask)
    if options.before:
        before = _shown(experiment, options.count, train=False)
        if many:
            for inputs, word in ((before, "before"), (shown, "after")):
                inputs["titles"] = [f"{word}: {title}" for title in inputs["titles"]]
        shown = {key: list(chain(*zip(before[key], shown[key], strict=True))) for key in shown}
    pictures = shown.pop("pictures")
    cells = common.large_cells(pictures) if many else {}
    common.draw(pictures, options.out, **shown, **cells)
    return 0


def _shown(experiment: Experiment, count: int, **options: Any) -> dict[str, Any]:
    """The first inputs of the training split, as keyword arguments of `common.draw`."""
    batch, classes = evaluator.samples(experiment, "train", count, **options), experiment.metadata
    classes = classes["classes"]
    if isinstance(experiment.task, DetectionTask):
        return {"pictures": batch["image"], **_many_boxes(batch, classes)}
    true = batch["boxes"][:, 0] if "boxes" in batch else [None] * len(batch["label"])
    target: Any = batch.get("target", np.eye(len(classes))[batch["label"]])
    titles = [f"true {_describe_target(classes, fractions)}" for fractions in target]
    return {"pictures": batch["image"], "titles": titles, "true": true}


def _many_boxes(batch: Batch, classes: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Keyword arguments of `common.draw` for images with many boxes."""
    columns = zip(batch["boxes"], batch["labels"], batch["valid"], strict=True)
    true, labels = zip(*((boxes[on], labels[on]) for boxes, labels, on in columns), strict=True)
    return {
        "titles": [f"{len(boxes)} boxes" for boxes in true],
        "true": true,
        "texts": [[classes[i] for i in of_image] for of_image in labels],
        "labels": labels,
    }


def _describe_target(classes: Sequence[str], fractions: Array) -> str:
    """The class of an image or, for a mixed image, its classes with their fractions."""
    named = [i for i in np.argsort(-fractions) if fractions[i] >= MIN_FRACTION]
    if len(named) < 2:
        return classes[int(fractions.argmax())]
    return ", ".join(f"{classes[i]} {fractions[i]:.2f}" for i in named)
