"""Reading the files of data sets; any problem raises InputError, one line that names the file.

Files must be regular and of limited size, because reading a pipe or a device may never end.
"""

import codecs
import gzip
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from jaxdet.errors import InputError, printable

MAX_JSON = 2**32  # bytes: the largest file of COCO has 0.5 GB, of LVIS 1.1 GB
MAX_TEXT = 2**28  # bytes of other text files
MAX_YAML = 2**24
MAX_UNPACKED = 2**31  # bytes of an archive after decompression, held in memory
GZIP_MAGIC = b"\x1f\x8b"
MAX_REASON = 200  # a library's error is cut to this many characters in a message
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_regular(path: str | Path, limit: int | None = None) -> None:
    """Raise InputError unless `path` is a regular file, of at most `limit` bytes if given."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(str(path))}: cannot be read: {one_line(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{printable(str(path))}: cannot be read: not a regular file")
    if limit is not None and found.st_size > limit:
        raise InputError(
            f"{printable(str(path))}: must have at most {limit} bytes, got {found.st_size}"
        )


def read_bytes(path: str | Path, limit: int | None = None) -> bytes:
    """Read the bytes of a regular file, of at most `limit` bytes if given."""
    check_regular(path, limit)
    with reading(path):
        return Path(path).read_bytes()


def read_unpacked(path: str | Path) -> bytes:
    """Read the bytes of a file, decompressed if it is gzipped.

    Raises InputError for more than `MAX_UNPACKED` bytes, before or after decompression.
    """
    content = read_bytes(path, MAX_UNPACKED)
    if not content.startswith(GZIP_MAGIC):
        return content
    with gzip.open(io.BytesIO(content)) as file:
        found = file.read(MAX_UNPACKED + 1)
    if len(found) > MAX_UNPACKED:
        raise InputError(f"{path}: must unpack to at most {MAX_UNPACKED} bytes; unpack it yourself")
    return found


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """Read the text of a file, without its byte-order mark if it has one.

    The encoding is UTF-16 if the file begins with a byte-order mark of UTF-16, else UTF-8.
    """
    content = read_bytes(path, limit)
    with reading(path):
        return content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Return [(line number from 1, stripped text)] for the lines of a file that are not blank."""
    lines = enumerate(read_text(path).splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: str | Path, convert: Callable[[dict], Any] | None = None) -> Any:
    """Read the value in a JSON file; each object in it is replaced by `convert(object)`, if given.

    Inner objects are replaced before outer objects.
    """
    text = read_text(path, MAX_JSON)
    with reading(path, "JSON"):
        return json.loads(text, object_hook=convert)


def read_xml(path: str | Path) -> ElementTree.Element:
    """Read the root element of an XML file.

    A DOCTYPE raises InputError, because a small file that defines entities can stand for a huge
    text.
    """
    content = read_bytes(path, MAX_TEXT)
    with reading(path, "XML"):
        text = content.decode("utf-16") if content[:2] in UTF_16 else content.decode("latin-1")
        if any(mark in text for mark in ("<!DOCTYPE", "<!ENTITY")):
            raise InputError(f"{path}: must not define XML entities; remove the DOCTYPE")
        return ElementTree.fromstring(content)


def read_yaml(path: str | Path) -> Any:
    """Read the value in a YAML file.

    Aliases raise InputError, because a small file with aliases can stand for a huge value.
    """
    text = read_text(path, MAX_YAML)
    with reading(path, "YAML"):
        return yaml.load(text, _PlainLoader)


@contextmanager
def reading(place: str | Path, kind: str = "") -> Iterator[None]:
    """A context that converts any exception to InputError, with a message that begins with `place`.

    kind: the expected kind of content for the message, such as "JSON"; "" names none.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # any library may parse the content
        kind = f" as {kind}" if kind else ""
        raise InputError(
            f"{printable(str(place))}: cannot be read{kind} ({one_line(error)})"
        ) from error


def one_line(error: Exception) -> str:
    """The message of an exception as one line of at most about `MAX_REASON` characters."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"no {error}"
    text = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
    return printable(text)


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)
