"""One training step of several networks: jaxdet against PyTorch.

    python -m benchmarks.train_step --models digits resnet18_64 resnet18_224 --json FILE

A step is the forward pass, the loss, the gradients and an AdamW update, with batch norm in training
mode, on a batch in memory. It is measured as `jit` on one device, `pmap` on all devices where there
are several, PyTorch (eager) and `torch.compile`, each in its own process, taking turns. A ratio
below 1 means faster than eager PyTorch. The models:

- `digits`: the network of `digits` (batch 32) on prepared canvases; `digits_drawn` draws the
  canvases in the step (jaxdet only); `digits_wide` is the wider network trained on MNIST (batch
  64).
- `resnet18_64`, `resnet18_224`, `resnet50_224`, `mobilenet_v2_224`, `lite0_224`, `b0_224`
  (EfficientNets): batch 16, images of that side.
- `simple_224` and `deeper_112`: networks of `objects`.
- `detect`: the detector of `detect` (batch 8) with three stages of its backbone frozen;
  `detect_unfrozen`: with none, `detect_frozen`: with all of them (both jaxdet only).

Both libraries compute in the precision of the row: `float32`; `tf32`, with TF32 for convolutions
and matrix products of float32 arrays (on a GPU); `bfloat16`, with layers in bfloat16, parameters
and loss in float32, and TF32 for other products. PyTorch uses channels-last images and kernels and,
on a GPU, the fused AdamW and `cudnn.benchmark`. `of peak` is the rate of additions and
multiplications in convolutions and matrix products, as a fraction of the rate that a large matrix
product of that precision reaches on the device. `memory` is the peak of memory during a step, less
the memory in use before it: parameters and the state of the optimizer do not count. `other load` is
the number of processors that other processes kept busy; above 0.05, the row is marked as disturbed.

Set OMP_WAIT_POLICY=passive on a CPU: PyTorch's threads spin while they wait. See
`docs/benchmarks.md` for results.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from benchmarks.lib import harness, train_steps, turns, units
from benchmarks.lib.precision import Precision, matmul_peak
from benchmarks.lib.train_steps import StepOptions
from jaxdet.errors import InputError
from jaxdet.kernels import conv

NAME = "train_step"
IMPLEMENTATIONS = ("jit", "pmap", "torch", "torch_compiled")
ASYNC_STEPS = 10  # per call on a GPU, where a training loop does not wait for each
COLUMNS = {
    "model": "model",
    "precision": "precision",
    "batch": "batch",
    "side": "side",
    "implementation": "implementation",
    "compile_s": ("first call", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "images_per_s": ("images/s", ""),
    "ratio": "time / PyTorch",
    "of_peak": "of peak",
    "memory": ("memory", "B"),
    "memory_ratio": "memory / PyTorch",
    "others": "other load",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """One training step of several networks, jaxdet against PyTorch."""

    models: tuple[str, ...] = tuple(train_steps.MODELS)
    """networks to time"""
    precisions: tuple[Precision, ...] = ("float32",)
    """precisions in which products are computed: float32, tf32 (on a GPU only), bfloat16"""
    batch: int = 0
    """images per step; 0: each model's default"""
    side: int = 0
    """side of the images in pixels; 0: each model's default"""
    impl: conv.Impl = "auto"
    """how jaxdet computes convolutions, see jaxdet.kernels.conv; lax is XLA's own convolution"""
    steps: int = 0
    """steps per timed call, which waits for the last one; 0: 1 on a CPU, 10 on a GPU"""
    torch: bool = True
    """time PyTorch as well, if it is installed"""
    compiled: bool = True
    """time torch.compile as well, which takes a minute per model to compile"""
    seconds: float = 3.0
    """seconds for which each implementation is timed; at least seven calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    """Time the steps, then print and write the results.

    The record is also written after each model.
    """
    harness.require_known("--models", options.models, tuple(train_steps.MODELS))
    for name in ("batch", "side", "steps"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name} must be at least 0, got {getattr(options, name)}")
    if "tf32" in options.precisions and jax.default_backend() == "cpu":
        raise InputError("--precisions tf32 needs a GPU, got a CPU; choose float32 or bfloat16")
    rows: list[dict[str, Any]] = []
    with Peers() as peers:
        peaks = {precision: peers.matmul_peak(precision) for precision in options.precisions}
        for name in options.models:
            for precision in options.precisions:
                rows += compare(peers, name, precision, options, peaks[precision])
                if options.json:
                    harness.write_record(NAME, rows, options.json, options=options, peaks=peaks)
        extra = {"peaks": peaks, "torch": peers.describe_torch()}
    harness.publish(NAME, options, render, rows, **{k: v for k, v in extra.items() if v})


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per model, precision and implementation, and the peaks."""
    peaks = ", ".join(
        f"{precision} {units.format_quantity(peak, 'op/s')}"
        for precision, peak in record.get("peaks", {}).items()
    )
    table = units.markdown_table(record["rows"], COLUMNS)
    return f"{table}\n\nA large matrix product: {peaks}." if peaks else table


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per model and precision."""
    found: dict[tuple, dict] = {}
    for row in record["rows"]:
        own = {key: row.get(key) for key in ("model", "precision", "batch", "side")}
        cells = found.setdefault(tuple(own.values()), own)
        cells[row["implementation"]] = row.get("median")
        if row["implementation"] == "jit":
            names = ("ratio", "images_per_s", "of_peak", "memory_ratio")
            cells |= {key: row.get(key) for key in names}
    columns = {
        "model": "model",
        "precision": "precision",
        "batch": "batch",
        "side": "side",
        "jit": ("jaxdet", "s"),
        "pmap": ("pmap", "s"),
        "torch": ("PyTorch", "s"),
        "torch_compiled": ("torch.compile", "s"),
        "ratio": "jaxdet / PyTorch",
        "images_per_s": ("jaxdet images/s", ""),
        "of_peak": "of peak",
        "memory_ratio": "memory / PyTorch",
    }
    return units.markdown_table(found.values(), columns)


class Peers:
    """The processes of the implementations, started on first use, and the steps they have built."""

    def __init__(self) -> None:
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.workers: dict[str, turns.Worker] = {}

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def worker(self, implementation: str) -> turns.Worker:
        """The process of an implementation; in the process of PyTorch, JAX does not use the GPU."""
        if implementation not in self.workers:
            platform = "cpu" if implementation.startswith("torch") else None
            self.workers[implementation] = turns.Worker(platform)
        return self.workers[implementation]

    def build(self, implementation: str, model: train_steps.Model, options: StepOptions) -> float:
        """Build the step of an implementation; returns the seconds of its first call."""
        build = {
            "jit": train_steps.jax_step,
            "pmap": partial(train_steps.jax_step, all_devices=True),
            "torch": partial(train_steps.torch_step, device=self.device),
            "torch_compiled": partial(train_steps.torch_step, device=self.device, compiled=True),
        }[implementation]
        try:
            return self.worker(implementation).build(build, model, options)
        except turns.WorkerError:
            self.workers.pop(implementation).close()  # it may be gone, or hold memory
            raise

    def peak(self, implementation: str) -> int | None:
        """Peak memory of the step that an implementation has built, in bytes.

        None if unknown, as for PyTorch on a GPU.
        """
        unknown = self.device == "cuda" and implementation.startswith("torch")
        return None if unknown else self.worker(implementation).peak()

    def matmul_peak(self, precision: Precision) -> float:
        """Operations per second of a large matrix product on the device."""
        return self.worker("jit").run(matmul_peak, precision)

    def describe_torch(self) -> dict[str, Any] | None:
        """Version and settings of PyTorch, if it was compared."""
        worker = self.workers.get("torch")
        return worker.run(train_steps.describe_torch) if worker else None


def compare(
    peers: Peers, name: str, precision: Precision, options: Options, peak: float
) -> list[dict[str, Any]]:
    """Rows of all implementations of one model in one precision."""
    model = train_steps.MODELS[name]
    steps = options.steps or (1 if jax.default_backend() == "cpu" else ASYNC_STEPS)
    step_options = StepOptions(options.batch, options.side, options.impl, precision, steps)
    work = train_steps.make_workload(model, step_options)
    operations = train_steps.count_operations(work)
    shared = {"model": name, "precision": precision, "batch": work.batch, "side": work.side}
    rows = {each: {**shared, "implementation": each} for each in IMPLEMENTATIONS}
    first: dict[str, float] = {}
    for implementation, row in rows.items():
        reason = missing(implementation, work, options)
        if reason:
            row["note"] = reason
            continue
        try:
            first[implementation] = peers.build(implementation, model, step_options)
            row["memory"] = peers.peak(implementation)
        except turns.WorkerError as error:  # torch.compile fails in many ways
            row["note"] = f"failed: {error}"
    workers = {implementation: peers.worker(implementation) for implementation in first}
    measured = turns.measure(workers, first, seconds=options.seconds)
    for implementation, cells in measured.items():
        row = rows[implementation]
        row |= cells
        if "median" not in cells:
            peers.workers.pop(implementation).close()
            continue
        row["median"] /= steps
        row["spread"] /= steps
        row["images_per_s"] = work.batch / row["median"]
        row |= {"operations": operations, "of_peak": operations / row["median"] / peak}
    for ratio, value in (("ratio", "median"), ("memory_ratio", "memory")):
        of_torch = rows["torch"].get(value)
        for row in rows.values():
            row[ratio] = row[value] / of_torch if of_torch and row.get(value) else None
    return list(rows.values())


def missing(implementation: str, work: train_steps.Workload, options: Options) -> str | None:
    """The reason why an implementation cannot be timed; None if it can."""
    if implementation == "pmap":
        return None if len(jax.devices()) > 1 else "one device"
    if implementation == "jit":
        return None
    if work.torch is None:
        return "jaxdet only"
    asked = options.torch and (implementation == "torch" or options.compiled)
    return harness.torch_unavailable(asked)


if __name__ == "__main__":
    sys.exit(main())
