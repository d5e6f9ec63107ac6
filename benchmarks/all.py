"""Every benchmark in a process of its own, one after the other, and one page of what they found.

    python -m benchmarks.all
    python -m benchmarks.all --names layers startup
    python -m benchmarks.all --quick --out FOLDER/results

Each writes NAME.json and NAME.md into `--out`; RESULTS.md beside that folder is then made anew from
all files in it, so that what was found earlier, by benchmarks that `--names` leaves out, stays.
One that fails is a section that says so, and the exit code is 1; its error is kept in NAME.failed
until it succeeds.  `--quick` takes sizes at which all is done in two minutes, to see that
everything works: its figures say little, so give it a folder of its own.

Where the environment does not say otherwise, PyTorch's threads sleep while they wait: spinning,
they would take the processor from whoever has the next turn.  To wake costs PyTorch time in small
operations (a depthwise convolution of 16 x 56 x 56 x 64: 1.2 ms, spinning 0.6 ms), so that
`tutorial`, whose turns are long and whose operations are all small, is run without (its whole
training beside PyTorch: 0.75; were PyTorch to sleep, 0.19).
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

from benchmarks.lib import harness
from jaxdet import files
from jaxdet.errors import InputError

QUICK = {
    "sliding_windows": "--batch 2 --multiscale 16 28 --sample 8 --seconds 0.1",
    "target_encoding": "--batch 16 --seconds 0.1",
    "layers": "--layers dense conv3 depthwise3 norm max_pool --batch 2 --seconds 0.02",
    "flops": "--models digits andrew lenet resnet18",
    "train_step": "--models digits --batch 2 --compiled false --seconds 0.1",
    "tutorial": "--steps 4 --rounds 1 --images 400",
    "rates": "--count 2 --seconds 0.05",
    "input": "--batch 16 --seconds 0.05",
    "startup": "--small true --repeats 1",
    "suppression": "--boxes 50 --size 10 --batch 2 --seconds 0.05",
    "similarity": "--unknown 50 --known 20 --numbers 8 --seconds 0.05",
    "assignment": "--batch 2 --max-boxes 5 --classes 4 --side 64 --seconds 0.05",
}
NAMES = tuple(QUICK)
SPINNING = ("tutorial",)  # benchmarks in which PyTorch's threads may
SLEEPING = {"OMP_WAIT_POLICY": "passive"}
SURROUNDINGS = {
    "JAX_TRACEBACK_FILTERING": "off",  # the last line of a traceback is then the error
}
HEADER = """# Results

Written by `python -m benchmarks.all`, from the files in `{folder}/`: run it again rather than
change it.  Every section has the command that made it and what its figures depend on; load is that
of the machine over 1, 5 and 15 minutes when the figures were written.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All benchmarks, and the page of their results."""

    names: tuple[str, ...] = ()
    """benchmarks to run; all by default"""
    quick: bool = False
    """small sizes"""
    out: Path = Path("benchmarks/results")
    """folder of the files; RESULTS.md is written beside it"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door("all", Options, argv, report)


def report(options):
    """Run the benchmarks, write the page; 1 if one of them failed."""
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        raise InputError(f"--names {' '.join(unknown)}: known are {', '.join(NAMES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = options.names or NAMES
    failed = 0
    for number, name in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {name} ", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()
        words = ["-m", f"benchmarks.{name}", *chosen_words(name, options)]
        error = run(words, {} if name in SPINNING else SLEEPING)
        note(options.out / f"{name}.failed", words, error)
        failed += bool(error)
        said = f"failed: {error}" if error else "done"
        print(f"{time.perf_counter() - start:.0f} s, {said}", file=sys.stderr, flush=True)
    path = options.out.parent / "RESULTS.md"
    files.write_text(path, page(options.out))
    print(f"wrote {path}")
    return 1 if failed else 0


def chosen_words(name, options):
    """The options that a benchmark is started with."""
    small = shlex.split(QUICK[name]) if options.quick else []
    more = ["--plot", f"{options.out / name}.png"] if name == "sliding_windows" else []
    files = ["--json", f"{options.out / name}.json", "--markdown", f"{options.out / name}.md"]
    return [*small, *more, *files]


def run(words, more):
    """Run Python with these words, and `more` environment; the last line of its error, or ""."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**SURROUNDINGS, **more, **os.environ},
        capture_output=True,
        text=True,
    )
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with code {done.returncode}"


def note(path, words, error):
    """Keep a command and its error in a file, which is not there where there is none."""
    if error:
        files.write_text(path, f"{shlex.join(['python', *words])}\n{error}\n")
    else:
        path.unlink(missing_ok=True)


def page(out):
    """RESULTS.md from the files in a folder."""
    found = [section(name, out) for name in NAMES]
    found += [
        section("experiments", out, path.stem) for path in sorted(out.glob("experiment_*.json"))
    ]
    return "\n".join([HEADER.format(folder=out.name), *filter(None, found)])


def section(name, out, kept_as=None):
    """What a benchmark found, or how it failed; nothing where it never ran.

    kept_as: how the names of its files begin, where that is not its own name.
    """
    kept_as = kept_as or name
    failed, record, table = (out / f"{kept_as}.{kind}" for kind in ("failed", "json", "md"))
    module = import_module(f"benchmarks.{name}")
    head = f"## {kept_as}\n\n{module.__doc__.splitlines()[0]}\n"
    if failed.is_file():
        words, error = failed.read_text().splitlines()
        return f"{head}\n```bash\n{words}\n```\n\n**Failed**: `{error}`\n"
    if not (record.is_file() and table.is_file()):
        return ""
    kept = json.loads(record.read_text())
    picture = out / f"{name}.png"
    drawn = f"\n![{name}]({out.name}/{picture.name})\n" if picture.is_file() else ""
    told = f"```bash\n{command(name, module, kept['options'])}\n```\n\n{surroundings(kept)}"
    return f"{head}\n{told}\n\n{table.read_text()}{drawn}"


def command(name, module, options):
    """The command line of a record: its options that are not the default ones."""
    defaults = json.loads(json.dumps(vars(module.Options()), default=str))
    chosen = ["python", "-m", f"benchmarks.{name}"]
    last = {field.name for field in fields(harness.Kept)}
    for option, value in sorted(options.items(), key=lambda item: item[0] in last):
        if value != defaults.get(option):
            values = value if isinstance(value, list) else [value]
            chosen += [f"--{option.replace('_', '-')}", *map(_word, values)]
    return shlex.join(chosen)


def surroundings(record):
    """What the figures of a record depend on, as a list."""
    env = record["environment"]
    versions = {"python": env["python"], **env["packages"]}
    if "torch" in record:
        versions["torch"] = record["torch"]["version"]
    kinds = dict.fromkeys(env["devices"])
    devices = ", ".join(f"{env['devices'].count(kind)} x {kind}" for kind in kinds)
    lines = {
        "date": f"{record['date']}, load {' '.join(f'{load:.2f}' for load in record['load'])}",
        "device": f"{devices}; {env['processors']} processors",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "XLA_FLAGS": f"`{env['flags']}`" if env["flags"] else "none",
    }
    return "\n".join(f"- {key}: {value}" for key, value in lines.items())


def _word(value):
    """A value of JSON as a word of the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
