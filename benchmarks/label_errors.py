"""How well `jaxdet data audit` finds label errors: errors injected into the labels of a run's data.

    python -m benchmarks.label_errors --run runs/detect --cleanlab /PATH/TO/ENV/bin/python

The run predicts the split once. Of its true boxes, four times `--fraction`, drawn at random, get an
error each: a box is removed (missing), moved and scaled to an IoU of .1 to .5 with the original
(misplaced), given another class (mislabeled), or repeated with an IoU of at least .7 (duplicate).
The table has, for each kind with n injected errors, the fraction of true hits among the first 10
and the first n boxes of the ranking (precision), and the fraction of the errors among the first n
and 2n (recall); means and standard deviations of `--repeats` draws. A missing box is found by a
prediction with an IoU of at least .5, and a duplicate by either box of the pair. Label errors that
were in the data before count as false hits.

cleanlab's object detection scores (Tkachenko et al. 2023, arXiv:2309.00832; it has no score for
duplicates) rank the same boxes from the same predictions, in an environment of its own. Missing and
mislabeled boxes need predictions above its high_probability_threshold, .95 by default; detectors
trained with task-aligned assignment rarely have such scores, so a threshold of .5 is compared too.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxdet
from benchmarks.lib import harness, units
from benchmarks.lib.reference import iou
from jaxdet.data import regular_files
from jaxdet.errors import InputError
from jaxdet.metrics import label_errors

NAME = "label_errors"
COLUMNS = {
    "kind": "kind",
    "method": "method",
    "injected": "n",
    "precision_10": "precision at 10",
    "precision_n": "precision at n",
    "recall_n": "recall at n",
    "recall_2n": "recall at 2n",
}
MISPLACED_IOU, DUPLICATE_IOU, FOUND_IOU = (0.1, 0.5), 0.7, 0.5
CLEANLAB_THRESHOLDS = (0.95, 0.5)  # high_probability_threshold: the default, and a lower one
MAX_SHIFT, MAX_SCALE, MAX_JITTER = 0.7, 1.5, 0.1  # of the sides of a box
SCORES_SCRIPT = Path(__file__).parent / "lib" / "cleanlab_scores.py"

Rows = dict[str, np.ndarray]
Place = tuple[int, int]  # image and true box


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Precision and recall of `jaxdet data audit` on injected label errors."""

    run: Path = Path("runs/detect")
    """run folder of a detector"""
    split: str = "test"
    """split whose labels are changed"""
    root: str = ""
    """folder of the data; default: as in the run"""
    fraction: float = 0.05
    """fraction of the true boxes that get an error of each kind"""
    repeats: int = 10
    """number of draws"""
    cleanlab: str = ""
    """Python of an environment with the package cleanlab; default: without this comparison"""


class Injected(NamedTuple):
    """The rows of a split with injected label errors, and the places of these errors."""

    rows: Rows
    removed: dict[Place, np.ndarray]  # boxes [4] of the missing objects
    changed: dict[str, dict[Place, int]]  # kind -> {box: number of the error}


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats")
    if not 0 < options.fraction <= 0.25:
        raise InputError(f"--fraction must be above 0 and at most .25, got {options.fraction}")
    detector = jaxdet.load(options.run)
    if detector.system != "detect":
        raise InputError(f"--run must be a run of detect, got a run of {detector.system}")
    _, rows = detector.measure(detector.with_data(root=options.root), options.split)
    rows = {name: np.asarray(rows[name]) for name in label_errors.NAMES}
    table = compare(rows, options.fraction, options.repeats, options.cleanlab)
    if not options.cleanlab:
        print("cleanlab is not compared: give --cleanlab the Python of an environment with it")
    harness.publish(NAME, options, render, table)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(rows: Rows, fraction: float, repeats: int, cleanlab: str) -> list[dict[str, Any]]:
    """A row per kind and method, with means and standard deviations over the draws."""
    draws = [inject(rows, fraction, seed) for seed in range(repeats)]
    methods = {"jaxdet": [label_errors.find(draw.rows)._asdict() for draw in draws]}
    if cleanlab:
        methods |= cleanlab_scores([draw.rows for draw in draws], cleanlab)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for kind in label_errors.KINDS:
        for method, scores in methods.items():
            if kind in scores[0]:
                pairs = zip(draws, scores, strict=True)
                found[kind, method] = [evaluate(draw, kind, own[kind]) for draw, own in pairs]
    table = []
    for (kind, method), figures in found.items():
        row: dict[str, Any] = {"kind": kind, "method": method}
        for name in figures[0]:
            values = [of_draw[name] for of_draw in figures]
            mean, spread = np.mean(values), np.std(values, ddof=1) if repeats > 1 else 0.0
            row[name] = int(mean) if name == "injected" else f"{mean:.2f} ({spread:.2f})"
        table.append(row)
    return table


