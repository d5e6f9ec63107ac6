"""`jaxdet eval RUN --choose-threshold RULE`: choose score thresholds on the validation split.

The thresholds are stored in the run folder, where `predict --score-threshold chosen` finds them.
"""

import json
import math
from typing import Any

import numpy as np

from jaxdet import api, tables
from jaxdet.cli import common
from jaxdet.cli.options import Eval
from jaxdet.errors import InputError
from jaxdet.export.model import ExportedModel
from jaxdet.metrics import average_precision, calibration, operating_point
from jaxdet.metrics.average_precision import Matches
from jaxdet.metrics.error_types import KINDS, Errors
from jaxdet.reports import thresholds
from jaxdet.training import run_dir
from jaxdet.training.experiment import Experiment

ALL = "all"  # the row of all classes together
COLUMNS = {
    "class": "class",
    "threshold": "threshold",
    "count": "objects",
    **{name: name for name in ("precision", "recall", "f1")},
    "best_f1": "f1 at the best threshold of the split",
}


def run(options: Eval) -> int:
    """Choose the thresholds, store them, and print the scores at them; returns the exit code."""
    rule = options.choose_threshold
    operating_point.check_rule(rule)
    if options.root:
        raise InputError(
            "--choose-threshold needs the validation split of the run; leave out --root"
        )
    run = common.load(options)
    _check_system(run, "--choose-threshold")
    experiment = run.with_data()
    common.report_tiles(run, experiment)
    if "val" not in experiment.splits:
        raise InputError(
            f"{options.run} has no validation split to choose thresholds on; give a threshold with "
            f"--score-threshold"
        )
    matches = {
        name: _match(run, experiment, name) for name in ("val", "test") if name in experiment.splits
    }
    chosen = thresholds.choose(matches["val"], rule)
    content = thresholds.store(run.folder, chosen, rule, run.step, run.classes)
    found = {split: _table(own, chosen, run.classes) for split, own in matches.items()}
    boxes = {split: operating_point.scored_boxes(own) for split, own in matches.items()}
    temperature = calibration.fit_temperature(*boxes["val"])
    errors = {split: _calibration_errors(*own, temperature) for split, own in boxes.items()}
    if options.json:
        calibrated = {"temperature": temperature, "ece": errors}
        print(json.dumps({**content, **calibrated, **found}))
        return 0
    for split, rows in found.items():
        where = "chosen here" if split == "val" else "chosen on val"
        print(f"{split} split, checkpoint of step {run.step}, thresholds {where} by {rule}:\n")
        print(f"{tables.aligned(rows, COLUMNS)}\n")
    print(f"calibration error (ECE) of all boxes; temperature fitted on val: {temperature:.4g}")
    for split, (before, after) in errors.items():
        print(f"  {split}: {before:.4f} without the temperature, {after:.4f} with it")
    print(
        f"wrote {run.folder / run_dir.THRESHOLDS}; apply it with predict --score-threshold chosen"
    )
    return 0


def image_rows(
    split: str, names: list[str] | None, matches: Matches, errors: Errors, threshold: float
) -> list[dict[str, Any]]:
    """One row per image of a split: its name or number, and its counts of boxes.

    The counts are of correct boxes (`tp`), wrong boxes (`fp`), missed objects (`fn`), and of wrong
    boxes by kind, see `jaxdet.metrics.error_types`.
    """
    counts = operating_point.per_image(matches, np.full(matches.objects.shape[1], threshold))
    counts |= {kind: getattr(errors, kind).sum(1) for kind in KINDS}
    return [
        {
            "split": split,
            "image": names[i] if names else i,
            **{name: int(values[i]) for name, values in counts.items()},
        }
        for i in range(len(matches.objects))
    ]


def read(run: api.Run | ExportedModel) -> np.ndarray:
    """Read the thresholds chosen for a run: one per class [K], infinite if the class has none.

    A file that was exported from the run has them too.  Raises InputError if no thresholds have
    been chosen for the run, or if their file is damaged.
    """
    if not isinstance(run, ExportedModel):
        _check_system(run, "--score-threshold chosen")
    return run.chosen_thresholds(warn=common.warn)


def _check_system(run: api.Run, option: str) -> None:
    if run.system != "detect":
        raise InputError(f"{option} needs a run of detect, got a run of {run.system}")
    if not run_dir.is_run(run.folder):
        raise InputError(f"{option} needs a run, which stores the thresholds, got {run.folder}")


def _calibration_errors(
    scores: np.ndarray, correct: np.ndarray, temperature: float
) -> tuple[float, float]:
    """Expected calibration errors of the scores: before and after a temperature is applied."""
    calibrated = calibration.apply_temperature(scores, temperature)
    before, after = (
        calibration.expected_calibration_error(each, correct) for each in (scores, calibrated)
    )
    return before, after


def _match(run: api.Run, experiment: Experiment, split: str) -> Matches:
    evaluator = run.evaluator(experiment, split)
    _, rows = common.measure(run, evaluator)
    return average_precision.match(rows, len(run.classes))


def _table(matches: Matches, chosen: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows with scores at the threshold and the best F1: one per class, and one for all classes."""
    best = thresholds.choose(matches, "f1")
    columns: dict[str, list] = {"class": [*classes, ALL], "threshold": [*map(_known, chosen)]}
    columns["count"] = [*map(int, matches.objects.sum(0)), int(matches.objects.sum())]
    for at, prefix in ((chosen, ""), (best, "best_")):
        own = operating_point.rates(matches, at[:-1])
        whole = operating_point.rates(operating_point.pooled(matches), at[-1:])
        for name in own:
            columns[prefix + name] = [*map(_known, np.concatenate([own[name], whole[name]]))]
    kept = [name for name in columns if name in COLUMNS]
    return [dict(zip(kept, row, strict=True)) for row in zip(*map(columns.get, kept), strict=True)]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
