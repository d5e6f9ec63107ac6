"""Image classification data in one folder per class, on disk or in a tar file.

The layout is `CLASS/FILE`, or `SPLIT/CLASS/FILE` with the splits train, val and test; one more
folder may be around all of these.  A tar file, plain or gzipped, is read once, into memory; nothing
is unpacked to disk.

Files next to the folders of classes, hidden files and folders, and files directly in a split `test`
(unlabeled images for `jaxdet predict`) are ignored.  An empty folder is reported, and is not used
as a class.
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
from jaxdet.data import detection, image_cache, images, regular_files, sources, threads
from jaxdet.errors import InputError, first_problem

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # the split of data without splits
MAX_DEPTH = 4  # levels of folders: one around all, splits, classes, and misplaced ones to report
THREAD_CHUNKS = 64  # because handing a tiny image to a thread costs more than decoding it
EXPECTED = "expected a folder, or a .tar or .tar.gz file of a folder"
LAYOUT = f"expected CLASS/FILE or SPLIT/CLASS/FILE, SPLIT one of {', '.join(SPLITS)}"
NESTED_FOLDER = "left out: a folder inside the folder of a class"
NOT_A_SPLIT = f"left out: must be one of {', '.join(SPLITS)}, and have folders of classes"

Folder = tuple[str, ...]  # the names of the path from the root to the folder; () is the root
File = Path | Callable[[], bytes]


class LabeledImage(NamedTuple):
    """A file in the folder of a class; only `load` checks that it is an image."""

    label: str
    file: str
    image: File
    location: str  # for messages

    @property
    def name(self) -> str:
        """The name LABEL/FILE, which is unique in a split."""
        return f"{self.label}/{self.file}"


class FileTree(NamedTuple):
    """All files of a folder or tar file."""

    path: Path
    files: dict[Folder, dict[str, File]]  # the files of each folder by name; {} if it is empty
    notes: tuple[str, ...]  # one line for each problem

    def location(self, *names: str) -> str:
        """The path of the file or folder at `names` below the root, as one printable line."""
        text = "/".join((str(self.path), *names))
        return text if text.isprintable() else ascii(text)


class ImageFolderDataset(NamedTuple):
    """The labeled images of all splits."""

    classes: tuple[str, ...]  # sorted; a label is an index into them
    splits: dict[str, list[LabeledImage]]
    notes: tuple[str, ...]  # one line for each problem


def read(path: str | Path) -> ImageFolderDataset:
    """Read the data set in a folder or tar file; InputError if no class folder contains files."""
    found = find_classes(list_files(path))
    if not found.classes:
        problem = first_problem(found.notes)
        raise InputError(f"{path}: no class folder contains files; {LAYOUT}{problem}")
    return found


def load(
    samples: Sequence[LabeledImage], classes: Sequence[str], side: int, *, first_id: int = 0
) -> tuple[sources.ArraySource, list[str]]:
    """Read images; return (source of the images that can be read, notes on the others).

    The arrays are image [N, side, side, 3] uint8, from `images.read_resized`; label [N] int32, an
    index into `classes`; and id [N] int32, where the first of `samples` has the id `first_id`.
    Raises InputError if no image can be read, or if a label is not one of `classes`.
    """
    labels = _label_indices(samples, classes)
    image = np.empty((len(samples), side, side, 3), np.uint8)

    def fill(numbers: np.ndarray) -> list[str | None]:
        faults = []
        for number in numbers:
            result, fault = attempt(samples[number], partial(images.read_resized, side=side))
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
    samples: Sequence[LabeledImage],
    classes: Sequence[str],
    side: int,
    *,
    first_id: int = 0,
    on_invalid: str = "skip",
    cache: str | Path = "",
) -> tuple[sources.StreamSource, list[str]]:
    """Like `load`, but returns a `StreamSource`, which reads an image when it is used.

    This call reads only the headers of the images.

    on_invalid: what the source does with an image that turns out to be damaged later, see
      `StreamSource`.
    cache: folder of an `image_cache`; "" for no cache.
    """
    labels = _label_indices(samples, classes)
    read_image = partial(image_cache.cached(images.read_resized, cache), side=side)

    def check(numbers: np.ndarray) -> list[str | None]:
        return [attempt(samples[number], images.check_header)[1] for number in numbers]

    usable, notes = _find_usable(samples, check)

    def read_record(number: int) -> dict[str, Any]:
        result, fault = attempt(samples[number], read_image)
        if fault:
            raise InputError(fault)
        return {"image": result[0], "label": labels[number], "id": np.int32(first_id + number)}

    names = [sample.name for sample in samples]
    left_out = np.setdiff1d(np.arange(len(samples)), usable)
    source = sources.StreamSource(
        read_record, len(samples), names, labels, left_out=left_out, on_invalid=on_invalid
    )
    return source, notes


def summarize(dataset: ImageFolderDataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (one table row per class, notes on files and folders that cannot be used).

    The columns are the number of usable images in each split, the number of unusable images in all
    splits, and the ranges of image height and width in pixels.
    """
    every = [(split, sample) for split, samples in dataset.splits.items() for sample in samples]

    def measure(numbers: np.ndarray) -> list[tuple[int, int] | str]:
        function = partial(images.read_resized, side=1)
        found = [attempt(every[number][1], function) for number in numbers]
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
    """List the files in a folder or in a tar file, which may have any name.

    If several files in a tar file have the same name, the last one is used.  Links and devices in a
    tar file are ignored, and files whose path leads out of the archive are left out with a note.
    Raises InputError for a path that cannot be read, and for a file that is not a tar file or is
    damaged.
    """
    path = Path(path)
    if not path.is_file():
        return FileTree(path, _walk(path), ())
    with pickles.as_input_error(path):
        return FileTree(path, *_read_tar(path))


