"""`jaxdet data inspect SYSTEM`: what a folder of data holds, and what of it cannot be used."""

import json
from importlib import import_module

from jaxdet import tables
from jaxdet.errors import InputError


def run(name, options):
    """Print what is counted and measured by label, and every row or file that is no good."""
    system = import_module(f"jaxdet.configs.{name}")
    if not hasattr(system, "inspect"):
        raise InputError(f"{name} has no folder of data to inspect")
    rows, bad, *more = system.inspect(options.root)
    if options.json:
        oddities = {"oddities": more[0]} if more else {}
        print(json.dumps({"labels": rows, "bad": bad, **oddities}))
    else:
        for table in (rows, *more):
            print(
                tables.to_markdown(table, list(dict.fromkeys(key for row in table for key in row)))
            )
        print("\n".join(bad) or "every row can be used")
    if bad and options.on_bad_row == "error":
        raise InputError(f"{len(bad)} rows cannot be used; --on-invalid skip makes no error of it")
    return 0
