"""Arrays that took long to read from files, kept on disk for later runs.

An entry is made from a set of files.  It holds their sizes and modification times, and is used only
while both stay the same.  It begins with its SHA-256, so that an entry that is damaged or cut short
is made again, and it contains arrays of numbers and bytes only, never pickled objects.  An entry is
written under another name and then renamed, so that several runs may share one folder.
"""

import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import files
from jaxdet.errors import printable

Arrays = dict[str, np.ndarray]

FORMAT = 1  # version of the entries; increase it when a reader returns different arrays
MIN_BYTES = 2**24  # smallest total size of files for which an entry saves time
KEY = "key"  # name of the array with the state of the files
DIGEST = hashlib.sha256().digest_size
LOG = logging.getLogger(__name__)


def cached(make: Callable[[], Arrays], paths: Sequence[Path], folder: Path | None) -> Arrays:
    """The arrays that `make()` reads from the files `paths`, or their copy from an earlier call.

    folder: where entries are kept; None: `make()` is always called.

    Arrays of files with fewer than `MIN_BYTES` bytes in total are not kept.  If an entry cannot be
    written, a warning says so.
    """
    try:
        state = [_state(path) for path in paths]
    except OSError:
        return make()  # which names the file in its error
    if folder is None or sum(size for _, size, _ in state) < MIN_BYTES:
        return make()
    name, key = entry_name(path for path, *_ in state), to_bytes([FORMAT, state])
    found = load(folder, name)
    if found is None or not np.array_equal(found.pop(KEY, None), key):
        found = make()
        store(folder, name, {**found, KEY: key})
    return found


def entry_name(texts: Any) -> str:
    """The name of the entry for these texts, such as the paths of files."""
    return hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()


def load(folder: Path, name: str) -> Arrays | None:
    """The arrays of an entry; None if it is missing or damaged."""
    try:
        content = (folder / name).read_bytes()
        if hashlib.sha256(memoryview(content)[DIGEST:]).digest() != content[:DIGEST]:
            return None
        with np.load(io.BytesIO(memoryview(content)[DIGEST:]), allow_pickle=False) as entry:
            return dict(entry)
    except (OSError, ValueError):
        return None


def store(folder: Path, name: str, arrays: Arrays) -> None:
    """Write an entry; warn if that is impossible, for example because the disk is full."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getbuffer()
    draft = folder / f"{name}.{os.getpid()}-{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            draft.replace(folder / name)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("%s: cannot be written (%s)", printable(str(folder)), files.reason(error))


def to_bytes(value: Any) -> np.ndarray:
    """A value as the bytes [N] of its JSON, to be kept in an entry."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_bytes(array: np.ndarray) -> Any:
    """The value that `to_bytes` encoded; its tuples become lists."""
    return json.loads(array.tobytes())


def _state(path: Path) -> tuple[str, int, int]:
    found = os.stat(path)
    return os.path.abspath(path), found.st_size, found.st_mtime_ns
