"""What a user waits for: help, imports, and the time until the first step of a training.

    python -m benchmarks.startup --repeats 5 --json FILE --markdown FILE

Prints a Markdown table: median seconds, each time in a fresh process, of `jaxdet --help` from
start to end, and of every stage of `jaxdet train digits` on one device until its second step (see
`benchmarks.lib.startup_stages`).  `cold` begins with an empty folder for compiled programs, `warm` with one
that an earlier process of the same kind has filled; programs that compile within half a second are
not kept, see `cli.prepare`.  The files themselves have been read before, in either case.
`--small` takes a network of one narrow convolution: quick, and of no other use.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import jax

from benchmarks.lib import harness
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.profiling import timing

NAME = "startup"
CACHES = ("cold", "warm")
COLUMNS = {
    "stage": "stage",
    "cold_s": "cold s",
    "cold_spread": "spread s",
    "warm_s": "warm s",
    "warm_spread": "spread s",
    "repeats": "repeats",
}
SMALL = {"stages": "c6s4,p2", "widths": [4], "dense": [8], "window": 40, "canvas": 56, "batch": 8}
HELP = "jaxdet --help"
START, WHOLE = "start Python", "from start to first step"


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Seconds until there is help, and until the first step."""

    repeats: int = 5
    """processes of each kind"""
    small: bool = False
    """train a network of one narrow convolution in place of that of `digits`"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Start processes, time them, print, write."""
    if options.repeats < 1:
        raise InputError("--repeats starts at 1")
    helped = [seconds_of_help() for _ in range(options.repeats)]
    rows = [row(HELP, {"cold": helped})]
    found = trainings(options.repeats, SMALL if options.small else {})
    rows += [
        row(stage, {cache: [each[stage] for each in found[cache]] for cache in CACHES})
        for stage in found["cold"][0]
    ]
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def row(stage, taken):
    """The row of a stage from its seconds with each state of the cache."""
    made = {"stage": stage, "repeats": len(taken["cold"])}
    for cache, times in taken.items():
        found = timing.summarize(0.0, times)
        made |= {f"{cache}_s": found.median, f"{cache}_spread": found.spread}
    return made


def seconds_of_help():
    """Seconds of a whole process that prints help."""
    return timing.timed(lambda: process("jaxdet", "--help"))[1]


def trainings(repeats, fields):
    """{cache: [{stage: seconds} a process]}; cold and warm take turns."""
    found = {cache: [] for cache in CACHES}
    with tempfile.TemporaryDirectory() as kept:
        for number in range(repeats):
            with tempfile.TemporaryDirectory() as fresh:
                folder = kept if number == 0 else fresh
                found["cold"].append(training(fields, folder))
            found["warm"].append(training(fields, kept))
    return found


def training(fields, cache):
    """{stage: seconds} of one training process that keeps its programs in the folder `cache`."""
    started = time.time()
    told = json.loads(process("benchmarks.lib.startup_stages", json.dumps(fields), cache=cache))
    seconds = {START: told["begun"] - started, **told["seconds"]}
    return {**seconds, WHOLE: told["first"] - started}


def process(module, *words, cache=None):
    """What a fresh Python prints that runs a module; RuntimeError with its last line on failure."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, **kept},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word of why"]
        raise RuntimeError(f"{module} ended with code {done.returncode}: {last[0]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
