"""The command line: understands the words, prepares the process, hands over to `commands`.

jax is imported when a command has been understood, not before: help and mistakes answer at once.
"""

import os
import sys
import traceback
from importlib import import_module, metadata
from pathlib import Path

from jaxdet import configs
from jaxdet.cli import flags, options, process

USAGE = """usage: jaxdet COMMAND ...

Train, judge and use image models written in JAX.

commands:
  train SYSTEM          train a system into a run folder, or continue one; --seeds N: N of them
  sweep SYSTEM          every combination of options with several values, in one program if it can
  eval RUN              scores of a checkpoint, one `name value` a line
  predict RUN           answers for image files, or a picture of true and predicted boxes
  compare RUN...        several runs side by side: a table, their curves, their worst failures
  data inspect SYSTEM   what a folder of data holds, and what of it cannot be used
  data split SYSTEM     tables of the photos for training, validation and test
  data preview SYSTEM   a picture of training inputs with their true boxes
  data assign RUN       which cells of a detector learn which true box: a picture, and counts
  data verification     folders of known and unknown people, made of a folder a person
  verify dev|test RUN   who of known people is on unknown images: the threshold, and by it the rest
  verify pair|pairs RUN whether two images show one person; the protocol of LFW's pairs.txt
  verify probe RUN      whether a plane tells the embeddings of people apart
  describe MODEL|RUN    every layer with its shapes, parameters and operations, counted and timed

systems: {systems}
models: {models}

`jaxdet COMMAND --help` and `jaxdet train SYSTEM --help` list every option."""

# On these jaxlib versions the flag makes convolutions on the CPU up to four times faster.  Others
# may not know it, and an unknown flag ends the process.
FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
FLAGGED = ("0.10.2",)


def enter(argv=None):
    """`main` as a process of its own, with large pages for large arrays: see `pages`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not {"-h", "--help", "--version"} & set(words):
        process.restart_with_large_pages()
    return main(words)


def main(argv=None):
    """Run a command; returns its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words:
        case [] | ["-h" | "--help"]:
            return _help()
        case ["--version"]:
            print(f"jaxdet {metadata.version('jaxdet')}")
            return 0
        case ["eval" | "predict" as command, *rest]:
            kind = options.Eval if command == "eval" else options.Predict
            return _run(command, flags.parse(f"jaxdet {command}", rest, kind))
        case ["compare", *rest]:
            return _run("compare", flags.parse("jaxdet compare", rest, options.Compare))
        case ["describe", *rest]:
            return _run("describe", flags.parse("jaxdet describe", rest, options.Describe))
        case ["train", name, *rest] if name in configs.SYSTEMS and "--seeds" in rest:
            return main(["sweep", name, *rest])
        case ["train", name, *rest] if name in configs.SYSTEMS:
            defaults = (options.Train(out=Path("runs") / name), configs.config(name)())
            return _run(
                "train", name, *flags.parse_with_config(f"train {name}", rest, defaults), rest
            )
        case ["sweep", name, *rest] if name in configs.SYSTEMS:
            return _run("sweep", name, *_swept(name, rest))
        case ["verify", "dev" | "test" | "pair" | "pairs" | "probe" as command, *rest]:
            kind = getattr(import_module("jaxdet.cli.verify_options"), command.capitalize())
            return _run("verify", command, flags.parse(f"jaxdet verify {command}", rest, kind))
        case ["verify", *_]:
            return _wrong("usage: jaxdet verify dev|test|pair|pairs|probe RUN ...")
        case ["data", "verification", *rest]:
            kind = import_module("jaxdet.cli.verify_options").Make
            chosen = flags.parse("jaxdet data verification", rest, kind)
            return _run("data_verification", chosen)
        case ["data", "assign", *rest]:
            return _run("data_assign", flags.parse("jaxdet data assign", rest, options.Assign))
        case ["data", "preview", name, *rest] if name in configs.SYSTEMS:
            defaults = (options.Preview(), configs.config(name)())
            return _run(
                "data_preview",
                name,
                *flags.parse_with_config(f"data preview {name}", rest, defaults),
            )
        case ["data", "inspect" | "split" as command, name, *rest] if name in configs.SYSTEMS:
            kind = options.Inspect if command == "inspect" else options.Split
            return _run(
                f"data_{command}", name, flags.parse(f"jaxdet data {command} {name}", rest, kind)
            )
    return _lost(words)


def _help():
    """What `jaxdet --help` prints."""
    print(USAGE.format(systems=" ".join(configs.SYSTEMS), models=" ".join(configs.NETWORK_NAMES)))
    return 0


def _swept(name, words):
    """(options of the sweep, words that all its runs share, options with several values)."""
    kind = configs.config(name)
    rest, axes = flags.split_axes(words, kind)
    defaults = (options.Sweep(out=Path("runs") / f"{name}-sweep"), kind())
    chosen, _ = flags.parse_with_config(f"sweep {name}", rest, defaults)
    return chosen, rest, axes


LOOKS = ("inspect", "split", "preview")


def _lost(words):
    """One line for words that name no command or no system."""
    verbs = {
        "train": "train SYSTEM",
        "sweep": "sweep SYSTEM",
        "data": "data inspect|split|preview SYSTEM",
    }
    if words[0] in verbs:
        known = ", ".join(configs.SYSTEMS)
        named = [w for w in words[1:] if w not in LOOKS and not w.startswith("-")]
        found = f"no system {named[0]!r}; " if named else ""
        return _wrong(f"{found}usage: jaxdet {verbs[words[0]]}, with SYSTEM one of: {known}")
    return _wrong(f"no command {words[0]!r}; `jaxdet --help` lists them")


def _run(command, *args):
    """Hand over to `commands`; what a user can mend becomes one line and exit code 2."""
    process = next(arg for arg in args if isinstance(arg, options.Process))
    prepare(process)
    from jaxdet.errors import InputError
    from jaxdet.training.loop import DivergedError

    try:
        return import_module(f"jaxdet.cli.{command}").run(*args)
    except (InputError, DivergedError, OSError) as error:
        if process.debug:
            traceback.print_exc()
        return _wrong(error, 1 if isinstance(error, DivergedError) else 2)


def prepare(process):
    """Flags and compilation cache of this process: never set by the library itself."""
    given = [quicker(os.environ.get("XLA_FLAGS", ""))]
    if process.deterministic:
        given.append("--xla_gpu_exclude_nondeterministic_ops=true")
    os.environ["XLA_FLAGS"] = " ".join(given).strip()
    if process.cache:
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
    sys.exit(enter())
