"""Similarity of 100,000 and 1,000 embeddings: `embeddings.similarity` against NumPy.

    python -m benchmarks.similarity --json FILE

Prints seconds of NumPy's `a @ b.T` on normalized rows, of NumPy including the normalization, and of
`similarity`, which `jaxdet verify` calls: it normalizes and multiplies `--chunk` rows at a time.
The three are timed interleaved, and a sample of their results is compared.

Memory is the largest resident size of the process during a call that was compiled before, less the
size before the call (VmHWM and VmRSS in /proc/self/status; on a GPU the device's own count). It
contains the result, 0.4 GB, but not the arguments.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.lib import harness, units
from jaxdet.ops import embeddings
from jaxdet.profiling import timing

NAME = "similarity"
COLUMNS = {
    "implementation": "implementation",
    "probes": "probes",
    "gallery": "gallery",
    "dim": "dimensions",
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "time / NumPy's product",
    "memory_bytes": ("memory", "B"),
}
SAMPLE = 1000  # maximum number of probes whose similarities are compared


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Cosines of all pairs of embeddings, in NumPy and in jaxdet."""

    probes: int = 100_000
    """number of probe embeddings"""
    gallery: int = 1_000
    """number of gallery embeddings; each probe is compared with all of them"""
    dim: int = 512
    """dimension of the embeddings"""
    chunk: int = embeddings.CHUNK
    """number of probes that jaxdet processes at a time"""
    seconds: float = 5.0
    """seconds for which each implementation is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "probes", "gallery", "dim", "chunk")
    rows, source = compare(options)
    harness.publish(NAME, options, render, rows, memory_source=source)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(options: Options) -> tuple[list[dict[str, Any]], str]:
    """(one row per implementation, how the memory was measured)."""
    probes, gallery = (random_embeddings(n, options.dim) for n in (options.probes, options.gallery))
    arrays = jax.device_put((probes, gallery))
    normalized = l2_normalize(probes), l2_normalize(gallery)
    calls = {
        "NumPy, product": lambda: normalized[0] @ normalized[1].T,
        "NumPy": lambda: l2_normalize(probes) @ l2_normalize(gallery).T,
        "jaxdet": lambda: embeddings.similarity(*arrays, chunk=options.chunk),
    }
    sample, others = normalized[0][:SAMPLE].astype(float), normalized[1].astype(float)
    for call in calls.values():
        found = jax.block_until_ready(call())
        np.testing.assert_allclose(found[: len(sample)], sample @ others.T, atol=1e-5)
    memory = {name: harness.first_call(call) for name, call in calls.items()}
    samples = timing.sample_interleaved(list(calls.values()), seconds=options.seconds)
    rows = [
        {
            "implementation": name,
            **timing.summarize(0.0, times)._asdict(),
            **{size: getattr(options, size) for size in ("probes", "gallery", "dim")},
            "memory_bytes": memory[name].peak,
        }
        for name, times in zip(calls, samples, strict=True)
    ]
    for row in rows:
        row["ratio"] = row["median"] / rows[0]["median"]
    return rows, memory["jaxdet"].peak_source


def random_embeddings(count: int, dim: int) -> np.ndarray:
    """Embeddings [count, dim], float32, of any norm."""
    return np.random.default_rng(count).standard_normal((count, dim), np.float32)


def l2_normalize(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] with norm 1, as usually computed in NumPy."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    sys.exit(main())
