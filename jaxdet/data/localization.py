"""Photos with one label and one box each: `images/<label>/FILE` and one table a label (seed 000).

A table is CSV, `file,x0,y0,x1,y1,label` in pixels of the original image, with or without a header.
File names repeat across labels: a photo is known by its label and its file.
"""

import csv
import io
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.config import cached_reader
from jaxdet.data import images, sources
from jaxdet.errors import InputError

SPLIT_FILES = {"train": "training_data.csv", "val": "val_data.csv", "test": "test_data.csv"}
COLUMNS = "file,x0,y0,x1,y1,label"
LABEL_ORDER = ("motorcycle", "airplane", "face")  # the order in which seed 000 has its tables


class Annotation(NamedTuple):
    """One line of a table; whether its box and its photo can be used, `load` finds out."""

    label: str
    file: str
    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels of the original image
    where: str  # file and row, for messages

    @property
    def name(self):
        """What the photo is known by."""
        return f"{self.label}/{self.file}"


class ResizedImage(NamedTuple):
    """A photo as the network takes it."""

    image: np.ndarray  # [S, S, 3] uint8
    size: tuple[int, int]  # original height and width


def read_annotations(root):
    """All rows of `root/annotations/*.csv` and what is wrong with others: ([Row], [message]).

    Rows come label after label, those of `FIRST` first, and as they stand in their table.  A photo
    has one row: any further one is wrong.  InputError when the folder has no tables.
    """
    folder = Path(root) / "annotations"
    tables = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not tables:
        raise InputError(f"{folder}: no tables; one LABEL.csv a label is wanted, {COLUMNS}")
    order = [name for name in LABEL_ORDER if name in tables]
    order += [name for name in tables if name not in LABEL_ORDER]
    good, bad = _joined(read_table(tables[name], root) for name in order)
    first = {}
    again = [row for row in good if first.setdefault(row.name, row) is not row]
    bad += [f"{row.where}: {row.name} is in {first[row.name].where} already" for row in again]
    return list(first.values()), bad


def read_table(path, root):
    """The rows of one table, and what is wrong with others: ([Row], [message]).

    A first row without a number is a header.  `root` has the photos of every label.
    """
    path, good, bad = Path(path), [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table ({error}); {COLUMNS} is wanted") from None
    labels = {folder.name for folder in (Path(root) / "images").glob("*/")}
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and _is_header(line)):
            continue
        found = _row(line, f"{path} row {number}", labels)
        (good if isinstance(found, Annotation) else bad).append(found)
    return good, bad


def random_split(rows, *, cut_val=0.1, cut_test=0.1, train_frac=1.0, seed=0):
    """Rows shuffled by `seed` and cut into {"train", "val", "test"}, in that order.

    `cut_val` and `cut_test` are shares of all rows; training keeps `train_frac` of all rows, or
    what the others leave of them.  Seed 0 and the default shares give the split that seed 000 was
    measured on, row for row.  InputError when a part would be empty, or a share is none.
    """
    shares = {"cut-val": cut_val, "cut-test": cut_test, "train-frac": train_frac}
    for option, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"--{option} {share:g}: a share of all photos, 0 to 1, is wanted")
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    first = int((1 - cut_val - cut_test) * len(rows) + 1e-9)
    second = int((1 - cut_test) * len(rows) + 1e-9)
    most = int(train_frac * len(rows) + 1e-9)
    parts = {"train": rows[:first][:most], "val": rows[first:second], "test": rows[second:]}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise InputError(
            f"--val-fraction {cut_val:g} --test-fraction {cut_test:g} --train-fraction {train_frac:g} of "
            f"{len(rows)} photos leave none for {' and '.join(empty)}"
        )
    return parts


