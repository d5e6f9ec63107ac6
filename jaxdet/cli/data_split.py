"""`jaxdet data split SYSTEM`: which photos are for training, validation and test, as tables."""

from importlib import import_module
from pathlib import Path

from jaxdet import tables
from jaxdet.cli import common
from jaxdet.errors import InputError
from jaxdet.training import run_dir


def run(name, options):
    """Write the tables of the parts, and print how many photos of each label they have."""
    system = import_module(f"jaxdet.configs.{name}")
    if not hasattr(system, "cut"):
        raise InputError(f"{name} comes with its split")
    counts, files, bad = system.cut(options)
    taken = [path for path, _ in files if (options.out / Path(path).name).exists()]
    if taken and not options.overwrite:
        raise InputError(f"{options.out} has a split; give another --out, or --overwrite")
    for path, text in files:
        run_dir.write_file(options.out, Path(path).name, text)
    common.tell_skipped(bad, print)
    print(tables.to_markdown(counts, list(counts[0])))
    print(f"wrote {', '.join(Path(path).name for path, _ in files)} to {options.out}")
    return 0
