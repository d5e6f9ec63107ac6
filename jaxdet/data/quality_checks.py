"""What a detection engineer wants to know of a set before training: its oddities, counted."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from jaxdet.data import detection, images

DUPLICATES = "photos with the bytes of another"
NOTE_KINDS = {  # kind -> words of which the notes on it have one
    "boxes without an area": (detection.EMPTY,),
    "boxes outside of the photo": (detection.OUTSIDE,),
    "boxes of less than a pixel of the network's input": (detection.TINY,),
    "objects of an unknown class": (detection.UNKNOWN_CLASS,),
    "photos named twice": (detection.REPEATED,),
    "photos that cannot be read": images.READ_ERRORS,
}
OTHER_NOTES = "other rows that cannot be used"
OUTSIDE_TOLERANCE = 0.5  # pixels by which a box may leave its photo: files round


def check_dataset(found, height, width):
    """({column: value} a kind of oddity, [what cannot be used]) of `Scenes`.

    Every photo is read, and fitted into height x width pixels to see which boxes are too small;
    none is kept.  A kind has its count and where it is first.
    """
    named = [(part, one) for part, of_part in found.parts.items() for one in of_part]
    notes, kinds, seen = list(found.notes), {DUPLICATES: []}, {}
    with ThreadPoolExecutor() as pool:
        looked = pool.map(partial(_looked, height=height, width=width), [one for _, one in named])
        for (part, one), (odd, said, digest) in zip(named, looked, strict=True):
            notes += said
            for kind, count in odd.items():
                kinds.setdefault(kind, []).extend([one.where] * count)
            if digest in seen:
                place = f"{one.where} ({part}), as {seen[digest]}"
                kinds[DUPLICATES].append(place)
            elif digest:
                seen[digest] = f"{one.where} ({part})"
    return _rows(kinds, notes), notes


def _looked(one, height, width):
    """({kind: count}, [what is wrong], digest of the bytes or None) of a scene."""
    row, notes = detection.prepare(one, height, width, max(len(one.boxes), 1))
    if row is None:
        return {}, notes, None
    packed = images.file_bytes(one.image)
    grey, turned = images.read_header(packed)
    inside = np.clip(one.boxes, 0, np.tile(row["size"][::-1], 2)[None])
    cut = (np.abs(inside - one.boxes) > OUTSIDE_TOLERANCE).any(1) & (
        inside[:, 2:] > inside[:, :2]
    ).all(1)
    odd = {
        "photos without objects": int(not len(one.boxes)),
        "grey photos": int(grey),
        "photos turned by their EXIF data": int(turned),
        "boxes that leave their photo, cut": int(cut.sum()),
    }
    return odd, notes, hashlib.sha256(packed).digest()


def _rows(kinds, notes):
    """A row a kind; what is of no kind comes last."""
    rows = [_row(kind, of_kind) for kind, of_kind in kinds.items()]
    of_kind = {kind: [] for kind in (*NOTE_KINDS, OTHER_NOTES)}
    for note in notes:
        of_kind[_kind(note)].append(note)
    return rows + [_row(*pair) for pair in of_kind.items()]


def _kind(note):
    """The kind that a note is of."""
    matches = (kind for kind, words in NOTE_KINDS.items() if any(word in note for word in words))
    return next(matches, OTHER_NOTES)


def _row(kind, of_kind):
    return {"what": kind, "count": len(of_kind), "first": of_kind[0] if of_kind else ""}
