"""Handwritten digits from any source, cut into training, validation and test parts."""

import gzip
import io
import math
import zlib
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdet.data import sources
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError

SOURCES = "embedded, mnist, tfds:NAME"
TEST_DIGITS = 30  # test digits: as many as one figure shows
EMBEDDED_TRAIN, EMBEDDED_TEST = 1297, 300  # of 1797; the other 200 are for validation
MAX_DARKNESS = 16  # how dark a pixel of an embedded scan can be
FAINT_DARKNESS = 3  # up to here it is the blur around a stroke, not ink


def read_splits(source_name, root=None, seed=0):
    """The parts of a set of digits: a dict of sources `train`, `val`, `test` and `heldout`.

    `source_name` is `embedded`, `mnist` (idx files in the folder `root`) or `tfds:NAME` (prepared
    under `root`).  `heldout` is what the set keeps back from training, in id order; `seed` draws
    from it the 30 test digits (300 of `embedded`), and the rest is `val`.  Ids are unique over
    the whole set: train from 0, heldout from there on.  InputError for a name not known, fewer
    than 60 held out, or what the reader finds.
    """
    train, heldout = _read_train_heldout(source_name, root)
    if len(heldout) < 2 * TEST_DIGITS:
        found = f"{len(heldout)} test digits"
        raise InputError(f"{source_name}: {found}; {2 * TEST_DIGITS} or more are wanted")
    tests = EMBEDDED_TEST if source_name == "embedded" else TEST_DIGITS
    order = np.random.default_rng(seed).permutation(len(heldout))
    test, val = heldout.take(np.sort(order[:tests])), heldout.take(np.sort(order[tests:]))
    return {"train": train, "val": val, "test": test, "heldout": heldout}


def embedded():
    """The 1797 scans that come with scikit-learn as a source of 28x28 digits, no file needed.

    Each scan of 8x8 is enlarged so that its ink stays within the middle 24x24 pixels; the
    background is exactly 0, so that `pixel > 0` is the ink.  Their order is a fixed shuffle,
    because neighbours were written by the same hand; ids count along it.  Alpaydin and Kaynak,
    "Optical recognition of handwritten digits", UCI, 1998.
    """
    scans, label = _load_scans()
    image = np.stack([_enlarge_scan(scan) for scan in scans])
    order = np.random.default_rng(0).permutation(len(image))
    return digit_source(image[order], label[order], where="embedded digits")


def _read_train_heldout(source_name, root):
    match source_name.partition(":"):
        case ("embedded", "", "") if root is None:
            whole = embedded()
            rows = np.arange(len(whole))
            return whole.take(rows[:EMBEDDED_TRAIN]), whole.take(rows[EMBEDDED_TRAIN:])
        case ("mnist", "", "") if root is not None:
            return read_mnist(root)
        case ("tfds", ":", name) if name:
            return read_tfds(name, root)
    found = f"digits from {source_name!r} with root {root}"
    raise InputError(f"{found}; one of {SOURCES} is wanted, and for mnist a root")


