"""Process-wide settings of the command line, which importing the library never changes.

The settings are XLA flags, the compilation cache, and large pages for large arrays.  On a CPU, XLA
allocates new memory for every call, and the kernel provides it page by page.  With pages of 2 MiB
instead of 4 KiB, a copy of 200 MB takes 52 ms instead of 87 ms, and batch norm with its gradient
366 ms instead of 520 ms (2 CPU cores).  glibc reads the setting for large pages when a process
starts.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdet import compilation_cache, files

if TYPE_CHECKING:
    from jaxdet.cli.options import Process

SETTING = "glibc.malloc.hugetlb=1"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# On a GPU, the flag permits only operations that give the same bits every time, and no autotuning,
# whose choice of algorithms depends on timings.  `kernels.pool` reads the flag too.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"


def restart_with_large_pages() -> None:
    """Restart this process with large pages, if Linux supports this and GLIBC_TUNABLES is not set.

    Linux supports this if it gives large pages on request (`madvise`).  The process id, the
    arguments and the open files stay the same.
    """
    if "GLIBC_TUNABLES" in os.environ or not KERNEL.is_file():
        return
    if "[madvise]" in KERNEL.read_text():
        os.environ["GLIBC_TUNABLES"] = SETTING
        os.execv(sys.executable, sys.orig_argv)


def prepare(options: "Process") -> None:
    """Set XLA's flags and the compilation cache; must be called before jax is imported.

    Environment variables that already configure JAX's compilation cache take precedence.
    """
    if options.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()
    if options.cache and (cache := files.cache_folder()):
        for name, value in {compilation_cache.FOLDER: cache, **compilation_cache.LIMITS}.items():
            os.environ.setdefault(name.upper(), str(value))
