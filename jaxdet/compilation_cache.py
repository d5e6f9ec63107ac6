"""Compiled programs that are kept on disk, so that later processes need not compile them again."""

from pathlib import Path

from jaxdet import files
from jaxdet.errors import InputError

# Values of JAX's configuration; as environment variables, the names are in capital letters.
FOLDER = "jax_compilation_cache_dir"
LIMITS = {
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


def enable_compilation_cache(folder: str | Path | None = None) -> Path:
    """Keep the programs that take at least half a second to compile; returns their folder.

    folder: where to keep them; by default $JAXDET_CACHE or ~/.cache/jaxdet, as the command line
      does.

    It applies to every program that this process compiles from now on, whether jaxdet's or not.
    Raises InputError if no folder is given and there is no default, because JAXDET_CACHE is empty
    or the user has no home.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    chosen = Path(folder) if folder else files.cache_folder()
    if chosen is None:
        raise InputError("enable_compilation_cache needs a folder, since JAXDET_CACHE names none")
    jax.config.update(FOLDER, str(chosen))
    for name, value in LIMITS.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX would keep what it found at its first compilation
    return chosen
