"""What `jaxdet compare --report` writes: tables, pictures and, within limits, the best network.

A system whose configuration has `LIMITS`, of seed 003, or `CUTOFFS`, of seed 004, gets the report
that the seed asks for.
"""

import os
import shlex
from urllib.parse import quote

import jax
import numpy as np

from jaxdet import configs, tables
from jaxdet.cli import common, cutoffs, flags, run_table
from jaxdet.config import TrainConfig
from jaxdet.metrics import classification as classification_metrics
from jaxdet.profiling import summary
from jaxdet.training import run_dir

PICTURES = (
    "Validation scores against the epoch",
    "The worst answers of each run: true boxes green, predicted boxes red, wrong labels in red",
)
UNITS = {"parameters": "parameters that learn", "total_seconds": "seconds, evaluations included"}
SHARED = (
    "Seconds of `{run}` are a share: up to {most} runs were trained in one program, and what "
    "passed is divided among them; alone it may need more."
)
LAYER_HEADINGS = summary.HEADINGS | {
    "type": "F: type, hyper-parameters",
    "output": "X: output",
    "inputs": "of the X of",
    "weights": "W: weights",
}
RISE, OVER = 0.002, 5  # a plateau: the accuracy rises by less over so many epochs


def write(options, found, table, notes, pictures, verified):
    """One Markdown file: the table of the runs, what to mind, and links to the pictures.

    found: `compare.Judged` of every run.  verified: of `cutoffs.matched`.
    """
    path, many = options.report, len(found)
    system, kind = _alike(found)
    limits = _limits(kind, found)
    parts = [
        f"# {many} run{'s' * (many > 1)} compared",
        *([_goal(limits)] if limits else []),
        f"Scores of checkpoint `{options.checkpoint}` on split `{options.split}`.",
        table,
        *notes,
        *(_variants(found) if len({one.row["system"] for one in found}) == 1 else []),
        *(_best(found, limits) if limits else []),
        *cutoffs.parts(kind.CUTOFFS, found, verified),
        *(_what(system, found) if system else []),
    ]
    for title, picture in zip(PICTURES, pictures, strict=False):
        link = quote(os.path.relpath(picture, path.parent).replace(os.sep, "/"))
        parts += [f"![{title}]({link})"]
    run_dir.write_file(path.parent, path.name, "\n\n".join(parts) + "\n")


def _alike(found):
    """(the system of all runs, or None, the class of its configurations, or of all)."""
    first, *others = {one.row["system"] for one in found}
    return (None, TrainConfig) if others else (first, configs.config(first))


def _limits(kind, found):
    """`kind.LIMITS`, with the fewest parameters that any run was allowed (`--max-params`)."""
    asked = [one.config.max_params for one in found if one.config.max_params]
    limits = kind.LIMITS
    return limits | {"parameters": min(asked)} if asked and "parameters" in limits else limits


def _what(system, found):
    """Parts about what the runs are, where their system tells."""
    lines = [run_table.of_run(one.row["run"], one.config, one.folder) for one in found]
    table = run_table.table(system, lines)
    return ["## What the runs are", *table] if table else []


def _goal(limits):
    most = " and ".join(f"{most:,} {UNITS[name]}" for name, most in limits.items())
    return f"Goal: as few wrong labels as can be, with at most {most}."


def _variants(found):
    """Parts about what the runs are: the options in which they differ, and which did not end."""
    names = [field for field in vars(found[0].config) if len(_values(found, field)) > 1]
    rows = [
        {"run": one.row["run"], **{name: getattr(one.config, name, None) for name in names}}
        for one in found
    ]
    if names:
        yield "What the runs differ in, as options of `jaxdet train`:"
        yield tables.to_markdown(rows, ["run", *names])
    for one in found:
        done, wanted = one.row["epochs"], one.config.epochs
        if done is not None and done < wanted and not one.config.patience:
            why = "it was stopped, or its loss was no longer a number"
            yield f"`{one.row['run']}` has {done} of its {wanted} epochs: {why}."
        most = max((line.get("together", 1) for line in one.metrics), default=1)
        if most > 1:
            yield SHARED.format(run=one.row["run"], most=most)


def _values(found, field):
    """All values of an option of the runs."""
    return {getattr(one.config, field, None) for one in found}


def _best(found, limits):
    """Parts about the best of the runs: those within the limits, or all where none is."""
    within = [one for one in found if all(one.row[k] <= most for k, most in limits.items())]
    best = max(within or found, key=lambda one: max(_accuracies(one), default=0.0))
    row, where = best.row, run_dir.read_environment(best.folder).get("devices", ["?"])
    kind = "both limits" if within else "no limit: no run is within both; the best of all"
    return [
        "## The best network",
        f"Within {kind}: `{row['run']}`, chosen by its validation accuracy, has accuracy "
        f"{row['accuracy']:.4f}, error rate {row['error_rate']:.4f}, {row['parameters']:,} "
        f"parameters, {row['total_seconds']:.0f} s on {len(where)} {where[0]}.",
        f"    jaxdet train {row['system']} {shlex.join(flags.words(best.config))}",
        *_layers(best),
        "## Accuracy of each label, and what it was taken for",
        common.by_label(row),
        _telling(row),
        "## Validation accuracy after each epoch, from before the first",
        _epochs(found),
        f"Where less than {RISE} more came in the {OVER} epochs after:",
        tables.to_markdown([_plateau(one) for one in found], ["run", "plateau from epoch"]),
    ]


def _layers(best):
    """Functions F, variables X and parameters W of a network, from its input to its output."""
    named = configs.network_of_run(best.folder, best.config)
    images = jax.ShapeDtypeStruct(named.input, "float32")
    network = summary.summarize(named.net, images)
    *layers, whole = summary.table_rows(network)
    rows = [{"layer": "input", "output": named.input}, *layers]
    rows = [{"n": n, **row} for n, row in enumerate(rows)] + [whole]
    return [
        "From the image to its answer: X n is the output of the function F n, which learns the "
        "weights W n; where W is empty, nothing is learnt:",
        summary.to_markdown(rows, summary.notes(network), LAYER_HEADINGS),
    ]


def _telling(row):
    """In words, the labels that are found best and worst, and the most frequent mistake."""
    shares = {name: of["accuracy"] for name, of in row["labels"].items() if of["count"]}
    best, worst = max(shares, key=shares.get), min(shares, key=shares.get)
    said = f"Found best: {best}, {shares[best]:.3f}; worst: {worst}, {shares[worst]:.3f}."
    wrong = np.array(row["confusion"])
    np.fill_diagonal(wrong, 0)
    true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    names = list(row["labels"])
    mistake = f"{names[true]} for {names[taken]}, {wrong.max()} of {wrong.sum()} mistakes"
    return f"{said}  Most often taken wrongly: {mistake}." if wrong.any() else said


def _accuracies(one):
    """Validation accuracy after each epoch of a run."""
    return [line["val"]["accuracy"] for line in one.metrics]


def _epochs(found):
    """A row an epoch, a column a run."""
    rows = {}
    for one in found:
        for line in one.metrics:
            row = rows.setdefault(line["epoch"], {"epoch": line["epoch"]})
            row[one.row["run"]] = line["val"]["accuracy"]
    ordered = [rows[epoch] for epoch in sorted(rows)]
    return tables.to_markdown(ordered, ["epoch", *(one.row["run"] for one in found)])


def _plateau(one):
    place = classification_metrics.plateau_start(_accuracies(one), rise=RISE, over=OVER)
    epoch = "not reached" if place is None else one.metrics[place]["epoch"]
    return {"run": one.row["run"], "plateau from epoch": epoch}
