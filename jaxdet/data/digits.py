"""Handwritten digits from scikit-learn, from MNIST's idx files or from tensorflow-datasets.

A source of digits has the arrays image [N, H, W] uint8, label [N] int32 in 0..9 and id [N] int32.
Ids are unique over all splits: training ids count from 0, and test ids continue after them.

An idx file consists of two zero bytes, a code for the type of its values, the number of dimensions,
the size of each dimension as a big-endian uint32, and then the values, big-endian, in row-major
order (LeCun, Cortes and Burges, "The MNIST database of handwritten digits").
"""

import gzip
import math
import zlib
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdet.data import regular_files, sources
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError

CLASSES = 10
TEST_DIGITS = 30  # as many as one figure shows
EMBEDDED_TRAIN, EMBEDDED_TEST = 1297, 300  # of 1797; the other 200 are for validation
MAX_DARKNESS = 16  # largest darkness of a pixel of an embedded scan
FAINT_DARKNESS = 3  # a pixel of at most this darkness is the blur around a stroke, not ink
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_MAX_RANK = 32
MNIST_EXPECTED = "expected MNIST's four idx files"
AGAIN = "download it again"

TrainTest = tuple[sources.ArraySource, sources.ArraySource]


def read_splits(
    source: str, root: str | Path | None = None, seed: int = 0
) -> dict[str, sources.ArraySource]:
    """Read the splits `train`, `val`, `test` and `heldout` of a source of digits.

    `source` is `embedded` (scikit-learn's scans), `mnist` (idx files in the folder `root`) or
    `tfds:NAME` (a set prepared in `root`).  `heldout` has all digits that are not for training, in
    the order of their ids.  Of these digits, 30 (300 for `embedded`), drawn at random by `seed`,
    form the split `test`; the others form the split `val`.  Raises InputError for an unknown
    source, and for fewer than 60 held-out digits.
    """
    train, heldout = _read_train_heldout(source, root)
    if len(heldout) < 2 * TEST_DIGITS:
        raise InputError(
            f"{source}: must have at least {2 * TEST_DIGITS} test digits, got {len(heldout)}"
        )
    count = EMBEDDED_TEST if source == "embedded" else TEST_DIGITS
    order = np.random.default_rng(seed).permutation(len(heldout))
    test, val = heldout.take(np.sort(order[:count])), heldout.take(np.sort(order[count:]))
    return {"train": train, "val": val, "test": test, "heldout": heldout}


def _read_train_heldout(source: str, root: str | Path | None) -> TrainTest:
    match source.partition(":"):
        case ("embedded", "", "") if root is None:
            whole = embedded()
            rows = np.arange(len(whole))
            return whole.take(rows[:EMBEDDED_TRAIN]), whole.take(rows[EMBEDDED_TRAIN:])
        case ("mnist", "", "") if root is not None:
            return read_mnist(root)
        case ("tfds", ":", name) if name:
            return read_tfds(name, root)
    raise InputError(
        f"--source must be embedded (without --root), mnist (with --root) or tfds:NAME, got "
        f"{source!r} {'without --root' if root is None else f'with --root {root}'}"
    )


def embedded() -> sources.ArraySource:
    """scikit-learn's 1,797 scans (8x8), enlarged to 28x28 digits; no file is needed.

    Each 8x8 scan is enlarged so that its ink stays within the central 24x24 pixels; the background
    is exactly 0, so `pixel > 0` is the ink.  The order is a fixed permutation, because neighboring
    scans were written by the same hand.  Alpaydin and Kaynak, "Optical recognition of handwritten
    digits", UCI, 1998.
    """
    scans, label = _load_scans()
    image = np.stack([_enlarge_scan(scan) for scan in scans])
    order = np.random.default_rng(0).permutation(len(image))
    return digit_source(image[order], label[order], where="embedded digits")


