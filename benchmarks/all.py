"""Run the benchmarks in processes of their own, one after the other; write one page of results.

    python -m benchmarks.all
    python -m benchmarks.all --names layers startup
    python -m benchmarks.all --quick --out runs/quick/results
    python -m benchmarks.all --tables-only

A benchmark writes NAME.json into `--out`. NAME.md and, beside that folder, RESULTS.md are then made
from all records there, so that older results of benchmarks that `--names` leaves out are kept. A
benchmark that fails becomes a section with its error, which is kept in NAME.failed until the
benchmark succeeds, and the exit code is 1. `--quick` uses sizes at which everything runs in about
two minutes; its figures are not meaningful, so give it its own folder. `--tables-only` runs nothing
and only makes the pages from the records.

Unless the environment sets OMP_WAIT_POLICY, it is passive here: PyTorch's threads sleep while they
wait, since threads that spin slow down the next call. Waking up costs about 0.1 ms per operation,
so `tutorial`, whose operations are all small, runs without that setting.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.lib import harness
from jaxdet import files

QUICK_OPTIONS = {
    "sliding_windows": "--batch 2 --sizes 16 28 --sample 8 --seconds 0.1",
    "target_encoding": "--batch 16 --seconds 0.1",
    "layers": "--layers dense conv3 depthwise3 norm max_pool --batch 2 --seconds 0.02",
    "flops": "--models digits ng_sliding lenet resnet18",
    "train_step": "--models digits --batch 2 --compiled false --seconds 0.1",
    "tutorial": "--steps 4 --rounds 1 --images 400",
    "rates": "--count 2 --seconds 0.05",
    "devices": "--devices 2 --seconds 0.05",
    "scaling": "--models digits --batch 4 --predicted digits --repeats 1",
    "compiler": "--models digits --batch 2 --seconds 0.1",
    "input": "--batch 16 --seconds 0.05",
    "startup": "--small true --repeats 1",
    "suppression": "--boxes 50 --max-detections 10 --batch 2 --seconds 0.05",
    "similarity": "--probes 50 --gallery 20 --dim 8 --seconds 0.05",
    "assignment": "--batch 2 --boxes 5 --classes 4 --side 64 --seconds 0.05",
}
NAMES = tuple(QUICK_OPTIONS)
SPINNING = ("tutorial",)  # benchmarks in which PyTorch's threads may spin
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "passive"}
ENVIRONMENT = {
    "JAX_TRACEBACK_FILTERING": "off",  # so that the last line of a traceback is the error
}
HEADER = """# Results

Written by `python -m benchmarks.all` from the records in `{folder}/`; do not edit. These are stored
figures, from the days named below; `--tables-only` makes this page again without measuring.
[docs/benchmarks.md](../docs/benchmarks.md) explains how they were measured. Load is the machine's
load average over 1, 5 and 15 minutes. Unless a section says otherwise:

{conditions}
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All benchmarks, and the page of their results."""

    names: tuple[str, ...] = ()
    """benchmarks to run; all by default"""
    quick: bool = False
    """use small sizes, whose figures are not meaningful"""
    tables_only: bool = False
    """run nothing; make the pages from the records in --out"""
    out: Path = Path("benchmarks/results")
    """folder of the records; RESULTS.md is written beside it"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command("all", Options, argv, run)


def run(options: Options) -> int:
    harness.require_known("--names", options.names, NAMES)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = () if options.tables_only else options.names or NAMES
    failed = 0
    for number, name in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {name} ", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()
        words = ["-m", f"benchmarks.{name}", *benchmark_options(name, options)]
        error = run_python(words, {} if name in SPINNING else PASSIVE_WAIT)
        note_failure(options.out / f"{name}.failed", words, error)
        failed += bool(error)
        outcome = f"failed: {error}" if error else "done"
        print(f"{time.perf_counter() - start:.0f} s, {outcome}", file=sys.stderr, flush=True)
    path = options.out.parent / "RESULTS.md"
    write_tables(options.out)
    files.write_text(path, page(options.out))
    print(f"wrote {path}")
    return 1 if failed else 0


def benchmark_options(name: str, options: Options) -> list[str]:
    """The command-line arguments of a benchmark."""
    small = shlex.split(QUICK_OPTIONS[name]) if options.quick else []
    plot = ["--plot", f"{options.out / name}.png"] if name == "sliding_windows" else []
    return [*small, *plot, "--json", f"{options.out / name}.json"]


