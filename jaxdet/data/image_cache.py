"""A cache on disk of decoded and resized images, for data that are streamed.

An entry is a file with the pixels of one image, mapped into memory when it is read.  Its name is a
hash of all that the pixels depend on: path, size and modification time of the image file, how and
to which size it is resized, and the version of the decoder.  Therefore the old entry of an image
that has changed is never used, and an image gives the same pixels with a cache and without.

An entry is written under another name and then renamed, so that several runs may use one folder.
An entry that is cut short or damaged is written again.
"""

import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from jaxdet.data.images import ImageFile, Size
from jaxdet.errors import InputError, printable

Reader = Callable[..., tuple[np.ndarray, Size]]  # image file and size -> pixels, original size
FORMAT = 1  # version of the entries; increase it when `jaxdet.data.images` returns other pixels
HEADER = np.dtype([("crc32", "<u4"), ("size", "<u4", 2), ("shape", "<u4", 3)])
LOG = logging.getLogger(__name__)


def cached(read: Reader, folder: str | Path) -> Reader:
    """Wrap `read(file, ...)`, which returns (uint8 image, original size), with a cache in a folder.

    Only images that are files are cached.  If `folder` is "", `read` itself is returned.  Raises
    InputError if the folder cannot be created.  If entries cannot be written, for example on a full
    disk, one warning is logged.
    """
    if not folder:
        return read
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--image-cache must be a folder that can be created, got {folder} ({error.strerror})"
        ) from None
    return partial(_read, read, Path(folder), [])


def _read(
    read: Reader, folder: Path, failures: list[str], file: ImageFile, *args: int, **named: int
) -> tuple[np.ndarray, Size]:
    """Call `read(file, ...)`, or load its result; errors of writing are added to `failures`."""
    if not isinstance(file, str | Path):
        return read(file, *args, **named)
    try:
        entry = _entry(folder, file, (read.__name__, args, sorted(named.items())))
    except OSError:
        return read(file, *args, **named)  # which names the file in its error
    if (found := _load(entry)) is None:
        found = read(file, *args, **named)
        try:
            _write(entry, *found)
        except OSError as error:
            failures.append(str(error))
            if len(failures) == 1:
                LOG.warning("%s: cannot be written (%s)", printable(str(folder)), error.strerror)
    return found


def _entry(folder: Path, file: str | Path, resized: tuple) -> Path:
    """The path in the cache for `file`, resized as in `resized`; OSError if `file` is missing."""
    status = os.stat(file)
    key = (os.path.abspath(file), status.st_size, status.st_mtime_ns, *resized)
    name = hashlib.sha256(repr((FORMAT, PIL.__version__, key)).encode()).hexdigest()
    return folder / name[:2] / f"{name[2:]}.rgb"


def _load(entry: Path) -> tuple[np.ndarray, Size] | None:
    """Load (pixels [H, W, 3] uint8, original size) from an entry; None if missing or damaged."""
    try:
        content = np.asarray(np.memmap(entry, np.uint8, mode="r"))
        header = content[: HEADER.itemsize].view(HEADER)[0]
        pixels = content[HEADER.itemsize :].reshape(header["shape"])
    except (OSError, ValueError, IndexError):  # missing, empty or cut short
        return None
    if _checksum(header, pixels) != header["crc32"]:
        return None
    height, width = header["size"].tolist()
    return pixels, (height, width)


def _write(entry: Path, pixels: np.ndarray, size: Size) -> None:
    entry.parent.mkdir(exist_ok=True)
    header = np.array((0, size, pixels.shape), HEADER)
    header["crc32"] = _checksum(header, pixels)
    draft = entry.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        draft.write_bytes(header.tobytes() + pixels.tobytes())
        draft.replace(entry)
    finally:
        draft.unlink(missing_ok=True)


def _checksum(header: np.ndarray, pixels: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels), zlib.crc32(header.tobytes()[4:]))
