"""`jaxdet data inspect SYSTEM`: list what a folder of data contains, and what cannot be used."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxdet import files, tables
from jaxdet.cli.options import Inspect
from jaxdet.data import detection
from jaxdet.errors import InputError, printable

MAX_NOTES = 10  # notes of each kind that are printed without --all


def run(system: str, options: Inspect) -> int:
    """Print images and rows that cannot be used, then counts and sizes; returns the exit code."""
    module = import_module(f"jaxdet.configs.{system}")
    if not hasattr(module, "summarize"):
        raise InputError(
            f"`jaxdet data inspect` does not support {system}; `jaxdet train {system}` checks the "
            f"data"
        )
    rows, notes, *checks = module.summarize(options.root)
    faults = detection.faults(notes)
    remarks = [note for note in notes if isinstance(note, detection.Remark)]
    if options.csv:
        _write_csv(options.csv, {"unusable": faults, "remark": remarks})
    if options.json:
        found: dict[str, Any] = {"labels": rows, "bad": faults}
        found |= {"remarks": remarks} if remarks else {}
        print(json.dumps(found | ({"oddities": checks[0]} if checks else {})))
    else:
        _print_notes(faults, remarks, options)
        for table in (*checks, rows):
            if table:
                columns = list(dict.fromkeys(key for row in table for key in row))
                print(f"\n{tables.aligned(table, columns)}")
    if faults and options.on_invalid == "error":
        raise InputError(
            f"{len(faults)} images or rows cannot be used; accept this with --on-invalid skip"
        )
    return 0


def _print_notes(faults: Sequence[str], remarks: Sequence[str], options: Inspect) -> None:
    if not faults:
        print("every image and row can be used")
    for own, title in ((faults, "images or rows cannot be used"), (remarks, "remarks")):
        if not own:
            continue
        print(f"{len(own)} {title}:")
        shown = own if options.all else own[:MAX_NOTES]
        print("".join(f"  {printable(note)}\n" for note in shown), end="")
        if len(shown) < len(own):
            print(f"  and {len(own) - len(shown)} more, see --all or --csv FILE")


def _write_csv(path: Path, notes: Mapping[str, Sequence[str]]) -> None:
    text = io.StringIO()
    rows = [(kind, note) for kind, own in notes.items() for note in own]
    csv.writer(text, lineterminator="\n").writerows([("kind", "note"), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text.getvalue())
