"""Training experiments: each one is a question, the runs that answer it, and a table.

    python -m benchmarks.experiments --names epochs --root DIR
    python -m benchmarks.experiments --names fractions plain long --root DIR --size 112

A run is `jaxdet train` into its own folder under `--out`; it is resumed if it was interrupted, kept
if it is complete, and evaluated on the test split. `ablation`, the grids of `cifar10` and the
experiments of `faces` are one `jaxdet sweep` each, whose runs are evaluated on the validation
split. Runs take minutes to hours, so `benchmarks.all` does not start them; it adds their results to
its page. `EXPERIMENTS` lists the experiments.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib import harness, units
from jaxdet.errors import InputError
from jaxdet.training import run_dir

OBJECTS = "--model simple --lr 2e-3 --size {size}"
TRANSFER = (
    "--model lite0 --box-head per_cell --size {size} --epochs 6 --lr 1e-3 --clip 1 --warmup 100 "
    "--box-weight 5"
)
NETWORKS = "--size {size} --epochs 4 --lr 1e-3 --clip 1 --best accuracy"
PRETRAINED = "--weights package:lite0"
DETECT = "--epochs {epochs} --vflip --weights package:lite0 --freeze-stages 8 --freeze-bn"
FROZEN = "--size 256 320 --vflip --freeze-stages 8 --freeze-bn"
CIFAR10 = "--epochs 4 --batch 20 --schedule cosine"
CIFAR10_GRIDS = {
    "arch": "Networks",
    "batch": "Batch sizes",
    "aug": "Augmentation",
    "loss": "Losses",
    "opt": "Optimizers",
    "act": "Activations",
}
CONVERGED = (  # the schedule of assignment 3, and all of its training images
    "--epochs 30 --batch 20 --optimizer momentum --lr .01 --schedule piecewise --val-fraction 0 "
    "--monitor test"
)
SMALL_GAIN = 0.005  # of mAP, within the noise of a run
FLAT = 0.01  # a running loss that falls by less than this fraction has converged
FACES = "--batch 32 --size 64 --val-fraction .2 --test-fraction 0"
SCORES = {
    "objects": ("accuracy", "iou", "iou50", "iou70", "loss"),
    "detect": ("map", "map50", "map75", "loss"),
    "cifar10": ("accuracy", "error_rate", "loss", "operations", "operations_per_second"),
}

SWEEP_COLUMNS = {  # columns that are kept; `loss` is an option if it varies, else a score
    "detect": (
        *("changed", "gain", "map", "map50", "map75", "map_small", "map_medium", "map_large"),
        *("epoch_seconds", "parameters"),
    ),
    "cifar10": (
        *(
            "model",
            "norm",
            "dropout",
            "batch",
            "flip",
            "crop-padding",
            "loss",
            "optimizer",
            "momentum",
        ),
        *("lr", "beta2", "weight-decay"),
        *("activation", "accuracy", "epoch_seconds", "operations", "parameters"),
    ),
    "faces": (
        *(
            "block",
            "channels",
            "stage-dropout",
            "epochs",
            "schedule",
            "restart-period",
            "optimizer",
            "lr",
            "se-ratios",
        ),
        *("activation", "accuracy", "auc", "eer", "epoch_seconds", "parameters"),
    ),
}


class Run(NamedTuple):
    """One training run."""

    name: str
    words: str  # options of `jaxdet train`; {size}, {epochs}, {out}: of the benchmark
    checkpoints: tuple[str, ...] = ("best",)  # checkpoints to evaluate


class Experiment(NamedTuple):
    """A question, and the runs or the sweep of one system that answer it."""

    system: str
    question: str
    runs: tuple[Run, ...] = ()
    sweep: str = ""  # options of `jaxdet sweep`
    by_label: bool = False  # whether rows have the scores of each label, too
    curves: bool = False  # whether the scores after each epoch are drawn


EXPERIMENTS = {
    "epochs": Experiment(
        "objects",
        "Simple after 20, 50 and 200 epochs",
        tuple(Run(f"{n}_epochs", f"{OBJECTS} --epochs {n}") for n in (20, 50, 200)),
    ),
    "fractions": Experiment(
        "objects",
        "Simple on 1, 5, 10 and 20% of all images, with 20% for validation",
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
        "Simple without dropout and without batch norm",
        (
            Run("20_epochs", f"{OBJECTS} --epochs 20"),
            Run("no_dropout", f"{OBJECTS} --epochs 20 --dropout-scale 0"),
            Run("no_norm", f"{OBJECTS} --epochs 20 --no-norm"),
            Run("neither", f"{OBJECTS} --epochs 20 --dropout-scale 0 --no-norm"),
        ),
    ),
    "long": Experiment(
        "objects",
        "Simple without dropout and batch norm, 200 epochs, 0.5% for validation: best against last",
        (
            Run(
                "neither_200_epochs",
                f"{OBJECTS} --epochs 200 --dropout-scale 0 --no-norm "
                "--val-fraction .005 --test-fraction .1",
                ("best", "last"),
            ),
        ),
    ),
    "transfer": Experiment(
        "objects",
        "Lite0 for 6 epochs: from scratch; ImageNet weights frozen, in part, fine-tuned",
        (
            Run("scratch", TRANSFER),
            Run("frozen", f"{TRANSFER} {PRETRAINED} --transfer frozen"),
            Run("last_4_stages", f"{TRANSFER} {PRETRAINED} --transfer frozen --unfreeze-last 4"),
            Run("fine_tuned", f"{TRANSFER} {PRETRAINED} --transfer finetune"),
        ),
    ),
    "networks": Experiment(
        "objects",
        "The four networks of assignment 0 from scratch, 4 epochs",
        tuple(
            Run(f"{model}_4_epochs", f"--model {model} {NETWORKS}")
            for model in ("simple", "deeper", "vgg", "resnet18")
        ),
        by_label=True,
    ),
    "assigners": Experiment(
        "detect",
        "Frozen ImageNet backbone: task-aligned assignment against maximum IoU",
        tuple(
            Run(
                f"{assigner}_{seed}",
                f"--size 256 320 {DETECT} --assigner {assigner} --seed {seed}",
            )
            for assigner in ("tal", "iou")
            for seed in range(3)
        ),
    ),
    "warm_start": Experiment(
        "detect",
        "A new class: 3 epochs from a run that was trained for 12 epochs without platelets or "
        "without white cells (warm), or from ImageNet weights (cold)",
        (
            *(
                Run(f"without_{name}", f"{FROZEN} {PRETRAINED} --epochs 12 --classes {others}")
                for name, others in (("platelets", "RBC WBC"), ("white", "RBC Platelets"))
            ),
            *(
                Run(f"{name}_{seed}", f"{FROZEN} {weights} --epochs 3 --seed {seed}")
                for name, weights in (
                    ("cold", PRETRAINED),
                    ("warm_platelets", "--weights run:{out}/without_platelets"),
                    ("warm_white", "--weights run:{out}/without_white"),
                )
                for seed in range(3)
            ),
        ),
        by_label=True,
    ),
    "skew": Experiment(
        "detect",
        "A rare class (`python -m benchmarks.prepared skewed`, BCCD with a tenth of the training "
        "images with platelets): plain, with repeat-factor sampling, or with class weights",
        tuple(
            Run(f"skew_{name}_{seed}", f"{FROZEN} {PRETRAINED} --epochs 12 {words} --seed {seed}")
            for name, words in (
                ("plain", ""),
                ("sampling", "--sampling balanced"),
                ("weights", "--class-weights balanced"),
            )
            for seed in range(3)
        ),
        by_label=True,
    ),
    "ablation": Experiment(
        "detect",
        "Frozen ImageNet backbone at half the pixels: one part changed at a time",
        sweep=f"--one-at-a-time true --size 192 256 {DETECT}",
    ),
    **{
        f"cifar10_{grid}": Experiment(
            "cifar10",
            f"{subject}, 4 epochs",
            sweep=f"--grid {grid} {CIFAR10}" + ("" if grid == "opt" else " --lr .005"),
        )
        for grid, subject in CIFAR10_GRIDS.items()
    },
    "cifar10_converged": Experiment(
        "cifar10",
        "The tutorial's network and its variant of double width, all 50,000 training images, until "
        "the running loss is flat: it falls by less than 1% after the epoch `flat from`",
        tuple(
            Run(f"{model}_30_epochs", f"--model {model} {CONVERGED}")
            for model in ("tutorial", "doubled")
        ),
        curves=True,
    ),
    "faces_tenth": Experiment(
        "faces",
        "The rows of the table of assignment 4 at a tenth of its epochs, with early stopping",
        sweep=f"--grid reference_tenth {FACES}",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Training experiments and their tables."""

    names: tuple[str, ...] = tuple(EXPERIMENTS)
    """experiments to run; all by default"""
    root: str = ""
    """folder of the data, which must be given"""
    size: int = 224
    """objects: side of the input in pixels"""
    epochs: int = 12
    """detect: passes over the training set"""
    out: Path = Path("runs/experiments")
    """folder of the runs"""
    results: Path | None = None
    """folder for the files experiment_NAME.json and experiment_NAME.md; by default none are
    written"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command("experiments", Options, argv, run)


def run(options: Options) -> None:
    """Train the runs that are not complete, evaluate them, and print and write their tables."""
    harness.require_known("--names", options.names, tuple(EXPERIMENTS))
    if not options.root:
        raise InputError("--root must be the folder of the data, got none")
    for name in options.names:
        experiment = EXPERIMENTS[name]
        if experiment.sweep:
            rows = sweep_rows(name, experiment, options)
        else:
            rows = [row for run in experiment.runs for row in run_rows(experiment, run, options)]
        path = options.results and options.results / f"experiment_{name}"
        harness.write_tables(render({"rows": rows}), path and path.with_suffix(".md"))
        if path:
            if experiment.curves:
                draw(experiment, options.out, path.with_suffix(".png"))
            # no folders of this machine in the record
            same = replace(options, names=(name,), root="DIR", out=Options.out, results=None)
            harness.write_record(
                "experiments",
                rows,
                path.with_suffix(".json"),
                options=same,
                system=experiment.system,
                question=name,
            )


def render(record: dict[str, Any]) -> str:
    columns = {key: key.replace("_", " ") for row in record["rows"] for key in row}
    if "epoch_seconds" in columns:
        columns["epoch_seconds"] = ("time per epoch", "s")
    return units.markdown_table(record["rows"], columns)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record, in which runs that differ only in the seed share one row.

    Such a row has the mean of each score over the seeds; `deviation` is the standard deviation of
    the first score.  Changes of an ablation with a gain near 0 are left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    rows = [row for row in record["rows"] if abs(row.get("gain") or 1) >= SMALL_GAIN]
    record = {**record, "rows": rows}
    for row in rows:
        key = re.sub(r" --seed \d+", "", row.get("options", ""))
        groups.setdefault(key or str(len(groups)), []).append(row)
    if len(groups) == len(record["rows"]):
        return render(record)
    return render({"rows": [_mean(rows, key) for key, rows in groups.items()]})


def _mean(rows: Sequence[dict[str, Any]], options: str) -> dict[str, Any]:
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    score = next(iter(names))
    return {
        "run": re.sub(r"_\d+$", "", rows[0]["run"]) if len(rows) > 1 else rows[0]["run"],
        "seeds": len(rows),
        "deviation": statistics.stdev(row[score] for row in rows) if len(rows) > 1 else None,
        **{name: statistics.fmean(row[name] for row in rows) for name in names},
        "options": options,
    }


def describe(record: dict[str, Any]) -> str:
    question = f"{EXPERIMENTS[record['question']].question} (`{record['system']}`)."
    if any("gain" in row for row in record["rows"]):
        question += f" Changes with a gain between -{SMALL_GAIN} and {SMALL_GAIN} are left out."
    return question


def run_rows(experiment: Experiment, run: Run, options: Options) -> Iterator[dict[str, Any]]:
    """Rows of a run, one per checkpoint: scores on the test split, median time per epoch."""
    words = fill(run.words, options)
    folder = options.out / run.name
    first = [] if run_dir.is_occupied(folder) else [*words, "--root", options.root]
    jaxdet("train", experiment.system, "--out", str(folder), "--resume", *first)
    lines = run_dir.read_metrics(folder)
    seconds = sorted(sum(line["time"].values()) for line in lines[1:])
    for checkpoint in run.checkpoints:
        out = jaxdet("eval", str(folder), "--checkpoint", checkpoint, "--json")
        scores = json.loads(out.splitlines()[-1])
        (epoch,) = (line["epoch"] for line in lines if line["step"] == scores["step"])
        yield {
            "run": run.name,
            "checkpoint": checkpoint,
            "epoch": epoch,
            **{name: scores[name] for name in SCORES[experiment.system]},
            **(label_scores(scores) if experiment.by_label else {}),
            **(convergence(lines) if experiment.curves else {}),
            "epoch_seconds": seconds[len(seconds) // 2],
            "options": " ".join(fill(run.words, replace(options, out=Options.out))),
        }


def fill(words: str, options: Options) -> list[str]:
    """The options of a run, with values in place of {size}, {epochs} and {out}."""
    return words.format(size=options.size, epochs=options.epochs, out=options.out).split()


def convergence(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Running loss of the last epoch, and the first epoch after which the loss is nearly flat.

    The loss is nearly flat after an epoch if it falls, in all later epochs together, by less than a
    fraction `FLAT`.
    """
    losses = {line["epoch"]: line["train"]["loss"] for line in lines if line["train"]}
    later = {epoch: min(losses[after] for after in losses if after >= epoch) for epoch in losses}
    flat = (epoch for epoch, loss in losses.items() if later[epoch] > (1 - FLAT) * loss)
    return {"running_loss": losses[max(losses)], "flat_from": next(flat)}


