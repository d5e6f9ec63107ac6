"""The command line: reads the arguments, prepares the process, and calls the module of a command.

jax is imported once the arguments are understood, so that help and mistakes answer at once.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jaxdet
from jaxdet import configs
from jaxdet.cli import flags, options, process
from jaxdet.errors import InputError

USAGE = """usage: jaxdet COMMAND ...

Train, evaluate and use image models written in JAX.

commands:
  train SYSTEM          train a system into a run folder, or resume a run; --seeds N trains N runs
  sweep SYSTEM          train every combination of options with several values, vmapped if possible
  eval RUN              scores of a checkpoint
  predict RUN           predictions for image files or samples of a split, as text and pictures
  compare RUN...        compare runs: a table, their curves, their worst failures
  describe MODEL|RUN    layers of a network: shapes, parameters, operations, times
  data inspect SYSTEM   contents of a folder of data, and what cannot be used
  data split SYSTEM     split images into training, validation and test
  data preview SYSTEM   picture of training inputs with their true boxes
  data assign RUN       picture of the cells of a detector that are assigned to each true box
  data verification     galleries and probes for `verify`, from a folder of identities
  verify dev|test RUN   identify probes: tune the threshold on dev, apply it to test
  verify pair|pairs RUN compare two images, or all pairs of a file (LFW protocol)
  verify probe RUN      linear separability of the embeddings of identities

systems: {systems}
models: {models}

`jaxdet COMMAND --help` and `jaxdet train SYSTEM --help` list every option."""

HELP = ("-h", "--help")
DATA_COMMANDS = ("inspect", "split", "preview")  # jaxdet data COMMAND SYSTEM
VERIFY_COMMANDS = ("dev", "test", "pair", "pairs", "probe")
COMMAND_USAGE = {  # commands that need a second word
    "train": "train SYSTEM [options]",
    "sweep": "sweep SYSTEM [options]",
    "data": "data inspect|split|preview SYSTEM, data assign RUN, or data verification",
    "verify": f"verify {'|'.join(VERIFY_COMMANDS)} RUN [options]",
}


def enter(argv: Sequence[str] | None = None) -> int:
    """`main` in a process of its own, with large pages; see `process`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not {*HELP, "--version"} & set(words):
        process.restart_with_large_pages()
    return main(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 done, 1 failed, 2 wrong arguments or input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except InputError as error:
        return _report_error(error)


def _dispatch(words: list[str]) -> int:
    """Call the command that the words name."""
    match words:
        case [] | ["-h" | "--help"]:
            names = " ".join(configs.SYSTEMS), " ".join(configs.NETWORK_NAMES)
            print(USAGE.format(systems=names[0], models=names[1]))
            return 0
        case ["--version"]:
            print(f"jaxdet {jaxdet.__version__}")
            return 0
        case ["eval" | "predict" | "compare" | "describe" as command, *rest]:
            kind = getattr(options, command.capitalize())
            return _run(command, flags.parse(f"jaxdet {command}", rest, kind))
        case ["train", system, *rest] if system in configs.SYSTEMS and "--seeds" in rest:
            return _dispatch(["sweep", system, *rest])
        case ["train", system, *rest] if system in configs.SYSTEMS:
            defaults = (options.Train(out=Path("runs") / system), configs.config(system)())
            parsed = flags.parse_with_config(f"train {system}", rest, defaults)
            return _run("train", system, *parsed, rest)
        case ["sweep", system, *rest] if system in configs.SYSTEMS:
            kind = configs.config(system)
            shared, axes = flags.split_axes(rest, kind)
            defaults = (options.Sweep(out=Path("runs") / f"{system}-sweep"), kind())
            chosen, _ = flags.parse_with_config(f"sweep {system}", shared, defaults)
            return _run("sweep", system, chosen, shared, axes)
        case ["verify", command, *rest] if command in VERIFY_COMMANDS:
            kind = getattr(import_module("jaxdet.cli.verify_options"), command.capitalize())
            return _run("verify", command, flags.parse(f"jaxdet verify {command}", rest, kind))
        case ["data", "verification", *rest]:
            kind = import_module("jaxdet.cli.verify_options").VerificationFolders
            return _run("data_verification", flags.parse("jaxdet data verification", rest, kind))
        case ["data", "assign", *rest]:
            return _run("data_assign", flags.parse("jaxdet data assign", rest, options.Assign))
        case ["data", "preview", system, *rest] if system in configs.SYSTEMS:
            defaults = (options.Preview(), configs.config(system)())
            parsed = flags.parse_with_config(f"data preview {system}", rest, defaults)
            return _run("data_preview", system, *parsed)
        case ["data", "inspect" | "split" as command, system, *rest] if system in configs.SYSTEMS:
            kind = options.Inspect if command == "inspect" else options.Split
            prog = f"jaxdet data {command} {system}"
            return _run(f"data_{command}", system, flags.parse(prog, rest, kind))
    return _incomplete(words)


def _incomplete(words: list[str]) -> int:
    """Help or an error for words that name no command or no system."""
    command, *rest = words
    if command not in COMMAND_USAGE:
        raise InputError(f"no command {command!r}; `jaxdet --help` lists them")
    usage = f"usage: jaxdet {COMMAND_USAGE[command]}"
    systems = f"with SYSTEM one of {', '.join(configs.SYSTEMS)}"
    if {*HELP} & {*rest}:
        lines = [line for line in USAGE.splitlines() if line.startswith(f"  {command} ")]
        print("\n".join([usage, "", *lines, *([] if command == "verify" else ["", systems])]))
        return 0
    if command == "verify":
        raise InputError(usage)
    named = [w for w in rest if w not in DATA_COMMANDS and not w.startswith("-")]
    unknown = f"no system {named[0]!r}; " if named else ""
    raise InputError(f"{unknown}{usage}, {systems}")


def _run(command: str, *arguments: Any) -> int:
    """Call the module of a command; an error of the user becomes one line and exit code 2."""
    chosen = next(each for each in arguments if isinstance(each, options.Process))
    process.prepare(chosen)
    from jaxdet.training.loop import DivergedError

    try:
        return import_module(f"jaxdet.cli.{command}").run(*arguments)
    except (InputError, DivergedError, OSError) as error:
        if chosen.debug:
            traceback.print_exc()
        return _report_error(error, 1 if isinstance(error, DivergedError) else 2)


def _report_error(message: object, code: int = 2) -> int:
    print(f"jaxdet: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(enter())
