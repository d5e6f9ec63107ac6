"""The sizes of many image files, from their headers or from an earlier run."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdet.data import array_cache, images, threads
from jaxdet.data.images import ImageFile, Size
from jaxdet.errors import InputError

MIN_IMAGES = 10_000  # smallest number of images for which an entry saves time
CHUNK = 64  # images that a thread reads at a time
FORMAT = 1  # version of the entries; increase it when `images.read_size` returns other sizes


def read(files: Sequence[ImageFile], folder: Path | None = None) -> list[Size | InputError]:
    """The size of each image as `images.read_size` gives it, or the error that it raises.

    folder: where an entry of an `array_cache` keeps the sizes.  A kept size is used again while the
      file has the same number of bytes and modification time.  None: all headers are read.
    """
    kept = len(files) >= MIN_IMAGES and all(isinstance(file, str | Path) for file in files)
    if folder is None or not kept:
        return _read(files)
    states = np.array([_state(file) for file in files])
    name = array_cache.entry_name(["sizes", FORMAT, *map(os.path.abspath, files)])
    entry = array_cache.load(folder, name)
    known = np.zeros(len(files), bool) if entry is None else (entry["states"] == states).all(1)
    found: list = [None] * len(files) if entry is None else [*map(tuple, entry["sizes"].tolist())]
    unknown = np.flatnonzero(~(known & (states[:, 0] >= 0))).tolist()
    for number, size in zip(unknown, _read([files[i] for i in unknown]), strict=True):
        found[number] = size
    if unknown:
        readable = [isinstance(size, tuple) for size in found]
        sizes = [size if good else (0, 0) for size, good in zip(found, readable, strict=True)]
        states[~np.array(readable)] = -1
        array_cache.store(folder, name, {"states": states, "sizes": np.array(sizes, np.int32)})
    return found


def _read(files: Sequence[ImageFile]) -> list[Size | InputError]:
    """Read the headers of images in threads."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    results = threads.map_images(lambda chunk: [_read_one(file) for file in chunk], chunks, len)
    return [size for chunk in results for size in chunk]


def _read_one(file: ImageFile) -> Size | InputError:
    try:
        return images.read_size(file)
    except InputError as error:
        return error


def _state(file: str | Path) -> tuple[int, int]:
    """(bytes, modification time in nanoseconds) of a file; (-1, -1) if it is missing."""
    try:
        found = os.stat(file)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
