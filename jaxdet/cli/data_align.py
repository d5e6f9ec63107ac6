"""`jaxdet data align SRC DST`: write a folder of images with their faces aligned."""

from pathlib import Path

from jaxdet import runs
from jaxdet.cli.options import Align
from jaxdet.data import detection
from jaxdet.data.face_detector import FaceDetector, align_folder
from jaxdet.errors import InputError


def run(options: Align) -> int:
    """Find, align and write the faces, and print how many were found; returns the exit code."""
    if options.size < 1:
        raise InputError(f"--size must be at least 1 pixel, got {options.size}")
    if Path(options.src).resolve() in (options.dst.resolve(), *options.dst.resolve().parents):
        raise InputError(f"DST must be outside SRC, got {options.dst}")
    done = align_folder(
        options.src,
        options.dst,
        FaceDetector(),
        side=options.size,
        on_invalid=options.on_invalid,
    )
    runs.report_notes([*done.faults, *map(detection.Remark, done.kept)], print)
    count = done.aligned + len(done.kept)
    print(
        f"wrote {options.dst}: {count} images, {done.aligned} with an aligned face, "
        f"{len(done.kept)} without a face, copied as they are"
    )
    return 0
