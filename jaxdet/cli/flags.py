"""Command-line options from frozen dataclasses, read by tyro.

A boolean option is given as `--x true`, `--x false`, `--x` or `--no-x`.  The values of a list are
separated by spaces; numbers may also be separated by commas.
"""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from jaxdet import migrations
from jaxdet.config import option
from jaxdet.errors import InputError

Kind = TypeVar("Kind")

COMMAND_OPTIONS = {  # former name of an option of a command -> the option
    "score": "--score-threshold",
    "nms": "--nms-iou",
    "nms-kind": "--nms-type",
    "together": "--vmap",
    "strangers": "--unknown-identities",
    "each": "--gallery-images",
    "kind": "--metric",
    "join": "--reduce",
    "people": "--identities",
}


ALIASES = {"test-batch": "--eval-batch"}  # second name of an option -> the option

# Option of Ultralytics, or of the scripts of torchvision or timm -> our option, or an explanation.
OTHER_TOOLS = {
    **dict.fromkeys(("imgsz", "img", "img-size", "input-size", "train-crop-size"), "--size"),
    **dict.fromkeys(("conf", "conf-thres"), "--score-threshold"),
    **dict.fromkeys(("iou", "iou-thres"), "--nms-iou"),
    **dict.fromkeys(("data", "data-path", "data-dir", "dataset"), "--root"),
    "batch-size": "--batch",
    **dict.fromkeys(("lr0", "learning-rate"), "--lr"),
    **dict.fromkeys(("device", "gpus", "nproc-per-node"), "--devices"),
    **dict.fromkeys(("nnodes", "world-size"), "--num-processes"),
    **dict.fromkeys(("node-rank", "rank"), "--process-id"),
    **dict.fromkeys(("master-addr", "dist-url", "rdzv-endpoint"), "--coordinator"),
    **dict.fromkeys(("project", "name", "output", "output-dir"), "--out"),
    **dict.fromkeys(("arch", "cfg", "backbone"), "--model"),
    **dict.fromkeys(("pretrained", "weights-backbone"), "--weights"),
    **dict.fromkeys(("freeze", "trainable-backbone-layers"), "--freeze-stages"),
    **dict.fromkeys(("half", "amp", "fp16", "bf16"), "--bfloat16"),
    **dict.fromkeys(("opt", "solver"), "--optimizer"),
    **dict.fromkeys(("lr-scheduler", "sched", "cos-lr"), "--schedule"),
    **dict.fromkeys(("lr-steps", "milestones"), "--decay-at"),
    **dict.fromkeys(("lr-gamma", "decay-rate"), "--lr-decay"),
    **dict.fromkeys(("clip-grad", "clip-grad-norm"), "--clip"),
    **dict.fromkeys(("model-ema", "model-ema-decay"), "--ema"),
    **dict.fromkeys(("warmup-epochs", "warmup-steps", "lr-warmup-epochs"), "--warmup"),
    "wd": "--weight-decay",
    "max-det": "--max-detections",
    "exist-ok": "--overwrite",
    "augment": "--tta",
    "fliplr": "--flip",
    "flipud": "--vflip",
    "degrees": "--rotate",
    "translate": "--shift",
    "hsv-h": "--color-jitter",
    "hsv-s": "--color-jitter",
    "hsv-v": "--brightness-contrast",
    "close-mosaic": "--close-mosaic-epochs",
    "save": "--save-dir",
    "source": "not an option: write jaxdet predict RUN IMAGES",
    "test-only": "not an option: write jaxdet eval RUN",
    "num-classes": "not needed: the data name the classes",
    "nc": "not needed: the data name the classes",
    "workers": "not needed: images are decoded in as many threads as there are processors",
}


def parse_with_config(command: str, words: Sequence[str], defaults: tuple[Any, Any]) -> Any:
    """Parse the words after `jaxdet COMMAND SYSTEM`; return (command's options, configuration).

    `command` is the command and the system, such as "train detect".  `defaults` are the command's
    options and the system's configuration before the words change them.
    """
    names = ("command", "system")
    kinds = [type(default) for default in defaults]
    both = make_dataclass("Both", zip(names, kinds, strict=True), frozen=True)
    both.__doc__ = kinds[1].__doc__
    system = command.rpartition(" ")[2]
    found: Any = parse(f"jaxdet {command}", words, both, system, default=both(*defaults))
    return found.command, found.system


def parse(
    prog: str, words: Sequence[str], kind: type[Kind], system: str = "", **tyro_options: Any
) -> Kind:
    """Parse command-line arguments into an instance of the dataclass `kind`.

    For invalid words, prints the nearest option and ends the process with exit code 2.  Raises
    InputError for a renamed option (of `system`, if given) and for an option of another tool; the
    message has the name to use.  `prog` is the name of the command in the help.
    """
    words = replace_aliases(words)
    check_renamed(words, kind, system)
    check_other_tools(words, kind)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_boolean_rule)
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    args = split_commas(expand_booleans(words, boolean_options(kind)), number_list_options(kind))
    with registry:
        return tyro.cli(kind, prog=prog, args=args, config=settings, **tyro_options)


def replace_aliases(words: Sequence[str]) -> list[str]:
    """Replace aliases of options, the keys of `ALIASES`, by the options' names."""
    pairs = ((word, ALIASES.get(_name(word), "")) for word in words)
    return [ours + word[word.find("=") :] * ("=" in word) if ours else word for word, ours in pairs]


