"""Wall-clock time of calls.

A call is timed until its result is ready on its device.  The first call, which compiles and warms
up, is reported separately; the others are summarized by their median and interquartile range.
Calls to be compared are interleaved (A B A B): the speed of a machine drifts, and interleaving
keeps the ratio of the medians meaningful.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

MAX_REPEATS = 1000


class Timing(NamedTuple):
    """Seconds per call."""

    compile_s: float  # first call less the median: tracing and compiling
    median: float
    spread: float  # interquartile range
    repeats: int


def measure(fn: Callable, *args: Any, seconds: float = 1.0, repeats: int = 3) -> Timing:
    """Time `fn(*args)`: a first call, then `repeats` or more calls, until `seconds` have passed.

    At most max(`repeats`, `MAX_REPEATS`) calls follow the first.
    """
    return measure_interleaved(partial(fn, *args), seconds=seconds, repeats=repeats)[0]


def measure_interleaved(
    *calls: Callable[[], Any], seconds: float = 1.0, repeats: int = 3
) -> list[Timing]:
    """Time functions without arguments, interleaved; `seconds` and `repeats` apply to each."""
    first = [timed(call)[1] for call in calls]
    rest = sample_interleaved(calls, seconds=seconds, repeats=repeats)
    return [summarize(once, samples) for once, samples in zip(first, rest, strict=True)]


def sample_interleaved(
    calls: Sequence[Callable[[], Any]], *, seconds: float = 1.0, repeats: int = 3
) -> list[list[float]]:
    """Seconds of every call, one list per function; options as in `measure_interleaved`.

    There is no warm-up call, so compile the functions first.
    """
    samples = [[] for _ in calls]
    active = list(zip(calls, samples, strict=True))
    while active:
        for call, taken in active:
            taken.append(timed(call)[1])
        active = [(call, taken) for call, taken in active if not _done(taken, seconds, repeats)]
    return samples


def summarize(first: float, samples: Sequence[float]) -> Timing:
    """Timing from the seconds of the first call and of the calls after it."""
    low, median, high = (float(q) for q in np.percentile(samples, (25, 50, 75)))
    return Timing(max(0.0, first - median), median, high - low, len(samples))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds) of a call; waits for the JAX arrays in the result."""
    start = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - start


def _done(samples: Sequence[float], seconds: float, repeats: int) -> bool:
    return len(samples) >= repeats and (len(samples) >= MAX_REPEATS or sum(samples) >= seconds)
