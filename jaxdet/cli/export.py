"""`jaxdet export RUN OUT`: write a run for use elsewhere, without the state for training."""

from pathlib import Path

from jaxdet import api
from jaxdet.cli import common
from jaxdet.cli.options import Export
from jaxdet.errors import InputError
from jaxdet.export import package

PROGRAMS = ("stablehlo", "onnx")  # formats that can be run


def run(options: Export) -> int:
    """Write the run in the chosen format, and print a summary; returns the exit code."""
    _check(options)
    run = common.load_published(options) or api.load(
        options.run, options.checkpoint, warn=common.warn
    )
    if options.renew:
        return _renew(run, options)
    written = run.export(
        options.out or "",
        options.format,
        batch=None if options.batch == "dynamic" else options.batch,
        nms=options.nms,
        overwrite=options.overwrite,
        show=print,
    )
    if options.format == "checkpoint":
        sizes = [_megabytes(path) for path in (run.folder / "checkpoints" / str(run.step), written)]
        print(
            f"wrote {options.out}: checkpoint {run.step} for evaluation only, {sizes[1]:.3g} MB "
            f"instead of {sizes[0]:.3g}; it cannot be resumed"
        )
    else:
        print(f"wrote {written}: {options.format}, step {run.step}, {_megabytes(written):.3g} MB")
    return 0


def _renew(run: api.Run, options: Export) -> int:
    """Make the program of a `.jaxdet` file again, with the same batch and outputs."""
    before = package.read(options.run).description
    out = options.out or options.run
    run.export(
        out,
        "stablehlo",
        batch=before["batch"],
        nms="valid" in before["outputs"] or "boxes" not in before["outputs"],
        overwrite=options.out is None or options.overwrite,
        show=print,
    )
    print(f"wrote {out}: replaced the program of JAX {before['jax']} from {before['written']}")
    return 0


def _check(options: Export) -> None:
    """Raise InputError for a missing OUT, and for options that the format does not have."""
    if options.renew and options.run.suffix != package.SUFFIX:
        raise InputError(f"--renew needs a {package.SUFFIX} file, got {options.run}")
    if options.out is None and not options.renew:
        raise InputError("OUT is missing: jaxdet export RUN OUT")
    if options.format not in PROGRAMS and (options.batch != "dynamic" or options.nms is not None):
        name = "nms" if options.batch == "dynamic" else "batch"
        raise InputError(
            f"--{name} needs --format {' or '.join(PROGRAMS)}, got --format {options.format}"
        )
    if options.batch != "dynamic" and options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")


def _megabytes(path: Path) -> float:
    """The size of a file, or of all files below a folder, in MB."""
    found = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in found if each.is_file()) / 1e6
