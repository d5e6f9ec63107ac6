"""Files that jaxdet writes: atomic writing, and checked reading of text and JSON."""

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from jaxdet.errors import InputError

MAX_BYTES = 2**28  # larger text files are refused
MAX_INT = 2**63 - 1
MAX_SHOWN = 60  # longer values are not shown in error messages
KIND_NAMES = {dict: "an object", list: "a list", tuple: "a list", str: "a string", NoneType: "null"}
KIND_NAMES |= {int: "an integer", float: "a number", bool: "true or false"}


def cache_folder(name: str = "") -> Path | None:
    """The folder `name` in $JAXDET_CACHE, by default in ~/.cache/jaxdet, for use by later runs.

    None if the variable is empty, or for a user without a home.
    """
    given = os.environ.get("JAXDET_CACHE")
    if given == "":
        return None
    try:
        return (Path(given) if given else Path.home() / ".cache" / "jaxdet") / name
    except RuntimeError:
        return None


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: to a temporary file, which is synced to disk and then renamed."""
    draft = Path(f"{path}.partial")
    write_synced(draft, "w", text)
    os.replace(draft, path)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a binary file atomically, as `write_text` does, and its folder if it is missing."""
    draft = Path(f"{path}.partial")
    draft.parent.mkdir(parents=True, exist_ok=True)
    write_synced(draft, "wb", content)
    os.replace(draft, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A context that gives a folder to fill, which becomes `path` at the end.

    After an exception, `path` is as before.  Raises InputError unless `path` is absent or an empty
    folder.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise InputError(f"{path}: must be an empty or new folder; nothing is overwritten")
    draft = path.with_name(f"{path.name}.partial")
    if draft.exists():
        raise InputError(f"{draft} is left from an interrupted command; remove it")
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft)
        raise


def write_synced(path: str | Path, mode: str, content: str | bytes) -> None:
    """Write text or bytes with the given mode of `open`, and sync them to disk.

    An OSError, such as for a full disk, names the file.
    """
    try:
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_text(path: str | Path) -> str:
    """Read the text of a regular UTF-8 file of at most `MAX_BYTES`.

    Raises OSError, or ValueError with the reason but without the name of the file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
        raise ValueError("is not a regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"must have at most {MAX_BYTES} bytes, got {found.st_size}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (invalid byte at position {error.start})") from None


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file, from its first bytes; {} without any.

    Raises ValueError if the header is not complete, or is not one of safetensors.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size:
        raise ValueError("has no header of safetensors")
    header = parse_json(content[8 : 8 + size].decode(), dict[str, Any])
    return conform(header.get("__metadata__", {}), dict[str, str])


def has_metadata(path: str | Path, name: str) -> bool:
    """Whether a file is a safetensors file with `name` in its metadata; its arrays are not read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            return size < MAX_BYTES and name in safetensors_metadata(start + file.read(size))
    except (OSError, ValueError):
        return False


def problem(error: OSError | ValueError) -> str:
    """The text `cannot be read (REASON)` or `is damaged (REASON)`, to follow the name of a file."""
    what = "cannot be read" if isinstance(error, OSError) else "is damaged"
    return f"{what} ({reason(error)})"


def reason(error: OSError | ValueError) -> str:
    """The reason why a file cannot be read, without the name of the file."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return text or type(error).__name__


def load_json(path: str | Path, kind: Any) -> Any:
    """Read the JSON in a file as a value of the type `kind`; see `read_text` and `parse_json`."""
    return parse_json(read_text(path), kind)


def parse_json(text: str, kind: Any) -> Any:
    """Parse JSON as a value of the type `kind`, see `conform`; ValueError for other text."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    return conform(value, kind)


def conform(value: Any, kind: Any, name: str = "") -> Any:
    """Check that a value from JSON conforms to the type `kind`.

    Args:
        value: a value as `json.loads` returns it.
        kind: Any, None, bool, int, float, str, a `Literal` of strings, a union, `list[...]`,
            `tuple[...]`, `dict[str, ...]`, or a `TypedDict`, whose values may have further keys.
        name: what to call the value in messages.

    Returns the value, with lists converted to tuples, and integers to floats, where `kind` requires
    them.  Raises ValueError, naming the part of the value that does not conform.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _conform_to_any(value, args, name)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise ValueError(
                f"{_subject(name)} must be one of {', '.join(args)}, got {_show(value)}"
            )
        return value
    if is_typeddict(kind):
        return _conform_keys(value, kind, name)
    base = NoneType if kind is None else origin or kind
    _check_base(value, base, name)
    if base is dict and args:
        return {key: conform(each, args[1], _join(name, key)) for key, each in value.items()}
    if base in (list, tuple) and args:
        return base(_conform_items(value, base, args, name))
    return float(value) if base is float else value


def _conform_to_any(value: Any, kinds: Iterable[Any], name: str) -> Any:
    """Return a value as the first type in `kinds` that it conforms to; ValueError if none fits."""
    reasons = []
    for kind in kinds:
        try:
            return conform(value, kind, name)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _conform_keys(value: Any, kind: Any, name: str) -> dict[str, Any]:
    """Check the keys of the `TypedDict` `kind`; other keys are kept."""
    _check_base(value, dict, name)
    for key in sorted(kind.__required_keys__ - value.keys()):
        raise ValueError(f"{_subject(name)} must have {key!r}")
    hints = get_type_hints(kind)
    return value | {
        key: conform(value[key], hint, _join(name, key))
        for key, hint in hints.items()
        if key in value
    }


def _conform_items(value: list[Any], base: type, args: tuple[Any, ...], name: str) -> Iterable[Any]:
    if base is list or args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ValueError(f"{_subject(name)} must have {len(args)} values, got {len(value)}")
    pairs = enumerate(zip(value, args, strict=True))
    return [conform(each, kind, f"{name}[{i}]") for i, (each, kind) in pairs]


def _check_base(value: Any, base: type, name: str) -> None:
    """Raise ValueError for a value that is not of type `base`, and for integers beyond 64 bits."""
    accepted = {tuple: (list, tuple), float: (float, int)}.get(base, (base,))
    if type(value) not in accepted or (type(value) is int and abs(value) > MAX_INT):
        raise ValueError(f"{_subject(name)} must be {KIND_NAMES[base]}, got {_show(value)}")


def _subject(name: str) -> str:
    return name or "the content"


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _show(value: Any) -> str:
    """A value as text for an error message; if it is long or nested, only its type."""
    if isinstance(value, dict | list):
        return KIND_NAMES[type(value)]
    if isinstance(value, int) and abs(value) > MAX_INT:
        return "an integer beyond 64 bits"
    text = json.dumps(value)
    return text if len(text) < MAX_SHOWN else KIND_NAMES[type(value)]
