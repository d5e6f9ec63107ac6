"""Any prepared tensorflow-datasets set of greyscale digits, by name and without TensorFlow.

Sets are read through `tfds.data_source`, which never imports TensorFlow but needs records that
were prepared in the array_record format.
"""

import io
from functools import partial

import numpy as np
from PIL import Image

from jaxdet.data import detection
from jaxdet.errors import InputError


def open_dataset(name, root, **how):
    """What `tfds.data_source` gives for a prepared set; InputError where it is none."""
    import tensorflow_datasets as tfds

    try:
        return tfds.data_source(name, data_dir=root, download=False, **how)
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"tfds set {name!r}: {_reason(error)}; {_remedy(name, root)}") from error


def _reason(error):
    """What went wrong, in one line."""
    if isinstance(error, NotImplementedError):  # said of a folder that is not there, too
        return "not prepared in the array_record format"
    return str(error).strip().partition("\n")[0].rstrip(".")


def _remedy(name, root):
    builder = f"tensorflow_datasets.builder({name!r}, data_dir={root!r})"
    return f"prepare it once: {builder}.download_and_prepare(file_format='array_record')"


PREFIX = "tfds:"  # of a name where a folder could be
CROWD_FLAGS = ("is_crowd", "is_difficult")


def read_detection(name, root=None):
    """The `Scenes` of all parts of a set; photos are read when they are needed.

    `root` is the folder where sets are prepared, None for `~/tensorflow_datasets`.  Nothing is
    downloaded.  InputError for a set that is unknown, not prepared, or has no boxes.
    """
    import tensorflow_datasets as tfds

    raw = {"image": tfds.decode.SkipDecoding()}
    sources = open_dataset(name, root, split=None, decoders=raw)
    features = next(iter(sources.values())).dataset_info.features
    objects = features["objects"].feature if "objects" in features else {}
    if "image" not in features or not {"bbox", "label"} <= set(objects):
        wanted = "image and objects with bbox and label are wanted"
        raise InputError(f"tfds set {name!r}: has {', '.join(features)}; {wanted}")
    classes = tuple(objects["label"].names)
    parts = {
        detection.split_name(part): [_scene(source, i, part) for i in range(len(source))]
        for part, source in sources.items()
    }
    return detection.DetectionDataset(classes, parts, ())


def _scene(source, i, part):
    """The scene of record i, whose photo is read again when it is needed."""
    record = source[i]
    with Image.open(io.BytesIO(record["image"])) as image:
        width, height = image.size
    told = record["objects"]
    found = zip(told["bbox"], told["label"], _crowds(told), strict=True)
    objects = [
        ((x0 * width, y0 * height, x1 * width, y1 * height), int(label), crowd)
        for (y0, x0, y1, x1), label, crowd in found
    ]
    return detection.annotated_image(partial(_photo, source, i), objects, f"{part} record {i}")


def _photo(source, i):
    return source[i]["image"]


def _crowds(told):
    """Whether each object is a crowd, or too difficult to be asked for."""
    known = [np.asarray(told[name], bool) for name in CROWD_FLAGS if name in told]
    return np.any([np.zeros(len(told["label"]), bool), *known], axis=0).tolist()
