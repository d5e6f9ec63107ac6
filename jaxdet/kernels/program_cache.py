"""Traced programs that are kept on disk, so that later processes need not trace them again.

JAX's compilation cache saves the compilation; to find a program in it, JAX must trace the program
first, which takes seconds for a detector.  A program that is kept here is found by its name, a hash
of everything that it is traced from: the code of jaxdet, the versions of the packages, the settings
of JAX, and what the caller names, such as the options of a run.

The name cannot cover functions that a process has replaced, so only the command line keeps
programs, see `enable`; they are in a folder of the compilation cache.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxdet import files

FOLDER = "traced"  # in the folder of the compilation cache
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax")

_enabled = False


def enable() -> None:
    """Keep programs from now on, if the compilation cache is in use."""
    global _enabled
    _enabled = True


def remembered(identity: Any, make: Callable[[], Any]) -> Any:
    """The JSON value `make()`, or the value that an earlier process has kept.

    identity: JSON value that names everything that the value depends on besides code, versions and
      settings; None: nothing is kept, `make` is called.
    """
    if identity is None or not (folder := _folder()):
        return make()
    path = folder / _name_of(identity)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = make()
        _store(path, json.dumps(value).encode())
        return value


def compiled(fn: Callable, identity: Any, *args: Any) -> Callable:
    """`compiler.jit(fn)`, as an earlier process has traced it for the shapes of `args`, if any has.

    identity: as in `remembered`.
    """
    import jax

    from jaxdet.kernels import compiler

    elsewhere = default_device() is not None  # a kept program is for one platform
    if identity is None or elsewhere or not (folder := _folder()):
        return compiler.jit(fn)
    from jax import export

    shapes = jax.tree.map(lambda leaf: [str(leaf.dtype), list(leaf.shape)], args)
    path = folder / _name_of([identity, shapes, compiler.compiler_options()])
    try:
        if path.is_file():
            return compiler.jit(export.deserialize(bytearray(path.read_bytes())).call)
        jitted: Any = compiler.jit(fn)
        exported = export.export(jitted)(*args)
        _store(path, bytes(exported.serialize()))
    except Exception:  # a damaged file, a program that has no stable form, or no flatbuffers
        return compiler.jit(fn)
    return compiler.jit(exported.call)


def default_device() -> Any:
    """The device of `jax.default_device`; None if there is none."""
    import jax

    settings: Any = jax.config
    return settings.jax_default_device


def _folder() -> Path | None:
    import jax

    settings: Any = jax.config
    folder = settings.jax_compilation_cache_dir
    return Path(folder) / FOLDER if _enabled and folder else None


def _store(path: Path, content: bytes) -> None:
    """Write a file; a full or read-only disk is ignored."""
    with suppress(OSError):
        files.write_bytes(path, content)


def _name_of(identity: Any) -> str:
    import jax

    settings = {"config": jax.config.values, "devices": jax.devices(), "code": _code_digest()}
    text = json.dumps([settings, identity], default=repr, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code_digest() -> str:
    """Hash of the code of jaxdet and of the versions of the packages that trace it."""
    version = import_module("importlib.metadata").version
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    digest.update(" ".join(map(version, PACKAGES)).encode())
    return digest.hexdigest()
