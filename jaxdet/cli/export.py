"""`jaxdet export RUN OUT`: write a run for use elsewhere, without the state for training."""

from collections.abc import Callable
from pathlib import Path

from jaxdet import api
from jaxdet.cli import common
from jaxdet.cli.options import Export


def run(options: Export) -> int:
    """Write the run in the chosen format, and print a summary; returns the exit code."""
    run = api.load(options.run, options.checkpoint, warn=common.warn)
    print(FORMATS[options.format](run, options))
    return 0


def write_checkpoint(run: api.Run, options: Export) -> str:
    """Write a run folder for evaluation only; returns a line that reports its size."""
    written = run.export(options.out, overwrite=options.overwrite)
    sizes = [_megabytes(path) for path in (run.folder / "checkpoints" / str(run.step), written)]
    return (
        f"wrote {options.out}: checkpoint {run.step} for evaluation only, {sizes[1]:.3g} MB "
        f"instead of {sizes[0]:.3g}; it cannot be resumed"
    )


FORMATS: dict[str, Callable[[api.Run, Export], str]] = {"checkpoint": write_checkpoint}


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
