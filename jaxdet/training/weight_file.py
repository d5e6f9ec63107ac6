"""A trained network as one safetensors file: its variables, and the metadata to rebuild it.

The arrays have the paths of the variables, such as `params/head/kernel`.  The header has a JSON
object, `Description`, under the key `jaxdet` of the metadata that the format allows; other programs
ignore it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from flax import traverse_util

import jaxdet
from jaxdet import files, migrations, packages, pickles
from jaxdet.errors import InputError
from jaxdet.training import run_dir
from jaxdet.types import Tree

KEY = "jaxdet"  # of the description, in the metadata of the file


class Description(TypedDict):
    """The options and metadata of the run whose variables are in a file."""

    schema: int  # as in `config.json`
    jaxdet: str  # version that wrote the file
    system: str
    config: dict[str, Any]
    metadata: run_dir.Metadata
    step: int
    epoch: int
    thresholds: NotRequired[dict[str, Any]]  # chosen score thresholds, as in `thresholds.json`
    sha256: str  # hash of the data of the arrays


class SavedNetwork(NamedTuple):
    """The variables of a network, with the options and metadata of its run."""

    system: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    step: int
    epoch: int
    variables: Tree
    thresholds: dict[str, Any] | None = None


def to_bytes(network: SavedNetwork) -> bytes:
    """The content of the file of a network."""
    packages.load("safetensors", "export")
    from safetensors.numpy import save

    paths = traverse_util.flatten_dict(network.variables, sep="/")
    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in paths.items()}
    description: dict[str, Any] = {
        "schema": run_dir.SCHEMA,
        "jaxdet": jaxdet.__version__,
        **{name: getattr(network, name) for name in ("system", "config", "metadata")},
        "step": int(network.step),
        "epoch": int(network.epoch),
        "sha256": _digest(save(arrays)),
    }
    if network.thresholds is not None:
        description["thresholds"] = network.thresholds
    return save(arrays, {"format": KEY, KEY: json.dumps(description)})


def from_bytes(content: bytes, name: str | Path) -> SavedNetwork:
    """The network in the content of the file `name`.

    Raises InputError if the file is damaged, or was written by another program or a newer version
    of jaxdet.
    """
    with pickles.as_input_error(name):
        found = _describe(files.safetensors_metadata(content))
        if found is None:
            raise InputError("has no metadata of jaxdet; write the file with jaxdet export")
        if not 1 <= found["schema"] <= run_dir.SCHEMA:
            raise InputError(
                f"has schema {found['schema']}, but jaxdet {jaxdet.__version__} reads schemas 1 to "
                f"{run_dir.SCHEMA}; install jaxdet {found['jaxdet']}, which wrote it"
            )
        if found["sha256"] != _digest(content):
            raise InputError(
                "is damaged: its arrays do not have the recorded hash; export the run again"
            )
        arrays = pickles.read_safetensors(content)
        config = migrations.migrate_values(found["system"], found["config"])
        return SavedNetwork(
            found["system"],
            config,
            dict(found["metadata"]),
            found["step"],
            found["epoch"],
            traverse_util.unflatten_dict(arrays, sep="/"),
            found.get("thresholds"),
        )


def read(path: str | Path) -> SavedNetwork:
    """Read the network in a file; InputError as in `from_bytes`, or if it cannot be read."""
    with pickles.as_input_error(path):
        content = Path(path).read_bytes()
    return from_bytes(content, path)


def _describe(metadata: dict[str, str]) -> Description | None:
    return files.parse_json(metadata[KEY], Description) if KEY in metadata else None


def _digest(content: bytes) -> str:
    """The hash of everything after the header of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    return hashlib.sha256(memoryview(content)[start:]).hexdigest()