def find_classes(tree: FileTree) -> ImageFolderDataset:
    """Find the data set in a tree of files; `classes` is () if no folder of a class has files."""
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
    """The bytes of a file of a `FileTree`."""
    return file() if callable(file) else file.read_bytes()


def attempt(sample: LabeledImage, function: Callable) -> tuple[Any, str | None]:
    """Return (`function` of the image, None), or (None, description of the image's problem)."""
    try:
        return function(sample.image), None
    except InputError as error:
        return None, f"{sample.location}: {str(error).removeprefix(f'{sample.image}: ')}"


def _label_indices(samples: Sequence[LabeledImage], classes: Sequence[str]) -> np.ndarray:
    """Class index [N] int32 of each sample; InputError for a label that is not in `classes`."""
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
    """(indices [M] int32 of the usable samples, notes); InputError if no sample is usable."""
    found = _map_chunks(faults, len(samples))
    notes = [fault for fault in found if fault]
    if len(notes) == len(samples):
        raise InputError(f"none of {len(samples)} images can be used{first_problem(notes)}")
    return np.array([i for i, fault in enumerate(found) if not fault], np.int32), notes


def _map_chunks(function: Callable[[np.ndarray], list], count: int) -> list:
    """Split the indices 0..count - 1, call `function` on the parts in threads, join the results."""
    chunks = np.array_split(np.arange(count), THREAD_CHUNKS)
    return [each for results in threads.map_images(function, chunks, len) for each in results]


def _find_home(children: dict[Folder, list[Folder]]) -> Folder:
    """The folder with the folders of classes or splits: the root, or the only folder in it."""
    match children[()]:
        case [alone] if children[alone] and not _is_split(alone):
            return alone
    return ()


def _is_split(folder: Folder) -> bool:
    return detection.split_name(folder[-1]) in SPLITS


def _walk(path: Path) -> dict[Folder, dict[str, File]]:
    """List the files of a folder, by folder, down to `MAX_DEPTH`; links are followed."""

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
    """(files by folder, notes) of a tar file; InputError for a file of another kind."""
    content = regular_files.read_unpacked(path)
    if not tarfile.is_tarfile(io.BytesIO(content)):
        raise InputError(f"not a tar file; {EXPECTED}")
    files, notes = {(): {}}, []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            names = tuple(name for name in member.name.split("/") if name not in ("", "."))
            if ".." in names or member.name.startswith("/"):
                notes.append(f"{path}: {member.name!r} leads out of the archive, left out")
            elif not any(map(images.is_hidden, names)):
                _add_member(files, names, member, content)
        end = slice(tar.offset, tar.offset + tarfile.BLOCKSIZE)
    if content[end] != bytes(tarfile.BLOCKSIZE):  # tarfile takes any invalid block as the end
        raise EOFError(f"no end-of-archive mark at byte {tar.offset}")
    return {folder: dict(sorted(files[folder].items())) for folder in files}, tuple(notes)


def _add_member(
    files: dict[Folder, dict[str, File]], names: Folder, member: tarfile.TarInfo, content: bytes
) -> None:
    """Add a member of a tar file to `files`, unless it is a link or a device."""
    is_file = member.isreg() and not member.issparse()
    if is_file or member.isdir():
        folder = names[:-1] if is_file else names
        for depth in range(len(folder) + 1):
            files.setdefault(folder[:depth], {})
    if is_file:
        place = slice(member.offset_data, member.offset_data + member.size)
        files[folder][names[-1]] = partial(content.__getitem__, place)
