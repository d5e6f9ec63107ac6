"""Labeled images from elsewhere, such as the web, on which a run is evaluated; boxes are optional.

The label of an image is either the name of its folder (`LABEL/FILE` or `images/LABEL/FILE`), or is
given in a table (`annotations/*.csv` or, without these, `*.csv`).  The rows of a table are
`file,x0,y0,x1,y1,label`, where the four numbers may be empty, or `file,label`; a header is
optional.  `file` is a name or a path in `images/LABEL/`, in `images/` or in the folder itself.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data import images, localization, sources
from jaxdet.data.detection import Remark
from jaxdet.data.localization import COLUMNS, Annotation
from jaxdet.errors import InputError, first_problem

EXPECTED_COLUMNS = f"{COLUMNS} or file,label"
LAYOUT = "expected LABEL/FILE, images/LABEL/FILE, or a table of file,label"


class ExternalImages(NamedTuple):
    """The labeled images of a folder."""

    source: sources.ArraySource  # the result of `localization.load`, with ids from 0
    notes: tuple[str, ...]  # one line for each image or row that cannot be used, and remarks
    all_have_boxes: bool
    paths: dict[str, Path]  # the file of each image, by its name in `source.names`

    def read_original(self, name: str) -> np.ndarray:
        """Read an image at its original size, [h, w, 3] float32 in [0, 1]; `name` as in `paths`."""
        return images.read_float(self.paths[name])


def read(root: str | Path, classes: Sequence[str], side: int) -> ExternalImages:
    """Read all labeled images of a folder, stretched to side x side pixels.

    An image that is listed in a table has the table's label, not its folder's.  Raises InputError
    for a label that is not in `classes`, and if no image can be used.
    """
    localization.check_root(root)
    root = Path(root)
    rows, notes = [], []
    for path in sorted((root / "annotations").glob("*.csv")) or sorted(root.glob("*.csv")):
        parse = partial(_parse_row, root=root, classes=classes)
        own, faults = localization.parse_table(path, parse, EXPECTED_COLUMNS)
        rows += own
        notes += faults
    rows, repeats = localization.unique_rows(rows, lambda row: row.path)
    listed, base = {row.path for row in rows}, _image_folder(root)
    found, others = images.scan(base)
    notes += [*repeats, *map(Remark, others)]
    for path in (path for path in found if path not in listed):
        if path.parent == base:
            notes.append(f"{path}: has no label; {LAYOUT}")
            continue
        label, *inside = path.relative_to(base).parts
        _check_label(label, classes, str(path))
        rows.append(Annotation(label, "/".join(inside), None, str(path), path))
    if not rows:
        raise InputError(f"{root}: no labeled images; {LAYOUT}{first_problem(notes)}")
    source, faults = localization.load(rows, root, side, classes)
    boxed = int((source.arrays["boxes"] != np.float32(localization.NO_BOX)).any((1, 2)).sum())
    count = len(source)
    if boxed < count:
        left_out = "the loss and the box scores are left out"
        if boxed:
            left_out = f"the loss is left out, and the box scores cover only the other {boxed}"
        notes.append(Remark(f"{root}: {count - boxed} of {count} images have no box: {left_out}"))
    paths = {row.name: row.path for row in rows if row.path}
    return ExternalImages(source, (*notes, *faults), boxed == count, paths)


def _parse_row(
    words: list[str], location: str, *, root: Path, classes: Sequence[str]
) -> Annotation | str:
    if len(words) not in (2, 6):
        return f"{location}: must have columns {EXPECTED_COLUMNS}, got {len(words)} columns"
    file, *corners, label = words
    _check_label(label, classes, location)
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return f"{location}: file {file!r} must be a path below {root}"
    box = localization.parse_box(corners, location) if any(corners) else None
    if isinstance(box, str):
        return box
    base = _image_folder(root)
    places = [base / label / file, base / file, root / file]
    path = next((place for place in places if place.is_file()), places[0])
    return Annotation(label, file, box, location, path)


def _image_folder(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


def _check_label(label: str, classes: Sequence[str], location: str) -> None:
    if label not in classes:
        known = ", ".join(classes)
        raise InputError(f"{location}: unknown label {label!r}, must be one of {known}")
