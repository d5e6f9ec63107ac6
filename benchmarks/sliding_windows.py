"""Sliding a network window by window against one convolution of the whole image.

    python -m benchmarks.sliding_windows --batch 5 --sizes 16 28 64 --json FILE --plot FILE
    python -m benchmarks.sliding_windows --summary
    python -m benchmarks.sliding_windows --check
    python -m benchmarks.sliding_windows --check --arch c5,p2,c3 c5,p2,p2 --window 16 --stride 4

`docs/sliding_windows.md` explains the results. The first command prints three tables, for square
images and the network of Andrew Ng's lecture:

- times per batch in three forms, in jax and in PyTorch where it is installed: `loop`, one window
  per call, timed on at most `--sample` windows and extrapolated; `chunks`, `--chunk` windows per
  call; `convolutional`, one call. Times include the extraction of windows, but not compilation.
  Forms are interleaved. Peak memory is the peak during one call minus the memory in use before it.
- multiply-adds of both forms and their ratio, beside the ratios of the times.
- agreement on one image: norm of the difference, at full float32 precision.

A size whose feature maps do not fit into memory becomes a row that says so. `--summary` prints the
layers of both forms; `--check` compares the formulas of `windows.differences` with the outputs of
networks with random weights. PyTorch's threads spin while they wait: on a busy machine this makes
its `loop` a hundred times slower, unless OMP_WAIT_POLICY=passive is set.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from matplotlib.figure import Figure

from benchmarks.lib import agreement, harness, sliding, units
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.models.sliding import NgSlidingNet, SlidingNet
from jaxdet.ops import windows

NAME = "sliding_windows"
SIZES, CHECK_SIZES = (16, 28, 64, 256, 720, 1080), (16, 28, 64)
TIMES = {
    "size": "size",
    "library": "library",
    "form": "form",
    "compile_s": ("compile", "s"),
    "seconds": ("median", "s"),
    "spread_s": ("spread", "s"),
    "repeats": "repeats",
    "peak_bytes": ("peak memory", "B"),
    "output": "output",
    "timed_windows": "timed windows",
    "windows": "windows",
    "note": "note",
}
RATIOS = {
    "size": "size",
    "sequential": "multiply-adds, sequential",
    "convolutional": "multiply-adds, convolutional",
    "multiply_adds": "their ratio",
    "jax_loop_s": ("jax: loop", "s"),
    "jax_chunks_s": ("jax: chunks", "s"),
    "jax_convolutional_s": ("jax: convolutional", "s"),
    "jax_loop": "jax: loop / convolutional",
    "jax_chunks": "jax: chunks / convolutional",
    "torch_loop": "PyTorch: loop / convolutional",
    "torch_chunks": "PyTorch: chunks / convolutional",
    "jax_torch": "convolutional: jax / PyTorch",
}
AGREEMENT = {
    "size": "size",
    "output": "output",
    "norm": "norm of the output",
    "difference": "norm of the difference",
    "largest": "largest difference",
    "integer_weights": "norm of the difference, integer weights",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Sliding windows one by one, in chunks, and as one convolution: time, memory, agreement."""

    batch: int = 5
    """images per call"""
    sizes: tuple[int, ...] = ()
    """sides of the images in pixels; by default 16 28 64 256 720 1080, or 16 28 64 with --check"""
    chunk: int = 4096
    """windows per call in the form `chunks`"""
    sample: int = 2000
    """maximum number of windows on which the form `loop` is timed"""
    impl: Literal["auto", "lax"] = "auto"
    """how jaxdet computes convolutions, see jaxdet.kernels.conv"""
    softmax: bool = False
    """end the network with a softmax over the outputs of each window, as in the lecture"""
    seconds: float = 2.0
    """seconds for which each form is timed at each size; at least three calls are made"""
    torch: bool = True
    """time PyTorch as well, if it is installed"""
    plot: Path | None = None
    """image file for a plot of time against size"""
    summary: bool = False
    """print the layers of both forms instead of timing them"""
    check: bool = False
    """instead of timing, print where both forms agree, and where and why they differ"""
    arch: tuple[str, ...] = ()
    """with --check: layers before the first dense one, such as c5,p2,c3; by default 18 cases with
    sizes, windows and strides of their own"""
    window: int = 14
    """with --check and --arch: side of the window in pixels"""
    stride: int = 0
    """with --check and --arch: stride of the sliding window in pixels; 0: the product of the
    strides of the layers"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "batch", "chunk", "sample")
    if min(options.sizes, default=1) < 1:
        raise InputError(f"--sizes must be at least 1, got {min(options.sizes)}")
    if options.stride < 0:
        raise InputError(f"--stride must be at least 0, got {options.stride}")
    results: dict[str, Any] = {"rows": []}
    if options.summary:
        results["layers"] = summarize_layers((options.sizes or SIZES)[0])
    if options.check:
        results["check"] = check(options)
    if not (options.summary or options.check):
        results |= measure(options)
        if options.plot:
            plot(results["rows"], options.plot)
    harness.publish(NAME, options, render, results.pop("rows"), **results)


def measure(options: Options) -> dict[str, Any]:
    """Times, ratios and agreement for every size."""
    convolve = partial(conv.conv_general_dilated, impl=options.impl)
    sizes, pair = (
        options.sizes or SIZES,
        sliding.build_pair(NgSlidingNet(conv_general_dilated=convolve, softmax=options.softmax)),
    )
    for size in sizes:
        windows.grid(pair.convolutional.chain(), size, size)  # InputError below the window
    missing = harness.torch_unavailable(options.torch)
    libraries = sliding.LIBRARIES[:1] if missing else sliding.LIBRARIES
    results: dict[str, Any] = {"rows": [], "ratios": [], "agreement": []}
    for size in sizes:
        print(f"size {size}", file=sys.stderr, flush=True)
        images = agreement.random_images(size, options.batch)
        work = sliding.make_workload(pair, images, options.chunk, options.sample)
        rows = sliding.compare(work, libraries, options.seconds)
        results["rows"] += rows
        results["ratios"].append(sliding.cost_ratios(pair, size, rows))
        norms = harness.within_memory(agreement.difference_norms, pair.sequential, size)
        results["agreement"].append(norms or {"size": size, "note": "out of memory"})
    if missing:
        results["rows"].append({"library": "torch", "note": missing})
    else:
        from benchmarks.torch_refs import backend

        results["torch"] = backend.describe()
    return results


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: times, ratios and agreement; layers; or the check."""
    if "ratios" in record:
        parts = (
            (record["rows"], TIMES),
            (costs(record), RATIOS),
            (record["agreement"], AGREEMENT),
        )
        return "\n\n".join(units.markdown_table(*part) for part in parts)
    layers = [
        f"{form}\n\n{tables.to_markdown(rows, ('layer', 'output', 'parameters'))}"
        for form, rows in record.get("layers", {}).items()
    ]
    checks = [agreement.markdown(record["check"])] if "check" in record else []
    return "\n\n".join(layers + checks)


