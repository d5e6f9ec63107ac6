"""Tables of several runs: their options, best evaluations, and mean and spread over seeds."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import files, tables
from jaxdet.cli.evaluated_run import EvaluatedRun
from jaxdet.cli.options import Sweep
from jaxdet.config import TrainConfig, to_words
from jaxdet.training import run_dir

Row = dict[str, Any]

HEADINGS = {
    "error_rate": "error rate",
    "error_rate +-": "error rate +-",
    "epoch_seconds": "s per epoch",
    "epoch_seconds +-": "s per epoch +-",
    "total_seconds": "total s",
    "total_seconds +-": "total s +-",
    "operations": "operations per image",
}
SEED_COLUMNS = {"run": "runs", "runs": "seeds", "model": "model", "split": "split"}
PLOT, PLOT_TITLE = "sweep.png", "Validation scores against the epoch and against seconds"
TEST_SCORES = (
    "Runs without validation images have the test scores of their last epoch: a choice among runs "
    "by these scores is biased."
)
BASELINE = "baseline"  # title of the unchanged run of a one-at-a-time sweep


def report(
    name: str,
    options: Sweep,
    titles: Mapping[TrainConfig, str],
    axes: Sequence[str],
    costs: Mapping[TrainConfig, Mapping[str, int]],
    failed: Collection[Path],
) -> None:
    """Print the table of a sweep, and write table, log and curves of its runs to `options.out`.

    Args:
        titles: name of each run's folder.
        axes: options that are columns of the table.
        costs: operations and parameters of each network.
        failed: folders of runs that diverged or exceeded their time.
    """
    rows = sweep_rows(titles, axes, options.out, costs, failed)
    hidden = []
    if options.one_at_a_time:
        hidden = [axis.strip("-") for axis in axes]
        rows = gain_rows(rows, axes, next(iter(titles)).best)
    columns = {key: HEADINGS.get(key, key) for key in column_names(rows) if key not in hidden}
    found = [run_summary(title, config, options.out / title) for config, title in titles.items()]
    of_system = system_rows(name, found)
    _write(options.out, rows, columns, found, of_system)
    if options.json:
        print(json.dumps(rows))
        return
    print(tables.aligned(rows, columns))
    if note := test_scores_note(found):
        print("\n" + note)
    if of_system:
        print("\n" + tables.aligned(of_system, list(of_system[0])))


def option_value(config: TrainConfig, option: str) -> Any:
    """The value that a configuration has for an option such as `--box-loss`."""
    return getattr(config, option.removeprefix("--").replace("-", "_"))


def sweep_rows(
    titles: Mapping[TrainConfig, str],
    axes: Sequence[str],
    out: Path,
    costs: Mapping[TrainConfig, Mapping[str, int]],
    failed: Collection[Path],
) -> list[Row]:
    """One row per combination of options: mean and spread of scores over seeds, and costs.

    If runs failed, each row has their number as `unfinished`.
    """
    groups: dict[tuple, list[tuple[TrainConfig, Path]]] = {}
    for config, title in titles.items():
        values = tuple((axis, option_value(config, axis)) for axis in axes)
        groups.setdefault(values, []).append((config, out / title))
    rows = []
    for values, group in groups.items():
        row = mean_and_spread(dict(values), [_best_scores(*one) for one in group])
        if failed:
            row["unfinished"] = sum(folder in failed for _, folder in group)
        rows.append({**row, **costs[group[0][0]]})
    return rows


def gain_rows(rows: Sequence[Row], axes: Sequence[str], score: str) -> list[Row]:
    """Add to each row how it differs from the first row: `changed` options, `gain` in a score.

    If the row or the first row lacks the score, the row has no gain.
    """
    names, first = [axis.strip("-") for axis in axes], rows[0]
    gains = []
    for row in rows:
        changed = [f"{name} {row[name]}" for name in names if row[name] != first[name]]
        gain = {"gain": row[score] - first[score]} if score in row and score in first else {}
        gains.append({"changed": ", ".join(changed) or BASELINE, **gain, **row})
    return gains


def mean_and_spread(values: Mapping[str, Any], scores: Sequence[Row]) -> Row:
    """A row with option values, the mean of each score, and its standard deviation as `NAME +-`.

    `scores` has one dict per run.  Deviations are sample standard deviations; a single run has
    none.  A score with the name of an option, such as `loss`, is called `val NAME`.
    """
    row = {axis.strip("-"): value for axis, value in values.items()}
    taken = {*row}
    row["runs"] = len(scores)
    for name in dict.fromkeys(chain(*scores)):
        numbers = [score[name] for score in scores if isinstance(score.get(name), float)]
        if not numbers:
            continue
        column = f"val {name}" if name in taken else name
        row[column] = float(np.mean(numbers))
        if len(numbers) > 1:
            row[f"{column} +-"] = float(np.std(numbers, ddof=1))
    return row


def column_names(rows: Sequence[Row]) -> list[str]:
    """All keys of the rows, beginning with the keys of the longest row."""
    return list(dict.fromkeys(chain(max(rows, key=len), *rows)))


def run_summary(title: str, config: TrainConfig, folder: Path) -> Row:
    """The log entry of a run: options that differ from the defaults, and the best evaluation."""
    metrics = run_dir.read_metrics(folder)
    best = run_dir.best_line(metrics, config.best)
    return {
        "run": title,
        "options": to_words(config),
        "config": config,
        "epochs": max((line["epoch"] for line in metrics), default=None),
        "best_epoch": best.get("epoch"),
        "train": best.get("train"),
        **{
            split: {k: v for k, v in (best.get(split) or {}).items() if isinstance(v, float)}
            for split in ("val", *run_dir.scored_splits(best))
        },
        "seconds": run_dir.read_seconds(folder),
        "comment": config.comment,
    }


def test_scores_note(summaries: Sequence[Row]) -> str:
    """The note on a table in which test scores replace validation scores; "" for other tables."""
    return TEST_SCORES if any(not one["val"] and one.get("test") for one in summaries) else ""


def system_rows(system: str, summaries: Sequence[Row]) -> list[Row]:
    """One row per run with the columns that a system adds to reports; [] if it adds none.

    Validation accuracy is taken from the best evaluation; training accuracy is the mean over the
    last epoch before it.
    """
    describe = getattr(import_module(f"jaxdet.configs.{system}"), "table_row", None)
    if describe is None:
        return []
    return [
        {
            "run": one["run"],
            **describe(one["config"]),
            "epochs": one["epochs"],
            "training accuracy": (one["train"] or {}).get("accuracy"),
            "validation accuracy": one["val"].get("accuracy"),
            "comment": one["comment"],
        }
        for one in summaries
    ]


def seed_rows(evaluated: Sequence[EvaluatedRun]) -> list[Row]:
    """Mean and spread of runs that differ only in seed, comment and, with a time budget, epochs.

    Only the first of several runs with the same seed counts.
    """
    groups: dict[tuple, dict[int, Row]] = {}
    for one in evaluated:
        planned = {"epochs": 0} if one.config.time_budget else {}
        same = replace(one.config, seed=0, comment="", **planned)
        group = groups.setdefault((one.row["system"], same), {})
        group.setdefault(one.config.seed, one.row)
    return [_seed_row(list(group.values())) for group in groups.values() if len(group) > 1]


def seed_columns(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of a table of `seed_rows`, as {key: heading}.

    The columns are `SEED_COLUMNS`, and each of `columns` that has a spread, followed by the spread.
    """
    spread = {k: name for k, name in columns.items() if any(f"{k} +-" in row for row in rows)}
    both = {f"{k}{end}": f"{name}{end}" for k, name in spread.items() for end in ("", " +-")}
    return SEED_COLUMNS | both


