"""Before jax starts: four virtual devices, threads enough that their collectives cannot starve."""

import gc
import os
import shutil
import signal
from pathlib import Path

SETTINGS = {
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": str(Path.home() / ".cache" / "jaxdet"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
# Temporary files are kept in memory: tests that save checkpoints would wait for the disk for longer
# than they compute.  Containers may have only a few megabytes there.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**31:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=4".strip()

# A session started with `nohup` or in the background ignores these, and its commands would too.
DEFAULTS = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
for number, handler in DEFAULTS.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

import jax  # noqa: E402
import pytest  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Most of the time is compiling, and what is compiled here runs for moments.  Commands that tests
# start as processes of their own are optimized as always.
jax.config.update("jax_disable_most_optimizations", True)


# Traces leave millions of objects that live on; looking through them all takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def blank_figures(request):
    """Outside the tests of plots, save figures of their size that are blank.

    Drawing takes half of the time of a figure, and figures take a third of a tiny training.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "plots":
            patch.setattr(Figure, "draw", lambda figure, renderer: None)
        yield


WHOLE_COMMANDS = ("benchmarks", "cli", "tests", "training")  # folders of the longest tests


def pytest_configure(config):
    """Let pytest-xdist distribute files in the order below, not those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Run the tests of whole commands first: they take longest, so that workers end together."""
    items.sort(key=lambda item: item.path.parent.name not in WHOLE_COMMANDS)


def pytest_unconfigure():
    """Let the process end without another search through all objects."""
    gc.freeze()
