"""One training step of several networks: jaxdet against PyTorch.

    python -m benchmarks.train_step --models digits resnet18_64 resnet18_224 --json FILE

A step is the forward pass, the loss, the gradients and an AdamW update, with batch norm in training
mode, on a batch in memory. It is measured as `jit` on one device, `pmap` on all devices where there
are several, PyTorch (eager) and `torch.compile`, interleaved. A ratio below 1 means faster than
eager PyTorch. The models:

- `digits`: the network of `digits` (batch 32) on ready canvases; `digits_drawn` draws them in the
  step (jaxdet only); `digits_wide` is the wider network trained on MNIST (batch 64).
- `resnet18_64` and `resnet18_224`: batch 16, images of that side.
- `simple_224` and `deeper_112`: networks of `objects`.
- `detect`: the detector of `detect` (batch 8), three stages of its backbone frozen, in
  `detect_unfrozen` none, in `detect_frozen` all (both jaxdet only).

Set OMP_WAIT_POLICY=passive: PyTorch's spinning threads slow down jaxdet's turns. See
`docs/benchmarks.md` for results on a CPU.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from benchmarks.lib import harness, train_steps, units
from jaxdet.errors import InputError
from jaxdet.profiling import timing

NAME = "train_step"
IMPLEMENTATIONS = tuple(train_steps.BUILDERS)
COLUMNS = {
    "model": "model",
    "batch": "batch",
    "side": "side",
    "implementation": "implementation",
    "compile_s": ("first call", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "images_per_s": ("images/s", ""),
    "ratio": "time / PyTorch",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """One training step of several networks, jaxdet against PyTorch."""

    models: tuple[str, ...] = tuple(train_steps.MODELS)
    """networks to time"""
    batch: int = 0
    """images per step; 0 is each model's own"""
    impl: Literal["auto", "lax"] = "auto"
    """how jaxdet computes convolutions, see jaxdet.kernels.conv"""
    compiled: bool = True
    """time torch.compile as well, which takes a minute per model"""
    bfloat16: bool = False
    """compute in bfloat16, jaxdet only"""
    seconds: float = 3.0
    """time for each implementation; at least three steps"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    """Time; print and write the results."""
    harness.require_known("--models", options.models, tuple(train_steps.MODELS))
    if options.batch < 0:
        raise InputError(f"--batch must be at least 0, got {options.batch}")
    rows = [row for name in options.models for row in compare(name, options)]
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per model and implementation."""
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per model."""
    found: dict[str, dict] = {}
    for row in record["rows"]:
        cells = found.setdefault(
            row["model"], {key: row[key] for key in ("model", "batch", "side")}
        )
        cells[row["implementation"]] = row.get("median")
        if row["implementation"] == "jit":
            cells |= {"ratio": row.get("ratio"), "images_per_s": row.get("images_per_s")}
    columns = {
        "model": "model",
        "batch": "batch",
        "side": "side",
        "jit": ("jaxdet", "s"),
        "pmap": ("pmap", "s"),
        "torch": ("PyTorch", "s"),
        "torch_compiled": ("torch.compile", "s"),
        "ratio": "jaxdet / PyTorch",
        "images_per_s": ("jaxdet images/s", ""),
    }
    return units.markdown_table(found.values(), columns)


def compare(name: str, options: Options) -> list[dict[str, Any]]:
    """Rows of all implementations of one model."""
    work = train_steps.make_workload(name, options.batch, options.impl, options.bfloat16)
    shared = {"model": name, "batch": work.batch, "side": work.side}
    calls, first, rows = {}, {}, {}
    for implementation in IMPLEMENTATIONS:
        rows[implementation] = {**shared, "implementation": implementation}
        reason = missing(implementation, work, options)
        if reason:
            rows[implementation]["note"] = reason
            continue
        try:
            call = train_steps.BUILDERS[implementation](work)
            first[implementation] = timing.timed(call)[1]
            calls[implementation] = call
        except Exception as error:  # torch.compile fails in many ways: each becomes a note
            rows[implementation]["note"] = f"failed: {str(error).splitlines()[0]}"
    samples = timing.sample_interleaved(list(calls.values()), seconds=options.seconds)
    for implementation, times in zip(calls, samples, strict=True):
        found = timing.summarize(first[implementation], times)
        speed = {"images_per_s": work.batch / found.median}
        rows[implementation] |= {**found._asdict(), **speed}
    torch_s = rows["torch"].get("median")
    for row in rows.values():
        row["ratio"] = row["median"] / torch_s if torch_s and "median" in row else None
    return list(rows.values())


def missing(implementation: str, work: train_steps.Workload, options: Options) -> str | None:
    """Why an implementation is not timed, or None if it is."""
    if implementation == "pmap":
        return None if len(jax.devices()) > 1 else "one device"
    if implementation == "jit":
        return None
    if work.torch is None or options.bfloat16:
        return "jaxdet only"
    return harness.torch_unavailable(implementation == "torch" or options.compiled)


if __name__ == "__main__":
    sys.exit(main())
