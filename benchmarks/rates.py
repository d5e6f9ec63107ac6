"""Learning rates side by side in one program: a step of them all against one after the other.

    python -m benchmarks.rates --count 8 --json FILE

`jaxdet sweep --together auto` asks the same of every sweep, by a few steps, and does what is
quicker; here there are as many steps of each as `--seconds` last, in turns.  Images are noise of
the size of CIFAR-10, on one device.  Below 1 in the last column, one program is quicker.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.lib import harness, synthetic
from jaxdet import tables
from jaxdet.configs.cifar10 import TUTORIALS, Config
from jaxdet.errors import InputError
from jaxdet.training import sweep
from jaxdet.training.progress import Progress

NAME = "rates"
COLUMNS = {
    "model": "model",
    "rates": "rates",
    "batch": "batch",
    "together": "s in one program",
    "in_turn": "s one after the other",
    "ratio": "one program / in turn",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Several learning rates in one program, against one after the other."""

    models: tuple[str, ...] = ("tutorial",)
    """networks: PyTorch's tutorial and its variants"""
    count: int = 8
    """learning rates"""
    batch: int = Config.batch
    """images of a step of one rate"""
    seconds: float = 5.0
    """time for the steps of each way; three steps are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Time, print, write."""
    unknown = [name for name in options.models if name not in TUTORIALS]
    if unknown or min(options.count, options.batch) < 1:
        known = ", ".join(TUTORIALS)
        raise InputError(f"--models {unknown}: known are {known}; --count, --batch >= 1")
    rows = [compare(name, options) for name in options.models]
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def compare(name, options):
    """The row of a network: seconds of a step of all rates, either way."""
    config = Config(model=name, batch=options.batch, devices=1)
    system = synthetic.classified(config, train=8 * config.batch, val=config.eval_batch)
    chosen = [replace(config, lr=float(lr)) for lr in np.geomspace(1e-4, 1e-2, options.count)]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(options.count)]
        for place in places:
            place.mkdir()
        lanes = sweep.Lanes(system, chosen, places, Progress(quiet=True), lambda: False)
        times = lanes.times(seconds=options.seconds)
    about = {"model": name, "rates": options.count, "batch": options.batch}
    return {**about, **times._asdict(), "ratio": times.together / times.in_turn}


if __name__ == "__main__":
    sys.exit(main())
