"""How long calls take, and what a machine can do at most.

A call is timed from its start until its result is there, on whatever device it is made.  The first
call is apart: it compiles and warms up.  Of the others the median counts, with the interquartile
range beside it.  Calls to be compared are timed in turns, A B A B, because the speed of a machine
drifts: the ratio of their medians then means something even where the medians do not.
"""

import time
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

MAX_REPEATS = 1000  # repeats of a call


class Timing(NamedTuple):
    """Seconds of a call."""

    compile_s: float  # first call less the median: tracing, compiling
    median: float
    spread: float  # interquartile range
    repeats: int


def measure(fn, *args, seconds=1.0, repeats=3):
    """Timing of `fn(*args)`: at least `repeats` calls, and more while `seconds` last."""
    return measure_interleaved(partial(fn, *args), seconds=seconds, repeats=repeats)[0]


def measure_interleaved(*calls, seconds=1.0, repeats=3):
    """Timings of calls without arguments that are made in turns; `seconds` is for each."""
    begun = [timed(call)[1] for call in calls]
    taken = sample_interleaved(calls, seconds=seconds, repeats=repeats)
    return [summarize(apart, times) for apart, times in zip(begun, taken, strict=True)]


def sample_interleaved(calls, *, seconds=1.0, repeats=3):
    """Seconds of each call, one list a call: made in turns, until each had its time and repeats."""
    taken = [[] for _ in calls]
    left = list(zip(calls, taken, strict=True))
    while left:
        for call, times in left:
            times.append(timed(call)[1])
        left = [(call, times) for call, times in left if not _enough(times, seconds, repeats)]
    return taken


def summarize(apart, times):
    """Timing from the seconds of the first call and those of the others."""
    low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
    return Timing(max(0.0, apart - median), median, high - low, len(times))


def timed(call):
    """(result, seconds) of a call, waited for.  What is no array of jax is passed through."""
    start = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - start


def _enough(times, seconds, repeats):
    """Whether a call was timed often enough."""
    return len(times) >= repeats and (len(times) >= MAX_REPEATS or sum(times) >= seconds)
