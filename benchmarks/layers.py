"""Single layers, forward and forward with backward: jaxdet against PyTorch in the same run.

    python -m benchmarks.layers --batch 16 --json FILE --markdown FILE
    python -m benchmarks.layers --layers conv3 depthwise3 --impl lax

Prints a Markdown table, two rows a layer: the median seconds of jaxdet and of PyTorch (eager, on
the CPU, channels-last) with their interquartile ranges, the ratio of the medians (below 1 jaxdet is
faster), the operations of the layer by `ops.flops`, and how many of them jaxdet does a second.
Both libraries start from the same numbers and take turns.  `difference` is the largest one between
their results, gradients included, as a share of the largest number.

The backward pass gives the gradient by the parameters, and by the input except of a network's first
layer (`conv7_stride2`, which has images for input).  Batch norm is that of training.  `--impl` says
how jaxdet convolves: see `ops.conv`.  Operations are those of the layer on paper, whatever the way.

On a GPU there are rows in bfloat16 too, and the share of the fastest large matrix product of that
type that was seen (in float32 both may use TF32); PyTorch is compared on the CPU only.
PyTorch's threads spin while they wait: unless OMP_WAIT_POLICY=passive is set, that takes about 0.1
ms from the call whose turn is next.

On 2 CPU cores with the flag and large pages (`jaxdet.cli.process`), time / PyTorch, outputs and
then with gradients, in two to four quiet runs: 3x3 1.24 to 1.30 and 1.21 to 1.57, its 2 x 2 map
0.64 and 0.43, 1x1 1.02 to 1.06 and 1.14 to 1.26, depthwise 1.58 to 2.24 and 2.16 to 2.59, 7x7
with stride 2 1.34 to 1.54 and 1.66 to 1.73, batch norm 0.71 and 0.98, max pool 0.64 and 1.03.
Their limits, by
multiply-adds over the 150 Gop/s of a large matrix product: 1x1 with gradients takes 51 ms where
4.9 Gop could take 33 and PyTorch takes 40 to 46; depthwise is bound by memory, 13 MB read and
written once, 4 ms of copies at 6 GB/s where it takes 3.6 to 4.3 and PyTorch 1.9 to 2.3.

What was tried, XLA's flag set, without large pages, milliseconds; a large matrix product does 130
to 200 Gop/s here, a copy moves 6 GB/s, and the figures themselves move by a quarter from run to
run:
- depthwise 3x3, 16 x 56 x 56 x 64, outputs: lax 160 to 300; shifts 5 to 9; with the padded image
  kept 6; with columns and channels as one axis 5.2; PyTorch 2.8; a copy of the input 2.4.
- its gradient by the kernel: lax 44 to 180; the transpose of the shifts 63; nine products and sums
  67; products as a dot with ones 14 to 77; one reduction of nine values 61; flat offsets 98; a sum
  over the batch axis 370 to 500; one image after the other with nine sums 22; images added in
  pairs, doubling as often as there are images, columns and channels as one axis, 8 (what `auto`
  does).  XLA sums slowly over all pixels of several images, and adds two halves quickly.
- depthwise 5x5, 8 x 64 x 80 x 144, between 1x1 convolutions with batch norm in training, its
  gradients: 1,700 to 1,900, as XLA wrote the sum of slices into all that reads it; with barriers or
  divided by a one that XLA cannot know, the same; out of a conditional (`ops.ways.once`) 194 to
  235.  A step of the detector with Lite0 at 256 x 320, batch 8, nothing frozen: 5.6 s, then 1.55.
- 1x1, 16 x 56 x 56 x 64 to 256, outputs and gradients: lax 88; a product of four axes 118, of two
  81 (what `auto` does); PyTorch 59 to 62.  At 6 x 6 x 192 to 192, batch 64: 10, 7.5, 6.9; 5.3 to 9.
- 3x3 kernel gradient, 16 x 56 x 56 x 64: lax 50 (PyTorch 21); in chunks of 8, 4, 1 images 51, 64,
  118; patches 176; a product a row of taps 145, a tap 156.  At 64 x 14 x 14 x 48 to 64: lax 7.8; in
  chunks of 32, 16, 4 images 6.8, 6.3, 6.0; PyTorch 3.3.  Matrix products that sum over many pixels
  do 40 to 120 Gop/s here: that is the limit.
  Of ten other shapes, 7 x 7 to 56 x 56, chunks of images make one faster (by a third) and seven
  slower, so that `auto` has none.
- max pool 3x3, stride 2, 16 x 112 x 112 x 64, gradient: lax 304 (202 with large pages); pixels that
  ask their windows 30 (18), and as much again to share ties.  Of 4x4 on 32 x 224 x 224 x 32: lax
  669; a slice a tap 1,450; the maximum of a reshaped map 390; pixels asking 88 to 115.
- YNNPACK off for products as well as for convolutions (`-individual_dot`, or `-dot` too): 1x1 with
  gradients 1.06 to 1.10 of PyTorch's time instead of 1.14 to 1.26, 400 to 400 channels over 5 x 354
  x 354 pixels 1.3 s instead of 2.0; but a dense layer of 1024 to 1024 over 16 rows with gradients
  takes 3 to 4 times PyTorch's time instead of 1.3, and training steps do not change.  Left alone.
- memory: a copy of 205 MB 87 and 52 with large pages; malloc told to keep what it has, 100.
- 2 x 2 x 512, 3x3, batch 16: lax 260 forward and 260 by the image; patches 4.5 and 3.9; PyTorch 7.
- 6x6 with stride 2 over 2 channels, 64 x 64 x 64: lax 10; in blocks of 2 x 2 pixels 2.7; PyTorch 2.
  4x4 with stride 2 over 24 channels by the image 14.7, in blocks 3.8; PyTorch 5.4.
"""

