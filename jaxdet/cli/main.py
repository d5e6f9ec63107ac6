"""The command line: reads the arguments, prepares the process, and calls the module of a command.

jax is imported after the arguments are parsed, and tyro only if there are arguments, so that help
and errors appear at once.
"""

import json
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jaxdet
from jaxdet import configs, packages
from jaxdet.cli import process, signals
from jaxdet.errors import DeviceMemoryError, InputError, ReplayError, printable

USAGE = """usage: jaxdet COMMAND ...

Train, evaluate and use image models written in JAX.

commands:
  train SYSTEM          train a system into a run folder, or resume a run; --seeds N trains N runs
  sweep SYSTEM          train every combination of options with several values
  eval RUN              compute the scores of a checkpoint
  predict RUN           predict image files or samples of a split, as text and pictures
  compare RUN...        compare runs: a table, their curves, their worst failures
  export RUN OUT        write a run for use elsewhere: as a program, as weights, as a checkpoint
  report RUN...         one HTML page: curves, scores, classes, confusion, images, operations
  describe MODEL|RUN    list the layers of a network: shapes, parameters, operations, times
  data inspect SYSTEM   list the contents of a folder of data, and problems with them
  data split SYSTEM     split images into training, validation and test
  data preview SYSTEM   draw training inputs with their true boxes
  data assign RUN       draw the cells of a detector that are assigned to each true box
  data audit RUN        rank likely label errors: missing, misplaced, mislabeled, duplicate boxes
  data convert SRC DST  write a detection data set as COCO, Pascal VOC, YOLO or parquet
  data align SRC DST    cut out and align the faces in a folder of images
  data verification     make the folders for `verify` from one folder of images per identity
  verify dev|test RUN   identify probes: tune the threshold on dev, apply it to test
  verify pair|pairs RUN compare two images, or all pairs of a file (LFW protocol)
  verify probe RUN      measure how well a linear classifier separates identities

systems: {systems}
models: {models}

`jaxdet COMMAND --help` and `jaxdet train SYSTEM --help` list every option."""

HELP = ("-h", "--help")
JAX_NOTE = "JAX has removed its internal frames"  # note that tracing adds to an exception
DATA_COMMANDS = ("inspect", "split", "preview")  # jaxdet data COMMAND SYSTEM
VERIFY_COMMANDS = ("dev", "test", "pair", "pairs", "probe")
COMMAND_USAGE = {  # commands that need a second word
    "train": "train SYSTEM [options]",
    "sweep": "sweep SYSTEM [options]",
    "data": "data inspect|split|preview SYSTEM, data assign|audit RUN, data convert|align SRC DST, "
    "or data verification",
    "verify": f"verify {'|'.join(VERIFY_COMMANDS)} RUN [options]",
}


