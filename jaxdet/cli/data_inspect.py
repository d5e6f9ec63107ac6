"""`jaxdet data inspect SYSTEM`: contents of a folder of data, and what cannot be used."""

import json
from importlib import import_module

from jaxdet import tables
from jaxdet.cli.options import Inspect
from jaxdet.errors import InputError


def run(system: str, options: Inspect) -> int:
    """Print counts and sizes, and every image or row that cannot be used; returns the exit code."""
    module = import_module(f"jaxdet.configs.{system}")
    if not hasattr(module, "summarize"):
        raise InputError(f"{system} has no folder of data to inspect")
    rows, notes, *checks = module.summarize(options.root)
    if options.json:
        print(
            json.dumps({"labels": rows, "bad": notes} | ({"oddities": checks[0]} if checks else {}))
        )
    else:
        for table in (rows, *checks):
            if table:
                columns = list(dict.fromkeys(key for row in table for key in row))
                print(f"{tables.aligned(table, columns)}\n")
        print("\n".join(notes) or "every image and row can be used")
    if notes and options.on_invalid == "error":
        raise InputError(
            f"{len(notes)} images or rows cannot be used; with --on-invalid skip this is no error"
        )
    return 0
