"""Latency of predictions: `Run.predict` against the compiled network alone and onnxruntime.

    python -m benchmarks.predict --runs runs/detect --images photo.jpg --json FILE

For each run, `predict` is `Run.predict` on a warm run, from the file to boxes in pixels of the
image: decoding, resizing, network, suppression. `predict, array` starts from decoded pixels.
`network` is the compiled function that both call, on resized images and without copying its result
to the host. `onnxruntime` is the same function in the file that `jaxdet export --format onnx`
writes, if the package is installed. `overhead` is the median less the median of `network`. All are
timed interleaved, at each batch size, on the given images in turn.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdet
from benchmarks.lib import harness, units
from jaxdet.data import images as image_files
from jaxdet.errors import InputError
from jaxdet.kernels import compiler
from jaxdet.profiling import timing

NAME = "predict"
PERCENTILES = (50, 90, 99)
COLUMNS = {
    "run": "run",
    "system": "system",
    "batch": "batch",
    "implementation": "implementation",
    **{f"p{q}": (f"{q}%", "s") for q in PERCENTILES},
    "overhead": ("overhead", "s"),
    "images_per_s": ("images/s", ""),
    "repeats": "repeats",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Latency of the predictions of trained runs."""

    runs: tuple[Path, ...] = ()
    """run folders, at least one"""
    images: tuple[Path, ...] = ()
    """image files or folders to predict, at least one"""
    batches: tuple[int, ...] = (1, 8)
    """numbers of images per call"""
    seconds: float = 10.0
    """seconds for which each implementation is timed; at least twenty calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the options `argv`, by default the process's arguments; returns the exit code."""
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    """Time the predictions, then print and write the results."""
    for name in ("runs", "images", "batches"):
        if not getattr(options, name):
            raise InputError(f"--{name} must have at least one value, got none")
    if min(options.batches) < 1:
        raise InputError(f"--batches must be at least 1, got {min(options.batches)}")
    paths = [path for given in options.images for path in expand(given)]
    rows = [
        row
        for folder in options.runs
        for batch in options.batches
        for row in compare(jaxdet.load(folder), folder.name, paths, batch, options.seconds)
    ]
    harness.publish(NAME, options, render, rows)


def expand(path: Path) -> list[Path]:
    """The image files at a path; InputError if there are none."""
    found = image_files.scan(path)[0] if path.is_dir() else [path]
    if not found:
        raise InputError(f"--images {path}: must have image files, got none")
    return found


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per run, batch size and implementation."""
    return units.markdown_table(record["rows"], COLUMNS)


def compare(
    run: jaxdet.Run, name: str, paths: Sequence[Path], batch: int, seconds: float
) -> list[dict[str, Any]]:
    """Rows of all implementations for one run and batch size."""
    files = [*islice(cycle(paths), batch)]
    arrays = [image_files.read_pixels(path)[0] for path in files]
    resized = np.stack([run.prepare(path).image for path in files])
    network, variables = compiler.jit(run.predict_fn()), run.variables
    calls: dict[str, Callable[[], Any]] = {
        "predict": lambda: run.predict(files, batch_size=batch),
        "predict, array": lambda: run.predict(arrays, batch_size=batch),
        "network": lambda: network(variables, resized),
    }
    rows = {each: {"implementation": each} for each in (*calls, "onnxruntime")}
    try:
        calls["onnxruntime"] = onnx_call(run, resized)
    except InputError as error:
        rows["onnxruntime"]["note"] = str(error)
    for call in calls.values():
        jax.block_until_ready(call())
    samples = timing.sample_interleaved([*calls.values()], seconds=seconds, repeats=20)
    for implementation, own in zip(calls, samples, strict=True):
        found = {f"p{q}": float(np.percentile(own, q)) for q in PERCENTILES}
        rate = batch / found["p50"]
        rows[implementation] |= {**found, "images_per_s": rate, "repeats": len(own)}
    for row in rows.values():
        row |= {"run": name, "system": run.system, "batch": batch}
        if "p50" in row:
            row["overhead"] = row["p50"] - rows["network"]["p50"]
    return [*rows.values()]


def onnx_call(run: jaxdet.Run, resized: np.ndarray) -> Callable[[], Any]:
    """A call of the exported network in onnxruntime; InputError if it cannot be exported or run."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        raise InputError("not installed")
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        run.export(path, format="onnx", batch=len(resized))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: resized})


if __name__ == "__main__":
    sys.exit(main())