def enter(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command: restart with large pages if that helps, then call `main`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not {*HELP, "--version"} & set(words):
        process.restart_with_large_pages()
        from jaxdet.kernels import program_cache  # which help does not need

        program_cache.enable()
    return main(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    The exit code is 0 for success, 1 for a failure, 2 for wrong arguments or input, and 130 for an
    interrupt.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    trains = words[:1] in (["train"], ["sweep"])
    try:
        with signals.caught() if trains else nullcontext([]) as received:
            return _dispatch(words, received)
    except InputError as error:
        return _report_error(error)
    except KeyboardInterrupt:
        return _report_error("interrupted", 130)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        return 1
    finally:
        signals.flush_outputs()


def _dispatch(words: list[str], received: list[int]) -> int:
    """Call the command that the words name; a signal in `received` asks a training to end."""
    match words:
        case [] | ["-h" | "--help"]:
            names = " ".join(configs.SYSTEMS), " ".join(configs.NETWORK_NAMES)
            print(USAGE.format(systems=names[0], models=names[1]))
            return 0
        case ["--version"]:
            print(f"jaxdet {jaxdet.__version__}")
            return 0
    packages.load("tyro", "the command line")
    from jaxdet.cli import flags, options

    match words:
        case ["report", *rest]:
            return _run("run_report", flags.parse("jaxdet report", rest, options.Report))
        case ["eval" | "predict" | "compare" | "describe" | "export" as command, *rest]:
            kind = getattr(options, command.capitalize())
            if {*HELP} & {*rest} and (system := _system_of(rest)):
                only = getattr(kind, "ONLY", {})
                kind = flags.hide(kind, [name for name in only if system not in only[name]])
            if command in ("eval", "predict", "export"):
                rest = flags.weights_first(rest)
            return _run(command, flags.parse(f"jaxdet {command}", rest, kind))
        case ["train", system, *rest] if system in configs.SYSTEMS and "--seeds" in rest:
            return _dispatch(["sweep", system, *rest], received)
        case ["train", system, *rest] if system in configs.SYSTEMS:
            defaults = (options.Train(out=Path("runs") / system), configs.config(system)())
            parsed = flags.parse_with_config(f"train {system}", rest, defaults)
            return _run("train", system, *parsed, rest, received)
        case ["sweep", system, *rest] if system in configs.SYSTEMS:
            kind = configs.config(system)
            shared, axes = flags.split_axes(rest, kind)
            defaults = (options.Sweep(out=Path("runs") / f"{system}-sweep"), kind())
            chosen, _ = flags.parse_with_config(f"sweep {system}", shared, defaults)
            return _run("sweep", system, chosen, shared, axes, received)
        case ["verify", command, *rest] if command in VERIFY_COMMANDS:
            kind = getattr(import_module("jaxdet.cli.verify_options"), command.capitalize())
            return _run("verify", command, flags.parse(f"jaxdet verify {command}", rest, kind))
        case ["data", "verification", *rest]:
            kind = import_module("jaxdet.cli.verify_options").VerificationFolders
            return _run("data_verification", flags.parse("jaxdet data verification", rest, kind))
        case ["data", "assign", *rest]:
            return _run("data_assign", flags.parse("jaxdet data assign", rest, options.Assign))
        case ["data", "audit", *rest]:
            return _run("data_audit", flags.parse("jaxdet data audit", rest, options.Audit))
        case ["data", "convert", *rest]:
            return _run("data_convert", flags.parse("jaxdet data convert", rest, options.Convert))
        case ["data", "align", *rest]:
            return _run("data_align", flags.parse("jaxdet data align", rest, options.Align))
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
    """Print help if the words ask for it; else raise InputError."""
    command, *rest = words
    if command not in COMMAND_USAGE:
        raise InputError(f"no command {command!r}{_nearest(command)}; see `jaxdet --help`")
    usage = f"usage: jaxdet {COMMAND_USAGE[command]}"
    systems = f"with SYSTEM one of {', '.join(configs.SYSTEMS)}"
    if {*HELP} & {*rest}:
        lines = [line for line in USAGE.splitlines() if line.startswith(f"  {command} ")]
        print("\n".join([usage, "", *lines, *([] if command == "verify" else ["", systems])]))
        return 0
    given = [word for word in rest if not word.startswith("-")]
    commands = {"data": DATA_COMMANDS, "verify": VERIFY_COMMANDS}.get(command, ())
    unknown = [f"no system {word!r}; " for word in given[bool(commands) :]]
    if commands and given and given[0] not in commands:
        unknown = [f"no command '{command} {given[0]}'; "]
    ending = "" if command == "verify" else f", {systems}"
    raise InputError(f"{''.join(unknown[:1])}{usage}{ending}")


def _system_of(words: list[str]) -> str:
    """The system of the first run folder among the words; "" if there is none."""
    for word in words:
        try:
            system = json.loads((Path(word) / "config.json").read_text())["system"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        return system if system in configs.SYSTEMS else ""
    return ""


def _nearest(word: str) -> str:
    """The text " (did you mean COMMAND?)" with the most similar command; "" if none is similar."""
    import difflib  # for this message only

    near = difflib.get_close_matches(word, re.findall(r"^  (\w+) ", USAGE, re.M), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _run(command: str, *arguments: Any) -> int:
    """Call the module of a command; bad input gives one line and exit code 2, failures 1."""
    from jaxdet.cli import options

    chosen = next(each for each in arguments if isinstance(each, options.Process))
    quiet = getattr(chosen, "quiet", False)
    process.prepare(chosen)
    from jaxdet.cli import common
    from jaxdet.data import threads
    from jaxdet.training import parallel
    from jaxdet.training.loop import DivergedError

    failures = DivergedError, DeviceMemoryError, ReplayError, MemoryError
    if unused := parallel.unused_gpu():
        print(f"jaxdet: warning: {unused}", file=sys.stderr)
    try:
        with nullcontext() if quiet else threads.shown_by(partial(common.counting, name="reading")):
            return import_module(f"jaxdet.cli.{command}").run(*arguments)
    except BrokenPipeError:
        raise
    except (InputError, OSError, *failures) as error:
        if chosen.debug:
            traceback.print_exc()
        return _report_error(error, 1 if isinstance(error, failures) else 2)


def _report_error(error: object, code: int = 2) -> int:
    """Print an error as one line, and its notes below it; returns `code`."""
    notes = [note for note in getattr(error, "__notes__", ()) if JAX_NOTE not in note]
    print("\n".join([f"jaxdet: error: {printable(str(error))}", *notes]), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(enter())
