"""Time to print the help, and to reach the first training step.

    python -m benchmarks.startup --repeats 5 --json FILE --markdown FILE

Prints median seconds, each measured in a fresh process, of `jaxdet --help` from start to end, and
of every stage of `jaxdet train digits` on one device until its second step (see
`benchmarks.lib.startup_stages`). `cold` starts with an empty compilation cache, `warm` with one
that an earlier process of the same kind has filled; programs that compile within half a second are
not cached. In both cases the operating system has read the files before. `--small` trains a network
of one narrow convolution, to see quickly that the benchmark works.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lib import harness, units
from jaxdet.profiling import timing

NAME = "startup"
CACHES = ("cold", "warm")
COLUMNS = {
    "stage": "stage",
    "cold_s": ("cold", "s"),
    "cold_spread": ("spread", "s"),
    "warm_s": ("warm", "s"),
    "warm_spread": ("spread", "s"),
    "repeats": "repeats",
}
SMALL = {
    "layout": "c6s4,p2",
    "channels": [4],
    "fc_widths": [8],
    "window": 40,
    "canvas": 56,
    "batch": 8,
}
HELP = "jaxdet --help"
START, TOTAL = "start Python", "from start to first step"


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Time to print the help, and to reach the first training step."""

    repeats: int = 5
    """number of processes per measurement"""
    small: bool = False
    """train a network of one narrow convolution instead of the network of `digits`"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats")
    rows = [_row(HELP, {"cold": [time_help() for _ in range(options.repeats)]})]
    seconds = time_trainings(options.repeats, SMALL if options.small else {})
    rows += [
        _row(stage, {cache: [each[stage] for each in seconds[cache]] for cache in CACHES})
        for stage in seconds["cold"][0]
    ]
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: `HELP`, and the stages that take at least a second."""
    rows = record["rows"]
    return render({"rows": [row for row in rows if row["stage"] == HELP or row["cold_s"] >= 1]})


def time_help() -> float:
    return timing.timed(lambda: run_module("jaxdet", "--help"))[1]


def time_trainings(repeats: int, fields: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """{cache: [{stage: seconds} per process]}; cold and warm are interleaved."""
    found = {cache: [] for cache in CACHES}
    with tempfile.TemporaryDirectory() as filled:
        for number in range(repeats):
            with tempfile.TemporaryDirectory() as fresh:
                folder = filled if number == 0 else fresh
                found["cold"].append(time_training(fields, folder))
            found["warm"].append(time_training(fields, filled))
    return found


def time_training(fields: Mapping[str, Any], cache: str) -> dict[str, float]:
    """{stage: seconds} of a training process with its compilation cache in the folder `cache`."""
    started = time.time()
    out = run_module("benchmarks.lib.startup_stages", json.dumps(fields), cache=cache)
    stages = json.loads(out)
    seconds = {START: stages["begun"] - started, **stages["seconds"]}
    return {**seconds, TOTAL: stages["first"] - started}


def run_module(module: str, *words: str, cache: str | None = None) -> str:
    """Output of `python -m module`; RuntimeError with the last line of its error if it fails."""
    environment = {"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{module} failed with exit code {done.returncode}: {last[0]}")
    return done.stdout


def _row(stage, samples):
    """The row of a stage from its seconds {cache: per process}."""
    row = {"stage": stage, "repeats": len(samples["cold"])}
    for cache, times in samples.items():
        found = timing.summarize(0.0, times)
        row |= {f"{cache}_s": found.median, f"{cache}_spread": found.spread}
    return row


if __name__ == "__main__":
    sys.exit(main())
