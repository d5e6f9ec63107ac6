"""`jaxdet describe MODEL|RUN`: list the layers of a network, their operations and times."""

import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from jaxdet import configs, flops, runs
from jaxdet.cli import common
from jaxdet.cli.options import Describe
from jaxdet.errors import InputError
from jaxdet.profiling import roofline, summary
from jaxdet.training import run_dir


def run(options: Describe) -> int:
    """Print the table of a network; with --time, draw its roofline plot; returns the exit code."""
    if options.markdown + options.json + options.csv > 1:
        raise InputError("--markdown, --json and --csv exclude each other; give one of them")
    if options.time:
        common.check_picture(options.figure)
        if options.convention != "flop":
            raise InputError(f"--time needs --convention flop, got {options.convention}")
    net, images, variables = _network(options)
    network = summary.summarize(
        net,
        images,
        variables,
        backward=options.backward,
        convention=options.convention,
        padding=options.padding,
    )
    rows, notes = summary.table_rows(network, backward=options.backward), []
    if options.time:
        notes += _time(network, rows, options.figure)
    if not options.backward:
        notes += _prediction_notes(options, images, variables)
    notes += summary.notes(network)
    if options.csv:
        print(summary.to_csv(rows))
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    elif options.json:
        print(summary.to_json(rows, notes))
    elif options.markdown:
        print(summary.to_markdown(rows, notes))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(summary.to_text(rows, notes, width))
    return 0


def _time(network: summary.NetworkSummary, rows: list[dict[str, Any]], figure: Path) -> list[str]:
    """Add times to `rows`, and draw the roofline plot; returns notes."""
    # Imported here because only --time needs matplotlib.
    from jaxdet.plots import profiling as profiling_plots

    measured = roofline.measure(network, rows)
    profiling_plots.roofline(rows[:-1], figure, **measured.peaks._asdict())
    return [*roofline.notes(measured, rows), f"wrote {figure}"]


def _prediction_notes(options: Describe, images: jax.ShapeDtypeStruct, variables: Any) -> list[str]:
    """The number of operations of a whole prediction; [] unless `model` is a trained run."""
    if not run_dir.is_run(options.model) or "record" not in run_dir.read_metadata(options.model):
        return []
    task = runs.without_data(options.model, runs.read_config(options.model)).task
    counting = {"convention": options.convention, "padding": options.padding}
    total = flops.count(task.predict, variables, images, **counting).total()
    return [
        f"prediction: {total:,} operations, as eval and compare count them: the network, the "
        "normalization of images, and the conversion of outputs into predictions"
    ]


def _network(options: Describe) -> tuple[Any, jax.ShapeDtypeStruct, Any]:
    """(network, shape of its input, shapes of its variables or, for a model by name, None)."""
    if run_dir.is_run(options.model):
        config = runs.read_config(options.model)
        named = configs.network_of_run(Path(options.model), config)
        trained_on = jax.ShapeDtypeStruct(named.input, "float32")
        variables = jax.eval_shape(named.net.init, jax.random.key(0), trained_on)
    else:
        named, variables = configs.named_network(options.model), None
    shape = _parse_shape(options.input) if options.input else named.input
    return named.net, jax.ShapeDtypeStruct(shape, "float32"), variables


def _parse_shape(text: str) -> tuple[int, ...]:
    """Parse the shape of an input, written as 1x32x32x3; InputError for any other text."""
    words = text.split("x")
    if len(words) != 4 or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(
            f"--input must be batch x height x width x channels, such as 1x32x32x3, got {text}"
        )
    return tuple(map(int, words))
