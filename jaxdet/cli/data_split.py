"""`jaxdet data split SYSTEM`: split images into training, validation and test, in CSV tables."""

from importlib import import_module
from pathlib import Path

from jaxdet import runs, tables
from jaxdet.cli.options import Split
from jaxdet.errors import InputError
from jaxdet.training import run_dir


def run(system: str, options: Split) -> int:
    """Write one table per split, and print the numbers of images; returns the exit code."""
    module = import_module(f"jaxdet.configs.{system}")
    if not hasattr(module, "split_tables"):
        raise InputError(
            f"`jaxdet data split` supports only objects, got {system}; other systems split "
            f"the data when they read them"
        )
    counts, files, notes = module.split_tables(options)
    names = [Path(path).name for path, _ in files]
    if any((options.out / name).exists() for name in names) and not options.overwrite:
        raise InputError(
            f"{options.out} already has a split; choose another --out, or replace it with "
            f"--overwrite"
        )
    for name, (_, text) in zip(names, files, strict=True):
        run_dir.write_text(options.out, name, text)
    runs.report_notes(notes, print)
    print(tables.aligned(counts, list(counts[0])))
    print(f"wrote {', '.join(names)} to {options.out}")
    return 0
