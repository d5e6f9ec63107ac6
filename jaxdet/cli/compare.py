"""`jaxdet compare RUN...`: runs side by side, in a table, in curves and by their failures."""

import json
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from jaxdet import baselines, tables
from jaxdet.cli import common, cutoffs, failures, report, spread
from jaxdet.cli.options import Restored
from jaxdet.config import TrainConfig, reuse_data
from jaxdet.errors import InputError
from jaxdet.plots import detection as detection_plots
from jaxdet.plots import training as training_plots
from jaxdet.profiling import timing
from jaxdet.training import checkpoint, evaluator, parallel, run_dir, time_budget

COLUMNS = {
    "run": "run",
    "model": "model",
    "size": "size",
    "parameters": "parameters",
    "operations": "operations of an image",
    "seconds": "s of an image",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "epoch_seconds": "s of an epoch",
    "total_seconds": "s in all",
    **{name: name for name in ("loss", "accuracy", "iou", "iou50", "iou70")},
    "error_rate": "error rate",
}
OF_LABEL = ("accuracy", "iou")
LOSS = ("loss", "box_loss", "class_weight", "box_weight", "gate", "reduction")  # its scale
CLASSIC = (
    "Classic approaches learn from the training split of the first run, have its loss, and run on "
    "the CPU, a photo at a time.  The SVM's chances are the softmax of its decision values.  The "
    "cascade knows faces only: all else gets the most frequent other label and its mean box."
)


class Judged(NamedTuple):
    """A run, judged."""

    row: dict  # of the table, and all other scores
    metrics: list  # lines of `metrics.jsonl`
    worst: list  # [failures.Failure]
    data: dict  # part -> what tells its samples from others
    loss: dict  # the fields of `LOSS` that the run has
    folder: Path
    config: TrainConfig


def run(options):
    """Print a row a run, and draw and write what was asked for."""
    figure, worst = _pictures(options)
    _check(options, figure, worst)
    verified = cutoffs.verified(options)
    found, rows = [], []
    with reuse_data():
        for name, folder in _named(options.runs).items():
            asked = Restored(run=folder, checkpoint=options.checkpoint, split=options.split)
            restored = common.restored(asked)
            found.append(_judged(name, asked, bool(worst), *restored))
            if options.classic and not rows:
                rows = _classic(options.split, *restored[:2])
    verified = cutoffs.matched(verified, found)
    notes = _notes(found, rows)
    rows = [one.row for one in found] + rows
    for note in notes:
        print(f"jaxdet: warning: {note}", file=sys.stderr)
    text = "\n\n".join([_table(rows), *spread.table(found, COLUMNS)])
    lines = map(json.dumps, rows + spread.rows(found))
    print("\n".join(lines) if options.json else text)
    written = list(_drawn(found, figure, worst))
    if options.report:
        said = [*notes, *([CLASSIC] if options.classic else [])]
        report.write(options, found, text, said, written, verified)
        written.append(options.report)
    if written and not options.json:
        print(f"wrote {', '.join(map(str, written))}")
    return 0


def _pictures(options):
    """Where curves and failures go, or None; a report has both."""
    report = options.report
    beside = [report and report.with_name(f"{report.stem}_{w}.png") for w in ("curves", "failures")]
    return options.figure or beside[0], options.failures or beside[1]


def _check(options, *pictures):
    """Refuse, before anything is computed, what cannot be compared or written."""
    if not options.runs:
        raise InputError("no run is given: jaxdet compare RUN..., each the --out of a training")
    for path in pictures:
        common.check_picture(path)
    taken = [path for path in (options.report, *pictures) if path and path.exists()]
    if options.report and taken and not options.overwrite:
        raise InputError(f"{taken[0]} exists; give another name, or --overwrite")
    for folder in options.runs:
        system, _ = run_dir.read_config(folder)
        if not checkpoint.steps(folder):
            raise InputError(f"{folder} has no checkpoints; train it, or leave it out")
        if options.classic and system != "objects":
            raise InputError(f"--classic is for runs of objects; {folder} is one of {system}")
    if options.classic:
        baselines.require_opencv()


def _named(folders):
    """The folders by what tells them apart: their own name, or else their path."""
    folders = dict.fromkeys(folders)
    count = Counter(folder.resolve().name for folder in folders)
    own = {folder: folder.resolve().name for folder in folders}
    return {name if count[name] == 1 else str(folder): folder for folder, name in own.items()}


