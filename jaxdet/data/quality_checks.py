"""Checks of a detection data set before training: counts of problems and peculiarities."""

import hashlib
from functools import partial
from typing import Any

import numpy as np

from jaxdet.data import detection, images, threads
from jaxdet.data.detection import AnnotatedImage, DetectionDataset

DUPLICATES = "duplicate images (same bytes)"
NOTE_KINDS = {  # kind of note -> phrases; a note is of this kind if it contains one of them
    "boxes without area": (detection.EMPTY,),
    "boxes outside the image": (detection.OUTSIDE,),
    "boxes smaller than one pixel of the network's input": (detection.TINY,),
    "objects of an unknown class": (detection.UNKNOWN_CLASS,),
    "duplicate boxes": (detection.REPEATED_BOX,),
    "images of another size than annotated": (detection.OTHER_SIZE,),
    "images listed twice": (detection.REPEATED,),
    "images that cannot be read": images.READ_ERRORS,
}
OTHER_NOTES = "other rows that cannot be used"
OUTSIDE_TOLERANCE = 0.5  # pixels; files have rounded numbers, so less is not counted


def check_dataset(
    dataset: DetectionDataset, height: int, width: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read all images of a data set; return (one row per check, notes).

    The keys of a row are "check" (the problem), "count" (number of cases) and "first" (place of the
    first case, or "").  Images are letterboxed to height x width, to find boxes that become too
    small.
    """
    named = [(split, sample) for split, samples in dataset.splits.items() for sample in samples]
    notes, found, seen = list(dataset.notes), {DUPLICATES: []}, {}
    function = partial(_check_image, height=height, width=width)
    results = threads.map_images(function, [sample for _, sample in named])
    for (split, sample), (counts, faults, digest) in zip(named, results, strict=True):
        notes += faults
        for check, count in counts.items():
            found.setdefault(check, []).extend([sample.name] * count)
        if digest in seen:
            found[DUPLICATES].append(f"{sample.name} ({split}), same as {seen[digest]}")
        elif digest:
            seen[digest] = f"{sample.name} ({split})"
    found |= {kind: [] for kind in (*NOTE_KINDS, OTHER_NOTES)}
    for note in detection.faults(notes):
        found[_note_kind(note)].append(note)
    rows = [
        {"check": check, "count": len(places), "first": places[0] if places else ""}
        for check, places in found.items()
    ]
    return rows, notes


def _check_image(
    sample: AnnotatedImage, height: int, width: int
) -> tuple[dict[str, int], list[str], bytes | None]:
    """({check: count}, notes, SHA-256 of the file); ({}, notes, None) for an unusable image."""
    count = max(len(sample.boxes), 1)
    row, notes = detection.prepare(sample, detection.ArraySizes(height, width, count, count))
    if row is None:
        return {}, notes, None
    content = images.file_bytes(sample.image)
    gray, rotated = images.read_header(content)
    clipped = np.clip(sample.boxes, 0, np.tile(row["size"][::-1], 2)[None])
    moved = (np.abs(clipped - sample.boxes) > OUTSIDE_TOLERANCE).any(1)
    counts = {
        "images without objects": int(not len(sample.boxes)),
        "grayscale images": int(gray),
        "images rotated by EXIF": int(rotated),
        "boxes clipped to their image": int(
            (moved & (clipped[:, 2:] > clipped[:, :2]).all(1)).sum()
        ),
    }
    return counts, notes, hashlib.sha256(content).digest()


def _note_kind(note: str) -> str:
    matches = (kind for kind, words in NOTE_KINDS.items() if any(word in note for word in words))
    return next(matches, OTHER_NOTES)
