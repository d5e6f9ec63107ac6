"""PyTorch's CIFAR-10 tutorial, two epochs in batches of 4: jaxdet against PyTorch, in one run.

    python -m benchmarks.tutorial --json FILE

Steps so small are nearly all overhead.  The tutorial's network (channels 6 and 16, dense layers of
120 and 84) learns by SGD from noise of the sizes of CIFAR-10.  jaxdet is `fit.Loop`, as `jaxdet
train` runs it, with metrics and a checkpoint at every evaluation; PyTorch has its images in memory.

Both take turns at `--steps` steps and at an evaluation of `--images` images in batches of 400,
`--rounds` times: about a minute.  The time of the whole training is computed from the medians:
12,500 steps an epoch, and an evaluation before the first epoch and after each.  What the first turn
took longer than the others, most of it to compile, stands apart and is not in it.
"""

import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jax

from benchmarks.lib import harness, synthetic
from jaxdet import tables
from jaxdet.configs.cifar10 import Config
from jaxdet.data import sampler
from jaxdet.errors import InputError
from jaxdet.profiling import timing
from jaxdet.training import loop as training_loop
from jaxdet.training.progress import Progress

NAME = "tutorial"
IMAGES, EPOCHS = 50_000, 2  # of the training that is asked about
MANY = 10_000  # epochs of the run that is timed: it never ends
COLUMNS = {
    "way": "way",
    "first_s": "first turn s",
    "step_s": "s of a step",
    "spread": "spread s",
    "evaluation_s": "s of an evaluation",
    "repeats": "turns",
    "whole_s": "s of the whole",
    "ratio": "time / PyTorch",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """The tutorial's training, jaxdet against PyTorch."""

    steps: int = 1500
    """steps in a turn"""
    rounds: int = 7
    """turns of each"""
    images: int = 10_000
    """images of an evaluation"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Time, print, write."""
    if min(options.steps, options.rounds, options.images) < 1:
        raise InputError("--steps, --rounds and --images start at 1")
    rows = compare(options)
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def compare(options):
    """A row a way."""
    config = Config(epochs=MANY, eval_first=False, devices=1)
    system = synthetic.classified(config, train=options.steps * config.batch, val=options.images)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"jaxdet": in_jaxdet(system, config, Path(folder))}
        reason = missing()
        if not reason:
            ways["PyTorch"] = in_torch(system, config)
        first, *taken = [
            {way: [timing.timed(call)[1] for call in calls] for way, calls in ways.items()}
            for _ in range(1 + options.rounds)
        ]
    rows = [row(way, first[way], [turn[way] for turn in taken], options) for way in ways]
    peer = rows[-1]["whole_s"]
    if reason:
        return [*rows, {"way": "PyTorch", "note": reason}]
    return [{**one, "ratio": one["whole_s"] / peer} for one in rows]


def row(way, first, turns, options):
    """What a way took, from the seconds of [steps, evaluation] of its turns."""
    steps, judged = (
        timing.summarize(apart, times)
        for apart, times in zip(first, zip(*turns, strict=True), strict=True)
    )
    step = steps.median / options.steps
    return {
        "way": way,
        "first_s": steps.compile_s + judged.compile_s,
        "step_s": step,
        "spread": steps.spread / options.steps,
        "evaluation_s": judged.median,
        "repeats": steps.repeats,
        "whole_s": EPOCHS * IMAGES / Config.batch * step + (EPOCHS + 1) * judged.median,
    }


def in_jaxdet(system, config, folder):
    """Calls that make the steps of an epoch, and that evaluate: the loop has them in turns."""
    show = Progress(quiet=True)
    programs = training_loop.Programs(system, config)
    loop = training_loop.Loop(programs, system, config, folder, show, lambda: False)
    show.begin(0, loop.plan.steps * config.batch)
    return loop.epoch, loop.epoch


def in_torch(system, config):
    """The same in PyTorch."""
    from benchmarks.torch_refs import tutorial

    train, val = (system.splits[part].arrays for part in ("train", "val"))
    of = {"lr": config.lr, "momentum": config.momentum}
    training = tutorial.Training(train["image"], train["label"], **of)
    rows = sampler.shuffled_batches(0, 0, len(train["label"]), config.batch)
    return (
        lambda: training.steps(rows),
        lambda: training.accuracy(val["image"], val["label"], config.eval_batch),
    )


def missing():
    """Why PyTorch is not timed, or None."""
    if find_spec("torch") is None:
        return "not installed"
    return None if jax.default_backend() == "cpu" else "compared on the CPU only"


if __name__ == "__main__":
    sys.exit(main())
