"""The idx format, and MNIST, which is four files of it.

An idx file is two zero bytes, a code for the type of its values, the number of dimensions, one
big-endian uint32 a dimension, then the values, big-endian, the last dimension fastest (LeCun,
Cortes and Burges, "The MNIST database of handwritten digits").
"""

import gzip
import math
import zlib
from itertools import product
from pathlib import Path

import numpy as np

from jaxdet.data import sources
from jaxdet.errors import InputError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_DIMENSIONS = 32
GZIP = b"\x1f\x8b"  # how every gzip file begins
AGAIN = "fetch it again"
WANTED = "MNIST's four idx files are wanted in it"


def mnist(folder):
    """MNIST's four idx files under `folder` as sources (train, test) of digits.

    Knows the spellings `train-images-idx3-ubyte` and `train-images.idx3-ubyte`, with and without
    `.gz`; the test files begin with `t10k`.  Training ids count from 0, test ids go on from there.
    InputError, in one line, for a folder or file that is missing and for whatever `read` or
    `arrays.labelled` finds wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {WANTED}")
    train = _part(folder, "train")
    return train, _part(folder, "t10k", first_id=len(train))


def read(path):
    """The array in an idx file, plain or gzipped (told by content), in native byte order.

    Every byte must be accounted for.  InputError when the file cannot be read, is not idx, is cut
    short, goes on after its last value, or holds no value at all.
    """
    path = Path(path)
    content = _unzipped(path)
    dtype, shape = _header(content, path)
    start = 4 + 4 * len(shape)
    wanted = start + dtype.itemsize * math.prod(shape)
    if len(content) != wanted:
        state = "is cut short" if len(content) < wanted else "is too long"
        found = f"{len(content)} bytes, its header wants {wanted}"
        raise InputError(f"{path}: {state}: {found}; {AGAIN}")
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _part(folder, part, first_id=0):
    images = _find(folder, f"{part}-images", "idx3-ubyte")
    labels = _find(folder, f"{part}-labels", "idx1-ubyte")
    where = f"{images} with {labels.name}"
    return sources.labelled(read(images), read(labels), where=where, first_id=first_id)


def _find(folder, stem, kind):
    for mark, ending in product("-.", ("", ".gz")):
        path = folder / f"{stem}{mark}{kind}{ending}"
        if path.is_file():
            return path
    state = "has no" if any(folder.iterdir()) else "is empty, without"
    raise InputError(f"{folder}: {state} {stem}-{kind}[.gz]; {WANTED}")


def _unzipped(path):
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is a damaged gzip file ({error}); {AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _header(content, path):
    """Type and shape of the values, as the first bytes of `content` declare them."""
    if content[:2] != b"\0\0" or len(content) < 4:
        found = content[:4].hex(" ") or "nothing"
        raise InputError(f"{path}: begins with {found}; an idx file begins with 00 00, type, rank")
    code, rank = content[2:4]
    if code not in DTYPES or not 1 <= rank <= MOST_DIMENSIONS:
        known = " ".join(f"{known:02x}" for known in DTYPES)
        wanted = f"one of {known} and rank 1..{MOST_DIMENSIONS} are wanted"
        raise InputError(f"{path}: has type code {code:02x} and rank {rank}; {wanted}")
    if len(content) < 4 + 4 * rank:
        raise InputError(f"{path}: is cut short within its header of rank {rank}; {AGAIN}")
    shape = tuple(np.frombuffer(content, ">u4", count=rank, offset=4).tolist())
    if 0 in shape:
        raise InputError(f"{path}: shape {list(shape)} holds no value; {AGAIN}")
    return np.dtype(DTYPES[code]), shape
