"""PyTorch's CIFAR-10 tutorial, two epochs in batches of 4: jaxdet against PyTorch.

    python -m benchmarks.tutorial --json FILE

Steps this small are nearly all overhead. The tutorial's network (6 and 16 channels, dense layers of
120 and 84) is trained with SGD on noise of the size of CIFAR-10. jaxdet runs its training loop as
`jaxdet train` does, with metrics and a checkpoint at every evaluation; PyTorch has its images in
memory.

`--steps` steps and an evaluation of `--images` images in batches of 400 are interleaved, `--rounds`
times; this takes about a minute. The total is computed from the medians: 12,500 steps per epoch,
and an evaluation before the first epoch and after each. The extra time of the first round, most of
it compilation, is reported separately and not part of the total.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, synthetic, units
from jaxdet.configs.cifar10 import Config
from jaxdet.data import sampler
from jaxdet.profiling import timing
from jaxdet.training import loop as training_loop
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Progress

NAME = "tutorial"
TRAIN_IMAGES, EPOCHS = 50_000, 2  # of the training whose total time is computed
ENDLESS = 10_000  # epochs of the run that is timed
COLUMNS = {
    "implementation": "implementation",
    "first_s": ("extra time of the first round", "s"),
    "step_s": ("step", "s"),
    "spread": ("spread", "s"),
    "evaluation_s": ("evaluation", "s"),
    "repeats": "rounds",
    "total_s": ("total", "s"),
    "ratio": "time / PyTorch",
    "note": "note",
}

Calls = tuple[Callable[[], Any], Callable[[], Any]]  # steps, evaluation


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """The tutorial's training, jaxdet against PyTorch."""

    steps: int = 1500
    """training steps per round"""
    rounds: int = 7
    """number of rounds, each of steps and an evaluation"""
    images: int = 10_000
    """images per evaluation"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "steps", "rounds", "images")
    harness.publish(NAME, options, render, compare(options))


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(options: Options) -> list[dict[str, Any]]:
    config = Config(epochs=ENDLESS, eval_first=False, devices=1)
    experiment = synthetic.cifar10_experiment(
        config, train=options.steps * config.batch, val=options.images
    )
    with tempfile.TemporaryDirectory() as folder:
        pairs = {"jaxdet": jax_calls(experiment, Path(folder))}
        missing = harness.torch_unavailable()
        if not missing:
            pairs["PyTorch"] = torch_calls(experiment)
        first, *rounds = [
            {name: [timing.timed(call)[1] for call in calls] for name, calls in pairs.items()}
            for _ in range(1 + options.rounds)
        ]
    rows = [_row(name, first[name], [each[name] for each in rounds], options) for name in pairs]
    if missing:
        return [*rows, {"implementation": "PyTorch", "note": missing}]
    return [{**row, "ratio": row["total_s"] / rows[-1]["total_s"]} for row in rows]


def jax_calls(experiment: Experiment, folder: Path) -> Calls:
    """(call that takes the steps of one epoch, call that evaluates), to be called in turns."""
    progress = Progress(quiet=True)
    compiled = training_loop.CompiledSteps(experiment)
    loop = training_loop.Loop(compiled, experiment, folder, progress)
    progress.begin(0, loop.plan.steps * experiment.config.batch)

    def evaluate():
        loop.run_epoch()
        loop.saver.wait()  # the time of a checkpoint counts

    return loop.run_epoch, evaluate


def torch_calls(experiment: Experiment) -> Calls:
    """The calls of `jax_calls`, in PyTorch."""
    from benchmarks.torch_refs import tutorial

    config = experiment.config
    train, val = (experiment.splits[split].arrays for split in ("train", "val"))
    trainer = tutorial.Trainer(
        train["image"], train["label"], lr=config.lr, momentum=config.momentum
    )
    rows = sampler.shuffled_batches(0, 0, len(train["label"]), config.batch)
    return (
        lambda: trainer.train_steps(rows),
        lambda: trainer.accuracy(val["image"], val["label"], config.eval_batch),
    )


def _row(name, first, rounds, options):
    """The row of an implementation from its seconds of [steps, evaluation] per round."""
    steps, evaluation = (
        timing.summarize(once, times)
        for once, times in zip(first, zip(*rounds, strict=True), strict=True)
    )
    step_s = steps.median / options.steps
    epoch_s = TRAIN_IMAGES / Config.batch * step_s
    return {
        "implementation": name,
        "first_s": steps.compile_s + evaluation.compile_s,
        "step_s": step_s,
        "spread": steps.spread / options.steps,
        "evaluation_s": evaluation.median,
        "repeats": steps.repeats,
        "total_s": EPOCHS * epoch_s + (EPOCHS + 1) * evaluation.median,
    }


if __name__ == "__main__":
    sys.exit(main())
