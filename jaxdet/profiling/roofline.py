"""Measured time of each layer of a network, and what the device could do at most.

Each layer is compiled and timed by itself, on random numbers.  Within a whole network the compiler
joins neighbours, so that the whole takes less than the sum of its layers; both are measured.
Bytes are what a layer reads and writes at least: its inputs, weights and outputs, once each.  A
layer that fits into a cache can be above the roof, which is that of main memory.
The roofline model is that of Williams, Waterman and Patterson 2009.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxdet import flops
from jaxdet.plots import training as training_plots
from jaxdet.profiling import summary, timing

SECONDS_PER_LAYER = 0.2  # for the repeats of each layer
MATRIX_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the square matrices that are multiplied
COPY_LENGTH = {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28}  # numbers that are copied


class LayerJaxpr(NamedTuple):
    """The equations of one layer in one direction, as a jaxpr of their own."""

    path: str
    direction: str
    jaxpr: core.Jaxpr


class DevicePeaks(NamedTuple):
    """What a device was seen to do at most."""

    operations_per_s: float  # additions and multiplications of a large matrix product
    bytes_per_s: float  # read and written by a large copy


def add(rows, found, picture):
    """Measure a `Network`, add what was found to its rows, draw the plot; returns notes on both."""
    measured, top, seconds = time_layers(found), measure_peaks(), time_network(found)
    for row in rows[:-1]:
        row |= measured.get(row["layer"].replace(summary.ROOT, ""), {})
    for key in ("forward_s", "backward_s", "bytes"):
        rows[-1][key] = sum(row.get(key, 0) for row in rows[:-1])
    for row in rows:
        taken = row.get("forward_s", 0) + row.get("backward_s", 0)
        if taken:
            row["operations_per_s"] = row["total"] / taken
    training_plots.roofline(rows[:-1], top, picture)
    device = jax.devices()[0].device_kind
    return [
        f"whole pass, compiled as one: {seconds:.4g} s, {rows[-1]['total'] / seconds:.4g} op/s",
        f"ceilings on {device}: {top.operations_per_s:.4g} op/s in a matrix product, "
        f"{top.bytes_per_s:.4g} byte/s in a copy",
        f"wrote {picture}",
    ]


def split_by_layer(closed):
    """The layers of a closed jaxpr, each in each direction: a list of `Piece`, in order."""
    jaxpr = closed.jaxpr
    groups = {}
    for eqn in flops.live_equations(jaxpr):
        groups.setdefault(flops.scope(eqn), []).append(eqn)
    readers = {}  # variable -> groups that read it; None for the function's own outputs
    for place, eqns in groups.items():
        for var in _variables(var for eqn in eqns for var in eqn.invars):
            readers.setdefault(var, set()).add(place)
    for var in _variables(jaxpr.outvars):
        readers.setdefault(var, set()).add(None)
    for (path, direction), eqns in groups.items():
        made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        read = dict.fromkeys(_variables(var for eqn in eqns for var in eqn.invars))
        body = jaxpr.replace(
            constvars=[],
            invars=[var for var in read if var not in made],
            outvars=[var for var in made if readers.get(var, set()) - {(path, direction)}],
            eqns=eqns,
        )
        yield LayerJaxpr(path, direction, body)


def time_layers(found, *, seconds=SECONDS_PER_LAYER):
    """Measured numbers a layer: {path: {"forward_s", "backward_s", "bytes"}} of a `Network`."""
    measured = {}
    for piece in split_by_layer(found.trace()):
        row = measured.setdefault(summary.relative_path(piece.path), {"bytes": 0})
        key = f"{piece.direction}_s"
        row[key] = row.get(key, 0.0) + _seconds(core.ClosedJaxpr(piece.jaxpr, ()), seconds)
        row["bytes"] += sum(map(_bytes, [*piece.jaxpr.invars, *piece.jaxpr.outvars]))
    return measured


def time_network(found, *, seconds=SECONDS_PER_LAYER):
    """Seconds of the whole pass, compiled as one."""
    return _seconds(found.trace(), seconds)


def measure_peaks(*, seconds=1.0, dtype=jnp.float32):
    """The two ceilings of the first device; `dtype` is that of the matrix product."""
    kind = jax.default_backend()
    side, length = MATRIX_SIZE.get(kind, 2048), COPY_LENGTH.get(kind, 2**26)
    matrix = jnp.ones((side, side), dtype)
    product = timing.measure(jax.jit(jnp.matmul), matrix, matrix, seconds=seconds).median
    copied = timing.measure(jax.jit(lambda x: x + 1), jnp.ones(length), seconds=seconds).median
    return DevicePeaks((2 * side - 1) * side**2 / product, 2 * 4 * length / copied)


def _seconds(closed, seconds):
    """Seconds of a closed jaxpr on random numbers; nothing where it makes nothing."""
    if not closed.jaxpr.outvars:
        return 0.0
    run = jax.jit(core.jaxpr_as_fun(closed))
    return timing.measure(run, *_random(closed.jaxpr.invars), seconds=seconds).median


def _random(variables):
    """An array on the device for each variable: small random numbers, zeros where whole."""
    draw = np.random.default_rng(0)
    return [jax.device_put(_array(draw, var.aval)) for var in variables]


def _array(draw, aval):
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), aval.shape or ())
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, aval.dtype)
    return draw.uniform(0.1, 1, aval.shape).astype(aval.dtype)


def _bytes(var):
    aval = var.aval
    known = not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    return aval.size * (aval.dtype.itemsize if known else 0)


def _variables(atoms):
    return (atom for atom in atoms if not isinstance(atom, core.Literal))