def _load_scans():
    """Scans [1797, 8, 8] and labels [1797] as `sklearn.datasets.load_digits` has them.

    Read from the file that it reads: to import scikit-learn takes longer than all the rest.
    """
    (folder,) = find_spec("sklearn").submodule_search_locations
    table = np.loadtxt(Path(folder) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def _enlarge_scan(scan):
    """A scan [8, 8] of darkness 0..16 as a digit [28, 28] uint8: bicubic, faint pixels cleared."""
    bordered = Image.fromarray(np.pad(scan, 1).astype(np.float32))
    dark = np.asarray(bordered.resize((28, 28), Image.Resampling.BICUBIC))
    return np.rint(
        255 * np.clip((dark - FAINT_DARKNESS) / (MAX_DARKNESS - FAINT_DARKNESS), 0, 1)
    ).astype(np.uint8)


IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_MAX_RANK = 32
GZIP = b"\x1f\x8b"  # how every gzip file begins
AGAIN = "fetch it again"
MNIST_EXPECTED = "MNIST's four idx files are wanted in it"


def read_mnist(folder):
    """MNIST's four idx files under `folder` as sources (train, test) of digits.

    Knows the spellings `train-images-idx3-ubyte` and `train-images.idx3-ubyte`, with and without
    `.gz`; the test files begin with `t10k`.  Training ids count from 0, test ids go on from there.
    InputError, in one line, for a folder or file that is missing and for whatever `read` or
    `arrays.labelled` finds wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {MNIST_EXPECTED}")
    train = _read_mnist_split(folder, "train")
    return train, _read_mnist_split(folder, "t10k", first_id=len(train))


def read_idx(path):
    """The array in an idx file, plain or gzipped (told by content), in native byte order.

    Every byte must be accounted for.  InputError when the file cannot be read, is not idx, is cut
    short, goes on after its last value, or holds no value at all.
    """
    path = Path(path)
    content = _unzipped(path)
    dtype, shape = _idx_header(content, path)
    start = 4 + 4 * len(shape)
    wanted = start + dtype.itemsize * math.prod(shape)
    if len(content) != wanted:
        state = "is cut short" if len(content) < wanted else "is too long"
        found = f"{len(content)} bytes, its header wants {wanted}"
        raise InputError(f"{path}: {state}: {found}; {AGAIN}")
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _read_mnist_split(folder, part, first_id=0):
    images = _find_idx(folder, f"{part}-images", "idx3-ubyte")
    labels = _find_idx(folder, f"{part}-labels", "idx1-ubyte")
    where = f"{images} with {labels.name}"
    return digit_source(read_idx(images), read_idx(labels), where=where, first_id=first_id)


def _find_idx(folder, stem, kind):
    for mark, ending in product("-.", ("", ".gz")):
        path = folder / f"{stem}{mark}{kind}{ending}"
        if path.is_file():
            return path
    state = "has no" if any(folder.iterdir()) else "is empty, without"
    raise InputError(f"{folder}: {state} {stem}-{kind}[.gz]; {MNIST_EXPECTED}")


def _unzipped(path):
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is a damaged gzip file ({error}); {AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _idx_header(content, path):
    """Type and shape of the values, as the first bytes of `content` declare them."""
    if content[:2] != b"\0\0" or len(content) < 4:
        found = content[:4].hex(" ") or "nothing"
        raise InputError(f"{path}: begins with {found}; an idx file begins with 00 00, type, rank")
    code, rank = content[2:4]
    if code not in IDX_DTYPES or not 1 <= rank <= IDX_MAX_RANK:
        known = " ".join(f"{known:02x}" for known in IDX_DTYPES)
        wanted = f"one of {known} and rank 1..{IDX_MAX_RANK} are wanted"
        raise InputError(f"{path}: has type code {code:02x} and rank {rank}; {wanted}")
    if len(content) < 4 + 4 * rank:
        raise InputError(f"{path}: is cut short within its header of rank {rank}; {AGAIN}")
    shape = tuple(np.frombuffer(content, ">u4", count=rank, offset=4).tolist())
    if 0 in shape:
        raise InputError(f"{path}: shape {list(shape)} holds no value; {AGAIN}")
    return np.dtype(IDX_DTYPES[code]), shape


CLASSES = 10  # the digits, 0..9


def digit_source(image, label, *, where, first_id=0):
    """The source of digits: `image [N, H, W]` uint8, `label [N]` int32 in 0..9, `id [N]` int32.

    Ids count from `first_id`: the number of a sample within its whole set.  `where` says in errors
    where the values came from.  InputError for images that are not greyscale bytes or hold no
    pixel, counts that differ, and a label that is no digit.
    """
    image, label = np.asarray(image), np.asarray(label)
    _check_images(image, where)
    _check_labels(label, len(image), where)
    ids = np.arange(first_id, first_id + len(image), dtype=np.int32)
    return sources.ArraySource({"image": image, "label": label.astype(np.int32), "id": ids})


def _check_images(image, where):
    if image.ndim != 3 or image.dtype != np.uint8 or not image.size:
        found = f"{image.dtype} {list(image.shape)}"
        raise InputError(f"{where}: images are {found}; uint8 [N, H, W], greyscale, is wanted")


def _check_labels(label, count, where):
    if label.shape != (count,):
        found = f"{count} images but labels {list(label.shape)}"
        raise InputError(f"{where}: {found}; one label an image is wanted")
    (wrong,) = np.nonzero(~np.isin(label, range(CLASSES)))
    if wrong.size:
        row = wrong[0]
        raise InputError(f"{where} row {row}: label {label[row]}; 0..{CLASSES - 1} is wanted")


def read_tfds(name, root=None):
    """The set's `train` and `test` parts as sources (train, test) of digits, held in memory.

    `name` is what tensorflow-datasets calls it (`mnist`, `emnist/digits`); `root` is the folder
    where sets are prepared, None for that of the variable TFDS_DATA_DIR, or else
    `~/tensorflow_datasets`.  Nothing is downloaded.  Training ids count from 0, test ids go on from
    there.  InputError for a set that is unknown or not prepared, without greyscale `image`s of one
    size and a `label`, or with labels beyond 0..9.
    """
    parts = tfds_data.open_dataset(name, root, split=["train", "test"])
    _check_features(parts[0].dataset_info.features, name)
    train = digit_source(*_columns(parts[0]), where=f"{name} train")
    test = digit_source(*_columns(parts[1]), where=f"{name} test", first_id=len(train))
    return train, test


def _check_features(features, name):
    shapes = {key: features[key].shape for key in features}
    image = shapes.get("image", ())
    if len(image) != 3 or None in image or image[-1] != 1 or shapes.get("label") != ():
        wanted = "image (H, W, 1) and label () are wanted"
        raise InputError(f"tfds set {name!r}: has features {shapes}; {wanted}")


def _columns(source):
    """Images [N, H, W] and labels [N] of all records."""
    records = list(source)
    images = np.array([record["image"][..., 0] for record in records])
    return images, np.array([record["label"] for record in records])
