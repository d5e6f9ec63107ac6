"""Trainings that answer a question: the experiments of the seeds, each a command and a table.

    python -m benchmarks.experiments epochs --root DIR
    python -m benchmarks.experiments shares plain long --root DIR --size 112

Every run is `jaxdet train` into a folder of its own under `--out`, continued if it was stopped and
left alone once it is complete, and is judged on the test split.  `ablation` and those of cifar10
and faces are one `jaxdet sweep` each, whose runs are judged on the validation split.
Runs take minutes to hours, which is why `benchmarks.all` does not start them; it only puts what
they found on its page.

| name | question |
|---|---|
| epochs | objects, Simple: 20, 50 and 200 epochs |
| shares | objects, Simple: 1, 5, 10 and 20% of all photos for training, 20% for validation |
| plain | objects, Simple: without dropout, without batch norm |
| long | objects, Simple without either, 200 epochs, .5% for validation: best against last |
| modes | objects, Lite0, 6 epochs: from scratch; ImageNet's weights frozen, in part, all learning |
| assigners | detect, ImageNet's backbone as it is: task-aligned assignment against the baseline |
| ablation | detect, likewise, half the pixels: what each part is worth, one changed at a time |
| cifar10_GRID | cifar10, 4 epochs: networks, batch, augmentation, loss, optimiser, activation |
| faces_seed | faces, 15 epochs: the rows of seed 004's table |
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.lib import harness
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.training import run_dir

OBJECTS = "--model simple --lr 2e-3 --size {size}"
MODES = (
    "--model lite0 --box-head cells --size {size} --epochs 6 --lr 1e-3 --clip 1 --warmup 100 "
    "--box-weight 5"
)
WEIGHTS = "--weights package:lite0"
DETECT = "--epochs {epochs} --vflip --weights package:lite0 --freeze-stages 8 --freeze-bn"
CIFAR10 = "--epochs 4 --batch 20 --schedule cosine --lr .005"
FACES = "--epochs 15 --batch 32 --size 64 --val-fraction .2 --test-fraction 0"
SCORES = {
    "objects": ("accuracy", "iou", "iou50", "iou70", "loss"),
    "detect": ("map", "map50", "map75", "loss"),
}


SWEPT = {  # of the columns of a sweep; `loss` is an option where it differs, else a score
    "detect": (
        *("changed", "gain", "map", "map50", "map75", "map_small", "map_medium", "map_large"),
        *("epoch_seconds", "parameters"),
    ),
    "cifar10": (
        *("model", "norm", "dropout", "batch", "flip", "crop", "loss", "optimizer", "momentum"),
        *("activation", "accuracy", "epoch_seconds", "operations", "parameters"),
    ),
    "faces": (
        *("block", "channels", "stage-dropout", "schedule", "cycle", "optimizer", "lr", "squeezes"),
        *("activation", "accuracy", "auc", "eer", "epoch_seconds", "parameters"),
    ),
}


class Run(NamedTuple):
    """One training."""

    name: str
    words: str  # options of `jaxdet train`; {size} and {epochs} are those of the benchmark
    checkpoints: tuple[str, ...] = ("best",)  # to judge


class Experiment(NamedTuple):
    """A question, answered by runs or by a sweep."""

    system: str
    trained: tuple[Run, ...] = ()
    swept: str = ""  # options of `jaxdet sweep`


EXPERIMENTS = {
    "epochs": Experiment(
        "objects",
        tuple(Run(f"{n}_epochs", f"{OBJECTS} --epochs {n}") for n in (20, 50, 200)),
    ),
    "shares": Experiment(
        "objects",
        tuple(
            Run(
                f"{n}_percent",
                f"{OBJECTS} --epochs 20 --val-fraction .2 --train-fraction {n / 100}",
            )
            for n in (1, 5, 10, 20)
        ),
    ),
    "plain": Experiment(
        "objects",
        (
            Run("20_epochs", f"{OBJECTS} --epochs 20"),
            Run("no_dropout", f"{OBJECTS} --epochs 20 --dropout 0"),
            Run("no_norm", f"{OBJECTS} --epochs 20 --no-norm"),
            Run("neither", f"{OBJECTS} --epochs 20 --dropout 0 --no-norm"),
        ),
    ),
    "long": Experiment(
        "objects",
        (
            Run(
                "neither_200_epochs",
                f"{OBJECTS} --epochs 200 --dropout 0 --no-norm --val-fraction .005 --test-fraction .1",
                ("best", "last"),
            ),
        ),
    ),
    "modes": Experiment(
        "objects",
        (
            Run("scratch", MODES),
            Run("frozen", f"{MODES} {WEIGHTS} --transfer frozen"),
            Run("last_4_stages", f"{MODES} {WEIGHTS} --transfer frozen --unfreeze-last 4"),
            Run("fine_tuned", f"{MODES} {WEIGHTS} --transfer finetune"),
        ),
    ),
    "assigners": Experiment(
        "detect",
        tuple(
            Run(
                f"{assigner}_{seed}",
                f"--size 256 320 {DETECT} --assigner {assigner} --seed {seed}",
            )
            for assigner in ("tal", "iou")
            for seed in range(3)
        ),
    ),
    "ablation": Experiment("detect", swept=f"--one-at-a-time true --size 192 256 {DETECT}"),
    **{
        f"cifar10_{grid}": Experiment("cifar10", swept=f"--grid {grid} {CIFAR10}")
        for grid in ("arch", "batch", "aug", "loss", "opt", "act")
    },
    "faces_seed": Experiment("faces", swept=f"--grid seed {FACES}"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trainings that answer a question, and their table."""

    names: tuple[str, ...] = tuple(EXPERIMENTS)
    """experiments to run; all by default"""
    root: str = ""
    """folder of the data"""
    size: int = 224
    """objects: side of the input in pixels"""
    epochs: int = 12
    """detect: passes over the training set"""
    out: Path = Path("runs/experiments")
    """folder of the runs"""
    results: Path | None = None
    """folder for experiment_NAME.json and experiment_NAME.md"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door("experiments", Options, argv, report)


def report(options):
    """Train what is not trained yet, judge, print and write a table an experiment."""
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        raise InputError(f"--names {' '.join(unknown)}: known are {', '.join(EXPERIMENTS)}")
    if not options.root:
        raise InputError("--root: the folder of the data is wanted")
    for name in options.names:
        experiment = EXPERIMENTS[name]
        rows = [row for run in experiment.trained for row in trained(experiment, run, options)]
        rows += swept(name, experiment, options)
        place = options.results and options.results / f"experiment_{name}"
        harness.show(tables.to_markdown(rows, list(rows[0])), place and place.with_suffix(".md"))
        if place:
            chosen = {"system": experiment.system, "question": name}
            kept, told = place.with_suffix(".json"), _anywhere(options, name)
            harness.write("experiments", rows, kept, jax.devices(), options=told, **chosen)


def _anywhere(options, name):
    """The options of one experiment, without the places of this machine."""
    return replace(options, names=(name,), root="DIR", out=Options.out, results=None)


def trained(experiment, run, options):
    """Rows of a run, one a checkpoint: scores on the test split, and how long an epoch took."""
    words = run.words.format(size=options.size, epochs=options.epochs).split()
    folder = options.out / run.name
    begun = [] if run_dir.holds_something(folder) else [*words, "--root", options.root]
    jaxdet("train", experiment.system, "--out", str(folder), "--resume", *begun)
    lines = run_dir.read_metrics(folder)
    seconds = sorted(sum(line["time"].values()) for line in lines[1:])
    for checkpoint in run.checkpoints:
        said = jaxdet("eval", str(folder), "--checkpoint", checkpoint, "--json")
        scores = json.loads(said.splitlines()[-1])
        (epoch,) = (line["epoch"] for line in lines if line["step"] == scores["step"])
        yield {
            "run": run.name,
            "checkpoint": checkpoint,
            "epoch": epoch,
            **{name: scores[name] for name in SCORES[experiment.system]},
            "median s of an epoch": seconds[len(seconds) // 2],
            "options": " ".join(words),
        }


def swept(name, experiment, options):
    """Rows of the table of a sweep; none where the experiment has no sweep."""
    if not experiment.swept:
        return []
    words, folder = experiment.swept.format(epochs=options.epochs).split(), options.out / name
    places = ["--root", options.root, "--out", str(folder), "--resume"]
    jaxdet("sweep", experiment.system, *words, *places)
    rows = json.loads((folder / "sweep.json").read_text())
    columns = SWEPT[experiment.system]
    return [{column: row[column] for column in row if column in columns} for row in rows]


def jaxdet(*words):
    """What a command of jaxdet prints; InputError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxdet", *words],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1])
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
