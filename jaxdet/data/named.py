"""Any prepared tensorflow-datasets set of greyscale digits, by name and without TensorFlow.

Sets are read through `tfds.data_source`, which never imports TensorFlow but needs records that
were prepared in the array_record format.
"""

import numpy as np

from jaxdet.data import arrays
from jaxdet.types import InputError


def load(name, root=None):
    """The set's `train` and `test` parts as sources (train, test) of digits, held in memory.

    `name` is what tensorflow-datasets calls it (`mnist`, `emnist/digits`); `root` is the folder
    where sets are prepared, None for `~/tensorflow_datasets`.  Nothing is downloaded.  Training ids count from 0, test ids go
    on from there.  InputError for a set that is unknown or not prepared, and for one without
    greyscale `image`s of one size and a `label`.
    """
    parts = _open(name, root)
    _check_features(parts[0].dataset_info.features, name)
    train = arrays.digits(*_columns(parts[0]), where=f"{name} train")
    test = arrays.digits(*_columns(parts[1]), where=f"{name} test", first_id=len(train))
    return train, test


def _open(name, root):
    import tensorflow_datasets as tfds

    try:
        return tfds.data_source(name, split=["train", "test"], data_dir=root, download=False)
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = f"tfds.builder({name!r}, data_dir={root!r}).download_and_prepare(file_format='array_record')"
        raise InputError(f"tfds set {name!r}: {reason}; prepare it once by {remedy}") from error


def _check_features(features, name):
    shape = features["image"].shape if "image" in features and "label" in features else None
    if shape is None or None in shape or shape[-1] != 1:
        found = {key: features[key].shape for key in features}
        raise InputError(f"tfds set {name!r}: features {found}; image (H, W, 1) and label () are wanted")


def _columns(records):
    """Images [N, H, W] uint8 and labels [N] of all records."""
    image, label = zip(*((record["image"][..., 0], record["label"]) for record in records), strict=True)
    return np.stack(image), np.array(label)
