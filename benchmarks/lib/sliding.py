"""Sliding a window network over images, in pieces: the sequential side of the benchmark.

A piece is a part of the images, cut into its windows by `windows.cut` inside the compiled program
of the network; pieces of one size share a program.  A piece of one window makes the loop that
sliding windows are usually written as; larger pieces make batches of bounded memory.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.lib import harness
from jaxdet.models.sliding import multiply_adds, to_convolutional
from jaxdet.ops import windows
from jaxdet.profiling import timing

SPARE = 1.5  # XLA's CPU back end held 1.43 times the bytes of all maps, at 5 x 1080 x 1080


class Piece(NamedTuple):
    """A part of images [B, H, W, C]."""

    start: np.ndarray  # [4], first image, row, column, channel
    size: tuple[int, int, int, int]


class Pair(NamedTuple):
    """The two forms of one network, on the same weights."""

    net: object  # the sequential form
    variables: dict
    dense: object  # the convolutional form
    converted: dict


def pair(net, channels=3, sample=None, seed=0):
    """The two forms of a network with random weights.

    sample: draws an array of a shape from a NumPy generator; bell-shaped weights and biases that
    keep the outputs near 1 by default.
    """
    net, draw = net.clone(form="sequential"), np.random.default_rng(seed)
    x = np.zeros((1, net.window, net.window, channels), np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: (sample or normal)(draw, leaf.shape), shapes)
    variables = jax.device_put(variables)
    return Pair(net, variables, net.clone(form="convolutional"), to_convolutional(net, variables))


def normal(draw, shape):
    """Bell-shaped float32 weights, scaled by how many of them meet in one output."""
    return np.float32(draw.normal(size=shape) / np.prod(shape[:-1]) ** 0.5)


def grid(net, shape, stride):
    """The windows that sliding by `stride` pixels has on images [B, H, W, C]."""
    return windows.grid((windows.conv(net.window, stride),), *shape[1:3])


def pieces(net, shape, stride, chunk):
    """Pieces of images [B, H, W, C] that hold each window once, at most `chunk` where rows allow.

    A piece is several images, or one, or full-width rows of windows of one; it is never less
    than one row.
    """
    seen = grid(net, shape, stride)
    batch, _, width, channels = shape
    images = min(batch, max(1, chunk // (seen.rows * seen.columns)))
    rows = min(seen.rows, max(1, chunk // (seen.columns * images)))
    return [
        Piece(
            np.int32([image, row * stride, 0, 0]),
            (
                min(images, batch - image),
                (min(rows, seen.rows - row) - 1) * stride + net.window,
                width,
                channels,
            ),
        )
        for image in range(0, batch, images)
        for row in range(0, seen.rows, rows)
    ]


def singles(net, shape, stride, count):
    """Pieces of one window each: `count` of those on images [B, H, W, C], evenly spread, or all."""
    seen = grid(net, shape, stride)
    places = (shape[0], seen.rows, seen.columns)
    total = int(np.prod(places))
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    size = (1, net.window, net.window, shape[-1])
    return [
        Piece(np.int32([image, row * stride, column * stride, 0]), size)
        for image, row, column in zip(*np.unravel_index(chosen, places), strict=True)
    ]


def programs(net, stride, variables, images, parts):
    """({size: compiled program}, seconds to compile) for all pieces."""
    made = {
        size: harness.compiled(
            partial(_outputs, net, stride, size), variables, images, np.zeros(4, np.int32)
        )
        for size in {part.size for part in parts}
    }
    return {size: program for size, (program, _) in made.items()}, sum(s for _, s in made.values())


def run(made, variables, images, parts):
    """Outputs [images, rows, columns, outputs] of each piece, one call a piece."""
    return [made[part.size](variables, images, part.start) for part in parts]


def assemble(outputs, places):
    """One array [*places, outputs] of the outputs of pieces, which come in row-major order."""
    flat = [np.asarray(out).reshape(-1, out.shape[-1]) for out in outputs]
    return np.concatenate(flat).reshape(*places, -1)


def both(forms, images, stride, chunk=4096):
    """Outputs of the sequential and of the convolutional form on images [B, H, W, C].

    Computed in full float32 on any device.  Raises MemoryError as `need` does.
    """
    need(forms.dense, images.shape)
    images, seen = jax.device_put(images), grid(forms.net, images.shape, stride)
    with jax.default_matmul_precision("highest"):
        parts = pieces(forms.net, images.shape, stride, chunk)
        made, _ = programs(forms.net, stride, forms.variables, images, parts)
        slid = run(made, forms.variables, images, parts)
        dense = jax.jit(forms.dense.apply)(forms.converted, images)
    return assemble(slid, (len(images), seen.rows, seen.columns)), np.asarray(dense)


def need(net, shape):
    """Raise MemoryError where a convolutional form has no room for images [B, H, W, C].

    XLA's own estimate does not know the buffers inside its fused convolutions.
    """
    harness.need(int(SPARE * map_bytes(net, shape)), jax.devices()[0])


def map_bytes(net, shape):
    """Bytes of all float32 maps that a convolutional form makes of images [B, H, W, C]."""
    batch, *sides, channels = shape
    total = 0
    for part in net.plan():
        sides = [windows.output_size((part.layer,), side) for side in sides]
        channels = part.width or channels
        total += 4 * batch * sides[0] * sides[1] * channels
    return total


def _outputs(net, stride, size, variables, images, start):
    """Outputs of one piece: cut it out, cut its windows, hand them to the network as a batch."""
    part = jax.lax.dynamic_slice(images, tuple(start), size)  # [n, h, W, C]
    seen = grid(net, size, stride)
    cut = jax.vmap(windows.extract, (0, None))(part, seen)  # [n, rows, columns, window, window, C]
    out = net.apply(variables, cut.reshape(-1, *cut.shape[3:]))
    return out.reshape(*cut.shape[:3], -1)


FORMS = ("loop", "chunks", "convolutional")
LIBRARIES = ("jax", "torch")


class Workload(NamedTuple):
    """What all ways of one comparison work on."""

    forms: Pair
    images: np.ndarray  # [B, H, W, C]
    stride: int
    places: tuple[int, int, int]  # images, rows and columns of windows
    parts: dict[str, list]  # pieces of `loop` and `chunks`


class PreparedForm(NamedTuple):
    """A library and form that has run once."""

    row: dict
    call: Callable
    share: float  # of all windows that a call covers


def workload(forms, images, chunk, sample):
    """Images with the pieces that they are slid in: see `slide.pieces` and `slide.singles`."""
    stride = windows.receptive_field(forms.net.chain()).stride
    seen = grid(forms.net, images.shape, stride)
    parts = {
        "loop": singles(forms.net, images.shape, stride, sample),
        "chunks": pieces(forms.net, images.shape, stride, chunk),
    }
    return Workload(forms, images, stride, (len(images), seen.rows, seen.columns), parts)


def compare(scene, libraries, seconds):
    """One row for each library and form; `seconds` is for the repeats of each."""
    plans = [planned_row(scene, library, form) for library in libraries for form in FORMS]
    ways = [harness.within_memory(prepare, scene, plan) for plan in plans]
    ready = [way for way in ways if way]
    taken = timing.sample_interleaved([way.call for way in ready], seconds=seconds)
    for way, times in zip(ready, taken, strict=True):
        way.row.update(timing_columns(way, times))
    return [
        way.row if way else {**plan, "note": "out of memory"}
        for way, plan in zip(ways, plans, strict=True)
    ]


def planned_row(scene, library, form):
    """The part of a row that is known before anything runs."""
    total = int(np.prod(scene.places))
    timed = len(scene.parts["loop"]) if form == "loop" else total
    return {
        "size": scene.images.shape[1],
        "library": library,
        "form": form,
        "windows": total,
        "timed_windows": timed,
        "note": "extrapolated" if timed < total else None,
    }


def prepare(scene, plan):
    """Compile a way and run it once.  Raises MemoryError where it cannot fit."""
    form, builders = plan["form"], {"jax": jax_call, "torch": torch_call}
    if form == "convolutional":
        need(scene.forms.dense, scene.images.shape)
    call, compile_s = builders[plan["library"]](scene, form)
    begun = harness.first(call)
    peak = None if begun.peak is None else begun.peak / 2**20
    share = plan["timed_windows"] / plan["windows"]
    places = scene.places if share == 1 else (plan["timed_windows"],)
    value = begun.value if form == "convolutional" else assemble(begun.value, places)
    row = {"compile_s": compile_s, "peak_mib": peak, "peak_of": begun.source}
    return PreparedForm({**plan, **row, "output": list(value.shape)}, call, share)


def timing_columns(way, times):
    """The part of a row that timing gives: seconds for all windows of the batch."""
    found = timing.summarize(0.0, times)
    return {
        "seconds": found.median / way.share,
        "spread_s": found.spread / way.share,
        "repeats": found.repeats,
    }


def jax_call(scene, form):
    """(call, seconds to compile) of a form in jax."""
    forms, images = scene.forms, jax.device_put(scene.images)
    if form == "convolutional":
        program, seconds = harness.compiled(forms.dense.apply, forms.converted, images)
        return partial(program, forms.converted, images), seconds
    parts = scene.parts[form]
    made, seconds = programs(forms.net, scene.stride, forms.variables, images, parts)
    return partial(run, made, forms.variables, images, parts), seconds


def torch_call(scene, form):
    """(call, None) of a form in PyTorch, which has nothing to compile."""
    from benchmarks.torch_refs import sliding as peer

    forms, images = scene.forms, peer.images(scene.images)
    sequential, convolutional = peer.networks(forms.converted["params"])
    if form == "convolutional":
        return partial(peer.convolve, convolutional, images), None
    window, parts = forms.net.window, scene.parts[form]
    return partial(peer.slide, sequential, images, parts, window, scene.stride), None


def cost_ratios(forms, size, rows):
    """Multiply-adds of both forms on one image, and how many times longer sliding took."""
    cost = {form.form: multiply_adds(form, size, size) for form in (forms.net, forms.dense)}
    seconds = {f"{row['library']}_{row['form']}": row.get("seconds") for row in rows}
    found = {
        f"{library}_{form}": _quotient(seconds, f"{library}_{form}", f"{library}_convolutional")
        for library in LIBRARIES
        for form in ("loop", "chunks")
    }
    return {
        "size": size,
        **cost,
        "multiply_adds": cost["sequential"] / cost["convolutional"],
        **found,
        "jax_torch": _quotient(seconds, "jax_convolutional", "torch_convolutional"),
    }


def _quotient(seconds, long, short):
    """Quotient of two times; None where one was not taken."""
    long, short = seconds.get(long), seconds.get(short)
    return long / short if long and short else None
