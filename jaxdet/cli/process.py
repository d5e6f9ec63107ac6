"""Large pages for large arrays: asked for by the command line, never by the library.

XLA's CPU takes memory anew for every call, and the kernel hands it out page by page.  In pages of
2 MiB instead of 4 KiB a copy of 200 MB takes 52 ms instead of 87, batch norm with its gradient 366
instead of 520 (2 CPU cores).  glibc reads the setting when a process begins.
"""

import os
import sys
from pathlib import Path

SETTING = "glibc.malloc.hugetlb=1"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_large_pages():
    """Begin this process again with the setting, where it matters and nothing is set yet.

    It matters where Linux gives large pages to those who ask.  Returns where there is nothing to
    do; the process keeps its number, its words and its files.
    """
    if "GLIBC_TUNABLES" in os.environ or not KERNEL.is_file():
        return
    if "[madvise]" in KERNEL.read_text():
        os.environ["GLIBC_TUNABLES"] = SETTING
        os.execv(sys.executable, sys.orig_argv)
