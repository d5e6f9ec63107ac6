"""Who is on images that are compared: folders of known people, tables of truth, pairs (seed 004).

KNOWN/IDENTITY/FILE are images of known identities, a folder of files those of unknown ones, in the
order of their names.  A table has a row an unknown image, in that order: its label alone, or its
place (number or file) and its label; a label is a known identity, or `NOBODY`.
"""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data import images
from jaxdet.errors import InputError

UNKNOWN_LABEL = "n000000"  # the label of who is no known identity, in seed 004
LABEL_COLUMN = "label"  # what a heading calls the labels
INDEX_HEADING, FILE_HEADING = ("index", LABEL_COLUMN), ("id", LABEL_COLUMN)
EXPECTED_COLUMNS = "a label, or a number or file and a label"
LFW_NAME = re.compile(r"(.+)_(\d{4,})")  # files of Labeled Faces in the Wild: NAME_0001


class Gallery(NamedTuple):
    """M images of known people."""

    names: tuple[str, ...]  # identities, sorted
    paths: list[Path]  # [M]
    owner: np.ndarray  # [M] int32: the place of each image's identity among the names


class LabelRow(NamedTuple):
    """A row of a table."""

    number: int  # the line of the file
    place: str | None  # the first of two columns
    label: str


class LabelTable(NamedTuple):
    """The rows of a table, and its heading where it has one."""

    heading: tuple[str, ...] | None
    rows: list[LabelRow]


class ImagePair(NamedTuple):
    """Two images, and whether they are said to show one person."""

    first: Path
    second: Path
    same: bool
    place: int  # among all pairs of the file, from 0


class PairList(NamedTuple):
    """What a file of pairs holds."""

    folds: int | None  # as its first line says
    pairs: list[ImagePair]
    missing: tuple[str, ...]  # a line each: rows whose images are not there


def read_gallery(folder):
    """The `Known` of KNOWN/IDENTITY/FILE; InputError for an identity without images.

    Images beside the folders of identities, named by their identity, are not such a layout and are
    refused.
    """
    folder = _folder(folder)
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    beside = [path for path in shown if path.suffix.lower() in images.SUFFIXES and path.is_file()]
    if beside:
        raise InputError(f"{beside[0]}: no folder of an identity; {folder.name}/IDENTITY/FILE")
    names = tuple(path.name for path in shown if path.is_dir())
    if not names:
        raise InputError(f"{folder}: no folders of identities in it; IDENTITY/FILE is wanted")
    if UNKNOWN_LABEL in names:
        raise InputError(f"{folder / UNKNOWN_LABEL}: this name is for who is no known identity")
    found = [images.list_images(folder / name) for name in names]
    owner = np.repeat(np.arange(len(names), dtype=np.int32), [len(paths) for paths in found])
    return Gallery(names, [path for paths in found for path in paths], owner)


def list_probes(folder):
    """The images of a folder, by their names; InputError for one in a folder of its own."""
    found = images.list_images(_folder(folder))
    for path in found:
        if path.parent != Path(folder):
            raise InputError(f"{path}: images right in {folder} are wanted, not in folders")
    return found


def read_truth(path, names, files):
    """Who is on each of N files: [N] int32, a place among `names`, or -1 for nobody known.

    InputError for an unknown label, and for rows that are not those of the files.
    """
    table = read_table(path)
    wrong = mismatches(table, files)
    if wrong:
        raise InputError(f"{path} {wrong[0]} ({len(wrong)} such)")
    place = {name: number for number, name in enumerate(names)} | {UNKNOWN_LABEL: -1}
    for row in table.rows:
        if row.label not in place:
            raise InputError(
                f"{path} row {row.number}: label {row.label!r} is neither a known identity "
                f"nor {UNKNOWN_LABEL}"
            )
    return np.array([place[row.label] for row in table.rows], np.int32)


