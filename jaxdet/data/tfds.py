"""Prepared data sets of tensorflow-datasets, read without TensorFlow.

Sets are read through `tfds.data_source`, which does not import TensorFlow but needs records in the
array_record format.  Nothing is downloaded.  A set is named as in tensorflow-datasets (`mnist`,
`emnist/digits`).  It is in the folder `data_dir`, whose default is the environment variable
TFDS_DATA_DIR or, if that is not set, `~/tensorflow_datasets`.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdet import packages
from jaxdet.data import detection
from jaxdet.data.detection import AnnotatedImage, DetectionDataset
from jaxdet.errors import InputError
from jaxdet.ops import boxes

PREFIX = "tfds:"  # marks the name of a prepared set, in place of a folder
CROWD_FLAGS = ("is_crowd", "is_difficult")


def open_dataset(name: str, data_dir: str | Path | None, **options: Any) -> Any:
    """Open a prepared set by `tfds.data_source`; `options` are passed on to it.

    If the set is not prepared, raises InputError with the call that prepares it.
    """
    tfds = _load_tfds()
    try:
        return tfds.data_source(name, data_dir=data_dir, download=False, **options)
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if isinstance(error, NotImplementedError):  # also raised for a missing folder
            reason = "not prepared in the array_record format"
        builder = f"tensorflow_datasets.builder({name!r}, data_dir={data_dir!r})"
        raise InputError(
            f"tfds set {name!r}: {reason}; prepare it once: "
            f"{builder}.download_and_prepare(file_format='array_record')"
        ) from error


def read_detection(name: str, data_dir: str | Path | None = None) -> DetectionDataset:
    """Read the boxes of a prepared set as a detection data set; images are read when needed.

    Raises InputError for a set that is unknown or not prepared, or that has no boxes.
    """
    undecoded = {"image": _load_tfds().decode.SkipDecoding()}
    sources = open_dataset(name, data_dir, split=None, decoders=undecoded)
    features = next(iter(sources.values())).dataset_info.features
    objects = features["objects"].feature if "objects" in features else {}
    if "image" not in features or not {"bbox", "label"} <= set(objects):
        raise InputError(
            f"tfds set {name!r}: features must include image, and objects with bbox and label, got "
            f"{', '.join(features)}"
        )
    classes = tuple(objects["label"].names)
    splits = {
        detection.split_name(split): [_annotate(source, i, split) for i in range(len(source))]
        for split, source in sources.items()
    }
    return detection.assemble(classes, splits, ())


def _annotate(source: Any, index: int, split: str) -> AnnotatedImage:
    record = source[index]
    with Image.open(io.BytesIO(record["image"])) as image:
        width, height = image.size
    objects = record["objects"]
    count = len(objects["label"])
    sides = np.array([[width, height, width, height]], np.float32)
    corners = boxes.from_yxyx(np.reshape(objects["bbox"], (count, 4))) * sides
    flags = [np.asarray(objects[flag], bool) for flag in CROWD_FLAGS if flag in objects]
    crowd = np.any([np.zeros(count, bool), *flags], axis=0).tolist()
    areas = np.asarray(objects["area"], float).tolist() if "area" in objects else [None] * count
    found = list(zip(corners, map(int, objects["label"]), crowd, areas, strict=True))
    file = partial(_image_bytes, source, index)
    return detection.annotated_image(file, found, f"{split} record {index}")


def _load_tfds() -> Any:
    return packages.load("tensorflow_datasets", "data from tfds:NAME")


def _image_bytes(source: Any, index: int) -> bytes:
    return source[index]["image"]
