"""Handwritten digits from any source, cut into training, validation and test parts."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdet.data import mnist, sources
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError

SOURCES = "embedded, mnist, tfds:NAME"
SHOWN = 30  # test digits: as many as one figure shows
EMBEDDED_TRAIN, EMBEDDED_TEST = 1297, 300  # of 1797; the other 200 are for validation

FULL = 16  # how dark a pixel of an embedded scan can be
FAINT = 3  # up to here it is the blur around a stroke, not ink


def splits(source_name, root=None, seed=0):
    """The parts of a set of digits: a dict of sources `train`, `val`, `test` and `heldout`.

    `source_name` is `embedded`, `mnist` (idx files in the folder `root`) or `tfds:NAME` (prepared
    under `root`).  `heldout` is what the set keeps back from training, in id order; `seed` draws
    from it the 30 test digits (300 of `embedded`), and the rest is `val`.  Ids are unique over
    the whole set: train from 0, heldout from there on.  InputError for a name not known, fewer
    than 60 held out, or what the reader finds.
    """
    train, heldout = _read(source_name, root)
    if len(heldout) < 2 * SHOWN:
        found = f"{len(heldout)} test digits"
        raise InputError(f"{source_name}: {found}; {2 * SHOWN} or more are wanted")
    tests = EMBEDDED_TEST if source_name == "embedded" else SHOWN
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
    scans, label = _scans()
    image = np.stack([_enlarge(scan) for scan in scans])
    order = np.random.default_rng(0).permutation(len(image))
    return sources.labelled(image[order], label[order], where="embedded digits")


def _read(source_name, root):
    match source_name.partition(":"):
        case ("embedded", "", "") if root is None:
            whole = embedded()
            rows = np.arange(len(whole))
            return whole.take(rows[:EMBEDDED_TRAIN]), whole.take(rows[EMBEDDED_TRAIN:])
        case ("mnist", "", "") if root is not None:
            return mnist.mnist(root)
        case ("tfds", ":", name) if name:
            return tfds_data.load(name, root)
    found = f"digits from {source_name!r} with root {root}"
    raise InputError(f"{found}; one of {SOURCES} is wanted, and for mnist a root")


def _scans():
    """Scans [1797, 8, 8] and labels [1797] as `sklearn.datasets.load_digits` has them.

    Read from the file that it reads: to import scikit-learn takes longer than all the rest.
    """
    (folder,) = find_spec("sklearn").submodule_search_locations
    table = np.loadtxt(Path(folder) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def _enlarge(scan):
    """A scan [8, 8] of darkness 0..16 as a digit [28, 28] uint8: bicubic, faint pixels cleared."""
    bordered = Image.fromarray(np.pad(scan, 1).astype(np.float32))
    dark = np.asarray(bordered.resize((28, 28), Image.Resampling.BICUBIC))
    return np.rint(255 * np.clip((dark - FAINT) / (FULL - FAINT), 0, 1)).astype(np.uint8)
