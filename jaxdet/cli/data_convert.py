"""`jaxdet data convert SRC DST`: write a detection data set in another format."""

from pathlib import Path

from jaxdet import runs
from jaxdet.cli.options import Convert
from jaxdet.data import convert, detection, formats
from jaxdet.errors import InputError, first_problem


def run(options: Convert) -> int:
    """Read the data set, report its problems, and write it; returns the exit code."""
    if Path(options.src).resolve() in (options.dst.resolve(), *options.dst.resolve().parents):
        raise InputError(f"DST must be outside SRC, got {options.dst}")
    dataset = formats.read(options.src, options.format, argument="SRC")
    plan = convert.plan(dataset, options.to)
    if (faults := detection.faults(plan.notes)) and options.on_invalid == "error":
        raise InputError(
            f"{len(faults)} images or rows cannot be used; leave them out with --on-invalid skip"
            f"{first_problem(faults)}"
        )
    runs.report_notes(plan.notes, print)
    convert.write(plan, options.dst, link=options.images == "link")
    counts = ", ".join(f"{split} {len(placed)}" for split, placed in plan.splits.items())
    print(f"wrote {options.dst}: {len(plan.classes)} classes, images: {counts}")
    return 0
