"""Atomic writes: a file appears complete or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: to a temporary name, synced to disk, then renamed."""
    draft = Path(f"{path}.partial")
    write_synced(draft, "w", text)
    os.replace(draft, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_synced(path: str | Path, mode: str, text: str) -> None:
    """Write text with the given mode of `open` and sync it to disk.

    An OSError, such as a full disk, names the file.
    """
    try:
        with open(path, mode) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