def read_split_files(folder, root):
    """The parts that `folder` has tables of, as `table` writes them, and what is wrong."""
    found = {part: read_table(Path(folder) / file, root) for part, file in SPLIT_FILES.items()}
    parts = {part: rows for part, (rows, _) in found.items()}
    homes = {}
    for part, rows in parts.items():
        for row in rows:
            if homes.setdefault(row.name, part) != part:
                raise InputError(f"{row.where}: {row.name} is in {homes[row.name]} as well")
    return parts, [message for _, wrong in found.values() for message in wrong]


def to_csv(rows):
    """Rows as the text of a table without a header."""
    text = io.StringIO()
    lines = [[row.file, *map(_written, row.box), row.label] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def load(rows, root, size, classes, *, first_id=0):
    """The source of the rows whose photos can be used, and what is wrong with the others.

    image [N, size, size, 3] uint8, label [N], boxes [N, 1, 4] in pixels of that image, size [N, 2]
    (original height and width), id [N], which counts rows from `first_id`.  InputError when no
    photo can be used.
    """
    kept, bad = [], []
    with ThreadPoolExecutor() as pool:
        for number, (row, found) in enumerate(
            zip(rows, pool.map(partial(_read_image, root=root, side=size), rows), strict=True)
        ):
            if isinstance(found, ResizedImage):
                kept.append((first_id + number, row, found))
            else:
                bad.append(found)
    if not kept:
        first = f"; first: {bad[0]}" if bad else ""
        raise InputError(f"{root}: none of {len(rows)} photos can be used{first}")
    return _source(kept, size, classes), bad


def summarize(root):
    """What `root` holds: ({column: value} a label, [what is wrong with a row]).

    Sizes and boxes are told as least to most, in pixels of the photos.
    """
    rows, bad = read_annotations(root)
    if not rows:
        raise InputError(f"{root}: no row can be used{'; first: ' + bad[0] if bad else ''}")
    classes = sorted({row.label for row in rows})
    found, useless = load(rows, root, THUMBNAIL_SIDE, classes)
    size, label = found.arrays["size"], found.arrays["label"]
    corners = to_original(found.arrays["boxes"][:, 0], size, THUMBNAIL_SIDE)
    sides = (corners[:, 2:] - corners[:, :2])[:, ::-1]  # height, width
    share = sides.prod(1) / size.prod(1)
    table = []
    for i, name in enumerate(classes):
        of = label == i
        line = {"label": name, "rows": sum(r.label == name for r in rows), "usable": int(of.sum())}
        line["photo height"], line["photo width"] = map(_range, size[of].T)
        line["box height"], line["box width"] = map(_range, sides[of].T)
        table.append(line | {"box share %": _range(100 * share[of])})
    return table, bad + useless


THUMBNAIL_SIDE = 32  # pixels a side that photos are shrunk to where only their size is wanted


def _range(values):
    return f"{values.min():.0f} to {values.max():.0f}" if len(values) else "none"


def _read_image(row, root, side):
    """The `Photo` of a row, or what is wrong with it."""
    x0, y0, x1, y1 = row.box
    if x1 <= x0 or y1 <= y0:
        return f"{row.where}: box {_numbers(row.box)} holds no pixel; x0 < x1, y0 < y1 are wanted"
    path = Path(root) / "images" / row.label / row.file
    try:
        image, size = images.read_resized(path, side)
    except InputError as error:
        return f"{row.where}: {error}"
    height, width = size
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        return f"{row.where}: box {_numbers(row.box)} leaves the {width} x {height} pixels"
    return ResizedImage(image, size)


def to_network(box, size, side):
    """Boxes [..., 4] of photos of size [..., 2] (height, width) in pixels of side x side."""
    return box * side / _scale(size)


def to_original(box, size, side):
    """Undoes `to_network`."""
    return box * _scale(size) / side


def _scale(size):
    return np.asarray(size, np.float32)[..., [1, 0, 1, 0]]


def _source(kept, side, classes):
    numbers, rows, found = zip(*kept, strict=True)
    size = np.array([photo.size for photo in found], np.int32)
    corners = np.array([row.box for row in rows], np.float32)
    return sources.ArraySource(
        {
            "image": np.stack([photo.image for photo in found]),
            "label": np.array([classes.index(row.label) for row in rows], np.int32),
            "boxes": to_network(corners, size, side).astype(np.float32)[:, None],
            "size": size,
            "id": np.array(numbers, np.int32),
        },
        names=[row.name for row in rows],
    )


def _is_header(line):
    return not any(_number(word) is not None for word in line)


def _number(word):
    try:
        value = float(word)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _row(line, where, labels):
    """A `Row`, or what is wrong with the line."""
    words = [word.strip() for word in line]
    if len(words) != 6:
        return f"{where}: {len(words)} columns; {COLUMNS} is wanted"
    file, *corners, label = words
    box = tuple(map(_number, corners))
    if None in box:
        return f"{where}: box {' '.join(corners)}; four numbers of pixels are wanted"
    if label not in labels:
        return (
            f"{where}: label {label!r} has no folder of images; known: {', '.join(sorted(labels))}"
        )
    if Path(file).name != file:
        return f"{where}: file {file!r} is not a plain name"
    return Annotation(label, file, box, where)


def _numbers(box):
    return " ".join(map(_written, box))


def _written(value):
    """A number as short as it can be without loss."""
    return repr(float(value)).removesuffix(".0")


def _joined(found):
    """Several ([good], [bad]) as one."""
    good, bad = zip(*found, strict=True)
    return [row for rows in good for row in rows], [text for texts in bad for text in texts]


def inspect(root):
    """({column: value} a label, what is wrong with rows) of the folder `root`."""

    _check_root(root)
    return summarize(root)


def split_tables(config):
    """({column: value} a part, its files, what is wrong with rows) of the cuts of `config`."""
    parts, bad = read_splits(config)
    labels = sorted({row.label for of_part in parts.values() for row in of_part})
    counts = []
    for part, of_part in parts.items():
        found = Counter(row.label for row in of_part)
        counts.append({"part": part, "photos": len(of_part), **{k: found[k] for k in labels}})
    return counts, split_files(parts), bad


def read_splits(config):
    """Rows of each part, and what is wrong with others."""

    _check_root(config.root)
    if getattr(config, "split_files", ""):
        return read_split_files(config.split_files, config.root)
    every, bad = read_annotations(config.root)
    shares = {
        name: getattr(config, name) for name in ("val_fraction", "test_fraction", "train_fraction")
    }
    return random_split(every, **shares, seed=config.split_seed), bad


@cached_reader(
    "root", "split_files", "val_fraction", "test_fraction", "train_fraction", "split_seed", "size"
)
def read_dataset(config):
    """({part: rows}, classes, {part: source} of those that can be used, what is wrong)."""

    parts, bad = read_splits(config)
    classes = tuple(sorted({row.label for of_part in parts.values() for row in of_part}))
    splits, notes, first = {}, [*bad], 0
    for part, of_part in parts.items():
        splits[part], bad = load(of_part, config.root, config.size, classes, first_id=first)
        first += len(of_part)
        notes += bad
    return parts, classes, splits, tuple(notes)


def split_files(parts):
    """Files that keep the split with the run."""

    return tuple(
        (f"splits/{SPLIT_FILES[part]}", to_csv(of_part)) for part, of_part in parts.items()
    )


def read_labeled_images(config, classes, path):
    """What a table says of photos: (path, index of the label, box in the photo's pixels)."""

    _check_root(config.root)
    found, bad = read_table(path, config.root)
    unknown = [row.where for row in found if row.label not in classes]
    if bad or unknown:
        raise InputError(f"{bad[0] if bad else unknown[0] + ': a label that the run has not'}")
    folder = Path(config.root) / "images"
    return [(folder / row.label / row.file, classes.index(row.label), row.box) for row in found]


def _check_root(root):
    """Refuse a folder that is not there."""
    if not root:
        raise InputError("--root: the folder with images/ and annotations/ is wanted")
    if not Path(root).is_dir():
        raise InputError(f"--root {root}: no such folder")
