"""Score thresholds of a detector, chosen on the validation split and stored in the run."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxdet import files
from jaxdet.errors import InputError
from jaxdet.metrics import operating_point
from jaxdet.metrics.average_precision import Matches
from jaxdet.training import run_dir


class Thresholds(TypedDict):
    """The content of `thresholds.json`; a threshold is null where the rule cannot be met."""

    rule: str
    step: int  # step of the checkpoint
    all: float | None  # one threshold for all classes
    classes: dict[str, float | None]


def choose(matches: Matches, rule: str) -> np.ndarray:
    """A threshold for each class and, last, one for all classes: [K + 1], NaN where there is none.

    rule: as in `operating_point.choose`.
    """
    both = (operating_point.choose(of, rule) for of in (matches, operating_point.pooled(matches)))
    return np.concatenate([*both])


def store(
    folder: Path, chosen: Sequence[float] | np.ndarray, rule: str, step: int, classes: Sequence[str]
) -> Thresholds:
    """Write thresholds from `choose` into a run folder; return the content of the file."""
    *own, all_ = (None if math.isnan(value) else float(value) for value in chosen)
    content = Thresholds(
        rule=rule, step=step, all=all_, classes=dict(zip(classes, own, strict=True))
    )
    files.write_json(folder / run_dir.THRESHOLDS, content)
    return content


def read(
    content: Any, path: Path, step: int, classes: Sequence[str], *, warn: Callable[[str], None]
) -> np.ndarray:
    """The threshold of each class [K], infinite if the class has none.

    content: of `thresholds.json`, in the file `path`.
    warn: called with a line if they were chosen for another step than `step`.

    Raises InputError if they are damaged.
    """
    try:
        checked: Thresholds = files.conform(content, Thresholds)
        found = [checked["classes"][name] for name in classes]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({files.reason(error)}); choose the thresholds again with jaxdet "
            f"eval --choose-threshold f1"
        ) from None
    if checked["step"] != step:
        warn(
            f"{path}: thresholds were chosen for the checkpoint of step {checked['step']}, and are "
            f"applied to step {step}"
        )
    return np.array([math.inf if each is None else each for each in found])
