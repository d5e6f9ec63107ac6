"""Callbacks of the training loop, and the progress display, which is one of them."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm


class StepEvent(NamedTuple):
    """A step, which may still be running on the devices."""

    step: int  # steps done
    epoch: int  # number of the current epoch, from 1
    epochs: int
    images: int  # of this step
    read_terms: Callable[[], dict[str, float]]  # waits; means since the last evaluation


class EvaluationEvent(NamedTuple):
    """An evaluation whose scores were written to `metrics.jsonl`."""

    metrics: dict[str, Any]  # the line of `metrics.jsonl`
    best: bool  # whether it is the best so far
    text: str  # the scores in one line, for display


class CheckpointEvent(NamedTuple):
    """A checkpoint that is complete on disk."""

    step: int
    path: Path


class Callback:
    """Base class of callbacks; a method that returns True makes the run save and stop.

    An exception ends the run without saving; the run folder stays complete, and can be resumed.
    """

    def on_step(self, event: StepEvent) -> bool | None:
        """Called after every step.  Reading the loss terms at every step slows training down."""

    def on_evaluation(self, event: EvaluationEvent) -> bool | None:
        """Called after every evaluation of the validation split."""

    def on_checkpoint(self, event: CheckpointEvent) -> bool | None:
        """Called after every checkpoint."""


class Progress(Callback):
    """A progress bar over all images of the run, and lines of text above it.

    The bar goes to stderr, and only to a terminal; lines go to stdout.  `quiet` shows nothing.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet, self.last_read = quiet, 0.0
        self.bar: Any = None

    def begin(self, done: int, total: int) -> None:
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
        self.last_read = time.monotonic()

    def on_step(self, event: StepEvent) -> None:
        """Move the bar; show the loss twice a second on a terminal, else every ten seconds."""
        if self.bar is None:
            return
        self.bar.update(event.images)
        if self.is_due():
            self.show_terms(event)

    def is_due(self) -> bool:
        """Whether to read the loss now; True restarts the waiting time."""
        now = time.monotonic()
        if now - self.last_read < (10.0 if self.bar.disable else 0.5):
            return False
        self.last_read = now
        return True

    def show_terms(self, event: StepEvent) -> None:
        """Show the epoch and the running means of the loss terms on the bar."""
        terms = event.read_terms()
        self.bar.set_description(f"epoch {event.epoch}/{event.epochs}", refresh=False)
        self.bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in terms.items()))

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Print the evaluation in one line."""
        self.line(event.text)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class Named(Progress):
    """A view of a shared `Progress` whose lines start with the name of a run."""

    def __init__(self, show: Progress, name: str):
        super().__init__(quiet=show.quiet)
        self.show, self.name = show, name

    def on_step(self, event: StepEvent) -> None:
        """Pass the step on to the shared bar."""
        self.show.on_step(event)

    def line(self, text: str) -> None:
        """Print a line of this run."""
        self.show.line(f"{self.name}: {text}")


def since_start() -> float | None:
    """Seconds since this process started, imports included; None without Linux's /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
