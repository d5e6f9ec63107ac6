"""What a person sees of a run: a bar on a terminal, one line per evaluation anywhere."""

import os
import sys
import time
from pathlib import Path

from tqdm import tqdm


class Progress:
    """A bar over all images of the run (rate, time left, loss terms), and lines above it.

    The bar goes to stderr and only to a terminal; lines go to stdout.  Made quiet, it shows
    nothing and costs nothing.
    """

    def __init__(self, *, quiet=False):
        self.quiet, self.bar, self.looked = quiet, None, 0.0

    def begin(self, done, total):
        """Open the bar at `done` of `total` images."""
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=True if self.quiet else None,
        )
        self.bar.set_description("compiling")
        self.looked = time.monotonic()

    def advance(self, images):
        """Move the bar on."""
        self.bar.update(images)

    def due(self):
        """Whether it is time to read the loss: twice a second on a terminal, else every ten."""
        now = time.monotonic()
        if now - self.looked < (10.0 if self.bar.disable else 0.5):
            return False
        self.looked = now
        return True

    def terms(self, epoch, epochs, values):
        """Show the epoch and the running means of the loss terms on the bar."""
        self.bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
        self.bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in values.items()))

    def line(self, text):
        """A line of its own, above the bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self):
        """Leave the bar."""
        if self.bar is not None:
            self.bar.close()


class Named:
    """One of several runs that share a `Progress`: its lines begin with its name."""

    def __init__(self, show, name):
        self.show, self.name = show, name

    def line(self, text):
        """A line of the run."""
        self.show.line(f"{self.name}: {text}")

    def __getattr__(self, name):
        return getattr(self.show, name)


def since_start():
    """Seconds since this process began, imports and compilation included (Linux); else None."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
