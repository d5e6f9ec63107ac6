"""Image classification data in one folder per class, on disk or in a tar file.

The layout is `CLASS/FILE`, or `SPLIT/CLASS/FILE` with the splits train, val and test, possibly
below one more folder.  A tar file, plain or gzipped, is read once, into memory; nothing is unpacked
to disk.

Files next to the folders of classes, hidden files and folders, and files directly in a split `test`
(unlabeled images for `jaxdet predict`) are ignored.  A folder without files is reported, and is not
a class.
"""

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxdet import pickles
from jaxdet.data import detection, images, regular_files, sources, threads
from jaxdet.errors import InputError

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # the split of data without splits
MAX_DEPTH = 4  # folders: one around all, a split, a class, and one that does not belong there
THREAD_CHUNKS = 64  # handing a tiny image to a thread costs more than decoding it
EXPECTED = "expected a folder, or a .tar or .tar.gz file of one"
LAYOUT = f"expected CLASS/FILE or SPLIT/CLASS/FILE, SPLIT one of {', '.join(SPLITS)}"
NESTED_FOLDER = "left out: a folder inside the folder of a class"
NOT_A_SPLIT = f"left out: has no folders of classes, or is not one of {', '.join(SPLITS)}"

Folder = tuple[str, ...]  # names below the root
File = Path | Callable[[], bytes]


class LabeledImage(NamedTuple):
    """A file in the folder of a class; `load` finds out whether it is an image."""

    label: str
    file: str
    image: File
    location: str  # for messages

    @property
    def name(self) -> str:
        """LABEL/FILE, unique in its split."""
        return f"{self.label}/{self.file}"


class FileTree(NamedTuple):
    """All files of a folder or tar file."""

    path: Path
    files: dict[Folder, dict[str, File]]  # by folder, including empty ones
    notes: tuple[str, ...]  # one line for each problem

    def location(self, *names: str) -> str:
        """The path of a file or folder as one printable line."""
        text = "/".join((str(self.path), *names))
        return text if text.isprintable() else ascii(text)


class ImageFolderDataset(NamedTuple):
    """The labeled images of all splits."""

    classes: tuple[str, ...]  # sorted; a label is an index into them
    splits: dict[str, list[LabeledImage]]
    notes: tuple[str, ...]  # one line for each problem


def read(path: str | Path) -> ImageFolderDataset:
    """The data set in a folder or tar file; InputError if no class folder contains files."""
    found = find_classes(list_files(path))
    if not found.classes:
        first = f"; first: {found.notes[0]}" if found.notes else ""
        raise InputError(f"{path}: no class folder contains files; {LAYOUT}{first}")
    return found


def load(
    samples: Sequence[LabeledImage], classes: Sequence[str], side: int, *, first_id: int = 0
) -> tuple[sources.ArraySource, list[str]]:
    """(source of the images that can be read, notes on the others).

    The arrays are image [N, side, side, 3] uint8 by `images.read_resized`; label [N] int32, an
    index into `classes`; and id [N] int32, counting `samples` from `first_id`.  Raises InputError
    if no image can be read, or for a sample of another class.
    """
    labels = _label_indices(samples, classes)
    image = np.empty((len(samples), side, side, 3), np.uint8)

    def fill(numbers: np.ndarray) -> list[str | None]:
        faults = []
        for number in numbers:
            result, fault = _attempt(samples[number], partial(images.read_resized, side=side))
            faults.append(fault)
            if not fault:
                image[number], _ = result
        return faults

    usable, notes = _find_usable(samples, fill)
    columns = {
        "image": image[usable] if notes else image,
        "label": labels[usable],
        "id": first_id + usable,
    }
    return sources.ArraySource(columns, names=[samples[i].name for i in usable]), notes


