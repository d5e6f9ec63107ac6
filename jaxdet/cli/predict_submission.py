"""Tables of predicted labels for the images of a folder, in the order of a sample table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdet import files as atomic_files
from jaxdet.api import Run
from jaxdet.cli.options import Predict
from jaxdet.data import verification_protocol
from jaxdet.data.verification_protocol import LabelTable
from jaxdet.errors import InputError


def list_files(options: Predict) -> tuple[list[Path], LabelTable | None]:
    """Return (images of the one folder that the options name, table of `--sample` or None).

    Raises InputError if the options name several paths, or a file.
    """
    paths = [*options.images, *options.filename]
    if len(paths) != 1 or not paths[0].is_dir():
        given = f"the file {paths[0]}" if len(paths) == 1 else f"{len(paths)} paths"
        raise InputError(
            f"--submit needs exactly one folder of images (jaxdet predict RUN FOLDER), got {given}"
        )
    files = verification_protocol.list_probes(paths[0])
    return files, read_sample(options.sample, files) if options.sample else None


def run(run: Run, options: Predict, files: Sequence[Path], sample: LabelTable | None) -> int:
    """Write a table with the index of each image's predicted label; returns the exit code.

    Raises InputError for a run that predicts any number of boxes per image.
    """
    if run.finds_many:
        raise InputError(
            f"--submit needs a run that predicts one label per image, got a run of {run.system}"
        )
    size = min(run.config.eval_batch, len(files))
    batches = run.predict_batches(files, batch_size=size)
    labels = [int(row["label"]) for _, rows in batches for row in rows]
    write(options.submit, labels, files, sample, named=True)
    if not options.json:
        print(f"wrote {options.submit}")
    return 0


def read_sample(path: Path, files: Sequence[Path]) -> LabelTable:
    """Read a sample table; InputError for rows that do not match the files."""
    table = verification_protocol.read_table(path)
    verification_protocol.match_rows(table, files)
    return table


def write(
    path: Path,
    labels: Sequence[Any],
    files: Sequence[Path],
    sample: LabelTable | None = None,
    *,
    named: bool = False,
) -> None:
    """Write a table of the labels [N] of files [N], see `verification_protocol.submission_csv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = verification_protocol.submission_csv(labels, files, sample, named=named)
    atomic_files.write_text(path, text)
