"""Single layers, forward and with gradients: jaxdet against PyTorch.

    python -m benchmarks.layers --batch 16 --json FILE --markdown FILE
    python -m benchmarks.layers --layers conv3 depthwise3 --impl lax

Prints two rows per layer: median time of jaxdet and of PyTorch (eager, channels-last) with
interquartile ranges, the ratio of the medians (below 1 jaxdet is faster), and the operations of the
layer by `jaxdet.flops`, whichever algorithm computes it. Both libraries start from the same numbers
and are timed interleaved. `difference` is the largest difference of their results, gradients
included, as a fraction of the largest value of the same array.

The backward pass computes gradients for the parameters and, except for the first layer of a network
(`conv7_stride2`), for the input. Batch norm is in training mode. On a GPU there are rows in TF32
and in bfloat16 as well, see `benchmarks.lib.precision`, with the fraction of the peak of a large
matrix product in that precision.

`docs/benchmarks.md` lists attempts to make convolutions and pools faster on a CPU.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import harness, precision, units
from benchmarks.lib.precision import Precision
from benchmarks.lib.single_layers import (
    DIRECTIONS,
    LAYERS,
    LayerCase,
    SingleLayer,
    passes,
    random_case,
)
from jaxdet import flops
from jaxdet.kernels import compiler, conv
from jaxdet.profiling import timing

NAME = "layers"
COLUMNS = {
    "layer": "layer",
    "shape": "input",
    "output": "output",
    "type": "type",
    "direction": "pass",
    "jaxdet_s": ("jaxdet", "s"),
    "jaxdet_spread": ("spread", "s"),
    "torch_s": ("PyTorch", "s"),
    "torch_spread": ("spread", "s"),
    "ratio": "jaxdet / PyTorch",
    "difference": "difference",
    "operations": ("operations", ""),
    "operations_per_s": ("jaxdet op/s", ""),
    "percent_of_peak": "% of peak",
    "repeats": "repeats",
    "note": "note",
}


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Single layers, forward and with gradients, in jaxdet and in PyTorch."""

    layers: tuple[str, ...] = ()
    """layers to time; all by default"""
    batch: int = 16
    """images per call"""
    impl: conv.Impl = "auto"
    """how jaxdet computes convolutions, see jaxdet.kernels.conv; lax is XLA's own convolution"""
    seconds: float = 0.5
    """seconds for which each library, layer and pass (forward, and forward with backward) is timed;
    at least three calls are made"""
    torch: bool = True
    """time PyTorch as well, if it is installed"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_known("--layers", options.layers, tuple(LAYERS))
    harness.require_positive(options, "batch")
    missing = harness.torch_unavailable(options.torch)
    rows, extra = [], {}
    for name in options.layers or LAYERS:
        print(f"layer {name}", file=sys.stderr, flush=True)
        rows += compare(name, options, with_torch=not missing)
    if missing:
        rows.append({"layer": "torch", "note": missing})
    else:
        from benchmarks.torch_refs import backend

        extra["torch"] = backend.describe()
    if jax.default_backend() == "gpu":
        add_percent_of_peak(rows)
    harness.publish(NAME, options, render, rows, **extra)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record: one row per layer and type."""
    merged: dict[tuple, dict] = {}
    for row in record["rows"]:
        place = merged.setdefault((row["layer"], row.get("type")), {})
        suffix = {DIRECTIONS[0]: "", DIRECTIONS[1]: "_2"}.get(row.get("direction"), "")
        place |= {f"{name}{suffix}": value for name, value in row.items()}
    columns = {
        "layer": "layer",
        "shape": "input",
        "output": "output",
        "type": "type",
        "jaxdet_s": ("jaxdet, forward", "s"),
        "torch_s": ("PyTorch, forward", "s"),
        "ratio": "ratio",
        "jaxdet_s_2": ("jaxdet, forward + backward", "s"),
        "torch_s_2": ("PyTorch, forward + backward", "s"),
        "ratio_2": "ratio",
        "note": "note",
    }
    return units.markdown_table(merged.values(), columns)


