"""Files of face verification: galleries and probes, tables of labels, and lists of image pairs.

The gallery has images of known identities, GALLERY/IDENTITY/FILE.  Probes are the files of a
folder, in the order of their names.

A table of labels has one row per probe.  Either a row has only a label, and the rows are in the
order of the probes; or a row has a key (the name or number of a file) and a label, and the rows are
in any order.  A label is an identity of the gallery or `UNKNOWN_LABEL`.  `match_rows` finds the
file of each row.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import images, regular_files
from jaxdet.errors import InputError

UNKNOWN_LABEL = "n000000"  # label of a probe that shows no identity of the gallery
LABEL_COLUMN = "label"
INDEX_HEADER, FILE_HEADER = ("index", LABEL_COLUMN), ("id", LABEL_COLUMN)
EXPECTED_COLUMNS = "a label, or the number or name of an image and its label"
LFW_NAME = re.compile(r"(.+)_(\d{4,})")  # file names of Labeled Faces in the Wild: NAME_0001


class Gallery(NamedTuple):
    """M images of known identities."""

    identities: tuple[str, ...]  # sorted
    paths: list[Path]  # [M]
    labels: np.ndarray  # [M] int32: each image's identity, as an index into `identities`


class LabelRow(NamedTuple):
    """A row of a table of labels."""

    line: int  # number of the line in the file, from 1
    key: str | None  # number or name of the image; None if the row has only a label
    label: str


class LabelTable(NamedTuple):
    """The header and the rows of a table of labels."""

    header: tuple[str, ...] | None  # None if there is no header
    rows: list[LabelRow]
    path: Path  # for messages


class ImagePair(NamedTuple):
    """Two images, and whether they show the same identity."""

    first: Path
    second: Path
    same: bool
    index: int  # position among all pairs of the file, from 0


class PairList(NamedTuple):
    """The content of a file of pairs."""

    folds: int | None  # number of folds, None if the first line does not give it
    pairs: list[ImagePair]
    missing: tuple[str, ...]  # one line for each pair with a missing image


def read_gallery(folder: str | Path) -> Gallery:
    """Read the gallery in a folder.

    Raises InputError for an identity without images.  Images next to the folders of identities also
    raise InputError, because the layout may be a different one.
    """
    folder = _check_folder(folder)
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    beside = [path for path in shown if path.suffix.lower() in images.SUFFIXES and path.is_file()]
    if beside:
        raise InputError(
            f"{beside[0]}: must be in the folder of an identity, {folder.name}/IDENTITY/FILE"
        )
    identities = tuple(path.name for path in shown if path.is_dir())
    if not identities:
        raise InputError(f"{folder}: no folders of identities in it; expected IDENTITY/FILE")
    if UNKNOWN_LABEL in identities:
        raise InputError(
            f"{folder / UNKNOWN_LABEL}: this name is reserved for unknown identities; rename the "
            f"folder"
        )
    files = [images.list_images(folder / name) for name in identities]
    indices = np.arange(len(identities), dtype=np.int32)
    labels = np.repeat(indices, [len(paths) for paths in files])
    return Gallery(identities, [path for paths in files for path in paths], labels)


def list_probes(folder: str | Path) -> list[Path]:
    """List the images of a folder by name; InputError for an image in a subfolder."""
    found = images.list_images(_check_folder(folder))
    for path in found:
        if path.parent != Path(folder):
            raise InputError(f"{path}: probes must be directly in {folder}, not in subfolders")
    return found


def read_truth(path: str | Path, identities: Sequence[str], files: Sequence[Path]) -> np.ndarray:
    """Read the true identities of N probes from a table of labels.

    Returns [N] int32, indices into `identities`, or -1 for a probe with `UNKNOWN_LABEL`.  Raises
    InputError for a label that is not an identity, and for rows that do not match the files.
    """
    table = read_table(path)
    places = match_rows(table, files)
    index = {name: number for number, name in enumerate(identities)} | {UNKNOWN_LABEL: -1}
    for row in table.rows:
        if row.label not in index:
            raise InputError(
                f"{path} row {row.line}: label must be an identity of the gallery or "
                f"{UNKNOWN_LABEL}, got {row.label!r}"
            )
    true = np.empty(len(files), np.int32)
    true[places] = [index[row.label] for row in table.rows]
    return true


def read_table(path: str | Path) -> LabelTable:
    """Read the table of labels in a CSV file; a first row with the word `label` is its header.

    Raises InputError for a file that is not a table, and for rows with other columns.
    """
    try:
        reader = csv.reader(io.StringIO(regular_files.read_text(path), newline=""))
        lines = [(reader.line_num, tuple(map(str.strip, line))) for line in reader if line]
    except csv.Error as error:
        raise InputError(f"{path}: not a table of comma-separated values ({error})") from None
    header, column = None, -1
    if lines and LABEL_COLUMN in (first := [word.lower() for word in lines[0][1]]):
        header, column = lines.pop(0)[1], first.index(LABEL_COLUMN)
    rows = []
    for number, words in lines:
        if len(words) > 2 or (header and len(words) != len(header)):
            raise InputError(
                f"{path} row {number}: must have {EXPECTED_COLUMNS}, got {len(words)} columns"
            )
        key = words[column - 1] if len(words) == 2 else None
        rows.append(LabelRow(number, key, words[column]))
    return LabelTable(header, rows, Path(path))


def match_rows(table: LabelTable, files: Sequence[Path]) -> list[int]:
    """Find the file of each row of a table: a permutation [N] of the indices into `files` [N].

    A key is the name of a file, with or without its ending; if all names are numbers, they are
    compared as numbers.  If no key names a file but all keys are numbers, a key is the position of
    a file in the order of file names, where the lowest key is the first position.  Otherwise the
    rows are in the order of file names.

    Raises InputError for a row without an image, for an image without a row or with two rows, and
    if rows are matched by the order of file names although that is ambiguous: 10.png is before
    2.png by name and after it by number.
    """
    keys = [row.key for row in table.rows]
    places = _find_by_name(keys, files)
    if places is None:
        _check_order(table, files)
        places = _find_by_order(keys, len(files))
    seen: dict[int, LabelRow] = {}
    for row, place in zip(table.rows, places, strict=True):
        location = f"{table.path} row {row.line}"
        if place is None:
            raise InputError(
                f"{location}: image must be one of the {len(files)} probes, got {row.key}"
            )
        if seen.setdefault(place, row) is not row:
            name = files[place].name
            raise InputError(
                f"{location}: {name} is in row {seen[place].line} already; remove one of the rows"
            )
    missing = [file.name for place, file in enumerate(files) if place not in seen]
    if missing:
        count = len(missing)
        raise InputError(
            f"{table.path}: must have a row for each image, got none for {missing[0]} ({count} "
            f"without a row)"
        )
    return list(seen)


def _find_by_name(keys: Sequence[str | None], files: Sequence[Path]) -> list[int | None] | None:
    """The file of each key by name, None for an unknown key; None if no key names a file."""
    given = [key for key in keys if key is not None]
    names = [Path(key.replace("\\", "/")).name for key in given]
    if not given or len(given) < len(keys):
        return None
    if any(name.lower().endswith(images.SUFFIXES) for name in names):
        places = {file.name: place for place, file in enumerate(files)}
        return [places.get(name) for name in names]
    places = {file.stem: place for place, file in enumerate(files)}
    if len(places) < len(files):  # names that differ in their endings only
        return None
    numbers = {int(stem): place for stem, place in places.items() if _is_number(stem)}
    if len(numbers) == len(files) and all(map(_is_number, names)):
        found = [numbers.get(int(name)) for name in names]
    else:
        found = [places.get(name) for name in names]
    return None if set(found) == {None} else found


def _find_by_order(keys: Sequence[str | None], count: int) -> list[int | None]:
    """The index of each row's file, from its key or its position; None beyond the last file."""
    numbers = [int(key) for key in keys if key is not None and _is_number(key)]
    places = range(len(keys))
    if len(numbers) == len(keys):
        places = (number - min(numbers) for number in numbers)
    return [place if place < count else None for place in places]


