"""Training steps at several learning rates: one vmapped program against one rate after the other.

    python -m benchmarks.rates --count 8 --json FILE
    python -m benchmarks.rates --convolutions auto im2col

`jaxdet sweep` measures the same before a sweep, on a few steps, and takes the faster; here as many
steps as `--seconds` allow are interleaved. Images are noise of the size of CIFAR-10, on one device.
The ratio is the time of the vmapped program divided by the time of one rate after the other.

Under `vmap` over its kernels a convolution becomes a grouped one (`lax`), whose gradients are slow
on CPUs and on CUDA; `im2col` computes it as a matrix product. `auto` is the choice of a sweep.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.lib import harness, synthetic, units
from jaxdet.configs.cifar10 import TUTORIALS, Config
from jaxdet.training import sweep
from jaxdet.training.progress import Progress

NAME = "rates"
COLUMNS = {
    "model": "model",
    "rates": "learning rates",
    "batch": "batch",
    "convolutions": "convolutions in one program",
    "vmapped_s": ("one program", "s"),
    "sequential_s": ("one after the other", "s"),
    "ratio": "one program / one after the other",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Several learning rates in one program, against one after the other."""

    models: tuple[str, ...] = ("tutorial",)
    """networks: PyTorch's tutorial network, or variants of it"""
    count: int = 8
    """number of learning rates"""
    batch: int = Config.batch
    """images per step of each rate"""
    convolutions: tuple[Literal["auto", "lax", "im2col"], ...] = ("auto",)
    """how the program of all rates computes convolutions; auto: im2col on a CPU, else lax"""
    seconds: float = 5.0
    """seconds for which steps in one program are timed, and steps one after the other as well; at
    least three of each are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_known("--models", options.models, TUTORIALS)
    harness.require_positive(options, "count", "batch")
    rows = [compare(*pair, options) for pair in product(options.models, options.convolutions)]
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(name: str, convolutions: str, options: Options) -> dict[str, Any]:
    """The row of a network and a form of convolution: seconds of one step of all learning rates."""
    config = Config(model=name, batch=options.batch, devices=1)
    experiment = synthetic.cifar10_experiment(config, train=8 * config.batch, val=config.eval_batch)
    rates = np.geomspace(1e-4, 1e-2, options.count)
    with tempfile.TemporaryDirectory() as parent:
        folders = [Path(parent) / str(number) for number in range(options.count)]
        for folder in folders:
            folder.mkdir()
        variants = [replace(config, lr=float(lr)) for lr in rates]
        runs = sweep.VmappedRuns(experiment, variants, folders, Progress(quiet=True), lambda: False)
        if convolutions != "auto":
            runs.conv_impl = convolutions
        times = runs.measure_steps(seconds=options.seconds)
    return {
        "model": name,
        "rates": options.count,
        "batch": options.batch,
        "convolutions": convolutions,
        "vmapped_s": times.together,
        "sequential_s": times.in_turn,
        "ratio": times.together / times.in_turn,
    }


if __name__ == "__main__":
    sys.exit(main())
