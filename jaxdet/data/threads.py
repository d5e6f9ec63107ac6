"""Map a function over the images of a data set in threads, and report progress to a display."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Display = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # total -> advance(count)


def _no_display(total: int) -> AbstractContextManager[Callable[[int], Any]]:
    return nullcontext(lambda count: None)


_display: ContextVar[Display] = ContextVar("display", default=_no_display)


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """A context in which `map_images` reports its progress to a display.

    `display(total)`, with the total number of images, returns a context manager; its value is a
    function that is called with the number of images done since the last call.
    """
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def map_images(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    count: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order; the function runs in threads.

    `count(item)` is the number of images in an item, by default 1.
    """
    with (
        ThreadPoolExecutor() as pool,
        _display.get()(sum(map(count, items))) as advance,
    ):
        for item, result in zip(items, pool.map(function, items), strict=True):
            advance(count(item))
            yield result


def map_batches(
    function: Callable[[Item], Result], items: Sequence[Item], size: int
) -> Iterator[list[Result]]:
    """Yield lists of `function(item)` for `size` items each; the last list may be shorter.

    The function runs in threads, which compute the next list while the caller uses the current one.
    """
    with ThreadPoolExecutor() as pool:
        batches = (items[start : start + size] for start in range(0, len(items), size))
        current: Iterator[Result] | None = None
        for batch in batches:
            following = pool.map(function, batch)
            if current is not None:
                yield list(current)
            current = following
        if current is not None:
            yield list(current)
