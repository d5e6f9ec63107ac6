"""Images are read in threads, in order, and every image is counted."""

import threading
from contextlib import contextmanager

import pytest

from jaxdet.data import threads


class Display:
    """What a display was told."""

    def __init__(self):
        self.totals, self.counts, self.closed = [], [], 0

    @contextmanager
    def __call__(self, total):
        self.totals.append(total)
        try:
            yield self.counts.append
        finally:
            self.closed += 1


def test_results_are_in_order_and_computed_in_threads():
    both = threading.Barrier(2, timeout=30)  # broken unless two calls run at once

    def square(number):
        if number < 2:
            both.wait()
        return number**2

    assert list(threads.map_images(square, range(20))) == [n**2 for n in range(20)]


def test_a_display_counts_the_images_of_each_item():
    display = Display()
    with threads.shown_by(display):
        assert list(threads.map_images(sum, [[1, 2], [3], []], len)) == [3, 3, 0]
        assert list(threads.map_images(str, [])) == []
    assert (display.totals, display.counts, display.closed) == ([3, 0], [2, 1, 0], 2)
    assert list(threads.map_images(str, [1])) == ["1"]  # no longer shown
    assert display.totals == [3, 0]


def test_an_error_reaches_the_caller_and_closes_the_display():
    display = Display()

    def fail(number):
        raise ValueError(number)

    with threads.shown_by(display), pytest.raises(ValueError, match="7"):
        list(threads.map_images(fail, [7]))
    assert (display.totals, display.counts, display.closed) == ([1], [], 1)


def test_the_next_batch_is_computed_while_the_current_one_is_used():
    begun = [threading.Event() for _ in range(5)]

    def double(number):
        begun[number].set()
        return 2 * number

    batches = threads.map_batches(double, range(5), 2)
    assert next(batches) == [0, 2]
    assert begun[2].wait(30) and begun[3].wait(30) and not begun[4].is_set()
    assert list(batches) == [[4, 6], [8]]
    assert list(threads.map_batches(double, (), 2)) == []


def test_an_error_in_a_batch_comes_after_the_batches_before_it():
    batches = threads.map_batches(lambda number: 1 / number, (2, 1, 0), 2)
    assert next(batches) == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)