def weights_first(words: Sequence[str]) -> list[str]:
    """Insert the value of `--weights`, if given, before all words, as the argument RUN."""
    for word, following in pairwise([*words, ""]):
        if _name(word) == "weights":
            return [word.partition("=")[2] or following, *words]
    return list(words)


def check_renamed(words: Sequence[str], kind: type, system: str = "") -> None:
    """Raise InputError, with the new name, for an option given by its former name."""
    known = _option_names(kind, lambda of: True)
    for word in words:
        name = _name(word)
        if name and not {name, name.removeprefix("no-")} & known:
            renamed = migrations.renamed_option(word, system) or COMMAND_OPTIONS.get(name, "")
            if renamed.removeprefix("--") in known:
                raise InputError(f"{word.partition('=')[0]} is now {renamed}")


def check_other_tools(words: Sequence[str], kind: type) -> None:
    """Raise InputError for an option of another tool, such as `--imgsz 3` or `imgsz=3`.

    The message has the name of the option here, or what to do instead.
    """
    known = _option_names(kind, lambda of: True)
    for before, word in pairwise(["", *words]):
        is_option = word.startswith("--")
        name = _name(word if is_option or "=" not in word else f"--{word}")
        if not name or (not is_option and (before.startswith("--") or Path(word).exists())):
            continue
        ours = f"--{name}" if name in known else OTHER_TOOLS.get(name, "")
        if (is_option and name in known) or not ours:
            continue
        if not ours.startswith("--") or ours.removeprefix("--") in known:
            here = " here" if ours.startswith("--") else ""
            raise InputError(f"{word.partition('=')[0]} is {ours}{here}")


def hide(kind: type[Kind], names: Collection[str]) -> type[Kind]:
    """The dataclass without the options called `names`, for `--help`."""
    shown = (field for field in fields(cast(Any, kind)) if field.name in names)
    # Copies, because `make_dataclass` changes the type of the fields that it is given.
    hidden = [(field.name, tyro.conf.Suppress[field.type], copy(field)) for field in shown]
    changed = make_dataclass(kind.__name__, hidden, bases=(kind,), frozen=True, kw_only=True)
    changed.__doc__ = kind.__doc__
    return changed


def boolean_options(kind: type) -> set[str]:
    """Names of the boolean options in a dataclass, including those in nested dataclasses."""
    return _option_names(kind, lambda of: of in (bool, "bool"))


def number_list_options(kind: type) -> set[str]:
    """Names of the options that are lists of numbers, including those in nested dataclasses."""
    return _option_names(kind, lambda of: str(of).startswith(("tuple[int", "tuple[float")))


def expand_booleans(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Write each boolean option among the words in the form `--x true` or `--x false`."""
    out = []
    for word, following in pairwise([*words, ""]):
        name = "" if "=" in word else _name(word)
        if name in names and following not in ("true", "false"):
            out += [word, "true"]
        elif name.removeprefix("no-") in names and name not in names:
            out += ["--" + name.removeprefix("no-"), "false"]
        else:
            out.append(word)
    return out


def split_commas(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Split the values of the options called `names` at commas."""
    out, splits = [], False
    for word in words:
        is_option = word.startswith("--")
        splits = _name(word) in names if is_option else splits
        out += filter(None, word.split(",")) if splits and not is_option else [word]
    return out


def split_axes(words: Sequence[str], kind: type) -> tuple[list[str], dict[str, list[str]]]:
    """Separate the options with several values; return (other words, {option: values}).

    `--seeds N` means the seeds 0 to N - 1.  For an option of the dataclass `kind` that is a list,
    `--x 1 2` is one value, a list of two numbers; several lists are written as `--x 1,2 3,4`.
    """
    lists = {option(f.name) for f in fields(kind) if "tuple" in str(f.type)}
    number_lists = {f"--{name}" for name in number_list_options(kind)}
    words = replace_aliases(words)
    rest, axes, at = [], {}, 0
    while at < len(words):
        end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
        flag, values = words[at], words[at + 1 : end]
        name = flag.replace("_", "-")
        several_lists = name in number_lists and any("," in value for value in values)
        if name == "--seeds" and len(values) == 1 and values[0].isdecimal():
            axes["--seed"] = [str(seed) for seed in range(int(values[0]))]
        elif len(values) > 1 and (name not in lists or several_lists):
            axes[flag] = list(values)
        else:
            rest += words[at:end]
        at = end
    return rest, axes


def _option_names(kind: type, has_type: Callable[[Any], bool]) -> set[str]:
    """Names of the options in a dataclass, and in nested ones, whose type satisfies `has_type`."""
    names = set()
    for field in fields(kind):
        if is_dataclass(field.type):
            names |= _option_names(field.type, has_type)
        elif has_type(field.type):
            names.add(field.name.replace("_", "-"))
    return names


def _name(word: str) -> str:
    """The name of an option, such as `two-words` for `--two_words=3`; "" for any other word."""
    if not word.startswith("--"):
        return ""
    return word.removeprefix("--").partition("=")[0].replace("_", "-")


def _boolean_rule(info: Any) -> Any:
    """The rule by which tyro reads and shows booleans as `true` and `false`."""
    if info.type is not bool:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="true|false",
        instance_from_str=lambda words: words[0] == "true",
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
        choices=("true", "false"),
    )
