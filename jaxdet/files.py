"""Files written whole or not at all."""

import json
import os
from pathlib import Path


def write_text(path, text):
    """Write a file whole or not at all: to a temporary name, synced, then renamed."""
    draft = Path(f"{path}.partial")
    write_synced(draft, "w", text)
    os.replace(draft, path)


def write_synced(path, mode, text):
    """Text on disk when this returns; an error (disk full) names the file."""
    try:
        with open(path, mode) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path, value):
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")
