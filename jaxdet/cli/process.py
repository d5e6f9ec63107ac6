"""Process-wide settings of the command line, which the library itself never touches.

XLA flags, the compilation cache, and large pages for large arrays.  On a CPU, XLA allocates memory
anew for every call, and the kernel hands it out page by page.  With pages of 2 MiB instead of 4 KiB
a copy of 200 MB takes 52 ms instead of 87, and batch norm with its gradient 366 instead of 520 (2
CPU cores).  glibc reads the setting when a process starts.
"""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdet.cli.options import Process

SETTING = "glibc.malloc.hugetlb=1"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# With these versions of jaxlib the flag makes convolutions on the CPU up to four times faster.
# Other versions may not know it, and an unknown flag ends the process.
FAST_CONV_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
FAST_CONV_VERSIONS = ("0.10.2",)


def restart_with_large_pages() -> None:
    """Start this process again with large pages, if they have an effect and nothing is set yet.

    They have one where Linux gives large pages on request.  Process id, arguments and open files
    stay the same.
    """
    if "GLIBC_TUNABLES" in os.environ or not KERNEL.is_file():
        return
    if "[madvise]" in KERNEL.read_text():
        os.environ["GLIBC_TUNABLES"] = SETTING
        os.execv(sys.executable, sys.orig_argv)


def prepare(options: "Process") -> None:
    """Set the flags and the compilation cache of this process, before jax is imported."""
    flags = [with_fast_conv(os.environ.get("XLA_FLAGS", ""))]
    if options.deterministic:
        flags.append("--xla_gpu_exclude_nondeterministic_ops=true")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    if options.cache:
        default = Path.home() / ".cache" / "jaxdet"
        os.environ.setdefault(
            "JAX_COMPILATION_CACHE_DIR", os.environ.get("JAXDET_CACHE", str(default))
        )
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def with_fast_conv(flags: str) -> str:
    """XLA flags with `FAST_CONV_FLAG`, where jaxlib knows it and `flags` do not set it."""
    known = metadata.version("jaxlib") in FAST_CONV_VERSIONS and "ynn_fusion_type" not in flags
    return f"{flags} {FAST_CONV_FLAG}".strip() if known else flags
