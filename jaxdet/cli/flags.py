"""Options as frozen dataclasses: fields are flags, read by tyro.

A boolean is `--x true`, `--x false`, `--x` or `--no-x`; a list is separated by spaces, one of
numbers by commas as well.
"""

from dataclasses import fields, is_dataclass, make_dataclass
from itertools import pairwise

import tyro


def parse_with_config(command, words, defaults):
    """(options, configuration) from the words after `command`, all options in one flat list."""
    names = ("command", "system")
    kinds = [type(default) for default in defaults]
    both = make_dataclass("Both", zip(names, kinds, strict=True), frozen=True)
    both.__doc__ = kinds[1].__doc__
    found = parse(f"jaxdet {command}", words, both, default=both(*defaults))
    return found.command, found.system


def parse(prog, words, kind, **kwargs):
    """What tyro makes of the words, booleans and lists of numbers as above.

    Wrong words end the process with exit code 2 and the nearest option.
    """
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_boolean)
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    args = split_commas(expand_booleans(words, boolean_options(kind)), number_list_options(kind))
    with registry:
        return tyro.cli(kind, prog=prog, args=args, config=settings, **kwargs)


def boolean_options(kind):
    """Option names of the boolean fields of a dataclass, nested ones included."""
    return _named(kind, lambda of: of in (bool, "bool"))


def number_list_options(kind):
    """Option names of the fields of a dataclass that are lists of numbers, nested ones included."""
    return _named(kind, lambda of: str(of).startswith(("tuple[int", "tuple[float")))


def _named(kind, wanted):
    """Option names of the fields of a dataclass whose type is wanted."""
    names = set()
    for field in fields(kind):
        if is_dataclass(field.type):
            names |= _named(field.type, wanted)
        elif wanted(field.type):
            names.add(field.name.replace("_", "-"))
    return names


def split_commas(words, names):
    """The words; of options with these names each number is one: `1,2` is `1 2`."""
    out, splits = [], False
    for word in words:
        option = word.startswith("--")
        splits = word.removeprefix("--").replace("_", "-") in names if option else splits
        out += filter(None, word.split(",")) if splits and not option else [word]
    return out


def expand_booleans(words, names):
    """The words with every boolean option followed by true or false."""
    out = []
    for word, following in pairwise([*words, None]):
        name = word.removeprefix("--").replace("_", "-") if word.startswith("--") else ""
        if name in names and following not in ("true", "false"):
            out += [word, "true"]
        elif name.removeprefix("no-") in names and name not in names:
            out += ["--" + name.removeprefix("no-"), "false"]
        else:
            out.append(word)
    return out


def to_words(config):
    """The words that make a configuration of its defaults."""
    out = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            out += [f"--{field.name.replace('_', '-')}", *map(_word, values)]
    return out


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_axes(words, kind):
    """(words, {"--option": [value]}): those options of dataclass `kind` that have several values.

    `--seeds N` is N seeds from 0.  Options that take several values by themselves stay, but for
    several lists of numbers: `--x 1,2 3,4` is two of them.
    """
    lists = {f.name for f in fields(kind) if "tuple" in str(f.type)}
    numbers = number_list_options(kind)
    rest, axes, at = [], {}, 0
    while at < len(words):
        end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
        option, values = words[at], words[at + 1 : end]
        name = option.removeprefix("--").replace("-", "_")
        if name == "seeds" and len(values) == 1 and values[0].isdecimal():
            axes["--seed"] = [str(seed) for seed in range(int(values[0]))]
        elif len(values) > 1 and (name not in lists or _are_lists(option, values, numbers)):
            axes[option] = values
        else:
            rest += words[at:end]
        at = end
    return rest, axes


def _are_lists(option, values, names):
    """Whether the values of an option are lists of numbers each."""
    known = option.removeprefix("--").replace("_", "-") in names
    return known and any("," in value for value in values)


def _boolean(info):
    """How tyro reads a boolean: lower-case true or false."""
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
