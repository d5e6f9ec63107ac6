"""Writing the checkpoints of a run while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxdet.training import checkpoint
from jaxdet.types import Tree


class Saver:
    """Writes checkpoints in a thread, one after the other.

    Training waits until the previous checkpoint is written, and while the state is copied to the
    host.  The previous checkpoint is kept until the new one is complete, see `checkpoint.save`.

    announce: called with step and path of a complete checkpoint, by `poll` or `wait`.
    """

    def __init__(self, folder: Path, announce: Callable[[int, Path], Any]):
        self.folder, self.announce = folder, announce
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: tuple[int, Future[Path]] | None = None

    def save(self, step: int, state: Tree, score: tuple[float, float] | None) -> None:
        """Begin to write the checkpoint of a step, see `checkpoint.save`."""
        self.wait()
        copy = checkpoint.copy_to_host(state)
        self.pending = step, self.pool.submit(checkpoint.save, self.folder, step, copy, score=score)

    def poll(self) -> None:
        """If writing has ended, announce the checkpoint, or raise the exception of the thread."""
        if self.pending and self.pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint, and announce it; raises the exception of the thread, if any."""
        if self.pending:
            (step, written), self.pending = self.pending, None
            self.announce(step, written.result())