def read_mnist(folder: str | Path) -> TrainTest:
    """Read MNIST's four idx files in a folder, and return the sources (train, test).

    File names are `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, with or without `.gz`;
    for the test split, they begin with `t10k` in place of `train`.  InputError for a missing folder
    or file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {MNIST_EXPECTED}")
    train = _read_mnist_split(folder, "train")
    return train, _read_mnist_split(folder, "t10k", first_id=len(train))


def read_idx(path: str | Path) -> np.ndarray:
    """Read the array in an idx file, and return it in native byte order.

    The file may be gzipped, whatever its name.  InputError for a file that cannot be read, is not
    an idx file, is truncated, has bytes after its last value, or holds no value.
    """
    path = Path(path)
    content = _unzip(path)
    dtype, shape = _idx_header(content, path)
    start = 4 + 4 * len(shape)
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "too long"
        raise InputError(
            f"{path}: is {state}; its header announces {expected} bytes, got {len(content)}; "
            f"{AGAIN}"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def read_tfds(name: str, data_dir: str | Path | None = None) -> TrainTest:
    """Read a prepared set of tensorflow-datasets, and return the sources (train, test).

    Raises InputError for a set that is unknown or not prepared (see `data.tfds`), that has no
    labels or no grayscale images of a fixed size, or whose labels are not all in 0..9.
    """
    splits = tfds_data.open_dataset(name, data_dir, split=["train", "test"])
    features = splits[0].dataset_info.features
    shapes = {key: features[key].shape for key in features}
    shape = shapes.get("image", ())
    if len(shape) != 3 or None in shape or shape[-1] != 1 or shapes.get("label") != ():
        raise InputError(
            f"tfds set {name!r}: features must be image (H, W, 1) and label (), got {shapes}"
        )
    train = digit_source(*_tfds_columns(splits[0]), where=f"{name} train")
    test = digit_source(*_tfds_columns(splits[1]), where=f"{name} test", first_id=len(train))
    return train, test


def digit_source(image: Any, label: Any, *, where: str, first_id: int = 0) -> sources.ArraySource:
    """Make a source of images [N, H, W] and labels [N], with ids counting from `first_id`.

    Raises InputError, with a message that begins with `where`, unless the images are grayscale
    uint8 with at least one pixel, and each has a label in 0..9.
    """
    image, label = np.asarray(image), np.asarray(label)
    if image.ndim != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"{where}: images must be grayscale, uint8 [N, H, W] with at least one pixel, got "
            f"{image.dtype} {list(image.shape)}"
        )
    if label.shape != (len(image),):
        raise InputError(
            f"{where}: labels must be [{len(image)}], one per image, got {list(label.shape)}"
        )
    (wrong,) = np.nonzero(~np.isin(label, range(CLASSES)))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"{where} row {row}: label must be 0 to {CLASSES - 1}, got {label[row]}")
    ids = np.arange(first_id, first_id + len(image), dtype=np.int32)
    return sources.ArraySource({"image": image, "label": label.astype(np.int32), "id": ids})


def _load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Scans [1797, 8, 8] and labels [1797] from a file that scikit-learn installs."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError("--source embedded needs scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def _enlarge_scan(scan: np.ndarray) -> np.ndarray:
    """Enlarge a scan [8, 8] with darkness 0..16 to [28, 28] uint8; faint pixels become 0."""
    bordered = Image.fromarray(np.pad(scan, 1).astype(np.float32))
    dark = np.asarray(bordered.resize((28, 28), Image.Resampling.BICUBIC))
    ink = (dark - FAINT_DARKNESS) / (MAX_DARKNESS - FAINT_DARKNESS)
    return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)


def _read_mnist_split(folder: Path, prefix: str, first_id: int = 0) -> sources.ArraySource:
    images = _find_idx(folder, f"{prefix}-images", "idx3-ubyte")
    labels = _find_idx(folder, f"{prefix}-labels", "idx1-ubyte")
    where = f"{images} with {labels.name}"
    return digit_source(read_idx(images), read_idx(labels), where=where, first_id=first_id)


def _find_idx(folder: Path, stem: str, kind: str) -> Path:
    for mark, ending in product("-.", ("", ".gz")):
        path = folder / f"{stem}{mark}{kind}{ending}"
        if path.is_file():
            return path
    why = "" if any(folder.iterdir()) else ", the folder is empty"
    raise InputError(f"{folder}: no file {stem}-{kind}[.gz]{why}; {MNIST_EXPECTED}")


def _unzip(path: Path) -> bytes:
    try:
        return regular_files.read_unpacked(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is a damaged gzip file ({error}); {AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _idx_header(content: bytes, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    """(type, shape) of the values of an idx file; InputError for an invalid header."""
    if content[:2] != b"\0\0" or len(content) < 4:
        found = content[:4].hex(" ") or "nothing"
        raise InputError(f"{path}: must begin with 00 00, a type code and a rank, got {found}")
    code, rank = content[2:4]
    if code not in IDX_DTYPES or not 1 <= rank <= IDX_MAX_RANK:
        known = " ".join(f"{known:02x}" for known in IDX_DTYPES)
        raise InputError(
            f"{path}: must have a type code of {known} and rank 1 to {IDX_MAX_RANK}, got type code "
            f"{code:02x} and rank {rank}"
        )
    if len(content) < 4 + 4 * rank:
        raise InputError(f"{path}: is truncated within its header of rank {rank}; {AGAIN}")
    shape = tuple(np.frombuffer(content, ">u4", count=rank, offset=4).tolist())
    if 0 in shape:
        raise InputError(f"{path}: must hold at least one value, got shape {list(shape)}; {AGAIN}")
    return np.dtype(IDX_DTYPES[code]), shape


def _tfds_columns(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W] and labels [N] of all records of a split of tensorflow-datasets."""
    records = list(split)
    images = np.array([record["image"][..., 0] for record in records])
    return images, np.array([record["label"] for record in records])