def _seed_row(rows: list[Row]) -> Row:
    shared = {name: rows[0][name] for name in ("model", "split")}
    return mean_and_spread({"run": ", ".join(row["run"] for row in rows), **shared}, rows)


def _best_scores(config: TrainConfig, folder: Path) -> Row:
    """Scores and seconds of the best evaluation of a run; {} if there was none."""
    metrics = run_dir.read_metrics(folder)
    line = run_dir.best_line(metrics, config.best)
    if not line:
        return {}
    best = line[run_dir.scored_splits(line)[0]]
    error = {"error_rate": 1 - best["accuracy"]} if "accuracy" in best else {}
    seconds = {
        "epoch_seconds": run_dir.epoch_seconds(metrics),
        "total_seconds": run_dir.read_seconds(folder),
    }
    return {**best, **error, **seconds}


def _write(
    out: Path,
    rows: Sequence[Row],
    columns: Mapping[str, str],
    summaries: Sequence[Row],
    of_system: Sequence[Row],
) -> None:
    """Write the tables in Markdown and JSON, a log with one line per run, and a plot of curves."""
    # Imported here so that the first training step does not wait for matplotlib, half a second.
    from jaxdet.plots import training as training_plots

    curves = {one["run"]: run_dir.read_metrics(out / one["run"]) for one in summaries}
    training_plots.compare_runs(curves, out / PLOT)
    parts = [tables.to_markdown(rows, columns), *filter(None, [test_scores_note(summaries)])]
    if of_system:
        parts.append(tables.to_markdown(of_system, list(of_system[0])))
    parts.append(f"![{PLOT_TITLE}]({PLOT})")
    files.write_text(out / "sweep.md", "\n\n".join(parts) + "\n")
    files.write_json(out / "sweep.json", rows)
    log = ({k: v for k, v in one.items() if k != "config"} for one in summaries)
    files.write_text(out / "runs.jsonl", "".join(f"{json.dumps(line)}\n" for line in log))
