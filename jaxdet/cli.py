"""The command line: understands the words, prepares the process, hands over to `commands`.

jax is imported when a command has been understood, not before: help and mistakes answer at once.
"""

import os
import sys
import traceback
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import tyro

from jaxdet import configs, flags
from jaxdet.configs import networks

USAGE = """usage: jaxdet COMMAND ...

Train, judge and use image models written in JAX.

commands:
  train SYSTEM          train a system into a run folder, or continue one
  eval RUN              scores of a checkpoint, one `name value` a line
  predict RUN           answers for image files, or a picture of true and predicted boxes
  data preview SYSTEM   a picture of training inputs with their true boxes
  describe MODEL|RUN    every layer with its shapes, parameters and operations, counted and timed

systems: {systems}
models: {models}

`jaxdet COMMAND --help` and `jaxdet train SYSTEM --help` list every option."""

# On these jaxlib versions the flag makes convolutions on the CPU up to four times faster.  Others
# may not know it, and an unknown flag ends the process.
FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
FLAGGED = ("0.10.2",)


@dataclass(frozen=True, kw_only=True)
class Process:
    """Options of every command."""

    cache: bool = True
    """keep compiled programs in $JAXDET_CACHE, or ~/.cache/jaxdet"""
    deterministic: bool = False
    """on a GPU, use only operations that give the same bits every time (slower; no max pools)"""
    debug: bool = False
    """show the whole traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class Train(Process):
    """Train a system into a run folder, or continue one."""

    out: Path = Path("runs")
    """run folder"""
    resume: bool = False
    """continue the run in --out if there is one, with its own configuration"""
    overwrite: bool = False
    """replace the run in --out"""
    quiet: bool = False
    """print nothing but errors"""


@dataclass(frozen=True, kw_only=True)
class Restored(Process):
    """What `eval` and `predict` restore."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """part of the data: train, val, test, or what else the system has"""
    root: str = ""
    """folder of other data of the same kind"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Eval(Restored):
    """Scores of a checkpoint: exactly those that training logged for it."""


@dataclass(frozen=True, kw_only=True)
class Predict(Restored):
    """Answers for image files, one a line; or samples of the data, true and predicted boxes."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """image files; without any, samples of --split"""
    count: int = 30
    """how many samples"""
    canvas: int = 0
    """side of the samples in pixels; 0 is the run's own"""
    figure: Path | None = None
    """picture to write: true boxes green, predicted boxes red"""


@dataclass(frozen=True, kw_only=True)
class Preview(Process):
    """A picture of training inputs with their true boxes."""

    out: Path = Path("preview.png")
    """picture to write"""
    count: int = 30
    """how many inputs"""


@dataclass(frozen=True, kw_only=True)
class Describe(Process):
    """Every layer of a network: type, output, weights, parameters, operations by kind, and time.

    Additions and multiplications of a convolution, maxima of pools and ReLU: the table of seed 003.
    """

    model: tyro.conf.Positional[str]
    """name of a model, or run folder"""
    input: str = ""
    """input as 1x32x32x3: images, height, width, channels; what the model is made for by default"""
    backward: bool = False
    """count a training pass: batch statistics, and the gradient by the parameters"""
    convention: Literal["flop", "mac"] = "flop"
    """total of all operations, or of multiply-adds alone, one for each pair"""
    padding: Literal["full", "valid"] = "full"
    """whether taps on padding count, as on paper, or not, as XLA counts"""
    time: bool = False
    """measure each layer, and draw the roofline plot"""
    figure: Path = Path("roofline.png")
    """roofline plot to write"""
    markdown: bool = False
    """print a Markdown table, as without any of these three"""
    json: bool = False
    """print JSON"""
    csv: bool = False
    """print comma-separated values"""


def main(argv=None):
    """Run a command; returns its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words:
        case [] | ["-h" | "--help"]:
            print(USAGE.format(systems=" ".join(configs.SYSTEMS), models=" ".join(networks.NAMES)))
            return 0
        case ["--version"]:
            print(f"jaxdet {metadata.version('jaxdet')}")
            return 0
        case ["eval" | "predict" as command, *rest]:
            options = flags.parse(f"jaxdet {command}", rest, Eval if command == "eval" else Predict)
            return _run(command, options)
        case ["describe", *rest]:
            return _run("describe", flags.parse("jaxdet describe", rest, Describe))
        case ["train", name, *rest] if name in configs.SYSTEMS:
            defaults = (Train(out=Path("runs") / name), configs.config(name)())
            return _run("train", name, *flags.with_config(f"train {name}", rest, defaults), rest)
        case ["data", "preview", name, *rest] if name in configs.SYSTEMS:
            defaults = (Preview(), configs.config(name)())
            return _run("preview", name, *flags.with_config(f"data preview {name}", rest, defaults))
    return _lost(words)


def _lost(words):
    """One line for words that name no command or no system."""
    verbs = {"train": "train SYSTEM", "data": "data preview SYSTEM"}
    if words[0] in verbs:
        known = ", ".join(configs.SYSTEMS)
        named = [w for w in words[1:] if w != "preview" and not w.startswith("-")]
        found = f"no system {named[0]!r}; " if named else ""
        return _wrong(f"{found}usage: jaxdet {verbs[words[0]]}, with SYSTEM one of: {known}")
    return _wrong(f"no command {words[0]!r}; `jaxdet --help` lists them")


def _run(command, *args):
    """Hand over to `commands`; what a user can mend becomes one line and exit code 2."""
    options = next(arg for arg in args if isinstance(arg, Process))
    prepare(options)
    from jaxdet import commands
    from jaxdet.fit import DivergedError
    from jaxdet.types import InputError

    try:
        return getattr(commands, command)(*args)
    except (InputError, DivergedError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        return _wrong(error, 1 if isinstance(error, DivergedError) else 2)


def prepare(options):
    """Flags and compilation cache of this process: never set by the library itself."""
    given = [quicker(os.environ.get("XLA_FLAGS", ""))]
    if options.deterministic:
        given.append("--xla_gpu_exclude_nondeterministic_ops=true")
    os.environ["XLA_FLAGS"] = " ".join(given).strip()
    if options.cache:
        default = Path.home() / ".cache" / "jaxdet"
        os.environ.setdefault(
            "JAX_COMPILATION_CACHE_DIR", os.environ.get("JAXDET_CACHE", str(default))
        )
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def quicker(given):
    """XLA flags `given`, and `FLAG` where jaxlib knows it and they do not say otherwise."""
    known = metadata.version("jaxlib") in FLAGGED and "ynn_fusion_type" not in given
    return f"{given} {FLAG}".strip() if known else given


def _wrong(message, code=2):
    print(f"jaxdet: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
