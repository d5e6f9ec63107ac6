"""One training step of every model: jaxdet against PyTorch, in the same run.

    python -m benchmarks.train_step --models digits resnet18_64 resnet18_224 --json FILE

A step is the forward pass, the loss, the gradient and AdamW, batch norm in training, on a batch
that is in memory: `train_step` compiled for one device, the same with `pmap` on all
devices where there are several, PyTorch as it is and compiled.  `digits` is the default locator
(batch 32) without its drawing of canvases, `digits_drawn` with it (jaxdet only), `digits_wide` the
network of the MNIST figure (batch 64); `resnet18_64` and `resnet18_224` have batch 16 and the side
of their images in their name.  All ways of a model take turns.  The last column is the time over
that of PyTorch as it is: below 1 is faster.

On 2 CPU cores with XLA's flag, time / PyTorch, in two to six runs each:

| model | lax | convolutions | + max pools | + large pages |
|---|---|---|---|---|
| digits | 1.25 to 1.26 | 0.99 to 1.25 | the same | 0.81 to 1.03 |
| digits_wide | 1.31 to 1.55 | 1.14 to 1.31 | the same | 1.07 to 1.12 |
| resnet18_64 | 7.7 | 0.86 to 0.97 | 0.78 | 0.68 to 0.84 |
| resnet18_224 | 1.30 | 1.22 to 1.42 | 1.23 | 1.03 to 1.30 (without the pools 1.27, 1.37) |

`detect`, the blood cells' network at batch 8 with its first three parts frozen: 1.09 to 1.10 with
all of them; `simple_224` 1.19 and `deeper_112` 1.13, which are 33 and 51 s an epoch of 1,625
photos where PyTorch takes 28 and 45.  `detect_unfrozen` and `detect_frozen` have none and all parts
of the backbone frozen: a step takes 2.63 s with none, 1.99 with three, 0.81 with all of them, so
that freezing saves a quarter and two thirds of it.

The columns of the table are `jaxdet.kernels.conv`, `jaxdet.kernels.pool` and `jaxdet.cli.process`,
one on top of the other.
What is missing where it is above 1 are kernel gradients of 3x3 convolutions over many pixels, 7 to
50 ms where PyTorch takes 3 to 21: see `benchmarks.layers` for what was tried.  At 224 a step has
175 Gop, 1.2 s at the 150 Gop/s of a large matrix product: jaxdet takes 1.62 to 1.66 (the longest
run, 27 steps, 1.23 of PyTorch's), PyTorch 1.25 to 1.37.  PyTorch has the large pages too.
Set OMP_WAIT_POLICY=passive: its spinning threads else slow the turn of jaxdet.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import jax

from benchmarks.lib import harness, train_steps
from jaxdet import tables
from jaxdet.errors import InputError
from jaxdet.profiling import timing

NAME = "train_step"
WAYS = ("jit", "pmap", "torch", "torch_compiled")
COLUMNS = {
    "model": "model",
    "batch": "batch",
    "side": "side",
    "way": "way",
    "compile_s": "first call s",
    "median": "median s",
    "spread": "spread s",
    "repeats": "repeats",
    "images_per_s": "images / s",
    "ratio": "time / PyTorch",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """One training step of every model, jaxdet against PyTorch."""

    models: tuple[str, ...] = tuple(train_steps.MODELS)
    """models to time"""
    batch: int = 0
    """images a step; 0 is each model's own"""
    impl: Literal["auto", "lax"] = "auto"
    """how jaxdet computes convolutions"""
    compiled: bool = True
    """time PyTorch's compiler too, which takes a minute a model"""
    bfloat16: bool = False
    """compute in bfloat16, jaxdet only"""
    seconds: float = 3.0
    """time for the repeats of each way; three repeats are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Time, print, write."""
    unknown = [name for name in options.models if name not in train_steps.MODELS]
    if unknown or options.batch < 0:
        raise InputError(
            f"--models {unknown}: known are {', '.join(train_steps.MODELS)}; --batch >= 0"
        )
    rows = [row for name in options.models for row in compare(name, options)]
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def compare(name, options):
    """Rows of all ways of one model."""
    work = train_steps.workload(name, options.batch, options.impl, options.bfloat16)
    about = {"model": name, "batch": work.batch, "side": work.side}
    ready, rows = {}, []
    for way in WAYS:
        reason = missing(way, work, options)
        if reason:
            rows.append({**about, "way": way, "note": reason})
            continue
        try:
            ready[way] = (call := train_steps.BUILDERS[way](work)), timing.timed(call)[1]
        except Exception as error:  # PyTorch's compiler fails in many ways: each is a row
            rows.append({**about, "way": way, "note": f"failed: {str(error).splitlines()[0]}"})
    taken = timing.sample_interleaved([call for call, _ in ready.values()], seconds=options.seconds)
    for (way, (_, begun)), times in zip(ready.items(), taken, strict=True):
        found = timing.summarize(begun, times)
        speed = {"images_per_s": work.batch / found.median}
        rows.append({**about, "way": way, **found._asdict(), **speed})
    return with_ratios(sorted(rows, key=lambda row: WAYS.index(row["way"])))


def with_ratios(rows):
    """Rows with their time over that of PyTorch as it is."""
    peer = next((row["median"] for row in rows if row["way"] == "torch" and "median" in row), None)
    ratios = [row["median"] / peer if peer and "median" in row else None for row in rows]
    return [{**row, "ratio": ratio} for row, ratio in zip(rows, ratios, strict=True)]


def missing(way, work, options):
    """Why a way is not timed, or None."""
    if way == "pmap":
        return None if len(jax.devices()) > 1 else "one device"
    if not way.startswith("torch"):
        return None
    if work.peer is None or options.bfloat16:
        return "jaxdet only"
    if find_spec("torch") is None:
        return "not installed"
    if jax.default_backend() != "cpu":
        return "compared on the CPU only"
    return "not asked for" if way == "torch_compiled" and not options.compiled else None


if __name__ == "__main__":
    sys.exit(main())
