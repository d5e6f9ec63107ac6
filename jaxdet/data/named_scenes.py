"""Any prepared tensorflow-datasets set of photos with boxes, by name and without TensorFlow.

A record has an `image` and `objects` with `bbox`, corners y0 x0 y1 x1 in shares of the photo, and
`label`; `is_crowd` and `is_difficult` where it has them, as `coco/2017` and `voc/2007` have.
"""

import io
from functools import partial

import numpy as np
from PIL import Image

from jaxdet.data import named, scenes
from jaxdet.errors import InputError

PREFIX = "tfds:"  # of a name where a folder could be
CROWDS = ("is_crowd", "is_difficult")


def read(name, root=None):
    """The `Scenes` of all parts of a set; photos are read when they are needed.

    `root` is the folder where sets are prepared, None for `~/tensorflow_datasets`.  Nothing is
    downloaded.  InputError for a set that is unknown, not prepared, or has no boxes.
    """
    import tensorflow_datasets as tfds

    raw = {"image": tfds.decode.SkipDecoding()}
    sources = named.opened(name, root, split=None, decoders=raw)
    features = next(iter(sources.values())).dataset_info.features
    objects = features["objects"].feature if "objects" in features else {}
    if "image" not in features or not {"bbox", "label"} <= set(objects):
        wanted = "image and objects with bbox and label are wanted"
        raise InputError(f"tfds set {name!r}: has {', '.join(features)}; {wanted}")
    classes = tuple(objects["label"].names)
    parts = {
        scenes.part(part): [_scene(source, i, part) for i in range(len(source))]
        for part, source in sources.items()
    }
    return scenes.Scenes(classes, parts, ())


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
    return scenes.scene(partial(_photo, source, i), objects, f"{part} record {i}")


def _photo(source, i):
    return source[i]["image"]


def _crowds(told):
    """Whether each object is a crowd, or too difficult to be asked for."""
    known = [np.asarray(told[name], bool) for name in CROWDS if name in told]
    return np.any([np.zeros(len(told["label"]), bool), *known], axis=0).tolist()