def run_python(words: Sequence[str], environment: dict[str, str]) -> str:
    """Run Python with these arguments; returns the last line of stderr, or "" on success."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**ENVIRONMENT, **environment, **os.environ},
        capture_output=True,
        text=True,
    )
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def note_failure(path: Path, words: Sequence[str], error: str) -> None:
    """Write a command and its error to a file, or remove the file if there is no error."""
    if error:
        files.write_text(path, f"{shlex.join(['python', *words])}\n{error}\n")
    else:
        path.unlink(missing_ok=True)


def write_tables(out: Path) -> None:
    """Write NAME.md, the complete tables, for each record NAME.json in a folder."""
    for path, record in _records(out).items():
        text = _module(record).render(record)
        files.write_text(path.with_suffix(".md"), f"{text}\n")


def page(out: Path) -> str:
    """The text of RESULTS.md, from the records in a folder."""
    records = _records(out)
    usual = _usual_conditions(records.values())
    listed = "\n".join(f"- {name}: {value}" for name, value in usual.items())
    sections = [HEADER.format(folder=out.name, conditions=listed)]
    for name in NAMES:
        failure = out / f"{name}.failed"
        path = out / f"{name}.json"
        if failure.is_file():
            title = f"## {name}\n\n{_first_line(import_module(f'benchmarks.{name}'))}"
            words, error = failure.read_text().splitlines()
            sections.append(f"{title} `{words}`\n\n**Failed**: `{error}`\n")
        elif path in records:
            sections.append(section(path, records[path], usual))
    experiments = [path for path in records if path.stem.startswith("experiment_")]
    sections += [section(path, records[path], usual) for path in experiments]
    return "\n".join(sections)


def section(path: Path, record: dict[str, Any], usual: dict[str, str]) -> str:
    """The section of a record: description, origin, short table, and picture if there is one."""
    module, folder, name = _module(record), path.parent.name, path.stem
    short = getattr(module, "summarize", module.render)
    describe = getattr(module, "describe", lambda record: _first_line(module))
    unusual = {k: v for k, v in conditions(record).items() if v != usual.get(k)}
    origin = [
        f"`{command(record['benchmark'], record['options'])}`",
        f"{record['date'][:10]}, load {' '.join(f'{load:.2f}' for load in record['load'])}",
        *(f"{name}: {value}" for name, value in unusual.items()),
        f"[complete tables]({folder}/{name}.md), [record]({folder}/{name}.json)",
    ]
    picture = path.with_suffix(".png")
    drawn = f"\n![{name}]({folder}/{picture.name})\n" if picture.is_file() else ""
    return f"## {name}\n\n{describe(record)} {'; '.join(origin)}\n\n{short(record)}\n{drawn}"


def command(name: str, options: dict[str, Any]) -> str:
    """The command that made a record, with the options that differ from their defaults."""
    module = import_module(f"benchmarks.{name}")
    defaults = json.loads(json.dumps(vars(module.Options()), default=str))
    paths = {field.name for field in fields(harness.OutputOptions)} | {"plot"}
    words = ["python", "-m", f"benchmarks.{name}"]
    for option, value in options.items():
        if value != defaults.get(option) and option not in paths:
            values = value if isinstance(value, list) else [value]
            words += [f"--{option.replace('_', '-')}", *map(_word, values)]
    return shlex.join(words)


def conditions(record: dict[str, Any]) -> dict[str, str]:
    """Device, versions and flags that the figures of a record depend on."""
    env = record["environment"]
    versions = {"python": env["python"], **env["packages"]}
    count = Counter(env["devices"])
    devices = ", ".join(f"{number} x {kind}" for kind, number in count.items())
    found = {
        "device": f"{devices}; {env['processors']} processors",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "XLA_FLAGS": f"`{env['flags']}`" if env["flags"] else "none",
    }
    if options := env.get("compiler_options"):
        found["compiler options"] = ", ".join(
            f"`{name}={value}`" for name, value in options.items()
        )
    if "torch" in record:
        found["PyTorch"] = record["torch"]["version"]
    return found


def _records(out: Path) -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def _usual_conditions(records) -> dict[str, str]:
    """The most frequent value of each condition."""
    found = [conditions(record) for record in records]
    names = dict.fromkeys(name for each in found for name in each)
    return {
        name: Counter(each[name] for each in found if name in each).most_common(1)[0][0]
        for name in names
    }


def _module(record) -> ModuleType:
    return import_module(f"benchmarks.{record['benchmark']}")


def _first_line(module) -> str:
    return module.__doc__.splitlines()[0]


def _word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
