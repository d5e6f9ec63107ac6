"""Callbacks of the training loop, such as the progress display."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxdet.errors import printable

_ignored_output_errors = partial(suppress, OSError, ValueError)  # of a closed pipe or file


# From a number of images, a context that gives a function, which is called with images done.
Counting = Callable[[int], AbstractContextManager[Callable[[int], Any]]]


@contextmanager
def uncounted(total: int) -> Iterator[Callable[[int], Any]]:
    """A `Counting` that shows nothing."""
    yield lambda images: None


class StepEvent(NamedTuple):
    """A call of the compiled program, of one or several steps, that has been dispatched.

    It may still be running on the devices.
    """

    step: int  # steps done, including this call
    epoch: int  # number of the current epoch, from 1
    epochs: int
    images: int  # images in the steps of this call
    read_terms: Callable[[], dict[str, float]]  # means since the last evaluation; waits for them
    data_wait: float | None = None  # fraction of the epoch's time in which devices waited for data


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
    """Base class of callbacks; if a method returns True, the run saves and stops.

    An exception ends the run without saving; the run folder stays valid, and can be resumed.
    """

    def on_step(self, event: StepEvent) -> bool | None:
        """Called after every call of the compiled program.

        A call takes one step, or several with --steps-per-call (on a GPU by default).  Reading the
        loss terms after every call slows training down.
        """

    def on_evaluation(self, event: EvaluationEvent) -> bool | None:
        """Called after every evaluation during training.

        `event.metrics["val"]` is None in a run without validation.
        """

    def on_checkpoint(self, event: CheckpointEvent) -> bool | None:
        """Called when a checkpoint is complete on disk."""


class Progress(Callback):
    """A progress bar over all images of the run, and lines of text above it.

    The bar goes to stderr, and only to a terminal; lines go to stdout.  `quiet` shows nothing.
    Output that nobody reads any more, as behind `| head`, is dropped.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet, self.last_read = quiet, time.monotonic()
        self.bar: Any = None  # of tqdm, on a terminal

    def begin(self, done: int, total: int) -> None:
        """Open the bar at `done` of `total` images."""
        self.last_read = time.monotonic()
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            self.line("no progress bar without tqdm: pip install tqdm")
            return
        with _ignored_output_errors():
            self.bar = tqdm(
                total=total, initial=done, unit=" images", unit_scale=True, dynamic_ncols=True
            )
            self.bar.set_description("compiling")

    def on_step(self, event: StepEvent) -> None:
        """Move the bar, and read the loss: twice a second to show it or, without a bar, every 10 s.

        Reading raises `DivergedError` for a loss that is not finite.
        """
        self.advance(event.images)
        now = time.monotonic()
        if now - self.last_read >= (10.0 if self.bar is None else 0.5):
            self.last_read = now
            self.show_terms(event)

    def advance(self, images: int) -> None:
        """Move the bar by this number of images."""
        if self.bar is not None:
            with _ignored_output_errors():
                self.bar.update(images)

    def set_total(self, images: int) -> None:
        """Change the number of images at which the bar ends."""
        if self.bar is not None:
            self.bar.total = images

    def show_terms(self, event: StepEvent) -> None:
        """Show the epoch and the running means of the loss terms on the bar."""
        terms = event.read_terms()
        if self.bar is not None:
            with _ignored_output_errors():
                self.bar.set_description(f"epoch {event.epoch}/{event.epochs}", refresh=False)
                shown = [f"{name} {value:.3g}" for name, value in terms.items()]
                if event.data_wait is not None:
                    shown.append(f"{event.data_wait:.0%} waiting for data")
                self.bar.set_postfix_str(" ".join(shown))

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Print the evaluation in one line."""
        self.line(event.text)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self.quiet or sys.stdout is None:
            return
        text = printable(text, keep="\n")
        with _ignored_output_errors():
            if self.bar is None:
                sys.stdout.write(f"{text}\n")
            else:
                self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            with _ignored_output_errors():
                self.bar.close()
            self.bar = None


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
