"""What `jaxdet compare --report` writes: tables, pictures and, within limits, the best network.

A system whose configuration has `LIMITS`, of seed 003, gets the report that the seed asks for.
"""

import os
import shlex
from urllib.parse import quote

import jax

from jaxdet import configs, describe, flags, metrics, runs, tables
from jaxdet.commands import common
from jaxdet.configs import networks

PICTURES = (
    "Validation scores against the epoch",
    "The worst answers of each run: true boxes green, predicted boxes red, wrong labels in red",
)
UNITS = {"parameters": "parameters that learn", "total_seconds": "seconds, evaluations included"}
RISE, OVER = 0.002, 5  # a plateau: the accuracy rises by less over so many epochs


def write(options, found, table, notes, pictures):
    """One Markdown file: the table of the runs, what to mind, and links to the pictures.

    found: `compare.Judged` of every run.
    """
    path, many = options.report, len(found)
    limits = _limits(found)
    parts = [
        f"# {many} run{'s' * (many > 1)} compared",
        *([_goal(limits)] if limits else []),
        f"Scores of checkpoint `{options.checkpoint}` on split `{options.split}`.",
        table,
        *notes,
        *(_best(found, limits) if limits else []),
    ]
    for title, picture in zip(PICTURES, pictures, strict=False):
        link = quote(os.path.relpath(picture, path.parent).replace(os.sep, "/"))
        parts += [f"![{title}]({link})"]
    runs.keep(path.parent, path.name, "\n\n".join(parts) + "\n")


def _limits(found):
    """What runs of one system may have at most, {column: number}; {} without limits."""
    systems = {one.row["system"] for one in found}
    return configs.config(systems.pop()).LIMITS if len(systems) == 1 else {}


def _goal(limits):
    most = " and ".join(f"{most:,} {UNITS[name]}" for name, most in limits.items())
    return f"Goal: as few wrong labels as can be, with at most {most}."


def _best(found, limits):
    """Parts about the best of the runs: those within the limits, or all where none is."""
    within = [one for one in found if all(one.row[k] <= most for k, most in limits.items())]
    best = max(within or found, key=lambda one: max(_accuracies(one), default=0.0))
    row, where = best.row, runs.read_environment(best.folder).get("devices", ["?"])
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
        "## Validation accuracy after each epoch, from before the first",
        _epochs(found),
        f"Where less than {RISE} more came in the {OVER} epochs after:",
        tables.markdown([_plateau(one) for one in found], ["run", "plateau from epoch"]),
    ]


def _layers(best):
    """Functions F, variables X and parameters W of a network, from its input to its output."""
    named = networks.of_run(best.folder, best.config)
    images = jax.ShapeDtypeStruct(named.input, "float32")
    network = describe.network(named.net, images)
    size = " x ".join(map(str, named.input))
    return [
        f"Layers of an image, whose X is {size}; W is empty where nothing is learnt:",
        describe.text(describe.rows(network), describe.remarks(network.counted)),
    ]


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
    return tables.markdown(ordered, ["epoch", *(one.row["run"] for one in found)])


def _plateau(one):
    place = metrics.plateau(_accuracies(one), rise=RISE, over=OVER)
    epoch = "not reached" if place is None else one.metrics[place]["epoch"]
    return {"run": one.row["run"], "plateau from epoch": epoch}
