"""Measured time of each layer of a network, and the peak performance of the device.

Layers are compiled and timed one by one, on random inputs.  In the whole network the compiler fuses
neighboring layers, so that the whole takes less time than the sum; both are measured.  The bytes
of a layer are the least that it has to move: its inputs, weights and outputs, once each.  A layer
whose data fit into a cache can exceed the roofline, which assumes the speed of the main memory.
Williams, Waterman and Patterson 2009, the roofline model.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.typing import DTypeLike

from jaxdet import flops
from jaxdet.kernels import compiler
from jaxdet.profiling import summary, timing

SECONDS_PER_LAYER = 0.2
MATRIX_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # side of the square matrices multiplied
COPY_LENGTH = {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28}  # float32 numbers copied


class LayerJaxpr(NamedTuple):
    """The equations of one layer in one pass, as a separate jaxpr.

    direction: the pass, "forward" or "backward".
    """

    path: str
    direction: str
    jaxpr: core.Jaxpr


class DevicePeaks(NamedTuple):
    """Peak performance that was measured on a device."""

    operations_per_s: float  # additions and multiplications of a large matrix product
    bytes_per_s: float  # read and written by a large copy


class Roofline(NamedTuple):
    """Time of a whole network and peaks of the device."""

    seconds: float  # one pass, compiled as a whole
    peaks: DevicePeaks


def measure(network: summary.NetworkSummary, rows: list[dict[str, Any]]) -> Roofline:
    """Time the network and its layers, and add the times to `rows` of `summary.table_rows`.

    Rows are changed in place.  The row of a layer that was timed gets `forward_s`, `backward_s` (if
    it has a backward pass), `bytes` and `operations_per_s`.  The last row gets the sums of the
    first three over all layers, and the total operations divided by the total seconds.
    """
    layers, seconds = time_layers(network), time_network(network)
    for row in rows[:-1]:
        row |= layers.get(row["layer"].replace(summary.ROOT, ""), {})
    for key in ("forward_s", "backward_s", "bytes"):
        rows[-1][key] = sum(row.get(key, 0) for row in rows[:-1])
    for row in rows:
        taken = row.get("forward_s", 0) + row.get("backward_s", 0)
        if taken:
            row["operations_per_s"] = row["total"] / taken
    return Roofline(seconds, measure_peaks())


def notes(measured: Roofline, rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on the whole network and the device, to be printed below the table."""
    operations, peaks = rows[-1]["total"], measured.peaks
    return [
        f"whole pass, compiled as one program: {measured.seconds:.4g} s, "
        f"{operations / measured.seconds:.4g} op/s",
        f"measured peaks of {jax.devices()[0].device_kind}: {peaks.operations_per_s:.4g} op/s in a "
        f"matrix product, {peaks.bytes_per_s:.4g} byte/s in a copy",
    ]


def split_by_layer(closed: core.ClosedJaxpr) -> Iterator[LayerJaxpr]:
    """The layers of a closed jaxpr, forward and backward apart, in order of first appearance."""
    jaxpr = closed.jaxpr
    groups = {}
    for eqn in flops.live_equations(jaxpr):
        groups.setdefault(flops.scope(eqn), []).append(eqn)
    readers = {}  # variable -> groups that read it; None stands for the outputs of the jaxpr
    for group, eqns in groups.items():
        for var in _variables(var for eqn in eqns for var in eqn.invars):
            readers.setdefault(var, set()).add(group)
    for var in _variables(jaxpr.outvars):
        readers.setdefault(var, set()).add(None)
    for (path, direction), eqns in groups.items():
        written = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        read = dict.fromkeys(_variables(var for eqn in eqns for var in eqn.invars))
        body = jaxpr.replace(
            constvars=[],
            invars=[var for var in read if var not in written],
            outvars=[var for var in written if readers.get(var, set()) - {(path, direction)}],
            eqns=eqns,
        )
        yield LayerJaxpr(path, direction, body)


def time_layers(
    network: summary.NetworkSummary, *, seconds: float = SECONDS_PER_LAYER
) -> dict[str, dict[str, float]]:
    """Seconds and bytes of each layer: {path: {"forward_s", "backward_s", "bytes"}}.

    A layer without a backward pass has no "backward_s".

    seconds: time for which each pass of each layer is repeated.
    """
    measured = {}
    for layer in split_by_layer(network.trace()):
        row = measured.setdefault(summary.relative_path(layer.path), {"bytes": 0})
        key = f"{layer.direction}_s"
        row[key] = row.get(key, 0.0) + _time(core.ClosedJaxpr(layer.jaxpr, ()), seconds)
        row["bytes"] += sum(map(_bytes, [*layer.jaxpr.invars, *layer.jaxpr.outvars]))
    return measured


def time_network(network: summary.NetworkSummary, *, seconds: float = SECONDS_PER_LAYER) -> float:
    """Seconds of one pass of the network, compiled as a whole."""
    return _time(network.trace(), seconds)


def measure_peaks(*, seconds: float = 1.0, dtype: DTypeLike = jnp.float32) -> DevicePeaks:
    """Peaks of the first device; `dtype` is the type of the matrices, the copy is float32."""
    length = COPY_LENGTH.get(jax.default_backend(), 2**26)
    copy = timing.measure(jax.jit(lambda x: x + 1), jnp.ones(length), seconds=seconds).median
    return DevicePeaks(matmul_peak(seconds=seconds, dtype=dtype), 2 * 4 * length / copy)


def matmul_peak(*, seconds: float = 1.0, dtype: DTypeLike = jnp.float32) -> float:
    """Operations per second of a large product of random matrices, in the default precision.

    On a GPU, matrices of ones would be multiplied faster: they take less power.
    """
    side = MATRIX_SIZE.get(jax.default_backend(), 2048)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = timing.measure(jax.jit(jnp.matmul), matrix, matrix, seconds=seconds).median
    return (2 * side - 1) * side**2 / product


def _time(closed, seconds) -> float:
    """Seconds of a closed jaxpr on random inputs; 0 if it has no outputs."""
    if not closed.jaxpr.outvars:
        return 0.0
    run = compiler.jit(core.jaxpr_as_fun(closed))
    rng = np.random.default_rng(0)
    inputs = [jax.device_put(_random_input(rng, var.aval)) for var in closed.jaxpr.invars]
    return timing.measure(run, *inputs, seconds=seconds).median


def _random_input(rng, aval):
    """Random numbers in [0.1, 1], zeros of integer types, or keys."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), aval.shape or ())
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, aval.dtype)
    return rng.uniform(0.1, 1, aval.shape).astype(aval.dtype)


def _bytes(var) -> int:
    aval = var.aval
    known = not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    return aval.size * (aval.dtype.itemsize if known else 0)


def _variables(atoms: Iterable) -> Iterator:
    return (atom for atom in atoms if not isinstance(atom, core.Literal))