def stream(
    samples: Sequence[LabeledImage], classes: Sequence[str], side: int, *, first_id: int = 0
) -> tuple[sources.StreamSource, list[str]]:
    """`load` as a `StreamSource`: only the headers of images are read now.

    Reading an image that turns out to be damaged raises InputError.
    """
    labels = _label_indices(samples, classes)

    def check(numbers: np.ndarray) -> list[str | None]:
        return [_attempt(samples[number], images.check_header)[1] for number in numbers]

    usable, notes = _find_usable(samples, check)

    def read_record(index: int) -> dict[str, Any]:
        number = usable[index]
        result, fault = _attempt(samples[number], partial(images.read_resized, side=side))
        if fault:
            raise InputError(f"{fault}; {sources.DAMAGED_WHILE_STREAMING}")
        return {"image": result[0], "label": labels[number], "id": first_id + number}

    names = [samples[i].name for i in usable]
    return sources.StreamSource(read_record, len(usable), names, labels[usable]), notes


def summarize(dataset: ImageFolderDataset) -> tuple[list[dict[str, Any]], list[str]]:
    """(a table row per class, notes on files and folders that cannot be used).

    The columns are the number of usable images in each split, the number of unusable ones, and the
    ranges of height and width in pixels.
    """
    every = [(split, sample) for split, samples in dataset.splits.items() for sample in samples]

    def measure(numbers: np.ndarray) -> list[tuple[int, int] | str]:
        function = partial(images.read_resized, side=1)
        found = [_attempt(every[number][1], function) for number in numbers]
        return [fault or result[1] for result, fault in found]

    sizes = _map_chunks(measure, len(every))
    columns = (*dataset.splits, "unusable")
    rows: dict[str, dict[str, Any]] = {name: dict.fromkeys(columns, 0) for name in dataset.classes}
    known = {name: [] for name in dataset.classes}
    for (split, sample), size in zip(every, sizes, strict=True):
        rows[sample.label]["unusable" if isinstance(size, str) else split] += 1
        known[sample.label] += [] if isinstance(size, str) else [size]
    for name, row in rows.items():
        for side, lengths in zip(("height", "width"), zip(*known[name], strict=True), strict=False):
            row[side] = f"{min(lengths)} to {max(lengths)}"
    notes = [*dataset.notes, *(size for size in sizes if isinstance(size, str))]
    return [{"label": name, **row} for name, row in rows.items()], notes


def list_files(path: str | Path) -> FileTree:
    """The files of a folder, or of a tar file, recognized by its content.

    Of several files with the same name in a tar file, the last one is used.  Links and devices are
    ignored; a name that leads out of the archive is left out with a note.  InputError for a path
    that cannot be read, and for a file that is truncated or damaged.
    """
    path = Path(path)
    if not path.is_file():
        return FileTree(path, _walk(path), ())
    with pickles.as_input_error(path):
        return FileTree(path, *_read_tar(path))


def find_classes(tree: FileTree) -> ImageFolderDataset:
    """The data set in a tree of files; it has no classes if there are no folders of classes."""
    children = {folder: [] for folder in tree.files}
    for folder in sorted(tree.files):
        if folder:
            children[folder[:-1]].append(folder)
    home = _find_home(children)
    split_folders = [each for each in children[home] if _is_split(each) and children[each]]
    unlabeled = {
        each
        for each in children[home]
        if detection.split_name(each[-1]) == "test" and tree.files[each]
    }
    beside = [
        each
        for each in children[home]
        if split_folders and each not in (*split_folders, *unlabeled)
    ]
    homes = {folder: detection.split_name(folder[-1]) for folder in split_folders}
    splits, notes = {}, [f"{tree.location(*folder)}: {NOT_A_SPLIT}" for folder in beside]
    for place, split in (homes or {home: UNSPLIT}).items():
        for folder in children[place]:
            splits.setdefault(split, []).extend(
                LabeledImage(folder[-1], file, image, tree.location(*folder, file))
                for file, image in tree.files[folder].items()
            )
            notes += [f"{tree.location(*each)}: {NESTED_FOLDER}" for each in children[folder]]
            if not tree.files[folder]:
                notes.append(f"{tree.location(*folder)}: no files in it")
    classes = {sample.label for samples in splits.values() for sample in samples}
    return ImageFolderDataset(tuple(sorted(classes)), splits, (*tree.notes, *notes))


def file_bytes(file: File) -> bytes:
    """The content of a file of a `FileTree`."""
    return file() if callable(file) else file.read_bytes()


