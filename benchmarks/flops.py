"""Operations of every network, layer by layer, and their sums; nothing is compiled or run.

    python -m benchmarks.flops --json FILE --markdown FILE
    python -m benchmarks.flops --models lenet resnet50

Prints one row per network of `configs.NETWORK_NAMES`, on one image of the network's usual size,
then a table for each network with one row per layer, like `jaxdet describe MODEL --backward`.
`forward` and `multiply-adds` are counts of inference; `forward + backward` is a training pass, with
batch statistics and gradients for the parameters. Operations on zero padding are counted.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.lib import harness, units
from jaxdet import configs
from jaxdet.configs import cifar10
from jaxdet.profiling import summary, timing

NAME = "flops"
VARIANTS = (*cifar10.TUTORIALS[1:], "ng_windows")  # in `cifar10_arch` and `sliding_windows`
RELATIVES = (  # of networks in the short table
    *("b1", "b2", "b3", "resnet34", "mobilenet_v3_small", "convnext_small", "bottleneck"),
    *("mobilenet_v2", "deeper", "resnet20", "narrow", "deep", "tiniest", "ng_sliding"),
    *("mtcnn_pnet", "mtcnn_rnet"),
)
NETWORKS = {
    "model": "model",
    "input": "input",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "forward": "operations, forward",
    "training": "operations, forward + backward",
    "ratio": "their ratio",
    "seconds": ("time to count", "s"),
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Operations of networks, layer by layer."""

    models: tuple[str, ...] = ()
    """networks to count; all by default"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    chosen = {name: configs.named_network(name) for name in options.models or configs.NETWORK_NAMES}
    rows, layers, notes = [], {}, {}
    for name, network in chosen.items():
        (row, layers[name], notes[name]), seconds = timing.timed(
            lambda network=network: count(network)
        )
        rows.append({"model": name, **row, "seconds": seconds})
    harness.publish(NAME, options, render, rows, layers=layers, notes=notes)


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: the networks, then a table of layers for each."""
    parts = [units.markdown_table(record["rows"], NETWORKS)]
    for row in record["rows"]:
        size, layers = " x ".join(map(str, row["input"])), record["layers"][row["model"]]
        table = units.markdown_table(layers, summary.HEADINGS)
        notes = record["notes"][row["model"]]
        parts.append("\n\n".join([f"### {row['model']}, {size}", table, *notes]))
    return "\n\n".join(parts)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per network, without `VARIANTS` and `RELATIVES`.

    A system and its default model, which have the same numbers, share one row.
    """
    distinct = {}
    for row in record["rows"]:
        if row["model"] not in VARIANTS + RELATIVES:
            distinct.setdefault((*row["input"], row["parameters"], row["multiply_adds"]), row)
    return units.markdown_table(list(distinct.values()), NETWORKS)


def count(
    network: configs.NamedNetwork,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """(row of the network, rows of its layers, notes on operations that are not counted)."""
    images = jax.ShapeDtypeStruct(network.input, "float32")
    inference = summary.summarize(network.net, images).report.sum()
    training = summary.summarize(network.net, images, backward=True)
    layers = summary.table_rows(training, backward=True)
    row = {
        "input": list(network.input),
        "parameters": layers[-1]["parameters"],
        "multiply_adds": inference.total("mac"),
        "forward": inference.total(),
        "training": layers[-1]["total"],
        "ratio": layers[-1]["total"] / inference.total(),
    }
    return row, layers, summary.notes(training)


if __name__ == "__main__":
    sys.exit(main())
