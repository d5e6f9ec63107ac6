"""How long the devices wait for batches that are read during training."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxdet.types import Tree

Batches = TypeVar("Batches")
MAX_CALLS = 2  # under way on the devices, each with its batches


class DataWait:
    """Counts the seconds for which the devices have no work because batches are still being read.

    A call of the compiled program returns before the devices have finished it; a thread notes the
    time at which they finish.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pool = ThreadPoolExecutor(1, "data-wait")
        self.calls: deque[Future[float]] = deque()  # -> the time at which the devices finished it

    def counted(self, calls: Iterable[Batches]) -> Iterator[Batches]:
        """Yield the batches of each call; add the seconds for which the devices idled before them.

        At most `MAX_CALLS` calls are unfinished at a time.
        """
        calls = iter(calls)
        while True:
            while len(self.calls) >= MAX_CALLS:
                self.calls.popleft().result()
            begun = time.monotonic()
            try:
                batches = next(calls)
            except StopIteration:
                return
            arrived = idle_since = time.monotonic()
            if not self.calls:
                idle_since = begun
            elif self.calls[-1].done():
                idle_since = max(begun, self.calls[-1].result())
            self.seconds += arrived - idle_since
            yield batches

    def dispatched(self, state: Tree) -> None:
        """Record the dispatch of a call that returns `state`."""
        step = state.step.addressable_shards[
            0
        ].data  # a copy, as the next call is donated the state
        self.calls.append(self.pool.submit(_time_when_ready, jnp.copy(step)))

    def restart(self) -> float:
        """Return the seconds counted, and begin again at 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _time_when_ready(value: jax.Array) -> float:
    jax.block_until_ready(value)
    return time.monotonic()
