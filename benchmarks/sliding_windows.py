"""Sliding a network window by window against convolving it with the whole image (seed 001).

    python -m benchmarks.sliding_windows --batch 5 --multiscale 16 28 64 256 720 1080 \\
        --json FILE --plot FILE --markdown FILE
    python -m benchmarks.sliding_windows --summary
    python -m benchmarks.sliding_windows --check
    python -m benchmarks.sliding_windows --check --arch c5,p2,c3 c5,p2,p2 --window 16 --stride 4
    python -m benchmarks.sliding_windows --explain

The first prints, for Andrew Ng's network on square images, three tables:
- times of a batch in three forms, in jax and in PyTorch where that is installed, with the time to
  compile apart: `loop`, one window a call, timed on a sample of `--sample` windows where there are
  more and extrapolated; `chunks`, all windows, `--chunk` a call; `convolutional`, one call.  All
  start from the images: cutting windows is timed too.  The forms take turns.  Peak memory is what
  one run took beyond what was held before it.
- multiply-adds of both forms and their ratio, beside the measured ratios.
- agreement on one image a size: the norm of the difference, at full float32 precision.
A size whose feature maps have no room is a row `out of memory`, found before it is tried.

`--impl` says how jaxdet convolves (`ops.conv`); the record keeps XLA's flags (see
`harness.quicken`).  A library that is slow at small convolutions, or at one as wide as the features
of a window, moves the ratio of its times away from that of its multiply-adds: read both libraries.
PyTorch's threads wait for each other by spinning; where the machine has other work to do, that
makes its `loop` a hundred times slower unless OMP_WAIT_POLICY=passive is set.

On 2 CPU cores, with XLA's flag and large pages (`results/sliding_windows.md`), at 16, 28, 64, 256,
720 and 1080: multiply-adds 1.21, 1.33, 1.35, 1.35, 1.35 and 1.35 times those of one convolution;
time in chunks, jax 1.34, 1.92, 2.14, 2.29, 2.00, 2.01 times, PyTorch 0.87, 1.55, 2.04, 2.49, 2.29,
2.46 times; window by window, jax 2.5 to 13.6 times, PyTorch 4.6 to 103 times.  The convolution
takes jax 0.42, 0.81, 1.34, 1.39, 1.68, 1.58 times as long as PyTorch.

At 1080 a batch of 5 has 931 Gop: 5.2 s at the 180 Gop/s that the best convolution of its shape
reaches here, where PyTorch takes 6.1 and jax 9.6.  Tried at 720, seconds (PyTorch 2.8): all as
`lax` 4.3 to 4.5; 1x1 as a product, `auto`, 3.8 to 4.8; 1x1 over 400 channels as `lax` 4.1 to 5.1,
though alone it takes 1.3 where the product takes 2.0; image after image by `map` 5.0, unrolled 4.6.
Alone, the layers take 0.2, 1.3, 1.3 and 0.1 s: what is missing is memory, maps of 1 GB each that
are new in every call.

`--check` compares what the formulas say of a chain with what random weights show; `--explain`
answers questions 2 and 4 to 8 of the seed.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
from matplotlib.figure import Figure

from benchmarks import answers
from benchmarks.lib import agreement, harness, sliding
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.models.sliding import NgSlidingNet
from jaxdet.ops import windows

NAME = "sliding_windows"
SIZES, CHECKED = (16, 28, 64, 256, 720, 1080), (16, 28, 64)
TIMES = {
    "size": "size",
    "library": "library",
    "form": "form",
    "compile_s": "compile s",
    "seconds": "median s",
    "spread_s": "spread s",
    "repeats": "repeats",
    "peak_mib": "peak MiB",
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
    "jax_loop": "jax: loop / convolutional",
    "jax_chunks": "jax: chunks / convolutional",
    "torch_loop": "torch: loop / convolutional",
    "torch_chunks": "torch: chunks / convolutional",
    "jax_torch": "convolutional: jax / torch",
}
AGREEMENT = {
    "size": "size",
    "output": "output",
    "norm": "norm of the output",
    "difference": "norm of the difference",
    "largest": "largest difference",
    "whole_numbers": "norm of the difference, whole numbers",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Sliding windows one by one, in batches, and as one convolution: time, memory, agreement."""

    batch: int = 5
    """images a call"""
    sizes: tuple[int, ...] = ()
    """sides of the images in pixels; by default 16 28 64 256 720 1080, for --check 16 28 64"""
    chunk: int = 4096
    """windows of a call in the form `chunks`"""
    sample: int = 2000
    """most windows that the form `loop` is timed on"""
    impl: Literal["auto", "lax"] = "auto"
    """how jaxdet computes convolutions: see ops.conv"""
    seconds: float = 2.0
    """time for the repeats of a form at a size; three repeats are always made"""
    peers: bool = True
    """time PyTorch too, where it is installed"""
    plot: Path | None = None
    """picture of time against size"""
    summary: bool = False
    """print the layers of both networks instead"""
    check: bool = False
    """print where both forms agree, and where and why they differ, instead"""
    arch: tuple[str, ...] = ()
    """--check: layers before the first dense one, such as c5,p2,c3; by default the seed's cases"""
    window: int = 14
    """--check with --arch: side of the window in pixels"""
    stride: int = 0
    """--check with --arch: of sliding, in pixels; 0 is the product of the layers' strides"""
    explain: bool = False
    """print the answers to questions 2 and 4 to 8 of the seed instead"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Make what is asked for, print it and write the files."""
    if min(options.batch, options.chunk, options.sample, *options.sizes, options.stride + 1) < 1:
        raise InputError("--batch, --multiscale, --chunk and --sample start at 1, --stride at 0")
    pages = {"summary": summary, "check": check, "explain": explain}
    chosen = [page for name, page in pages.items() if getattr(options, name)] or [timings]
    texts, found = zip(*(page(options) for page in chosen), strict=True)
    harness.show("\n\n".join(texts), options.markdown)
    if options.json:
        parts = {name: rows for part in found for name, rows in part.items()}
        keep(options, parts)


