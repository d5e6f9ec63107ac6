"""Images of a split with their worst or best predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxdet.ops import boxes
from jaxdet.training import evaluator
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array, Batch, Task

MAX_FAILURES = 6  # largest number of failures shown per run


class SplitImages(NamedTuple):
    """Images of a split as inputs of the network."""

    names: list[str]  # names of the files, or split and number
    images: np.ndarray  # [N, h, w, C] in [0, 1]
    to_original: np.ndarray | None  # [N, 4]: scales in x and y, offsets in x and y; of a detector

    def to_input(self, place: int, found: Array) -> np.ndarray:
        """Convert boxes [..., 4] of image `place` from pixels of the original to the input's."""
        if self.to_original is None:
            return np.asarray(found)
        scale, offset = (np.tile(part, 2) for part in np.split(self.to_original[place], 2))
        return (np.asarray(found) - offset) / scale


def read_images(experiment: Experiment, split: str, rows: Sequence[int] | Array) -> SplitImages:
    """The images with the numbers `rows` in a split."""
    source = experiment.splits[split].take(rows)
    batch = evaluator.samples(replace(experiment, splits={split: source}), split, len(rows))
    names = source.names or [f"{split}:{number}" for number in batch["id"]]
    return SplitImages([*names], batch["image"], batch.get("to_original"))


class Failure(NamedTuple):
    """One of the worst, or best, predictions of a run."""

    title: str
    image: np.ndarray  # [h, w, C] in [0, 1]: the original image, or the network's input
    true_box: np.ndarray | None  # [4] in pixels of `image`; None for a system without boxes
    predicted_box: np.ndarray | None
    wrong: bool  # whether the label is wrong


@dataclass(frozen=True)
class RecordingTask:
    """A task like `task`, whose report also has `predictions`, the label and box of each image.

    `predictions` has the arrays `label`, `predicted` and `score` [N] and, if there are boxes,
    `true_box` and `predicted_box` [N, 4] and `iou` [N].  It is empty for a task without one label
    per image.  The report also has `samples`, the scores of `resamples` resamples of the images.
    """

    task: Task
    resamples: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Any]:
        """The measurements of `task`, and the arrays of `predictions`."""
        rows: dict[str, Array] = {}
        if "label" in predictions and "label" in batch:
            rows = {"label": batch["label"], "predicted": predictions["label"]}
            rows["score"] = predictions["score"]
            if "box" in predictions and "boxes" in batch:
                rows |= {"true_box": batch["boxes"][:, 0], "predicted_box": predictions["box"]}
                rows["iou"] = boxes.iou(rows["predicted_box"], rows["true_box"])
        return {"measured": self.task.measure(predictions, batch), "predictions": rows}

    def report(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The scores of `task`, `predictions` and `samples`."""
        measured = rows["measured"]
        samples = evaluator.bootstrap(self.task, measured, self.resamples) if self.resamples else {}
        added = {"predictions": rows["predictions"], "samples": samples}
        return {**self.task.report(measured), **added}


def worst_predictions(
    name: str, experiment: Experiment, split: str, predictions: dict[str, np.ndarray]
) -> list[Failure]:
    """The `MAX_FAILURES` worst predictions of a split: wrong labels first, then the lowest IoU.

    Without boxes, images with a wrong label come first, by descending score, then images with the
    right label, by ascending score.  Images and boxes have the size of the original files if the
    experiment can read them, else the size of the network's input.

    predictions: as in the report of `RecordingTask`.
    """
    return _shown(name, experiment, split, predictions, _by_quality(predictions)[:MAX_FAILURES])


def best_predictions(
    name: str, experiment: Experiment, split: str, predictions: dict[str, np.ndarray]
) -> list[Failure]:
    """The `MAX_FAILURES` best predictions of a split, best first, as in `worst_predictions`."""
    order = _by_quality(predictions)[::-1][:MAX_FAILURES]
    return _shown(name, experiment, split, predictions, order)


def _by_quality(predictions: dict[str, np.ndarray]) -> np.ndarray:
    """Numbers of the images from the worst prediction to the best."""
    right = predictions["label"] == predictions["predicted"]
    score = predictions["score"]
    quality = predictions.get("iou", np.where(right, score, -score))
    return np.lexsort((quality, right))


def _shown(
    name: str,
    experiment: Experiment,
    split: str,
    predictions: dict[str, np.ndarray],
    order: np.ndarray,
) -> list[Failure]:
    """The predictions of the images with the numbers `order`, and the images to draw them on."""
    classes = experiment.metadata["classes"]
    label, predicted, score = (predictions[k] for k in ("label", "predicted", "score"))
    right = label == predicted
    quantity, shown = ("IoU", predictions["iou"]) if "iou" in predictions else ("score", score)
    names, images, _ = read_images(experiment, split, order)
    true, found = predictions.get("true_box"), predictions.get("predicted_box")
    failures = []
    for i, image_name, image in zip(order, names, images, strict=True):
        scale = np.float32(1)
        if experiment.read_original:
            network, image = image, experiment.read_original(image_name)
            scale = np.tile(np.divide(image.shape[1::-1], network.shape[1::-1]), 2)
        failures.append(
            Failure(
                title=f"{name}: {image_name}\ntrue {classes[label[i]]}, "
                f"predicted {classes[predicted[i]]}, {quantity} {shown[i]:.2f}",
                image=image,
                true_box=None if true is None else true[i] * scale,
                predicted_box=None if found is None else found[i] * scale,
                wrong=not right[i],
            )
        )
    return failures
