"""Images in a folder a class: `CLASS/FILE`, or `PART/CLASS/FILE` for the parts train, val and test.

Such folders are on disk or in a tar file, plain or gzipped, which is read once, in memory: none of
its names is ever a name on disk.  They may all be below one more folder.  What lies beside folders
of classes, like a README, is passed over, and so is what is hidden: names that begin with a dot,
and the files right in a part `test`, of which nobody told the classes: see `jaxdet predict`.
A folder without files is noted and no class; `configs.people` refuses classes without images.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet import weights
from jaxdet.data import detection, images, sources
from jaxdet.errors import InputError

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # the part that a set without parts has
MAX_DEPTH = 4  # folders: one around all, a part, a class, and one that is there by mistake
THREAD_CHUNKS = (
    64  # pieces of work for threads: to hand over a tiny image costs more than to decode it
)
GZIP = b"\x1f\x8b"  # how every gzip file begins
EXPECTED = "a folder, or a .tar or .tar.gz file of one, is wanted"
LAYOUT = "CLASS/FILE or PART/CLASS/FILE is wanted, PART one of " + ", ".join(SPLITS)
NESTED_FOLDER = "left out: a folder in that of a class"
NOT_A_SPLIT = "left out: no folders of classes in it, or none of " + ", ".join(SPLITS)


class LabeledImage(NamedTuple):
    """One file in the folder of a class; whether it is an image, `load` finds out."""

    label: str
    file: str
    image: Path | Callable  # a file, or what gives the bytes of one
    where: str  # for messages

    @property
    def name(self):
        """What the image is known by in its part."""
        return f"{self.label}/{self.file}"


class FileTree(NamedTuple):
    """All files of a folder or a tar file."""

    path: Path
    files: dict[tuple[str, ...], dict[str, Path | Callable]]  # by folder, empty ones as well
    notes: tuple[str, ...]  # what was wrong, a line each

    def where(self, *names):
        """A place in it, in one line whatever the names are."""
        text = "/".join((str(self.path), *names))
        return text if text.isprintable() else ascii(text)


class ImageFolderDataset(NamedTuple):
    """All images of a data set."""

    classes: tuple[str, ...]  # sorted; a label is a place in it
    parts: dict[str, list[LabeledImage]]
    notes: tuple[str, ...]  # what was wrong, a line each


def read(path):
    """The `Folders` of a folder or a tar file; InputError when no class has a file."""
    found = find_classes(list_files(path))
    if not found.classes:
        first = f"; first: {found.notes[0]}" if found.notes else ""
        raise InputError(f"{path}: no folder of a class with files in it; {LAYOUT}{first}")
    return found


def load(rows, classes, side, *, first_id=0):
    """The source of the rows whose images can be used, and what is wrong with the others.

    image [N, side, side, 3] uint8, as `images.colour` makes it; label [N] int32, the place in
    `classes`; id [N] int32, which counts rows from `first_id`.  InputError when no image can be
    used, or a row is of another class.
    """
    labels = _labels(rows, classes)
    image = np.empty((len(rows), side, side, 3), np.uint8)
    good, notes = _usable(rows, partial(_fill, image, rows))
    columns = {
        "image": image[good] if notes else image,
        "label": labels[good],
        "id": first_id + good,
    }
    return sources.ArraySource(columns, names=[rows[number].name for number in good]), notes


def stream(rows, classes, side, *, first_id=0):
    """What `load` makes, read when it is needed; of its files only the headers are looked at now.

    A file that turns out damaged is an InputError when it is read.
    """
    labels = _labels(rows, classes)
    good, notes = _usable(rows, partial(_faults, rows))

    def read(place):
        number = good[place]
        made, fault = _tried(rows[number], partial(images.read_resized, side=side))
        if fault:
            raise InputError(f"{fault}; {sources.DAMAGED_WHILE_STREAMING}")
        return {"image": made[0], "label": labels[number], "id": first_id + number}

    return sources.StreamSource(read, len(good), [rows[i].name for i in good], labels[good]), notes


def _labels(rows, classes):
    """The place of the class of each row, [N] int32."""
    label = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if row.label not in label:
            raise InputError(f"{row.where}: class {row.label!r}; known: {', '.join(classes)}")
    return np.array([label[row.label] for row in rows], np.int32)


def _usable(rows, faults):
    """(numbers [M] int32 of the rows that can be used, what is wrong with the others).

    faults: of numbers of rows, a text or None each; called in threads.
    """
    with ThreadPoolExecutor() as pool:
        spans = np.array_split(np.arange(len(rows)), THREAD_CHUNKS)
        found = [fault for some in pool.map(faults, spans) for fault in some]
    notes = [fault for fault in found if fault]
    if len(notes) == len(rows):
        first = f"; first: {notes[0]}" if notes else ""
        raise InputError(f"none of {len(rows)} images can be used{first}")
    good = [number for number, fault in enumerate(found) if not fault]
    return np.array(good, np.int32), notes


def summarize(found):
    """({column: value} a class, [what is wrong with a file or a folder]) of a `Folders`.

    Columns are the images of each part that can be used, how many cannot, and their heights and
    widths from least to most, in pixels.
    """
    rows = [(part, row) for part, of_part in found.parts.items() for row in of_part]
    with ThreadPoolExecutor() as pool:
        spans = np.array_split(np.arange(len(rows)), THREAD_CHUNKS)
        sizes = [size for some in pool.map(partial(_sizes, rows), spans) for size in some]
    table = {name: dict.fromkeys((*found.parts, "unusable"), 0) for name in found.classes}
    known = {name: [] for name in found.classes}
    for (part, row), size in zip(rows, sizes, strict=True):
        table[row.label]["unusable" if isinstance(size, str) else part] += 1
        known[row.label] += [] if isinstance(size, str) else [size]
    for name, line in table.items():
        for side, lengths in zip(("height", "width"), zip(*known[name], strict=True), strict=False):
            line[side] = f"{min(lengths)} to {max(lengths)}"
    notes = [*found.notes, *(size for size in sizes if isinstance(size, str))]
    return [{"label": name, **line} for name, line in table.items()], notes


def list_files(path):
    """The `Tree` of a folder, or of a tar file, told by its content.

    Of a tar file the last of files of one name counts, links and devices do not, and a name that
    leads out of it is noted and left out.  InputError for what cannot be read, is damaged or cut
    short.
    """
    path = Path(path)
    if not path.is_file():
        return FileTree(path, _listed(path), ())
    with weights.reading(path):
        return FileTree(path, *_unpacked(path))


def find_classes(tree):
    """The `Folders` that a `Tree` holds; without a class where it has none."""
    inner = {folder: [] for folder in tree.files}
    for folder in sorted(tree.files):
        if folder:
            inner[folder[:-1]].append(folder)
    home = _home(inner)
    named = [folder for folder in inner[home] if _is_part(folder) and inner[folder]]
    untold = {
        each
        for each in inner[home]
        if detection.split_name(each[-1]) == "test" and tree.files[each]
    }
    beside = [each for each in inner[home] if named and each not in (*named, *untold)]
    places = {folder: detection.split_name(folder[-1]) for folder in named} or {home: UNSPLIT}
    parts, notes = {}, [f"{tree.where(*folder)}: {NOT_A_SPLIT}" for folder in beside]
    for place, part in places.items():
        for folder in inner[place]:
            parts.setdefault(part, []).extend(_rows(tree, folder))
            notes += [f"{tree.where(*each)}: {NESTED_FOLDER}" for each in inner[folder]]
            if not tree.files[folder]:
                notes.append(f"{tree.where(*folder)}: no files in it")
    classes = {row.label for rows in parts.values() for row in rows}
    return ImageFolderDataset(tuple(sorted(classes)), parts, (*tree.notes, *notes))


def file_bytes(file):
    """The bytes of a file of a `Tree`."""
    return file() if callable(file) else file.read_bytes()


def _home(inner):
    """The folder that those of classes or parts are in: the one around all, or the tree itself."""
    match inner[()]:
        case [alone] if inner[alone] and not _is_part(alone):
            return alone
    return ()


def _is_part(folder):
    return detection.split_name(folder[-1]) in SPLITS


def _rows(tree, folder):
    files = tree.files[folder].items()
    return [
        LabeledImage(folder[-1], file, image, tree.where(*folder, file)) for file, image in files
    ]


def _fill(out, rows, numbers):
    """Put the images of some rows into their places; what is wrong with each, None for nothing."""
    faults = []
    for number in numbers:
        made, fault = _tried(rows[number], partial(images.read_resized, side=len(out[number])))
        faults.append(fault)
        if not fault:
            out[number], _ = made
    return faults


def _faults(rows, numbers):
    """What the headers of the images of some rows say is wrong with them, None for nothing."""
    return [_tried(rows[number], images.check_header)[1] for number in numbers]


def _sizes(rows, numbers):
    """Height and width of the images of some rows (part, row), or what is wrong with them."""
    found = [_tried(rows[number][1], partial(images.read_resized, side=1)) for number in numbers]
    return [fault or made[1] for made, fault in found]


def _tried(row, function):
    """(what a function makes of the image of a row, None), or (None, what is wrong with it)."""
    try:
        return function(row.image), None
    except InputError as error:
        return None, f"{row.where}: {str(error).removeprefix(f'{row.image}: ')}"


def _listed(path):
    """Files by folder, below one on disk; a link is what it leads to."""
    files = {}
    for place, inner, names in os.walk(path, onerror=_raise, followlinks=True):
        folder = Path(place).relative_to(path).parts
        found = ((name, Path(place, name)) for name in sorted(names) if _is_shown(name))
        files[folder] = {name: file for name, file in found if file.is_file()}
        inner[:] = [name for name in inner if _is_shown(name) and len(folder) < MAX_DEPTH]
    return files


def _raise(error):
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _unpacked(path):
    """Files by folder in a tar file, and what is wrong."""
    packed = path.read_bytes()
    packed = gzip.decompress(packed) if packed.startswith(GZIP) else packed
    if not tarfile.is_tarfile(io.BytesIO(packed)):
        raise InputError(f"is no tar file; {EXPECTED}")
    files, notes = {(): {}}, []
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for member in tar:
            names = tuple(name for name in member.name.split("/") if name not in ("", "."))
            if ".." in names or member.name.startswith("/"):
                notes.append(f"{path}: {member.name!r} leads out of it")
            elif all(map(_is_shown, names)):
                _add(files, names, member, packed)
        end = slice(tar.offset, tar.offset + tarfile.BLOCKSIZE)
    if packed[end] != bytes(tarfile.BLOCKSIZE):  # tarfile takes whatever it is for the end
        raise EOFError(f"no mark of the end at byte {tar.offset}")
    return {folder: dict(sorted(files[folder].items())) for folder in files}, tuple(notes)


def _add(files, names, member, packed):
    """Put a folder or a file of a tar file, not a link or a device, where its names say."""
    is_file = member.isreg() and not member.issparse()
    if is_file or member.isdir():
        folder = names[:-1] if is_file else names
        for depth in range(len(folder) + 1):
            files.setdefault(folder[:depth], {})
    if is_file:
        place = slice(member.offset_data, member.offset_data + member.size)
        files[folder][names[-1]] = partial(packed.__getitem__, place)


def _is_shown(name):
    return not name.startswith(".")
