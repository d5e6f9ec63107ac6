"""Runs as lines of a log and rows of a table: what each is, and how far it came."""

import json
from importlib import import_module

from jaxdet import files, tables
from jaxdet.cli import flags
from jaxdet.training import run_dir


def of_run(title, config, folder):
    """What is told of a run in `folder`: its options that are not the usual ones, and its best."""
    metrics = run_dir.read_metrics(folder)
    found = best(metrics, config.best)
    return {
        "run": title,
        "options": flags.words(config),
        "config": config,
        "epochs": max((line["epoch"] for line in metrics), default=None),
        "best_epoch": found.get("epoch"),
        "train": found.get("train"),
        "val": {k: v for k, v in found.get("val", {}).items() if isinstance(v, float)},
        "seconds": run_dir.read_seconds(folder),
        "comment": config.comment,
    }


def best(metrics, score):
    """The line of `metrics.jsonl` whose evaluation the best checkpoint has; {} where there is none.

    score: its name; ties go to the lower loss.
    """
    return max(metrics, key=lambda line: (line["val"][score], -line["val"]["loss"]), default={})


def write(path, found):
    """A file with a line of JSON a run, of `of_run`."""
    lines = ({k: v for k, v in one.items() if k != "config"} for one in found)
    files.write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def table(system, found):
    """Markdown, in a list: a row a run with what its system tells of it; [] of one that does not.

    The columns are those of seed 004's table: accuracies are those of the best evaluation, in
    training as the mean over the epoch before it.
    """
    told = getattr(import_module(f"jaxdet.configs.{system}"), "told", None)
    if told is None:
        return []
    rows = [
        {
            "run": one["run"],
            **told(one["config"]),
            "epochs": one["epochs"],
            "training accuracy": (one["train"] or {}).get("accuracy"),
            "validation accuracy": one["val"].get("accuracy"),
            "comment": one["comment"],
        }
        for one in found
    ]
    return [tables.to_markdown(rows, list(rows[0]))]
