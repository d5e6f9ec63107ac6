"""The files `NAME.jaxdet`: a compiled program and its weights, with the metadata of the run.

Such a file is a zip file without compression.  It has the entries

- `program.stablehlo`: the program, as `jax.export` serializes it
- `model.safetensors`: the variables, options and metadata of the run, see `training.weight_file`
- `program.json`: arguments and results of the program, and the hashes of the other two entries

JAX guarantees to read the program for six months; a later version may need a new program, which can
be made from the other entries.
"""

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
from jax import export

import jaxdet
from jaxdet import files, packages, pickles
from jaxdet.errors import InputError
from jaxdet.export.program import PLATFORMS, Resizing
from jaxdet.training import weight_file
from jaxdet.training.weight_file import SavedNetwork

SUFFIX = ".jaxdet"
PROGRAM, MODEL, DESCRIPTION = "program.stablehlo", "model.safetensors", "program.json"
SCHEMA = 1  # of `program.json`
FIXED_TIME = 1980, 1, 1, 0, 0, 0  # of the entries, so that equal contents give equal files
PURPOSE = "programs of jax.export"


class Description(TypedDict):
    """The content of `program.json`."""

    schema: int
    jaxdet: str  # versions that wrote the file
    jax: str
    written: str  # date
    platforms: list[str]
    resizing: Resizing
    batch: int | None  # images per call; null: any number
    outputs: list[str]
    sha256: dict[str, str]  # hash of the other entries


class Package(NamedTuple):
    """The content of a `.jaxdet` file."""

    network: SavedNetwork
    description: Description
    program: bytes


def to_bytes(network: SavedNetwork, program: export.Exported, resizing: Resizing) -> bytes:
    """The content of a file with the program and weights of a network."""
    packages.load("flatbuffers", PURPOSE)
    batch = program.in_avals[-1].shape[0]
    entries = {PROGRAM: bytes(program.serialize()), MODEL: weight_file.to_bytes(network)}
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    description: Description = {
        "schema": SCHEMA,
        "jaxdet": jaxdet.__version__,
        "jax": jax.__version__,
        "written": datetime.now(UTC).date().isoformat(),
        "platforms": [*PLATFORMS],
        "resizing": resizing,
        "batch": batch if isinstance(batch, int) else None,
        "outputs": sorted(outputs),
        "sha256": {name: _digest(content) for name, content in entries.items()},
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in {DESCRIPTION: json.dumps(description, indent=2), **entries}.items():
            file.writestr(zipfile.ZipInfo(name, FIXED_TIME), content)
    return stream.getvalue()


def read(path: str | Path) -> Package:
    """Read a `.jaxdet` file, and check all of its hashes; InputError if it is damaged."""
    with pickles.as_input_error(path):
        content = Path(path).read_bytes()
        if not content.startswith(b"PK\x03\x04"):
            raise InputError("is not a file of jaxdet export --format stablehlo")
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            found = {entry.filename: entry for entry in file.infolist()}
            if missing := {PROGRAM, MODEL, DESCRIPTION} - found.keys():
                raise InputError(
                    f"is not a file of jaxdet export --format stablehlo: it has no {min(missing)}"
                )
            if sum(entry.file_size for entry in found.values()) > len(content):
                raise InputError("is damaged: it has compressed entries; export it again")
            description = files.parse_json(file.read(DESCRIPTION).decode(), Description)
            if description["schema"] > SCHEMA:
                raise InputError(
                    f"has schema {description['schema']}, but jaxdet {jaxdet.__version__} reads "
                    f"schema {SCHEMA}; install jaxdet {description['jaxdet']}, which wrote it"
                )
            entries = {name: file.read(name) for name in (PROGRAM, MODEL)}
            for name, entry in entries.items():
                if description["sha256"].get(name) != _digest(entry):
                    raise InputError(
                        f"is damaged: {name} does not have the recorded hash; export it again"
                    )
    network = weight_file.from_bytes(entries[MODEL], path)
    return Package(network, description, entries[PROGRAM])


def load_program(package: Package, path: str | Path) -> Any:
    """The `jax.export.Exported` of a package; InputError if this version of JAX cannot read it."""
    packages.load("flatbuffers", PURPOSE)
    try:
        return export.deserialize(bytearray(package.program))
    except Exception as error:  # JAX raises errors of many classes for a program it cannot read
        description = package.description
        raise InputError(
            f"{path}: JAX {jax.__version__} cannot read a program that JAX {description['jax']} "
            f"wrote on {description['written']} ({str(error).splitlines()[0]:.80}); make it again "
            f"with jaxdet export {path} --renew"
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