def _check_order(table: LabelTable, files: Sequence[Path]) -> None:
    """Raise InputError if rows cannot be matched to files by their order."""
    if len(table.rows) != len(files):
        last = table.rows[-1].line if table.rows else 0
        raise InputError(
            f"{table.path} row {last}: must have {len(files)} rows, one per image, got "
            f"{len(table.rows)}"
        )
    if disorder := _disorder(files):
        first, second = disorder
        raise InputError(
            f"{table.path}: order of rows is ambiguous: {first} is before {second} by name and "
            f"after it by number; add a column with the names of the files"
        )


def _disorder(files: Sequence[Path]) -> tuple[str, str] | None:
    """Names of two files, the first before the second by name and after it by number; or None."""
    by_name, by_number = (sorted(files, key=key) for key in (None, _natural_key))
    pairs = zip(by_name, by_number, strict=True)
    return next(((one.name, other.name) for one, other in pairs if one != other), None)


def _natural_key(file: Path) -> list[tuple[int, str]]:
    """Sort key of a file name that compares sequences of digits as numbers."""
    parts = re.findall(r"(\d+)|(\D+)", file.name)
    return [(int(number or 0), text) for number, text in parts]


def submission_csv(
    labels: Sequence[Any],
    files: Sequence[Path],
    sample: LabelTable | None = None,
    *,
    named: bool = False,
) -> str:
    """The text of a table with the labels [N] of files [N], in a form that `match_rows` accepts.

    With a table `sample`, the rows, keys, header and order of columns are taken from `sample`.
    Without it, there is one row per file.  Its key is the name of the file if `named`; otherwise it
    is the number of the file, or its name if there are several ways to number the files.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header, keys = FILE_HEADER, [file.name for file in files]
    if sample:
        header, keys = sample.header, [row.key for row in sample.rows]
        labels = [labels[place] for place in match_rows(sample, files)]
    elif not named:
        header, keys = INDEX_HEADER, _number_files(files) or keys
    if header:
        writer.writerow(header)
    label_first = header is not None and len(header) == 2 and header[0].lower() == LABEL_COLUMN
    for key, label in zip(keys, labels, strict=True):
        row = [label] if key is None else [key, label]
        writer.writerow(row[::-1] if label_first else row)
    return text.getvalue()


def _number_files(files: Sequence[Path]) -> list[str] | None:
    """The names of files as numbers or, without numbers, positions from 0; None if ambiguous."""
    stems = [file.stem for file in files]
    if not any(map(_is_number, stems)) and _disorder(files) is None:
        return [str(number) for number in range(len(files))]
    numbers = [str(int(stem)) for stem in stems if _is_number(stem)]
    return numbers if len({*numbers}) == len(files) else None


def read_pairs(path: str | Path, root: str | Path) -> PairList:
    """Read a file like `pairs.txt` of Labeled Faces in the Wild; its images are below `root`.

    The first line has the number of folds and the number of pairs of each kind per fold, or only
    the number of pairs of each kind.  A line `NAME 1 2` is a pair of images of one identity, and
    `NAME 1 OTHER 2` of two identities.  Image 1 of NAME is the file NAME/NAME_0001 with any suffix,
    anywhere below `root`.  Raises InputError for a file that does not follow these rules; pairs
    with a missing image are listed in `missing`.
    """
    lines = _read_words(path)
    number, head = lines[0] if lines else (1, [])
    if not 1 <= len(head) <= 2 or not all(map(_is_number, head)):
        raise InputError(
            f"{path} row {number}: must be the number of folds (optional) and the number of pairs "
            f"of each kind per fold, got {' '.join(head)!r}"
        )
    *folds, each = map(int, head)
    expected = 2 * each * (folds[0] if folds else 1)
    if len(lines) - 1 != expected:
        raise InputError(
            f"{path}: must have {expected} pairs according to its first line, got {len(lines) - 1}"
        )
    files, found, missing = _index_images(root), [], []
    for index, (number, words) in enumerate(lines[1:]):
        location = f"{path} row {number}"
        keys = _parse_pair(words, location)
        candidates = [files.get(key, []) for key in keys]
        for paths in candidates:
            if len(paths) > 1:
                raise InputError(
                    f"{location}: image must be one file, got {paths[0]} and {paths[1]}; remove one"
                )
        if all(candidates):
            (first, *_), (second, *_) = candidates
            found.append(ImagePair(first, second, len(words) == 3, index))
        else:
            name, i = next(key for key in keys if key not in files)
            missing.append(f"{location}: no image {name}/{name}_{i:04d} below {root}")
    return PairList(folds[0] if folds else None, found, tuple(missing))


def _read_words(path: str | Path) -> list[tuple[int, list[str]]]:
    """Return [(line number, words)] for the lines of a text file that are not blank."""
    return [(number, line.split()) for number, line in regular_files.read_lines(path)]


def _parse_pair(words: list[str], location: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """Convert a row to the (name, number) of its two images; InputError for any other row."""
    match words:
        case [name, i, j] if _is_number(i) and _is_number(j):
            return (name, int(i)), (name, int(j))
        case [name, i, other, j] if _is_number(i) and _is_number(j):
            return (name, int(i)), (other, int(j))
    raise InputError(f"{location}: must be NAME 1 2 or NAME 1 OTHER 2, got {' '.join(words)!r}")


def _index_images(root: str | Path) -> dict[tuple[str, int], list[Path]]:
    """Find the images NAME/NAME_0001.* and so on below a folder: {(name, number): paths}."""
    found = {}
    for path in images.list_images(_check_folder(root)):
        match = LFW_NAME.fullmatch(path.stem)
        if match and match[1] == path.parent.name:
            found.setdefault((match[1], int(match[2])), []).append(path)
    return found


def _check_folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"{path}: no such folder")
    return Path(path)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()