def _judged(name, asked, draws, config, system, step, state):
    """Scores and history of a restored run, and its failures if they will be drawn."""
    kept, metrics = evaluator.eval_variables(state), run_dir.read_metrics(asked.run)
    telling = system._replace(task=failures.telling(system.task))
    among = parallel.devices(config.devices)
    scorer = evaluator.Evaluator(telling, asked.split, config.eval_batch, among)
    scorer.prepare(kept)
    scores, seconds = timing.timed(lambda: scorer(kept, evaluator.completed_epochs(state)))
    seen = scores.pop("seen")
    operations = scorer.operations(kept) // scorer.count
    kind, _ = run_dir.read_config(asked.run)
    row = {
        "run": name,
        "system": kind,
        "model": getattr(config, "model", kind),
        "size": system.about["input"][:2],
        "parameters": time_budget.count_parameters(kept),
        **_history(asked.run, metrics),
        "split": asked.split,
        "step": step,
        **scores,
        **evaluator.summary(scores, operations, seconds / scorer.count),
    }
    return Judged(
        row=row,
        metrics=metrics,
        worst=failures.worst(name, system, asked.split, seen) if draws and seen else [],
        data=_data(system),
        loss={field: getattr(config, field) for field in LOSS if hasattr(config, field)},
        folder=asked.run,
        config=config,
    )


def _history(folder, metrics):
    """Epochs of a run, which of them was the best, the median of their seconds, and all seconds."""
    epochs = {line["step"]: line["epoch"] for line in metrics}
    return {
        "epochs": max(epochs.values(), default=None),
        "best_epoch": epochs.get(checkpoint.best(folder, warn=lambda line: None)),
        "epoch_seconds": run_dir.epoch_seconds(metrics),
        "total_seconds": run_dir.read_seconds(folder),
    }


def _data(system):
    """What tells the samples of each part: the rows of the kept tables, or ids and labels."""
    if system.files:
        return {path: frozenset(text.splitlines()) for path, text in system.files}
    return {part: _samples(source) for part, source in system.splits.items()}


def _samples(source):
    """What tells the samples of a source: where they come from, or ids and labels."""
    if source.names:
        return frozenset(source.names)
    return tuple(source.arrays[name].tobytes() for name in ("id", "label"))


def _classic(split, config, system):
    """Rows of classic approaches to the data of a run, with its loss."""
    found = baselines.evaluate(
        system.splits,
        split,
        system.about["classes"],
        config.root,
        box_loss=config.box_loss,
        hparams=system.hparams,
    )
    return [
        {"run": name, "split": split, **scores, "error_rate": 1 - scores["accuracy"]}
        for name, scores in found.items()
    ]


def _notes(found, classics):
    """What makes rows hard to compare, or is not among them, a line each."""
    if len({one.row["system"] for one in found}) > 1:
        return ["the runs are of different systems, each with its own data and loss"]
    data, loss = (_apart([getattr(one, of) for one in found]) for of in ("data", "loss"))
    notes = {
        "the runs do not have the same data": data,
        "the runs do not have the same loss, only their other scores compare": loss,
    }
    if classics and baselines.HAAR not in [row["run"] for row in classics]:
        notes[f"the {baselines.HAAR} is left out, no label is"] = [baselines.FACE]
    return [f"{note}: {', '.join(words)}" for note, words in notes.items() if words]


def _apart(each):
    """Keys under which dictionaries do not all have the same."""
    return [key for key in dict.fromkeys(chain(*each)) if len({one.get(key) for one in each}) > 1]


def _table(rows):
    """Markdown: a row a run, with what any of them has, the scores of every label as well."""
    labels = dict.fromkeys(chain.from_iterable(row.get("labels", ()) for row in rows))
    columns = COLUMNS | {f"{name} {key}": f"{name} {key}" for name in labels for key in OF_LABEL}
    rows = [row | _of_labels(row) for row in rows]
    known = {key for row in rows for key, value in row.items() if value is not None}
    return tables.to_markdown(rows, {key: name for key, name in columns.items() if key in known})


def _of_labels(row):
    """The scores of the labels of a row, as columns of their own."""
    labels = row.get("labels", {})
    return {f"{name} {key}": value for name in labels for key, value in labels[name].items()}


def _drawn(found, figure, path):
    """Draw what is asked for and can be; the paths."""
    if figure:
        training_plots.compare_runs({one.row["run"]: one.metrics for one in found}, figure)
        yield figure
    worst = [failure for one in found for failure in one.worst]
    if path and worst:
        titles, images, true, answers, wrong = zip(*worst, strict=True)
        seen = {"titles": titles, "true": true, "predicted": answers, "wrong": wrong}
        detection_plots.gallery(images, path, **seen, columns=failures.MOST)
        yield path