def timings(options):
    """Times, ratios and agreement at every size; the plot."""
    hook = partial(conv.conv_general_dilated, impl=options.impl)
    sizes, forms = options.sizes or SIZES, sliding.pair(NgSlidingNet(conv_general_dilated=hook))
    for size in sizes:
        windows.grid(forms.dense.chain(), size, size)  # refuses a size under the window
    missing = harness.torch_unavailable(options.peers)
    libraries = sliding.LIBRARIES[:1] if missing else sliding.LIBRARIES
    found = {"rows": [], "ratios": [], "agreement": []}
    for size in sizes:
        print(f"size {size}", file=sys.stderr, flush=True)
        scene = sliding.workload(
            forms, agreement.image(size, options.batch), options.chunk, options.sample
        )
        rows = sliding.compare(scene, libraries, options.seconds)
        found["rows"] += rows
        found["ratios"].append(sliding.cost_ratios(forms, size, rows))
        found["agreement"].append(agreed(forms.net, size))
    if missing:
        found["rows"].append({"library": "torch", "note": missing})
    if options.plot:
        plot(found["rows"], options.plot)
    columns = zip(found.values(), (TIMES, RATIOS, AGREEMENT), strict=True)
    return "\n\n".join(tables.to_markdown(*each) for each in columns), found


def agreed(net, size):
    """The agreement of both forms on one image."""
    found = harness.within_memory(agreement.norms, net, size)
    return found or {"size": size, "note": "out of memory"}


def plot(rows, path):
    """Seconds a batch against the side of its images, both logarithmic; one line a way."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for library, style in zip(sliding.LIBRARIES, ("o-", "x--"), strict=True):
        for form, colour in zip(sliding.FORMS, ("tab:red", "tab:orange", "tab:blue"), strict=True):
            chosen = [row for row in rows if (row["library"], row.get("form")) == (library, form)]
            points = [(row["size"], row["seconds"]) for row in chosen if "seconds" in row]
            if points:
                label = f"{library}, {form}"
                axes.loglog(*zip(*points, strict=True), style, color=colour, label=label)
    axes.set(xlabel="side of the image in pixels", ylabel="seconds a batch")
    sizes = sorted({row["size"] for row in rows if "size" in row})
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def summary(options):
    """The layers of both networks: on a window, and on an image of the first size."""
    size = (options.sizes or SIZES)[0]
    forms = sliding.pair(NgSlidingNet())
    windows.grid(forms.dense.chain(), size, size)  # refuses a size under the window
    found = {
        "sequential": layers(forms.net, forms.variables, forms.net.window),
        "convolutional": layers(forms.dense, forms.converted, size),
    }
    columns = ("layer", "output", "parameters")
    text = [f"{name}\n\n{tables.to_markdown(rows, columns)}" for name, rows in found.items()]
    return "\n\n".join(text), found


def layers(net, variables, size, channels=3):
    """Rows of name, output shape and parameters of the layers of a network, and of their sum."""
    rows = [{"layer": "input", "output": [size, size, channels], "parameters": 0}]
    for part in net.plan():
        size, channels = windows.output_size((part.layer,), size), part.width or channels
        flat = part.dense and net.form == "sequential"
        output = [channels] if flat else [size, size, channels]
        leaves = jax.tree.leaves(variables["params"].get(part.name, {}))
        count = sum(leaf.size for leaf in leaves)
        rows.append({"layer": part.name, "output": output, "parameters": count})
    return [*rows, {"layer": "sum", "parameters": sum(row["parameters"] for row in rows)}]


def check(options):
    """Where both forms agree: the seed's cases, or --arch at --multiscale."""
    cases = [
        agreement.Case(arch, options.window, options.stride, size)
        for arch in options.arch
        for size in options.sizes or CHECKED
    ]
    rows = agreement.check(cases or agreement.CASES)
    return agreement.text(rows), {"rows": rows}


def explain(options):
    """The written answers."""
    return answers.text(), {}


def keep(options, parts):
    """Write the JSON record."""
    rows = parts.pop("rows", [])
    if any(row.get("library") == "torch" and "form" in row for row in rows):
        from benchmarks.torch_refs import sliding as peer

        parts["torch"] = peer.about()
    harness.write(NAME, rows, options.json, jax.devices(), options=options, **parts)


if __name__ == "__main__":
    sys.exit(main())