def costs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with the multiply-adds on one image, the seconds per batch, and ratios."""
    seconds = {
        (row["size"], f"{row['library']}_{row['form']}_s"): row["seconds"]
        for row in record["rows"]
        if "seconds" in row
    }
    return [
        {**row, **{way: time for (size, way), time in seconds.items() if size == row["size"]}}
        for row in record["ratios"]
    ]


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row of times per size; a star marks extrapolated times."""
    found: dict[int, dict] = {}
    for row in record["rows"]:
        if "size" in row:
            cells = found.setdefault(row["size"], {"size": row["size"]})
            text = units.format_quantity(row["seconds"], "s") if "seconds" in row else row["note"]
            star = "*" if row["note"] == "extrapolated" else ""
            cells[f"{row['library']}_{row['form']}"] = f"{text}{star}"
    for ratios in record["ratios"]:
        found[ratios["size"]]["multiply_adds"] = ratios["multiply_adds"]
    titles = {"jax": "jax", "torch": "PyTorch"}
    columns = {
        "size": "size",
        "multiply_adds": "multiply-adds, sequential / convolutional",
        **{
            f"{library}_{form}": f"{titles[library]}, {form}"
            for library in sliding.LIBRARIES
            for form in sliding.FORMS
        },
    }
    return units.markdown_table(found.values(), columns)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds per batch against the side of the images, both logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for library, style in zip(sliding.LIBRARIES, ("o-", "x--"), strict=True):
        for form, color in zip(sliding.FORMS, ("tab:red", "tab:orange", "tab:blue"), strict=True):
            chosen = [row for row in rows if (row["library"], row.get("form")) == (library, form)]
            points = [(row["size"], row["seconds"]) for row in chosen if "seconds" in row]
            if points:
                label = f"{library}, {form}"
                axes.loglog(*zip(*points, strict=True), style, color=color, label=label)
    axes.set(xlabel="side of the image in pixels", ylabel="seconds per batch")
    sizes = sorted({row["size"] for row in rows if "size" in row})
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def summarize_layers(size: int) -> dict[str, list[dict[str, Any]]]:
    """{form: rows of its layers}: sequential on a window, convolutional on an image of `size`."""
    pair = sliding.build_pair(NgSlidingNet())
    windows.grid(pair.convolutional.chain(), size, size)  # InputError below the window
    window = pair.sequential.window
    return {
        "sequential": layer_rows(pair.sequential, pair.variables, window),
        "convolutional": layer_rows(pair.convolutional, pair.converted, size),
    }


def layer_rows(
    net: SlidingNet, variables: Any, size: int, channels: int = 3
) -> list[dict[str, Any]]:
    """A row per layer, with its name, output shape and number of parameters, and a row of sums."""
    rows = [{"layer": "input", "output": [size, size, channels], "parameters": 0}]
    for spec in net.plan():
        size, channels = windows.output_size((spec.layer,), size), spec.channels or channels
        flat = spec.dense and net.form == "sequential"
        output = [channels] if flat else [size, size, channels]
        leaves = jax.tree.leaves(variables["params"].get(spec.name, {}))
        count = sum(leaf.size for leaf in leaves)
        rows.append({"layer": spec.name, "output": output, "parameters": count})
    return [*rows, {"layer": "sum", "parameters": sum(row["parameters"] for row in rows)}]


def check(options: Options) -> list[dict[str, Any]]:
    """Rows of `agreement.check`, of each --arch at each of --sizes, or of `agreement.CASES`."""
    cases = [
        agreement.Case(arch, options.window, options.stride, size)
        for arch in options.arch
        for size in options.sizes or CHECK_SIZES
    ]
    return agreement.check(cases or agreement.CASES)


if __name__ == "__main__":
    sys.exit(main())
