"""CIFAR-10: color images of 32 x 32 pixels in ten classes.

Three kinds of data can be read: the author's files, either Python pickles or binary records, in a
folder or a tar file; image files in one folder per class (see `image_folder`); and a prepared set
of tensorflow-datasets.  Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import pickles
from jaxdet.data import image_folder, sources
from jaxdet.data import tfds as tfds_data
from jaxdet.data.image_folder import FileTree, Folder, ImageFolderDataset
from jaxdet.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SIDE = 32
VALUES_PER_IMAGE = 3 * IMAGE_SIDE * IMAGE_SIDE  # red, then green, then blue, each row by row
BATCH_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz")
PICKLED_DTYPES = ("u1", "i4", "i8")
LAYOUTS = (
    "cifar-10-batches-py or cifar-10-python.tar.gz, cifar-10-batches-bin or cifar-10-binary.tar.gz,"
    " train/CLASS/FILE and test/CLASS/FILE in a folder or a tar file"
)

Splits = dict[str, sources.ArraySource]


def read(
    root: str | Path | None, data_dir: str | Path | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Read CIFAR-10, and return ({"train": source, "test": source}, class names).

    The arrays are image [N, 32, 32, 3] uint8, label [N] int32 and id [N] int32; test ids continue
    after the training ids.  `root` is a file or folder in a layout of this module, a folder that
    contains such a file or folder, or `tfds:NAME`, a set prepared in `data_dir`.  Nothing is
    downloaded.  Raises InputError if no data are found, or if they are incomplete or damaged.
    """
    if str(root).startswith(tfds_data.PREFIX):
        return _read_tfds(str(root).removeprefix(tfds_data.PREFIX), data_dir)
    for path in _candidates(root):
        found = _read_tree(image_folder.list_files(path))
        if found:
            return found
    problem = f"no CIFAR-10 in {root}" if root else "--root must be given"
    raise InputError(f"{problem}; expected {LAYOUTS}; jaxdet does not download the data")


