"""One run evaluated for `jaxdet compare`: scores, cost, history and worst predictions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet import api
from jaxdet.config import TrainConfig
from jaxdet.data.sources import Source
from jaxdet.ops import boxes
from jaxdet.profiling import timing
from jaxdet.training import checkpoint, evaluator, run_dir, time_budget
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array, Batch, Task

Row = dict[str, Any]

MAX_FAILURES = 6  # largest number of failures shown per run
LOSS_OPTIONS = ("loss", "box_loss", "class_weight", "box_weight", "mask_loss_by", "reduction")


class Failure(NamedTuple):
    """One of the worst, or best, predictions of a run."""

    title: str
    image: np.ndarray  # [h, w, C] in [0, 1]: the original image, or the network's input
    true_box: np.ndarray | None  # [4] in pixels of `image`; None for a system without boxes
    predicted_box: np.ndarray | None
    wrong: bool  # whether the label is wrong


class EvaluatedRun(NamedTuple):
    """A run with the scores of one of its checkpoints."""

    row: Row  # the row of the table, and scores that are not in the table
    metrics: list[dict[str, Any]]  # lines of `metrics.jsonl`
    failures: list[Failure]
    data: dict[str, Hashable]  # {split: value}; runs with equal values have equal samples
    loss_options: dict[str, Any]  # the fields among `LOSS_OPTIONS` that the run has
    folder: Path
    config: TrainConfig
    samples: dict[str, np.ndarray]  # scores of resampled images, see `training.evaluator.bootstrap`


def evaluate(
    name: str,
    run: api.Run,
    experiment: Experiment,
    split: str,
    *,
    failures: bool = False,
    resamples: int = 0,
) -> EvaluatedRun:
    """Evaluate a run on a split: scores, costs, history and, if `failures`, worst predictions.

    `name` is the name of the run in tables, and `experiment` is the run's experiment with its data.
    """
    recording = replace(experiment, task=RecordingTask(experiment.task, resamples))
    scorer = run.evaluator(recording, split)
    scorer.compile(run.variables)
    scores, seconds = timing.timed(lambda: scorer(run.variables, run.epoch))
    predictions, samples = scores.pop("predictions"), scores.pop("samples")
    operations = scorer.operations(run.variables)
    metrics, config = run_dir.read_metrics(run.folder), run.config
    row = {
        "run": name,
        "system": run.system,
        "model": getattr(config, "model", run.system),
        "size": run.metadata["input"][:2],
        "parameters": time_budget.count_parameters(run.variables),
        **_history(run.folder, metrics),
        "split": split,
        "step": run.step,
        **scores,
        **evaluator.cost_summary(scores, operations, seconds / scorer.count),
    }
    return EvaluatedRun(
        row=row,
        metrics=metrics,
        failures=worst_predictions(name, experiment, split, predictions)
        if failures and predictions
        else [],
        data=_sample_identities(experiment),
        loss_options={k: getattr(config, k) for k in LOSS_OPTIONS if hasattr(config, k)},
        folder=run.folder,
        config=config,
        samples=samples,
    )


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
    source = experiment.splits[split].take(order)
    subset = replace(experiment, splits={split: source})
    batch = evaluator.samples(subset, split, len(order))
    names = source.names or [f"{split}:{number}" for number in batch["id"]]
    true, found = predictions.get("true_box"), predictions.get("predicted_box")
    failures = []
    for i, image_name, image in zip(order, names, batch["image"], strict=True):
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


def _history(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> Row:
    """Columns of the epochs and times of a run; None in a column that is not recorded."""
    epochs = {line["step"]: line["epoch"] for line in metrics}
    return {
        "epochs": max(epochs.values(), default=None),
        "best_epoch": epochs.get(checkpoint.best(folder, warn=lambda line: None)),
        "epoch_seconds": run_dir.epoch_seconds(metrics),
        "total_seconds": run_dir.read_seconds(folder),
    }


def _sample_identities(experiment: Experiment) -> dict[str, Hashable]:
    """A fingerprint of the samples of each split, equal for runs with the same samples."""
    if experiment.files:
        return {name: frozenset(text.splitlines()) for name, text in experiment.files}
    return {split: _identify(source) for split, source in experiment.splits.items()}


def _identify(source: Source) -> Hashable:
    if source.names:
        return frozenset(source.names)
    return tuple(source.arrays[name].tobytes() for name in ("id", "label"))
