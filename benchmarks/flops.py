"""Operations of every network, layer by layer, and their sums; nothing is compiled or run.

    python -m benchmarks.flops --json FILE --markdown FILE
    python -m benchmarks.flops --models lenet resnet50

Prints a summary, one row a network of `configs.networks` on the input that it is made for, then a
Markdown table for each, one row a layer, as `jaxdet describe MODEL --backward` has it.  `forward`
and `multiply-adds` are those of inference; `forward + backward` is a pass of training: with batch
statistics, and gradients by the parameters.  Taps on padding count.
"""

import sys
from dataclasses import dataclass

import jax

from benchmarks.lib import harness
from jaxdet import tables
from jaxdet.configs import networks
from jaxdet.profiling import summary, timing

NAME = "flops"
SUMMARY = {
    "model": "model",
    "input": "input",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "forward": "operations, forward",
    "training": "operations, forward + backward",
    "ratio": "their ratio",
    "seconds": "seconds to count",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Operations of networks, layer by layer."""

    models: tuple[str, ...] = ()
    """names of networks; all by default"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Count, print, write."""
    chosen = {name: networks.named(name) for name in options.models or networks.NAMES}
    rows, layers, texts = [], {}, []
    for name, named in chosen.items():
        (row, layers[name], notes), seconds = timing.timed(lambda named=named: count(named))
        rows.append({"model": name, **row, "seconds": seconds})
        size = " x ".join(map(str, named.input))
        texts.append(f"### {name}, {size}\n\n{summary.to_markdown(layers[name], notes)}")
    harness.show("\n\n".join([tables.to_markdown(rows, SUMMARY), *texts]), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options, layers=layers)


def count(named):
    """(row of the summary, rows of the layers, notes) of a `networks.Named`."""
    images = jax.ShapeDtypeStruct(named.input, "float32")
    inference = summary.summarize(named.net, images).report.sum()
    training = summary.summarize(named.net, images, backward=True)
    layers = summary.table_rows(training, backward=True)
    row = {
        "input": list(named.input),
        "parameters": layers[-1]["parameters"],
        "multiply_adds": inference.total("mac"),
        "forward": inference.total(),
        "training": layers[-1]["total"],
        "ratio": layers[-1]["total"] / inference.total(),
    }
    return row, layers, summary.notes(training)


if __name__ == "__main__":
    sys.exit(main())
