"""CIFAR-10 in whatever form it lies on disk: colour images of 32 x 32 pixels in ten classes.

Known are its author's two forms (Krizhevsky, "Learning multiple layers of features from tiny
images", 2009), Python pickles and binary records, as folders or as he packs them; image files in
folders of classes, see `folders`; and a prepared set of tensorflow-datasets.
"""

import io
from pathlib import Path

import numpy as np

from jaxdet import weights
from jaxdet.data import image_folder, sources
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SIDE = 32
VALUES_PER_IMAGE = (
    3 * IMAGE_SIDE * IMAGE_SIDE
)  # of an image: its red, its green, its blue, each row by row
BATCH_FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz")
PICKLED_DTYPES = ("u1", "i4", "i8")  # of the arrays that a pickle of a batch may have
LAYOUTS = (
    "cifar-10-batches-py or cifar-10-python.tar.gz, cifar-10-batches-bin or cifar-10-binary.tar.gz,"
    " train/CLASS/FILE and test/CLASS/FILE in a folder or in a tar file"
)


def read(root, data_dir=None):
    """({"train": source, "test": source}, names of the classes) of CIFAR-10.

    image [N, 32, 32, 3] uint8, label [N] int32, id [N] int32; training ids count from 0, test ids
    go on from there.  `root` is one of its files or folders or a folder that has one, or
    `tfds:NAME`, a set that is prepared in `data_dir`, None for `~/tensorflow_datasets`.  Nothing
    is downloaded.  InputError where there is none, or it is incomplete or damaged.
    """
    if str(root).startswith(tfds_data.PREFIX):
        return _prepared(str(root).removeprefix(tfds_data.PREFIX), data_dir)
    for path in _candidates(root):
        found = _read(image_folder.list_files(path))
        if found:
            return found
    where = f"in {root}" if root else "anywhere, as no root is given"
    remedy = "put one of these there, nothing is downloaded"
    raise InputError(f"CIFAR-10 is not {where}: looked for {LAYOUTS}; {remedy}")


def summarize(root):
    """({column: value} a class, [what is wrong with a file]) of what `read` finds in `root`.

    See `folders.survey`, which says it of image files; other forms are wholly good or refused.
    """
    for path in _candidates(root):
        found = image_folder.find_classes(image_folder.list_files(path))
        if set(BATCH_FILES) <= set(found.parts):
            return image_folder.summarize(found)
    sources, classes = read(root)
    labels = {part: source.arrays["label"] for part, source in sources.items()}
    sides = dict.fromkeys(("height", "width"), f"{IMAGE_SIDE} to {IMAGE_SIDE}")
    counts = {part: np.bincount(of, minlength=len(classes)) for part, of in labels.items()}
    rows = [{part: int(of[i]) for part, of in counts.items()} for i in range(len(classes))]
    return [{"label": n, **row, **sides} for n, row in zip(classes, rows, strict=True)], []


def _candidates(root):
    """A place, if there is such a one, then the tar files in it."""
    if root and Path(root).exists():
        yield Path(root)
        for pattern in ARCHIVES:
            yield from sorted(Path(root).glob(pattern))


def _read(tree):
    """What `read` gives of the first form that is in a tree; None where there is none."""
    for ending, decode in {"": _pickled, ".bin": _records}.items():
        wanted = {f"{name}{ending}" for names in BATCH_FILES.values() for name in names}
        for folder in sorted(tree.files):
            if wanted & set(tree.files[folder]):
                return _batches(tree, folder, ending, decode), CLASSES
    found = image_folder.find_classes(tree)
    return _images(found) if {"train", "test"} <= set(found.parts) else None


def _batches(tree, folder, ending, decode):
    """The sources of batches of images in one folder of a tree."""
    columns = {}
    for part, names in BATCH_FILES.items():
        found = []
        for name in names:
            file = f"{name}{ending}"
            if file not in tree.files[folder]:
                raise InputError(f"{tree.where(*folder)}: has no {file}; fetch CIFAR-10 again")
            with weights.reading(tree.where(*folder, file)):
                found.append(_checked(*decode(image_folder.file_bytes(tree.files[folder][file]))))
        columns[part] = [np.concatenate(column) for column in zip(*found, strict=True)]
    return _sources(columns)


def _sources(columns):
    """The sources of {part: (images, labels)}."""
    made, first = {}, 0
    for part, (image, label) in columns.items():
        ids = np.arange(first, first + len(image), dtype=np.int32)
        made[part] = sources.ArraySource({"image": image, "label": label, "id": ids})
        first += len(image)
    return made