def _label_indices(samples: Sequence[LabeledImage], classes: Sequence[str]) -> np.ndarray:
    """The index of the class of each sample, [N] int32."""
    label = {name: number for number, name in enumerate(classes)}
    for sample in samples:
        if sample.label not in label:
            raise InputError(
                f"{sample.location}: class {sample.label!r} must be one of {', '.join(classes)}"
            )
    return np.array([label[sample.label] for sample in samples], np.int32)


def _find_usable(
    samples: Sequence[LabeledImage], faults: Callable[[np.ndarray], list[str | None]]
) -> tuple[np.ndarray, list[str]]:
    """(indices [M] int32 of the usable samples, notes on the others).

    `faults` maps indices of samples to a description of each sample's problem, or None; it runs in
    threads.
    """
    found = _map_chunks(faults, len(samples))
    notes = [fault for fault in found if fault]
    if len(notes) == len(samples):
        first = f"; first: {notes[0]}" if notes else ""
        raise InputError(f"none of {len(samples)} images can be used{first}")
    return np.array([i for i, fault in enumerate(found) if not fault], np.int32), notes


def _map_chunks(function: Callable[[np.ndarray], list], count: int) -> list:
    """The results of a function of indices over 0..count - 1, computed in threads."""
    chunks = np.array_split(np.arange(count), THREAD_CHUNKS)
    return [each for results in threads.map_images(function, chunks, len) for each in results]


def _attempt(sample: LabeledImage, function: Callable) -> tuple[Any, str | None]:
    """(result of a function of the image, None), or (None, the problem with the image)."""
    try:
        return function(sample.image), None
    except InputError as error:
        return None, f"{sample.location}: {str(error).removeprefix(f'{sample.image}: ')}"


def _find_home(children: dict[Folder, list[Folder]]) -> Folder:
    """The folder with the folders of classes or splits: the root, or the only folder in it."""
    match children[()]:
        case [alone] if children[alone] and not _is_split(alone):
            return alone
    return ()


def _is_split(folder: Folder) -> bool:
    return detection.split_name(folder[-1]) in SPLITS


def _walk(path: Path) -> dict[Folder, dict[str, File]]:
    """Files by folder below a folder on disk; links are followed."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    files = {}
    for place, inner, names in os.walk(path, onerror=refuse, followlinks=True):
        folder = Path(place).relative_to(path).parts
        own = sorted(name for name in names if not images.is_hidden(name))
        shown = ((name, Path(place, name)) for name in own)
        files[folder] = {name: file for name, file in shown if file.is_file()}
        deeper = inner if len(folder) < MAX_DEPTH else []
        inner[:] = [name for name in deeper if not images.is_hidden(name)]
    return files


def _read_tar(path: Path) -> tuple[dict[Folder, dict[str, File]], tuple[str, ...]]:
    """(files by folder in a tar file, notes)."""
    content = regular_files.read_unpacked(path)
    if not tarfile.is_tarfile(io.BytesIO(content)):
        raise InputError(f"not a tar file; {EXPECTED}")
    files, notes = {(): {}}, []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            names = tuple(name for name in member.name.split("/") if name not in ("", "."))
            if ".." in names or member.name.startswith("/"):
                notes.append(f"{path}: {member.name!r} leads out of the archive")
            elif not any(map(images.is_hidden, names)):
                _add_member(files, names, member, content)
        end = slice(tar.offset, tar.offset + tarfile.BLOCKSIZE)
    if content[end] != bytes(tarfile.BLOCKSIZE):  # tarfile takes any invalid block for the end
        raise EOFError(f"no end-of-archive mark at byte {tar.offset}")
    return {folder: dict(sorted(files[folder].items())) for folder in files}, tuple(notes)


def _add_member(
    files: dict[Folder, dict[str, File]], names: Folder, member: tarfile.TarInfo, content: bytes
) -> None:
    """Add a file or folder of a tar file; links and devices are ignored."""
    is_file = member.isreg() and not member.issparse()
    if is_file or member.isdir():
        folder = names[:-1] if is_file else names
        for depth in range(len(folder) + 1):
            files.setdefault(folder[:depth], {})
    if is_file:
        place = slice(member.offset_data, member.offset_data + member.size)
        files[folder][names[-1]] = partial(content.__getitem__, place)