import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import harness
from benchmarks.lib.single_layers import DIRECTIONS, LAYERS, Single, numbers, passes
from jaxdet import flops, tables
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.profiling import roofline, timing

NAME = "layers"
COLUMNS = {
    "layer": "layer",
    "shape": "input",
    "output": "output",
    "type": "type",
    "direction": "direction",
    "jaxdet_s": "jaxdet s",
    "jaxdet_spread": "spread s",
    "torch_s": "torch s",
    "torch_spread": "spread s",
    "ratio": "jaxdet / torch",
    "difference": "difference",
    "operations": "operations",
    "operations_per_s": "jaxdet op/s",
    "share": "share of peak %",
    "repeats": "repeats",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Single layers, forward and backward, in jaxdet and in PyTorch."""

    layers: tuple[str, ...] = ()
    """names of layers; all by default"""
    batch: int = 16
    """images a call"""
    impl: conv.Impl = "auto"
    """how jaxdet convolves where it can: see ops.conv; lax is XLA's own convolution"""
    seconds: float = 0.5
    """time for the repeats of each library, layer and direction; three repeats are always made"""
    peers: bool = True
    """time PyTorch too, where it is installed"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Compare, print, write."""
    unknown = [name for name in options.layers if name not in LAYERS]
    if unknown or options.batch < 1:
        raise InputError(f"--layers are of {', '.join(LAYERS)}; --batch starts at 1")
    missing = harness.torch_unavailable(options.peers)
    rows = []
    for name in options.layers or LAYERS:
        print(f"layer {name}", file=sys.stderr, flush=True)
        rows += compare(name, options, peers=not missing)
    more = {}
    if missing:
        rows.append({"layer": "torch", "note": missing})
    else:
        from benchmarks.torch_refs import sliding as peer

        more["torch"] = peer.about()
    if jax.default_backend() == "gpu":
        add_shares(rows)
    told = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows)}
    harness.show(tables.to_markdown(rows, told), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options, **more)


def compare(name, options, *, peers):
    """Rows of both directions of a layer, in every type that the device is asked for."""
    case = numbers(LAYERS[name], options.batch)
    types = ("float32", "bfloat16") if jax.default_backend() == "gpu" else ("float32",)
    for dtype in types:
        for direction in DIRECTIONS:
            about = {"layer": name, "shape": list(case.x.shape), "type": dtype}
            about |= {"output": list(case.cotangent.shape), "direction": direction}
            yield about | timed(case, direction, dtype, options, peers)


def timed(case, direction, dtype, options, peers):
    """What is measured of one row."""
    call, operations = in_jax(case, direction, dtype, options.impl)
    calls = [call, in_torch(case, direction)] if peers else [call]
    taken = timing.measure_interleaved(*(run for run, _ in calls), seconds=options.seconds)
    row = {"jaxdet_s": taken[0].median, "jaxdet_spread": taken[0].spread}
    if peers:
        row |= {"torch_s": taken[1].median, "torch_spread": taken[1].spread}
        row["ratio"] = taken[0].median / taken[1].median
        row["difference"] = difference(*(found(run()) for run, found in calls))
    row |= {"operations": operations, "operations_per_s": operations / taken[0].median}
    return row | {"repeats": taken[0].repeats, "compile_s": taken[0].compile_s}


def in_jax(case, direction, dtype, impl):
    """((call, what it found by name), operations) of a direction in jaxdet."""
    at = DIRECTIONS.index(direction)
    params = jax.device_put(case.variables.get("params", {}))
    args = params, *(jnp.asarray(a, dtype) for a in (case.x, case.cotangent)[: 1 + at])
    net = Single(case.layer, partial(conv.conv_general_dilated, impl=impl), jnp.dtype(dtype))
    nets = net, net.clone(convolve=None)
    run, counted = (passes(each, case.variables, case.layer.first)[at] for each in nets)
    return (partial(jax.jit(run), *args), values), flops.count(counted, *args).sum().total()


def in_torch(case, direction):
    """(call, what it found by name) of a direction in PyTorch."""
    from benchmarks.torch_refs import layers as peer

    net = peer.module(case.layer, case.variables.get("params", {}).get("part", {}))
    if direction == DIRECTIONS[0]:
        call = partial(peer.forward, net, peer.tensor(case.x))
    else:
        x = peer.tensor(case.x, gradient=not case.layer.first)
        call = partial(peer.both, net, x, peer.tensor(case.cotangent))
    return call, lambda result: peer.values(net, *result)


def values(result):
    """{name: array} of what a direction gave in jaxdet."""
    out, _, *gradients = result
    params, *x = gradients[0] if gradients else ({},)
    return {"output": out, **params.get("part", {}), **dict(zip(("input",), x, strict=False))}


def difference(found, expected):
    """The largest difference of two dictionaries of arrays, as a share of the largest number."""
    assert found.keys() == expected.keys(), (found.keys(), expected.keys())
    pairs = [(np.asarray(found[name]), np.asarray(expected[name])) for name in found]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def add_shares(rows):
    """The share of the peak of each type that the rows reached, in percent."""
    top = {t: roofline.measure_peaks(dtype=t).operations_per_s for t in ("float32", "bfloat16")}
    for row in rows:
        if "operations_per_s" in row:
            row |= {"share": 100 * row["operations_per_s"] / top[row["type"]]}


if __name__ == "__main__":
    sys.exit(main())
