"""Likeness of 100,000 unknown and 1,000 known embeddings: `embeddings.similarity` against NumPy.

    python -m benchmarks.similarity --json FILE

Prints a Markdown table: seconds of NumPy's `a @ b.T` on rows that have length 1 already, of NumPy
bringing them to that length as well, and of `similarity`, which `jaxdet verify` calls and which
does both, `--chunk` rows at a time.  They take turns, and a sample of what they find is compared.
Memory is the largest resident size of the process during a call that was compiled before, less that
held before it (VmHWM and VmRSS in /proc/self/status; on a GPU the device's own count): the result,
0.4 GB, is in it, arguments are not.
"""

import sys
from dataclasses import dataclass

import jax
import numpy as np

from benchmarks.lib import harness
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.ops import embeddings
from jaxdet.profiling import timing

NAME = "similarity"
COLUMNS = {
    "way": "way",
    "unknown": "unknown",
    "known": "known",
    "numbers": "numbers",
    "median": "median s",
    "spread": "spread s",
    "repeats": "repeats",
    "ratio": "time / NumPy's product",
    "memory": "memory GB",
}
SAMPLE = 1000  # unknown embeddings, at most, whose likeness is compared


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Cosines of all pairs of embeddings in NumPy and in jaxdet."""

    unknown: int = 100_000
    """embeddings to compare"""
    known: int = 1_000
    """with each of these"""
    numbers: int = 512
    """numbers of an embedding"""
    chunk: int = embeddings.CHUNK
    """unknown embeddings that jaxdet works on at a time"""
    seconds: float = 5.0
    """time for the repeats of each way; three repeats are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Compare, time, print, write."""
    for name in ("unknown", "known", "numbers", "chunk"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} starts at 1")
    rows, source = compare(options)
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options, memory=source)


def compare(options):
    """(rows of all ways, how their memory is known)."""
    unknown, known = (drawn(n, options.numbers) for n in (options.unknown, options.known))
    given = jax.device_put((unknown, known))
    ready = unit(unknown), unit(known)
    calls = {
        "NumPy, product": lambda: ready[0] @ ready[1].T,
        "NumPy": lambda: unit(unknown) @ unit(known).T,
        "jaxdet": lambda: embeddings.similarity(*given, chunk=options.chunk),
    }
    for call in calls.values():
        _same(ready, jax.block_until_ready(call()))
    memory = {way: harness.first(call) for way, call in calls.items()}
    taken = timing.sample_interleaved(list(calls.values()), seconds=options.seconds)
    rows = [
        {"way": way, **timing.summarize(0.0, times)._asdict()}
        for way, times in zip(calls, taken, strict=True)
    ]
    about = {name: getattr(options, name) for name in ("unknown", "known", "numbers")}
    for row in rows:
        peak = memory[row["way"]].peak
        row |= {**about, "ratio": row["median"] / rows[0]["median"]}
        row["memory"] = None if peak is None else peak / 1e9
    return rows, memory["jaxdet"].source


def drawn(count, numbers):
    """Embeddings [count, numbers] float32 of any length."""
    return np.random.default_rng(count).standard_normal((count, numbers), np.float32)


def unit(rows):
    """Rows [N, D] at length 1, as NumPy code usually has them."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _same(ready, found):
    """Compare the first rows of cosines with those in double precision."""
    some, known = (np.float64(rows) for rows in (ready[0][:SAMPLE], ready[1]))
    np.testing.assert_allclose(found[: len(some)], some @ known.T, atol=1e-5)


if __name__ == "__main__":
    sys.exit(main())