def inject(rows: Rows, fraction: float, seed: int) -> Injected:
    """Change a `fraction` of the true boxes that are not crowds, for each kind of error."""
    random = np.random.default_rng(seed)
    rows = {name: column.copy() for name, column in rows.items()}
    places = np.argwhere(rows["true_valid"] & ~rows["true_crowd"])
    count = max(round(fraction * len(places)), 1)
    drawn = random.permutation(places)[: 4 * count].tolist()
    chosen = [[(i, t) for i, t in drawn[k::4]] for k in range(4)]
    parts = dict(zip(label_errors.KINDS, chosen, strict=True))
    classes = int(rows["true_labels"].max()) + 1
    removed = {place: rows["true_boxes"][place].copy() for place in parts["missing"]}
    for place in parts["missing"]:
        rows["true_valid"][place] = False
    for place in parts["misplaced"]:
        rows["true_boxes"][place] = _moved(rows["true_boxes"][place], random)
    for place in parts["mislabeled"]:
        shift = random.integers(1, classes)
        rows["true_labels"][place] = (rows["true_labels"][place] + shift) % classes
    changed = {
        kind: {place: number for number, place in enumerate(parts[kind])}
        for kind in ("misplaced", "mislabeled", "duplicate")
    }
    width = rows["true_valid"].shape[1]
    extra = max(np.bincount([i for i, _ in parts["duplicate"]], minlength=1))
    for name in ("true_boxes", "true_labels", "true_valid", "true_crowd"):
        padding = [(0, 0), (0, int(extra)), *[(0, 0)] * (rows[name].ndim - 2)]
        rows[name] = np.pad(rows[name], padding)
    for number, (i, t) in enumerate(parts["duplicate"]):
        column = width + int(rows["true_valid"][i, width:].sum())
        rows["true_boxes"][i, column] = _jittered(rows["true_boxes"][i, t], random)
        rows["true_labels"][i, column] = rows["true_labels"][i, t]
        rows["true_valid"][i, column] = True
        changed["duplicate"][i, column] = number
    return Injected(rows, removed, changed)


def evaluate(injected: Injected, kind: str, scores: np.ndarray) -> dict[str, float]:
    """Precision and recall, for one kind of error, of the ranking of boxes by `scores` [N, B]."""
    order = np.argsort(-scores, axis=None, kind="stable")
    order = order[scores.ravel()[order] > 0]
    places = [(int(i), int(b)) for i, b in zip(*np.unravel_index(order, scores.shape), strict=True)]
    if kind == "missing":
        hits = [_removed_at(injected, place) for place in places]
        count = len(injected.removed)
    else:
        hits = [injected.changed[kind].get(place) for place in places]
        count = len({*injected.changed[kind].values()})

    def distinct(first: int) -> int:
        return len({hit for hit in hits[:first] if hit is not None})

    return {
        "injected": count,
        "precision_10": sum(hit is not None for hit in hits[:10]) / 10,
        "precision_n": sum(hit is not None for hit in hits[:count]) / count,
        "recall_n": distinct(count) / count,
        "recall_2n": distinct(2 * count) / count,
    }


def cleanlab_scores(draws: Sequence[Rows], python: str) -> dict[str, list[Rows]]:
    """The scores of cleanlab in each draw, as {method: [scores]}."""
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(draws):
            np.savez(Path(folder) / f"{number}.npz", **rows)
        words = [python, str(SCORES_SCRIPT), folder, *map(str, CLEANLAB_THRESHOLDS)]
        with regular_files.reading(f"--cleanlab {python}"):
            done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"--cleanlab {python}: failed: {last}")
        return {
            f"cleanlab, threshold {threshold:g}": [
                dict(np.load(Path(folder) / f"{number}-{threshold}.scores"))
                for number in range(len(draws))
            ]
            for threshold in CLEANLAB_THRESHOLDS
        }


def _removed_at(injected: Injected, place: Place) -> Place | None:
    """The place of the removed object that a predicted box finds; None if it finds none."""
    image, box = place
    own = [(p, removed) for p, removed in injected.removed.items() if p[0] == image]
    overlaps = [iou(injected.rows["boxes"][image, box], removed) for _, removed in own]
    best = int(np.argmax(overlaps)) if own else 0
    return own[best][0] if own and overlaps[best] >= FOUND_IOU else None


def _moved(box: np.ndarray, random: np.random.Generator) -> np.ndarray:
    low, high = MISPLACED_IOU
    while True:
        center, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        center = center + random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * sides
        sides = sides * MAX_SCALE ** random.uniform(-1, 1, 2)
        moved = np.concatenate([center - sides / 2, center + sides / 2]).astype(np.float32)
        if low <= iou(box, moved) <= high:
            return moved


def _jittered(box: np.ndarray, random: np.random.Generator) -> np.ndarray:
    while True:
        shift = random.uniform(-MAX_JITTER, MAX_JITTER, 4) * np.tile(box[2:] - box[:2], 2)
        found = (box + shift).astype(np.float32)
        if iou(box, found) >= DUPLICATE_IOU:
            return found


if __name__ == "__main__":
    sys.exit(main())