def read_table(path):
    """The `Table` of a CSV file, with a heading where a word of its first row is `label`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, tuple(map(str.strip, line))) for line in reader if line]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: no table of comma-separated values ({error})") from None
    heading, column = None, -1
    if lines and LABEL_COLUMN in (first := [word.lower() for word in lines[0][1]]):
        heading, column = lines.pop(0)[1], first.index(LABEL_COLUMN)
    rows = []
    for number, words in lines:
        if len(words) > 2 or (heading and len(words) != len(heading)):
            raise InputError(
                f"{path} row {number}: {len(words)} columns; {EXPECTED_COLUMNS} is wanted"
            )
        place = words[column - 1] if len(words) == 2 else None
        rows.append(LabelRow(number, place, words[column]))
    return LabelTable(heading, rows)


def mismatches(table, files):
    """What of a table's rows are not those of the files, a line each: row, found, wanted.

    A place is the number of a file, counted from that of the first, or its name; what is neither
    a number nor a name of an image says nothing.
    """
    first = table.rows[0].place if table.rows else None
    start = int(first) if _is_number(first) else 0
    found = []
    for i, (row, file) in enumerate(zip(table.rows, files, strict=False)):
        if _is_number(row.place):
            fits = int(row.place) == start + i or row.place == file.stem
        else:
            named = row.place and Path(row.place).suffix.lower() in images.SUFFIXES
            fits = not named or Path(row.place).name == file.name
        if not fits:
            found.append(f"row {row.number}: found {row.place}, wanted {start + i} or {file.name}")
    if len(table.rows) != len(files):
        last = table.rows[-1].number if table.rows else 0
        found.append(f"row {last}: found {len(table.rows)} rows, wanted {len(files)}, one an image")
    return found


def submission_csv(labels, sample=None, files=None):
    """The text of a table of labels [N]: index and label, or with what else `sample` has.

    With `files` [N] their names stand for the index, as in seed 004's table of classes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heading, places = INDEX_HEADING, range(len(labels))
    if files:
        heading, places = FILE_HEADING, [file.name for file in files]
    if sample:
        heading, places = sample.heading, [row.place for row in sample.rows]
    if heading:
        writer.writerow(heading)
    turned = heading is not None and len(heading) == 2 and heading[0].lower() == LABEL_COLUMN
    for place, label in zip(places, labels, strict=True):
        row = [label] if place is None else [place, label]
        writer.writerow(row[::-1] if turned else row)
    return text.getvalue()


def read_pairs(path, root):
    """The `Pairs` of a file like `pairs.txt` of Labeled Faces in the Wild, of images below `root`.

    Its first line has the number of folds and that of pairs of each kind in a fold, or the latter
    alone; then `NAME 1 2` is one person, `NAME 1 OTHER 2` are two.  Image 1 of NAME is the file
    NAME/NAME_0001 with any ending, anywhere below `root`.
    """
    lines = _words(path)
    number, head = lines[0] if lines else (1, [])
    if not 1 <= len(head) <= 2 or not all(map(_is_number, head)):
        raise InputError(f"{path} row {number}: numbers of folds and of pairs in each are wanted")
    *folds, each = map(int, head)
    wanted = 2 * each * (folds[0] if folds else 1)
    if len(lines) - 1 != wanted:
        raise InputError(f"{path}: {len(lines) - 1} pairs; its first line says {wanted}")
    at, found, missing = _numbered(root), [], []
    for place, (number, words) in enumerate(lines[1:]):
        where = f"{path} row {number}"
        two = _two(words, where)
        files = [at.get(one, []) for one in two]
        for places in files:
            if len(places) > 1:
                raise InputError(f"{where}: {places[0]} or {places[1]}; one of them is wanted")
        if all(files):
            found.append(ImagePair(files[0][0], files[1][0], len(words) == 3, place))
        else:
            name, i = next(one for one in two if one not in at)
            missing.append(f"{where}: no image {name}/{name}_{i:04d} below {root}")
    return PairList(folds[0] if folds else None, found, tuple(missing))


def _words(path):
    """(number, words) of the lines of a text file that are not empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeError as error:
        raise InputError(f"{path}: no text ({error})") from None
    return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]


def _two(words, where):
    """The two (name, number) of a row."""
    match words:
        case [name, i, j] if _is_number(i) and _is_number(j):
            return (name, int(i)), (name, int(j))
        case [name, i, other, j] if _is_number(i) and _is_number(j):
            return (name, int(i)), (other, int(j))
    raise InputError(f"{where}: {' '.join(words)!r}; NAME 1 2 or NAME 1 OTHER 2 is wanted")


def _numbered(root):
    """{(name, number): paths} of the images NAME/NAME_0001.* below a folder."""
    found = {}
    for path in images.list_images(_folder(root)):
        named = LFW_NAME.fullmatch(path.stem)
        if named and named[1] == path.parent.name:
            found.setdefault((named[1], int(named[2])), []).append(path)
    return found


def _folder(path):
    if not Path(path).is_dir():
        raise InputError(f"{path}: no such folder")
    return Path(path)


def _is_number(word):
    return word is not None and word.isascii() and word.isdigit()
