"""Time to print the help, to reach the first training step, and to the first prediction.

    python -m benchmarks.startup --repeats 5 --json FILE --markdown FILE

Prints median seconds, each measured in a fresh process: `jaxdet --help` from start to end; every
stage of a training on one device until its second step, for the digit locator, ResNet18 (`faces` at
64 pixels, batch 16) and the detector with Lite0, nothing frozen; every stage of a prediction by
this detector (see `benchmarks.lib.startup_stages`); and `jaxdet predict`, from its start to the
line of the first image and, for ten images, of the last. The detector has initial weights, and the
data are noise. `goal` is the time to reach.

`cold` starts with an empty compilation cache, `warm` with one that an earlier process of the same
kind has filled; programs that compile within half a second are not cached. In both cases the
operating system has read the files before. `--small` trains and runs a network of one narrow
convolution, to see quickly that the benchmark works.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib import harness, synthetic, units
from jaxdet.profiling import timing

NAME = "startup"
CACHES = ("cold", "warm")
COLUMNS = {
    "command": "command",
    "stage": "stage",
    "cold_s": ("cold", "s"),
    "cold_spread": ("spread", "s"),
    "cold_goal": ("goal", "s"),
    "warm_s": ("warm", "s"),
    "warm_spread": ("spread", "s"),
    "warm_goal": ("goal", "s"),
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
START = "start Python"
TOTALS = {"train": "from start to first step", "predict": "from start to first prediction"}
STEP = "trace, compile and first step"
LINES = {1: "from start to the line of the first image", 10: "from start to the line of the tenth"}


class Training(NamedTuple):
    """A training whose start is timed."""

    system: str
    fields: Mapping[str, Any]  # of its configuration
    write_data: Callable[[Path], None] | None  # writes the data into a folder; None: none needed
    cold_goal: float  # seconds to trace, compile and take the first step
    warm_goal: float  # seconds from the start of the process to the end of the first step


TRAININGS = {
    "digits": Training("digits", {}, None, 4, 4),
    "resnet18": Training("faces", {"size": 64, "batch": 16}, synthetic.write_identities, 8, 4),
    "detect": Training("detect", {}, synthetic.write_yolo, 30, 4),
}
PREDICT_GOALS = {"cold_goal": 6.0, "warm_goal": 2.5}  # seconds to the line of the first image


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Time to print the help, to reach the first training step, and to the first prediction."""

    repeats: int = 5
    """number of processes per measurement"""
    commands: tuple[str, ...] = (*TRAININGS, "predict")
    """trainings to start, and predict"""
    small: bool = False
    """train, and predict with, a network of one narrow convolution"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "repeats")
    harness.require_known("--commands", options.commands, (*TRAININGS, "predict"))
    rows = [_row(HELP, "", {"cold": [time_help() for _ in range(options.repeats)]})]
    small = {"digits": TRAININGS["digits"]._replace(fields=SMALL)}
    trainings = small if options.small else TRAININGS
    with tempfile.TemporaryDirectory() as place:
        for name, training in trainings.items():
            if name in options.commands:
                rows += training_rows(name, training, Path(place), options.repeats)
        if "predict" in options.commands:
            name = "digits" if options.small else "detect"
            rows += predict_rows(trainings[name], Path(place), options.repeats)
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: `HELP`, stages that take at least a second, and rows with a goal."""
    rows = record["rows"]
    return render({"rows": [row for row in rows if _is_main(row)]})


def _is_main(row: Mapping[str, Any]) -> bool:
    return row.get("command") == HELP or row["cold_s"] >= 1 or "warm_goal" in row


def time_help() -> float:
    return timing.timed(lambda: run_module("jaxdet", "--help"))[1]


def training_rows(name: str, training: Training, place: Path, repeats: int) -> list[dict[str, Any]]:
    """Rows of a training: its stages, and the sums for which there are goals."""
    given = {"system": training.system, "fields": with_data(name, training, place)}
    samples = in_turns(lambda cache: time_stages(given, cache), repeats)
    goals = {
        STEP: {"cold_goal": training.cold_goal},
        TOTALS["train"]: {"warm_goal": training.warm_goal},
    }
    return _stage_rows(f"jaxdet train {training.system}", samples, goals)


