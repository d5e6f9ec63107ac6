"""One run evaluated for `jaxdet compare`: scores, cost, history and worst predictions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet import api
from jaxdet.config import TrainConfig
from jaxdet.data.sources import Source
from jaxdet.profiling import timing
from jaxdet.reports.examples import Failure, RecordingTask, worst_predictions
from jaxdet.training import checkpoint, evaluator, run_dir, time_budget
from jaxdet.training.experiment import Experiment

Row = dict[str, Any]

LOSS_OPTIONS = ("loss", "box_loss", "class_weight", "box_weight", "mask_loss_by", "reduction")


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
