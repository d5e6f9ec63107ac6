"""The ways to apply a window network to every window of a batch of images, timed in turns.

loop: one window a call.  chunks: many windows a call.  convolutional: one call.  Each in jax and,
where it is installed, in PyTorch on the CPU.  All start from the images, so that cutting windows is
part of what is timed.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import harness, slide
from jaxdet.models.sliding import multiply_adds
from jaxdet.ops import windows
from jaxdet.profiling import timing

FORMS = ("loop", "chunks", "convolutional")
LIBRARIES = ("jax", "torch")


class Scene(NamedTuple):
    """What all ways of one comparison work on."""

    forms: slide.Pair
    images: np.ndarray  # [B, H, W, C]
    stride: int
    places: tuple[int, int, int]  # images, rows and columns of windows
    parts: dict[str, list]  # pieces of `loop` and `chunks`


class Way(NamedTuple):
    """A library and form that has run once."""

    row: dict
    call: Callable
    share: float  # of all windows that a call covers


def scene(forms, images, chunk, sample):
    """Images with the pieces that they are slid in: see `slide.pieces` and `slide.singles`."""
    stride = windows.receptive_field(forms.net.chain()).stride
    seen = slide.grid(forms.net, images.shape, stride)
    parts = {
        "loop": slide.singles(forms.net, images.shape, stride, sample),
        "chunks": slide.pieces(forms.net, images.shape, stride, chunk),
    }
    return Scene(forms, images, stride, (len(images), seen.rows, seen.columns), parts)


def compare(scene, libraries, seconds):
    """One row for each library and form; `seconds` is for the repeats of each."""
    plans = [plan(scene, library, form) for library in libraries for form in FORMS]
    ways = [harness.within_memory(prepare, scene, plan) for plan in plans]
    ready = [way for way in ways if way]
    taken = timing.sample_interleaved([way.call for way in ready], seconds=seconds)
    for way, times in zip(ready, taken, strict=True):
        way.row.update(timed(way, times))
    return [
        way.row if way else {**plan, "note": "out of memory"}
        for way, plan in zip(ways, plans, strict=True)
    ]


def plan(scene, library, form):
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
    form, builders = plan["form"], {"jax": in_jax, "torch": in_torch}
    if form == "convolutional":
        slide.need(scene.forms.dense, scene.images.shape)
    call, compile_s = builders[plan["library"]](scene, form)
    begun = harness.first(call)
    peak = None if begun.peak is None else begun.peak / 2**20
    share = plan["timed_windows"] / plan["windows"]
    places = scene.places if share == 1 else (plan["timed_windows"],)
    value = begun.value if form == "convolutional" else slide.assemble(begun.value, places)
    row = {"compile_s": compile_s, "peak_mib": peak, "peak_of": begun.source}
    return Way({**plan, **row, "output": list(value.shape)}, call, share)


def timed(way, times):
    """The part of a row that timing gives: seconds for all windows of the batch."""
    found = timing.summarize(0.0, times)
    return {
        "seconds": found.median / way.share,
        "spread_s": found.spread / way.share,
        "repeats": found.repeats,
    }


def in_jax(scene, form):
    """(call, seconds to compile) of a form in jax."""
    forms, images = scene.forms, jax.device_put(scene.images)
    if form == "convolutional":
        program, seconds = harness.compiled(forms.dense.apply, forms.converted, images)
        return partial(program, forms.converted, images), seconds
    parts = scene.parts[form]
    made, seconds = slide.programs(forms.net, scene.stride, forms.variables, images, parts)
    return partial(slide.run, made, forms.variables, images, parts), seconds


def in_torch(scene, form):
    """(call, None) of a form in PyTorch, which has nothing to compile."""
    from benchmarks.peers import sliding as peer

    forms, images = scene.forms, peer.images(scene.images)
    sequential, convolutional = peer.networks(forms.converted["params"])
    if form == "convolutional":
        return partial(peer.convolve, convolutional, images), None
    window, parts = forms.net.window, scene.parts[form]
    return partial(peer.slide, sequential, images, parts, window, scene.stride), None


def torch_missing(wanted):
    """Why PyTorch is not compared, or None if it is."""
    if not wanted:
        return "not asked for"
    if find_spec("torch") is None:
        return "not installed"
    return None if jax.default_backend() == "cpu" else "compared on the CPU only"


def ratios(forms, size, rows):
    """Multiply-adds of both forms on one image, and how many times longer sliding took."""
    cost = {form.form: multiply_adds(form, size, size) for form in (forms.net, forms.dense)}
    seconds = {f"{row['library']}_{row['form']}": row.get("seconds") for row in rows}
    found = {
        f"{library}_{form}": _ratio(seconds, f"{library}_{form}", f"{library}_convolutional")
        for library in LIBRARIES
        for form in ("loop", "chunks")
    }
    return {
        "size": size,
        **cost,
        "multiply_adds": cost["sequential"] / cost["convolutional"],
        **found,
        "jax_torch": _ratio(seconds, "jax_convolutional", "torch_convolutional"),
    }


def _ratio(seconds, long, short):
    """Quotient of two times; None where one was not taken."""
    long, short = seconds.get(long), seconds.get(short)
    return long / short if long and short else None
