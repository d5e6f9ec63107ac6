"""What `jaxdet sweep` tells of its runs: a table in two forms, a log of runs, their curves."""

import json
from itertools import chain

import numpy as np

from jaxdet import files, tables
from jaxdet.cli import run_table
from jaxdet.training import run_dir

HEADINGS = {
    "error_rate": "error rate",
    "error_rate +-": "error rate +-",
    "epoch_seconds": "s of an epoch",
    "epoch_seconds +-": "s of an epoch +-",
    "total_seconds": "s in all",
    "total_seconds +-": "s in all +-",
    "operations": "operations of an image",
}
CURVES, PICTURE = "sweep.png", "Validation scores against the epoch and against seconds"


def tell(name, options, titles, told, costs, failed):
    """Print the table of runs, and keep it, their log and their curves in `options.out`.

    titles: {configuration: name of the run's folder}.  told: options that the rows have.  costs:
    {configuration: what its network takes}.  failed: folders of runs without an end.
    """
    rows = _rows(titles, told, options.out, costs, failed)
    left_out = ()
    if options.one_at_a_time:
        best = next(iter(titles)).best
        rows, left_out = _gains(rows, told, best), [option.strip("-") for option in told]
    names = [key for key in _columns(rows) if key not in left_out]
    text = tables.to_markdown(rows, {key: HEADINGS.get(key, key) for key in names})
    found = [
        run_table.of_run(title, config, options.out / title) for config, title in titles.items()
    ]
    parts = [text, *run_table.table(name, found)]
    _keep(rows, parts, found, options.out)
    print(json.dumps(rows) if options.json else "\n\n".join(parts))


def value(config, option):
    """The value of an option as it is spelled, such as `--box-loss`."""
    return getattr(config, option.removeprefix("--").replace("-", "_"))


def _columns(rows):
    """What any row has, in the order of the row that has most."""
    return dict.fromkeys(chain(max(rows, key=len), *rows))


def _keep(rows, parts, found, out):
    """The tables in two forms, a line a run, and the curves of all runs."""
    # Imported here: the first step need not wait half a second for matplotlib.
    from jaxdet.plots import training as training_plots

    training_plots.compare_runs(
        {one["run"]: run_dir.read_metrics(out / one["run"]) for one in found}, out / CURVES
    )
    text = "\n\n".join([*parts, f"![{PICTURE}]({CURVES})"])
    files.write_text(out / "sweep.md", f"{text}\n")
    files.write_json(out / "sweep.json", rows)
    run_table.write(out / "runs.jsonl", found)


def _rows(titles, told, out, costs, failed):
    """A row a combination of the options `told`, but for seeds.

    Mean and spread over these of the best evaluation; cost.  Where runs failed, rows count them.
    """
    found = {}
    for config, title in titles.items():
        values = tuple((option, value(config, option)) for option in told)
        found.setdefault(values, []).append((config, out / title))
    rows = []
    for values, alike in found.items():
        row = averaged(dict(values), [_best(*one) for one in alike])
        if failed:
            row["unfinished"] = sum(folder in failed for _, folder in alike)
        rows.append(row | costs[alike[0][0]])
    return rows


def _gains(rows, told, best):
    """Rows with what was changed of the first, and by how much `best` is higher for it."""
    names = [option.strip("-") for option in told]
    out = []
    for row in rows:
        changed = [f"{name} {row[name]}" for name in names if row[name] != rows[0][name]]
        gain = {"gain": row[best] - rows[0][best]} if best in row and best in rows[0] else {}
        out.append({"changed": ", ".join(changed) or "nothing", **gain, **row})
    return out


def _best(config, folder):
    """Scores of the evaluation that the best checkpoint has, and seconds; {} where was none."""
    metrics = run_dir.read_metrics(folder)
    best = run_table.best(metrics, config.best).get("val")
    if not best:
        return {}
    wrong = {"error_rate": 1 - best["accuracy"]} if "accuracy" in best else {}
    spent = {
        "epoch_seconds": run_dir.epoch_seconds(metrics),
        "total_seconds": run_dir.read_seconds(folder),
    }
    return {**best, **wrong, **spent}


def averaged(values, scores):
    """A row of these values: the means of several scores, and their spread as `NAME +-`.

    A score that is called as an option, such as `loss`, is `val NAME`.
    """
    chosen = {axis.strip("-"): value for axis, value in values.items()}
    row = {**chosen, "runs": len(scores)}
    for name in dict.fromkeys(chain(*scores)):
        of_all = [score[name] for score in scores if isinstance(score.get(name), float)]
        if not of_all:
            continue
        column = f"val {name}" if name in chosen else name
        row[column] = float(np.mean(of_all))
        if len(of_all) > 1:
            row[f"{column} +-"] = float(np.std(of_all, ddof=1))
    return row