def draw(experiment: Experiment, out: Path, path: Path) -> None:
    from jaxdet.plots import training

    runs = {run.name: run_dir.read_metrics(out / run.name) for run in experiment.runs}
    training.compare_runs(runs, path)


def label_scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and mean IoU, or mAP, of each label, as columns `LABEL SCORE`."""
    labels = scores["labels"]
    found = {name for of_label in labels.values() for name in of_label}
    names = [name for name in ("accuracy", "iou", "map") if name in found]
    return {
        f"{label} {name}": of_label.get(name)
        for label, of_label in labels.items()
        for name in names
    }


def sweep_rows(name: str, experiment: Experiment, options: Options) -> list[dict[str, Any]]:
    words, folder = experiment.sweep.format(epochs=options.epochs).split(), options.out / name
    jaxdet(
        *("sweep", experiment.system, *words),
        *("--root", options.root, "--out", str(folder), "--resume"),
    )
    rows = json.loads((folder / "sweep.json").read_text())
    columns = SWEEP_COLUMNS[experiment.system]
    return [{column: row[column] for column in row if column in columns} for row in rows]


def jaxdet(*words: str) -> str:
    """Output of a jaxdet command; raises InputError with the last line of its error if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxdet", *words],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise InputError(f"jaxdet {words[0]}: {lines[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