def compare(name: str, options: Options, *, with_torch: bool) -> Iterator[dict[str, Any]]:
    """Rows of both passes of a layer, in each type that suits the device."""
    case = random_case(LAYERS[name], options.batch)
    for chosen in get_args(Precision) if jax.default_backend() == "gpu" else ("float32",):
        for direction in DIRECTIONS:
            row = {"layer": name, "shape": list(case.x.shape), "type": chosen}
            row |= {"output": list(case.cotangent.shape), "direction": direction}
            with jax.default_matmul_precision(precision.MATMUL[chosen]):
                yield row | _measure(case, direction, chosen, options, with_torch)


def jax_call(case: LayerCase, direction: str, chosen: Precision, impl: conv.Impl) -> tuple:
    """A pass in jaxdet: (call, function from its result to named arrays, number of operations)."""
    index = DIRECTIONS.index(direction)
    params = jax.device_put(case.variables.get("params", {}))
    dtype = precision.dtype(chosen)
    args = params, *(jnp.asarray(a, dtype) for a in (case.x, case.cotangent)[: 1 + index])
    convolve = partial(conv.conv_general_dilated, impl=impl)
    net = SingleLayer(case.layer, convolve, dtype)
    nets = net, net.clone(conv_general_dilated=None)
    run, counted = (passes(each, case.variables)[index] for each in nets)
    operations = flops.count(counted, *args).sum().total()
    return partial(compiler.jit(run), *args), named_arrays, operations


def torch_call(case: LayerCase, direction: str, chosen: Precision = "float32") -> tuple:
    """A pass in PyTorch: (call, function from its result to named arrays)."""
    from benchmarks.torch_refs import backend
    from benchmarks.torch_refs import layers as torch_layers

    place = backend.device()
    backend.set_precision(chosen)
    params = case.variables.get("params", {}).get("part", {})
    net = torch_layers.build_module(case.layer, params).to(place)
    x, cotangent = (
        torch_layers.to_tensor(array).to(place, backend.layer_dtype(chosen))
        for array in (case.x, case.cotangent)
    )
    if direction == DIRECTIONS[0]:
        run = partial(torch_layers.forward, net, x)
    else:
        x.requires_grad_(not case.layer.first)
        run = partial(torch_layers.forward_backward, net, x, cotangent)

    def call():
        with backend.autocast(chosen, place):
            return run()

    return backend.blocked(call, place), lambda result: torch_layers.named_arrays(net, *result)


def named_arrays(result: tuple) -> dict[str, jax.Array]:
    """Output of a pass in jaxdet and, if it includes the backward pass, the gradients, by name."""
    out, _, *gradients = result
    params, *x = gradients[0] if gradients else ({},)
    return {"output": out, **params.get("part", {}), **dict(zip(("input",), x, strict=False))}


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Largest difference of equally named arrays, as a fraction of the array's largest value."""
    assert found.keys() == expected.keys(), (found.keys(), expected.keys())
    pairs = [(np.asarray(found[name]), np.asarray(expected[name])) for name in found]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def add_percent_of_peak(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row the percentage that it reached of the device's peak in its type."""
    peak = {chosen: precision.matmul_peak(chosen) for chosen in {row.get("type") for row in rows}}
    for row in rows:
        if "operations_per_s" in row:
            row["percent_of_peak"] = 100 * row["operations_per_s"] / peak[row["type"]]


def _measure(case, direction, chosen, options, with_torch):
    """Time a pass of a layer in both libraries; returns the measured columns of its row."""
    call, arrays, operations = jax_call(case, direction, chosen, options.impl)
    calls = (
        [(call, arrays), torch_call(case, direction, chosen)] if with_torch else [(call, arrays)]
    )
    times = timing.measure_interleaved(*(run for run, _ in calls), seconds=options.seconds)
    row = {"jaxdet_s": times[0].median, "jaxdet_spread": times[0].spread}
    if with_torch:
        row |= {"torch_s": times[1].median, "torch_spread": times[1].spread}
        row["ratio"] = times[0].median / times[1].median
        row["difference"] = largest_difference(*(named(run()) for run, named in calls))
    row |= {"operations": operations, "operations_per_s": operations / times[0].median}
    return row | {"repeats": times[0].repeats, "compile_s": times[0].compile_s}


if __name__ == "__main__":
    sys.exit(main())