def predict_rows(training: Training, place: Path, repeats: int) -> list[dict[str, Any]]:
    """Rows of predictions by an untrained run: stages, and the lines of the first images."""
    folder, images = place / "run", place / "images"
    fields = with_data("predict", training, place)
    synthetic.write_run(folder, training.system, fields)
    paths = synthetic.write_images(images, count=max(LINES))
    given = {"run": str(folder), "image": str(paths[0])}
    samples = in_turns(lambda cache: time_stages(given, cache), repeats)
    rows = _stage_rows(f"jaxdet predict ({training.system})", samples, {})
    goals = {LINES[1]: PREDICT_GOALS}
    for count, stage in LINES.items():
        words = ("predict", str(folder), *map(str, paths[:count]))
        times = in_turns(partial(time_to_line, words), repeats)
        found = {cache: [{stage: each} for each in own] for cache, own in times.items()}
        rows += _stage_rows(f"jaxdet predict ({training.system})", found, goals)
    return rows


def with_data(name: str, training: Training, place: Path) -> dict[str, Any]:
    """The fields of a training, with the folder of its data, which is written unless it exists."""
    fields = dict(training.fields)
    if training.write_data:
        root = place / "data" / name
        training.write_data(root)
        fields["root"] = str(root)
    return fields


def in_turns(measure: Callable[[str], Any], repeats: int) -> dict[str, list[Any]]:
    """Call `measure(folder)` with a cold and a warm cache in turns; returns {cache: results}."""
    found = {cache: [] for cache in CACHES}
    with tempfile.TemporaryDirectory() as filled:
        for number in range(repeats):
            with tempfile.TemporaryDirectory() as fresh:
                folder = filled if number == 0 else fresh
                found["cold"].append(measure(folder))
            found["warm"].append(measure(filled))
    return found


def time_stages(given: Mapping[str, Any], cache: str) -> dict[str, float]:
    """{stage: seconds} of a process of `startup_stages` with the compilation cache `cache`."""
    started = time.time()
    stages = json.loads(run_module("benchmarks.lib.startup_stages", json.dumps(given), cache=cache))
    seconds = {START: stages["begun"] - started, **stages["seconds"]}
    total = stages["first"] - started
    if "first step" not in seconds:
        return {**seconds, TOTALS["predict"]: total}
    parts = (seconds[name] for name in ("trace", "compile", "first step"))
    return {**seconds, STEP: sum(parts), TOTALS["train"]: total}


def time_to_line(words: Sequence[str], cache: str) -> float:
    """Seconds from the start of `jaxdet WORDS` to the line of its last image."""
    count, start = len(words) - 1, time.perf_counter()  # a heading, and a line per image
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "jaxdet", *words],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        lines: Any = process.stdout
        for _ in range(count):
            if not lines.readline():
                raise RuntimeError(f"jaxdet {' '.join(words)} printed fewer than {count} lines")
        seconds = time.perf_counter() - start
        lines.read()
    return seconds


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


def _stage_rows(
    command: str, samples: Mapping[str, list[dict[str, float]]], goals: Mapping[str, dict]
) -> list[dict[str, Any]]:
    """A row per stage; `goals` has further cells of rows, by stage."""
    return [
        _row(command, stage, {cache: [each[stage] for each in samples[cache]] for cache in CACHES})
        | goals.get(stage, {})
        for stage in samples["cold"][0]
    ]


def _row(command, stage, samples):
    """The row of a stage from its seconds {cache: per process}."""
    row = {"command": command, "stage": stage, "repeats": len(samples["cold"])}
    for cache, times in samples.items():
        found = timing.summarize(0.0, times)
        row |= {f"{cache}_s": found.median, f"{cache}_spread": found.spread}
    return row


if __name__ == "__main__":
    sys.exit(main())