def _checked(values, label):
    """Images [N, 32, 32, 3] and labels [N] int32 of values [N, 3072] and labels [N]."""
    values, label = np.asarray(values), np.asarray(label)
    if values.dtype != np.uint8 or values.shape[1:] != (VALUES_PER_IMAGE,) or not len(values):
        found = f"{values.dtype} {list(values.shape)}"
        raise InputError(f"images are {found}; uint8 [N, {VALUES_PER_IMAGE}] is wanted")
    image = np.ascontiguousarray(
        values.reshape(-1, 3, IMAGE_SIDE, IMAGE_SIDE).transpose(0, 2, 3, 1)
    )
    return image, _labels(label, len(image), len(CLASSES))


def _labels(label, count, classes):
    """Labels [count] as int32, each in 0..classes - 1."""
    if label.shape != (count,) or label.dtype.kind not in "iu":
        found = f"{label.dtype} {list(label.shape)}"
        raise InputError(f"labels are {found}; whole numbers [{count}], one an image, are wanted")
    (wrong,) = np.nonzero((label < 0) | (label >= classes))
    if wrong.size:
        found = f"label {label[wrong[0]]}"
        raise InputError(f"row {wrong[0]}: {found}; 0..{classes - 1} is wanted")
    return label.astype(np.int32)


def _records(content):
    """Values and labels of the binary form: of each image its label, a byte, and its values."""
    if not content or len(content) % (VALUES_PER_IMAGE + 1):
        raise InputError(
            f"{len(content)} bytes; images of {VALUES_PER_IMAGE + 1} bytes are wanted, fetch it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, VALUES_PER_IMAGE + 1)
    return rows[:, 1:], rows[:, 0]


def _pickled(content):
    """Values and labels of the Python form: a pickle of a dict that Python 2 and NumPy wrote."""
    batch = weights.unpickler(io.BytesIO(content), _Unpickler, encoding="bytes").load()
    if not isinstance(batch, dict):
        raise InputError(f"holds a {type(batch).__name__}; a dict with data and labels is wanted")
    batch = {_text(key): each for key, each in batch.items()}
    if not {"data", "labels"} <= set(batch):
        raise InputError(f"holds {[*batch][:5]}; data and labels are wanted")
    return _array(batch["data"]), _array(batch["labels"])


def _text(value):
    return value.decode("latin1") if isinstance(value, bytes) else value


def _array(value):
    """An array, or a list of whole numbers as one."""
    return value.array if isinstance(value, _Array) else np.fromiter(value, np.int64)


class _Unpickler(weights.Unpickler):
    """Builds NumPy's arrays, and bytes as Python 3 writes them for Python 2."""

    def known(self):
        """What stands for what NumPy calls; `core` had its underscore with NumPy 2."""
        return {
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.ndarray": "ndarray",
            "numpy.dtype": lambda name, *_: _DType(_text(name)),
            "_codecs.encode": lambda text, _: text.encode("latin1"),
        }


class _DType:
    """A type of numbers, as it is pickled."""

    def __init__(self, name):
        if name not in PICKLED_DTYPES:
            raise InputError(f"holds an array of {name!r}; {', '.join(PICKLED_DTYPES)} are known")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        if _text(state[1]) == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array, as it is pickled: made empty, then filled."""

    def __setstate__(self, state):
        _, shape, kind, by_column, raw = state
        values = np.frombuffer(raw, kind.dtype)
        self.array = values.reshape(shape, order="F" if by_column else "C")


def _images(found):
    """What `read` gives of images in folders of classes, all of which must be good."""
    sources, notes, first = {}, list(found.notes), 0
    for part in BATCH_FILES:
        sources[part], said = image_folder.load(
            found.parts[part], found.classes, IMAGE_SIDE, first_id=first
        )
        first += len(found.parts[part])
        notes += said
    if notes:
        others = f" (and {len(notes) - 1} more)" if notes[1:] else ""
        raise InputError(f"{notes[0]}{others}; every file of CIFAR-10 is wanted")
    return sources, found.classes


def _prepared(name, data_dir):
    """What `read` gives of a set of tensorflow-datasets."""
    train, test = tfds_data.open_dataset(name, data_dir, split=["train", "test"])
    features = train.dataset_info.features
    shapes = {key: features[key].shape for key in features}
    classes = tuple(getattr(features["label"], "names", ())) if "label" in shapes else ()
    if shapes.get("image") != (IMAGE_SIDE, IMAGE_SIDE, 3) or not classes:
        wanted = (
            f"image ({IMAGE_SIDE}, {IMAGE_SIDE}, 3) and label, one of named classes, are wanted"
        )
        raise InputError(f"tfds set {name!r}: has features {shapes}; {wanted}")
    columns = {}
    for part, source in {"train": train, "test": test}.items():
        records = list(source)
        label = np.array([record["label"] for record in records])
        with weights.reading(f"tfds set {name!r} {part}"):
            label = _labels(label, len(records), len(classes))
        columns[part] = np.array([record["image"] for record in records]), label
    return _sources(columns), classes
