"""`jaxdet data verification`: make the folders of a verification protocol.

The source is one folder of images per identity.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdet import tables
from jaxdet.cli.verify_options import VerificationFolders
from jaxdet.data import image_folder, verification_protocol
from jaxdet.data.image_folder import LabeledImage
from jaxdet.errors import InputError
from jaxdet.training import run_dir

PARTS = ("dev", "test")
MIN_TRAINING_IDENTITIES = 2


def run(options: VerificationFolders) -> int:
    """Write classification/, known/, unknown_dev/, unknown_test/ and the tables of labels.

    Returns the exit code.
    """
    images = read_identities(options)
    rng = np.random.default_rng(options.seed)
    names = [list(images)[i] for i in rng.permutation(len(images))]
    ends = np.cumsum([options.known, options.unknown_identities])
    known, unknown, training = (part.tolist() for part in np.split(np.array(names), ends))
    for name in training:
        for image in images[name]:
            _copy(image, options.out / "classification" / name / image.file)
    probes: dict[str, list[tuple[LabeledImage, str]]] = {part: [] for part in PARTS}
    for identities, label, gallery_images in (
        (known, None, options.gallery_images),
        (unknown, verification_protocol.UNKNOWN_LABEL, 0),
    ):
        in_dev = max(1, round(options.dev * len(identities))) if len(identities) > 1 else 0
        for number, name in enumerate(identities):
            shuffled = [images[name][i] for i in rng.permutation(len(images[name]))]
            for image in shuffled[:gallery_images]:
                _copy(image, options.out / "known" / name / image.file)
            part = PARTS[number >= in_dev]
            probes[part] += [(image, label or name) for image in shuffled[gallery_images:]]
    for part, labeled in probes.items():
        shuffled = [labeled[i] for i in rng.permutation(len(labeled))]
        _write_probes(options.out, part, shuffled)
    counts = {"training_identities": len(training), "known_identities": len(known)}
    counts |= {"unknown_identities": len(unknown)}
    counts |= {f"unknown_{part}": len(labeled) for part, labeled in probes.items()}
    rows = [{"written": name, "count": count} for name, count in counts.items()]
    print(tables.aligned(rows, ("written", "count")))
    return 0


def read_identities(options: VerificationFolders) -> dict[str, list[LabeledImage]]:
    """Check the options, and list the images of each identity: {identity: images}.

    Raises InputError for invalid options, and for too few identities or images.
    """
    if not options.root:
        raise InputError(
            "--root must be given: a folder or tar file with one folder of images per identity"
        )
    if run_dir.is_occupied(options.out):
        raise InputError(f"{options.out} is not empty; choose another --out")
    for name, minimum in (("known", 2), ("unknown_identities", 2), ("gallery_images", 1)):
        value = getattr(options, name)
        if value < minimum:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} must be at least {minimum}, got {value}")
    if not 0 < options.dev < 1:
        raise InputError(f"--dev must be above 0 and below 1, got {options.dev:g}")
    found = image_folder.read(options.root)
    images: dict[str, list[LabeledImage]] = {name: [] for name in found.classes}
    for split in found.splits.values():
        for image in split:
            images[image.label].append(image)
    minimum = options.known + options.unknown_identities + MIN_TRAINING_IDENTITIES
    if len(images) < minimum:
        raise InputError(
            f"{options.root} must have at least {minimum} identities for --known {options.known}, "
            f"--unknown-identities {options.unknown_identities} and {MIN_TRAINING_IDENTITIES} for "
            f"training, got {len(images)}"
        )
    if verification_protocol.UNKNOWN_LABEL in images:
        name = verification_protocol.UNKNOWN_LABEL
        raise InputError(
            f"{options.root}: {name}: this name is reserved for unknown identities; rename the "
            f"folder"
        )
    for name, own in images.items():
        if len(own) <= options.gallery_images:
            raise InputError(
                f"{options.root}: identity {name} must have more images than --gallery-images "
                f"{options.gallery_images}, got {len(own)}"
            )
    return images


def _write_probes(out: Path, part: str, probes: Sequence[tuple[LabeledImage, str]]) -> None:
    """Write the probes of `part`, "dev" or "test", named by index, and their labels."""
    files = []
    for i, (image, _) in enumerate(probes):
        files.append(out / f"unknown_{part}" / f"{i:05d}.{image.file.rpartition('.')[2]}")
        _copy(image, files[-1])
    table = verification_protocol.submission_csv([label for _, label in probes], files)
    run_dir.write_text(out, f"verification_{part}.csv", table)
    if part == "test":
        blank = [verification_protocol.UNKNOWN_LABEL] * len(probes)
        sample = verification_protocol.submission_csv(blank, files)
        run_dir.write_text(out, "verification_sample_submission.csv", sample)


def _copy(image: LabeledImage, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_folder.file_bytes(image.image))
