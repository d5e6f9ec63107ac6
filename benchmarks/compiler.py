"""Training steps on a CPU, compiled with different options of XLA.

    python -m benchmarks.compiler --json FILE

`jaxdet.kernels.compiler` says which option jaxdet sets, and why. Each choice of options has a
process of its own, and the processes take turns. The column `time / jaxdet's` is relative to the
time with the options that jaxdet sets.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax

from benchmarks.lib import harness, train_steps, turns, units
from benchmarks.lib.train_steps import StepOptions
from jaxdet.errors import InputError
from jaxdet.kernels import compiler

NAME = "compiler"


class Choice(NamedTuple):
    """The compiler options of a process."""

    options: dict[str, str] | None = None  # of `jax.jit`
    flag: str = ""  # in XLA_FLAGS


CHOICES = {
    "jaxdet": Choice(compiler.OPTIONS),
    "level 3": Choice(compiler.OPTIONS),
    "without sums": Choice({compiler.YNN_FUSION: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}),
    "XLA_FLAGS": Choice(flag=f"--{compiler.YNN_FUSION}=-individual_convolution"),
    "XLA's default": Choice(),
}
COLUMNS = {
    "model": "model",
    "batch": "batch",
    "choice": "choice",
    "compile_s": ("first call", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "time / jaxdet's",
    "others": "other load",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Training steps compiled with different options of XLA."""

    models: tuple[str, ...] = tuple(train_steps.MODELS)
    """networks to time"""
    batch: int = 0
    """images per step; 0: each model's default"""
    side: int = 0
    """side of the images in pixels; 0: each model's default"""
    seconds: float = 3.0
    """seconds for which each choice is timed; at least seven calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    """Time the steps, then print and write the results.

    The record is also written after each model.
    """
    harness.require_known("--models", options.models, tuple(train_steps.MODELS))
    if jax.default_backend() != "cpu":
        raise InputError(
            f"the device must be a CPU, got {jax.default_backend()}; run with JAX_PLATFORMS=cpu"
        )
    if compiler.YNN_FUSION in os.environ.get("XLA_FLAGS", ""):
        raise InputError(
            f"XLA_FLAGS must not set {compiler.YNN_FUSION}, which this benchmark varies; remove it"
        )
    workers = {choice: turns.Worker() for choice in CHOICES}
    rows: list[dict[str, Any]] = []
    try:
        for name in options.models:
            rows += compare(workers, name, options)
            if options.json:
                harness.write_record(NAME, rows, options.json, options=options)
    finally:
        for worker in workers.values():
            worker.close()
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per model."""
    found: dict[str, dict[str, Any]] = {}
    for row in record["rows"]:
        cells = found.setdefault(row["model"], {"model": row["model"], "batch": row["batch"]})
        cells[row["choice"]] = row.get("median")
    columns = {name: (name, "s") for name in CHOICES}
    return units.markdown_table(found.values(), {"model": "model", "batch": "batch", **columns})


def compare(workers: dict[str, turns.Worker], name: str, options: Options) -> list[dict[str, Any]]:
    model, step_options = train_steps.MODELS[name], StepOptions(options.batch, options.side)
    batch = train_steps.make_workload(model, step_options).batch
    rows = {choice: {"model": name, "batch": batch, "choice": choice} for choice in workers}
    first: dict[str, float] = {}
    for choice, worker in workers.items():
        try:
            first[choice] = worker.build(partial(build_step, choice), model, step_options)
        except turns.WorkerError as error:  # an option that this version of XLA does not know
            rows[choice]["note"] = f"failed: {error}"
    measured = turns.measure({c: workers[c] for c in first}, first, seconds=options.seconds)
    for choice, cells in measured.items():
        rows[choice] |= cells
    reference = rows["jaxdet"].get("median")
    for row in rows.values():
        row["ratio"] = row["median"] / reference if reference and "median" in row else None
    return list(rows.values())


def build_step(choice: str, model: train_steps.Model, options: StepOptions) -> Callable[[], Any]:
    """The training step of a model, compiled with one of `CHOICES`.

    This changes the compiler options of the process, so no step with another choice may be built in
    it.
    """
    values, flag = CHOICES[choice]
    if flag and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    compiler.compiler_options = lambda **_: values
    return train_steps.jax_step(model, options)


if __name__ == "__main__":
    sys.exit(main())