def summarize(root: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (one table row per class, notes on files that cannot be used) for the data at `root`.

    The columns are as in `image_folder.summarize`.  There are notes only for data in image files;
    other layouts must be complete.
    """
    for path in _candidates(root):
        found = image_folder.find_classes(image_folder.list_files(path))
        if set(BATCH_FILES) <= set(found.splits):
            return image_folder.summarize(found)
    splits, classes = read(root)
    sides = dict.fromkeys(("height", "width"), f"{IMAGE_SIDE} to {IMAGE_SIDE}")
    counts = {
        name: np.bincount(source.arrays["label"], minlength=len(classes))
        for name, source in splits.items()
    }
    rows = [
        {"label": label, **{name: int(count[i]) for name, count in counts.items()}, **sides}
        for i, label in enumerate(classes)
    ]
    return rows, []


def _candidates(root: str | Path | None) -> Iterator[Path]:
    """Yield the root, if it exists, and then the tar files in it."""
    if root and Path(root).exists():
        yield Path(root)
        for pattern in ARCHIVES:
            yield from sorted(Path(root).glob(pattern))


def _read_tree(tree: FileTree) -> tuple[Splits, tuple[str, ...]] | None:
    """Read the first layout found in a tree of files; None if there is none."""
    for ending, decode in {"": _decode_pickle, ".bin": _decode_records}.items():
        expected = {f"{name}{ending}" for names in BATCH_FILES.values() for name in names}
        for folder in sorted(tree.files):
            if expected & set(tree.files[folder]):
                return _read_batches(tree, folder, ending, decode), CLASSES
    found = image_folder.find_classes(tree)
    return _read_images(found) if {"train", "test"} <= set(found.splits) else None


def _read_batches(tree: FileTree, folder: Folder, ending: str, decode: Callable) -> Splits:
    """Read the batch files in one folder; InputError if one is missing or damaged."""
    columns = {}
    for split, names in BATCH_FILES.items():
        batches = []
        for name in names:
            file = f"{name}{ending}"
            if file not in tree.files[folder]:
                raise InputError(
                    f"{tree.location(*folder)}: {file} is missing; download the data again"
                )
            with pickles.as_input_error(tree.location(*folder, file)):
                values, label = decode(image_folder.file_bytes(tree.files[folder][file]))
                batches.append(_check_batch(np.asarray(values), np.asarray(label)))
        columns[split] = [np.concatenate(column) for column in zip(*batches, strict=True)]
    return _to_sources(columns)


def _read_images(found: ImageFolderDataset) -> tuple[Splits, tuple[str, ...]]:
    """Read images in one folder per class, as `read` does; InputError if any is unusable."""
    splits, notes, first = {}, list(found.notes), 0
    for name in BATCH_FILES:
        samples = found.splits[name]
        splits[name], faults = image_folder.load(samples, found.classes, IMAGE_SIDE, first_id=first)
        first += len(samples)
        notes += faults
    if notes:
        others = f" (and {len(notes) - 1} more)" if notes[1:] else ""
        raise InputError(f"{notes[0]}{others}; every file of CIFAR-10 must be usable")
    return splits, found.classes


def _read_tfds(name: str, data_dir: str | Path | None) -> tuple[Splits, tuple[str, ...]]:
    train, test = tfds_data.open_dataset(name, data_dir, split=["train", "test"])
    features = train.dataset_info.features
    shapes = {key: features[key].shape for key in features}
    classes = tuple(getattr(features["label"], "names", ())) if "label" in shapes else ()
    if shapes.get("image") != (IMAGE_SIDE, IMAGE_SIDE, 3) or not classes:
        raise InputError(
            f"tfds set {name!r}: features must be image ({IMAGE_SIDE}, {IMAGE_SIDE}, 3) and label "
            f"with class names, got {shapes}"
        )
    columns = {}
    for split, source in {"train": train, "test": test}.items():
        records = list(source)
        label = np.array([record["label"] for record in records])
        with pickles.as_input_error(f"tfds set {name!r} {split}"):
            label = _check_labels(label, len(records), len(classes))
        columns[split] = np.array([record["image"] for record in records]), label
    return _to_sources(columns), classes


def _to_sources(columns: dict[str, Any]) -> Splits:
    """Convert {split: (images, labels)} to sources, with ids that count through all splits."""
    splits, first = {}, 0
    for name, (image, label) in columns.items():
        ids = np.arange(first, first + len(image), dtype=np.int32)
        splits[name] = sources.ArraySource({"image": image, "label": label, "id": ids})
        first += len(image)
    return splits


def _check_batch(values: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert values [N, 3072] and labels [N] to (images [N, 32, 32, 3], int32 labels)."""
    if values.dtype != np.uint8 or values.shape[1:] != (VALUES_PER_IMAGE,) or not len(values):
        raise InputError(
            f"images must be uint8 [N, {VALUES_PER_IMAGE}] with N of at least 1, got "
            f"{values.dtype} {list(values.shape)}"
        )
    planes = values.reshape(-1, 3, IMAGE_SIDE, IMAGE_SIDE)
    image = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return image, _check_labels(label, len(image), len(CLASSES))


def _check_labels(label: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Return labels [count] as int32; InputError if one of them is not in 0..classes - 1."""
    if label.shape != (count,) or label.dtype.kind not in "iu":
        raise InputError(
            f"labels must be integers [{count}], one per image, got {label.dtype} "
            f"{list(label.shape)}"
        )
    (wrong,) = np.nonzero((label < 0) | (label >= classes))
    if wrong.size:
        raise InputError(f"row {wrong[0]}: label must be 0 to {classes - 1}, got {label[wrong[0]]}")
    return label.astype(np.int32)


def _decode_records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of the binary layout: per image, a byte of label, then its values."""
    size = VALUES_PER_IMAGE + 1
    if not content or len(content) % size:
        raise InputError(
            f"file size must be a positive multiple of {size} bytes, got {len(content)}; "
            "download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, 1:], rows[:, 0]


def _decode_pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of the Python layout: a dict pickled by Python 2 and NumPy."""
    batch = pickles.next_unpickler(io.BytesIO(content), _Unpickler, encoding="bytes").load()
    if not isinstance(batch, dict):
        raise InputError(f"must hold a dict with data and labels, got a {type(batch).__name__}")
    batch = {_to_text(key): each for key, each in batch.items()}
    if not {"data", "labels"} <= set(batch):
        raise InputError(f"must hold a dict with keys data and labels, got keys {[*batch][:5]}")
    return _to_array(batch["data"]), _to_array(batch["labels"])


def _to_text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _to_array(value: Any) -> np.ndarray:
    """An unpickled array, or a list of integers as an array."""
    return value.array if isinstance(value, _Array) else np.fromiter(value, np.int64)


class _Unpickler(pickles.RestrictedUnpickler):
    """Reads basic Python types, NumPy arrays, and bytes pickled by Python 3 with protocol 2."""

    def allowed_globals(self) -> dict[str, Any]:
        """Replacements for the globals that occur in pickles of NumPy 1 and NumPy 2."""
        return {
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.ndarray": "ndarray",
            "numpy.dtype": lambda name, *_: _DType(_to_text(name)),
            "_codecs.encode": lambda text, _: text.encode("latin1"),
        }


class _DType:
    """Replaces `numpy.dtype` while a pickle is read."""

    def __init__(self, name: str) -> None:
        if name not in PICKLED_DTYPES:
            raise InputError(f"array type must be one of {', '.join(PICKLED_DTYPES)}, got {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if _to_text(state[1]) == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Replaces `numpy.ndarray` while a pickle is read: created empty, and filled afterwards."""

    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, raw = state
        values = np.frombuffer(raw, dtype.dtype)
        self.array = values.reshape(shape, order="F" if fortran_order else "C")
