"""Signals that ask a training to end, and the last flush of the outputs."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

END = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@contextmanager
def caught() -> Iterator[list[int]]:
    """A context with a list of the signals in `END` received so far.

    A second SIGINT raises KeyboardInterrupt.  Signals that the parent process ignores, as `nohup`
    does SIGHUP, stay ignored.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.getsignal(number) for number in END}
    heeded = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


def flush_outputs() -> None:
    """Flush stdout and stderr; drop output that cannot be written, so that the exit is silent."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
