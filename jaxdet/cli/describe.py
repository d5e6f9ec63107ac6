"""`jaxdet describe MODEL|RUN`: the layers of a network, their operations and times."""

import sys

import jax

from jaxdet import configs
from jaxdet.cli import common
from jaxdet.errors import InputError
from jaxdet.profiling import roofline, summary
from jaxdet.training import run_dir


def run(options):
    """`jaxdet describe MODEL|RUN`: the layers of a network, their operations and times."""
    if options.markdown + options.json + options.csv > 1:
        raise InputError("--markdown, --json, --csv: one at a time")
    if options.time:
        common.check_picture(options.figure)
        if options.convention != "flop":
            raise InputError("--time takes all operations together: leave out --convention mac")
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
    notes += summary.notes(network)
    if options.csv:
        print(summary.to_csv(rows))
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    elif options.json:
        print(summary.to_json(rows, notes))
    elif options.markdown:
        print(summary.to_markdown(rows, notes))
    else:
        print(summary.to_text(rows, notes))
    return 0


def _time(network, rows, figure):
    """Measure the network, add its times to the rows and draw the roofline; returns notes."""
    # Imported here: without --time, matplotlib is not needed.
    from jaxdet.plots import profiling as profiling_plots

    measured = roofline.measure(network, rows)
    profiling_plots.roofline(rows[:-1], figure, **measured.peaks._asdict())
    return [*roofline.notes(measured, rows), f"wrote {figure}"]


def _network(options):
    """(network, input, shapes of its variables if it has been trained) of `jaxdet describe`."""
    if run_dir.is_run(options.model):
        named = configs.network_of_run(options.model, common.kept_config(options.model))
        made_for = jax.ShapeDtypeStruct(named.input, "float32")
        variables = jax.eval_shape(named.net.init, jax.random.key(0), made_for)
    else:
        named, variables = configs.named_network(options.model), None
    shape = _shape(options.input) if options.input else named.input
    return named.net, jax.ShapeDtypeStruct(shape, "float32"), variables


def _shape(text):
    """The four numbers of 1x32x32x3."""
    words = text.split("x")
    if len(words) != 4 or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"--input {text}: images x height x width x channels, such as 1x32x32x3")
    return tuple(map(int, words))
