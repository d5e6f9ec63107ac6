"""Targets of a sliding-window network: `windows.encode_targets` against Python loops.

    python -m benchmarks.target_encoding --batch 64 --json FILE

Times two implementations, interleaved, on the windows of the `digits` config: nested Python loops
over images, rows and columns (`benchmarks.lib.reference.encode_targets`), and the compiled
`encode_targets`, vectorized over windows and images. Prints seconds per batch of each, and the
ratio of their medians. The run fails if their targets differ.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.lib import harness, reference, units
from jaxdet.configs.digits import Config
from jaxdet.ops import windows
from jaxdet.profiling import timing

NAME = "target_encoding"
COLUMNS = {
    "implementation": "implementation",
    "batch": "batch",
    "grid": "windows",
    "compile_s": ("compile", "s"),
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "repeats": "repeats",
    "ratio": "times faster",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Encoding targets in loops and vectorized."""

    batch: int = 64
    """images per batch"""
    seconds: float = 2.0
    """seconds for which each implementation is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "batch")
    harness.publish(NAME, options, render, compare(options.batch, options.seconds))


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def compare(batch: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of both implementations, the second with the ratio of the medians."""
    config = Config()
    grid = config_grid(config)
    boxes, labels = random_objects(batch, config.canvas)
    loops = partial(reference.encode_targets, boxes, labels, *grid[:4])
    program = jax.jit(jax.vmap(partial(windows.encode_targets, grid=grid)))
    vectorized = partial(program, jax.device_put(boxes), jax.device_put(labels))
    times = timing.measure_interleaved(loops, vectorized, seconds=seconds)
    np.testing.assert_allclose(vectorized(), loops(), rtol=1e-5, atol=1e-5)
    rows = [
        {
            "implementation": name,
            "batch": batch,
            "grid": [grid.rows, grid.columns],
            **found._asdict(),
        }
        for name, found in zip(("loops", "encode_targets"), times, strict=True)
    ]
    rows[1]["ratio"] = rows[0]["median"] / rows[1]["median"]
    return rows


def config_grid(config: Config) -> windows.Grid:
    """The windows of a `digits` config on its canvas."""
    stages = windows.parse(config.layout)
    chain = (*stages, windows.head_layer(stages, config.window))
    return windows.grid(chain, config.canvas, config.canvas)


def random_objects(batch: int, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [batch, 4] with sides of 8 to 36 pixels inside a canvas, and labels [batch]."""
    draw = np.random.default_rng(0)
    size = draw.uniform(8, 36, (batch, 2))
    start = draw.uniform(0, canvas - size)
    boxes = np.concatenate([start, start + size], axis=-1).astype(np.float32)
    return boxes, draw.integers(0, 10, batch)


if __name__ == "__main__":
    sys.exit(main())
