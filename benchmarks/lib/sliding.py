"""The three forms of a sliding-window network (loop, chunks, convolutional), timed interleaved.

Sequential sliding works on crops of the images: a crop is cut into windows inside the compiled
program of the network, and crops of one size share a program. Crops of one window give the usual
loop over windows ("loop"); larger crops give batches of bounded memory ("chunks"). The third form
is one convolution of the whole images ("convolutional"). All start from the same images, so that
the extraction of windows is timed as well; each is available in jax and in PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.lib import harness
from jaxdet.models.sliding import SlidingNet, multiply_adds, to_convolutional
from jaxdet.ops import windows
from jaxdet.profiling import timing

FORMS = ("loop", "chunks", "convolutional")
LIBRARIES = ("jax", "torch")
MAP_OVERHEAD = 1.5  # XLA's CPU backend held 1.43 times the bytes of all maps, at 5 x 1080 x 1080

Sampler = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class NetPair(NamedTuple):
    """A network in sequential and in convolutional form, with the same weights."""

    sequential: SlidingNet
    variables: dict
    convolutional: SlidingNet
    converted: dict  # variables of the convolutional form


class Crop(NamedTuple):
    """A part of images [B, H, W, C]."""

    start: np.ndarray  # [4], first image, row, column, channel
    size: tuple[int, int, int, int]


class Workload(NamedTuple):
    """Networks, images and crops of one comparison."""

    pair: NetPair
    images: np.ndarray  # [B, H, W, C]
    stride: int
    shape: tuple[int, int, int]  # images, rows and columns of windows
    crops: dict[str, list[Crop]]  # crops for the forms "loop" and "chunks"


class PreparedForm(NamedTuple):
    """A form in one library, compiled and run once."""

    row: dict[str, Any]
    call: Callable[[], Any]
    fraction: float  # fraction of all windows that one call covers


def scaled_normal(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal float32 weights, scaled by the fan-in so that outputs stay near 1."""
    weights = draw.normal(size=shape) / np.prod(shape[:-1]) ** 0.5
    return weights.astype(np.float32)


def build_pair(
    net: SlidingNet, *, channels: int = 3, sample: Sampler = scaled_normal, seed: int = 0
) -> NetPair:
    """Both forms of a network with random weights, drawn with `sample`."""
    net, draw = net.clone(form="sequential"), np.random.default_rng(seed)
    x = np.zeros((1, net.window, net.window, channels), np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    variables = jax.device_put(jax.tree.map(lambda leaf: sample(draw, leaf.shape), shapes))
    converted = to_convolutional(net, variables)
    return NetPair(net, variables, net.clone(form="convolutional"), converted)


def window_grid(net: SlidingNet, shape: Sequence[int], stride: int) -> windows.Grid:
    """The windows that slide by `stride` pixels over images of shape (B, H, W, C)."""
    return windows.grid((windows.conv(net.window, stride),), *shape[1:3])


def split_into_crops(net: SlidingNet, shape: Sequence[int], stride: int, chunk: int) -> list[Crop]:
    """Crops of images [B, H, W, C] that hold each window once, at most `chunk` windows per crop.

    A crop is several whole images, one whole image, or full rows of windows of one image.  It holds
    at least one row, even if this has more than `chunk` windows.
    """
    grid = window_grid(net, shape, stride)
    batch, _, width, channels = shape
    images = min(batch, max(1, chunk // (grid.rows * grid.columns)))
    rows = min(grid.rows, max(1, chunk // (grid.columns * images)))
    return [
        Crop(
            np.array([image, row * stride, 0, 0], np.int32),
            (
                min(images, batch - image),
                (min(rows, grid.rows - row) - 1) * stride + net.window,
                width,
                channels,
            ),
        )
        for image in range(0, batch, images)
        for row in range(0, grid.rows, rows)
    ]


def single_windows(net: SlidingNet, shape: Sequence[int], stride: int, count: int) -> list[Crop]:
    """Crops of one window each from images [B, H, W, C]: all, or `count` evenly spread ones."""
    grid = window_grid(net, shape, stride)
    whole = (shape[0], grid.rows, grid.columns)
    total = int(np.prod(whole))
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    size = (1, net.window, net.window, shape[-1])
    return [
        Crop(np.array([image, row * stride, column * stride, 0], np.int32), size)
        for image, row, column in zip(*np.unravel_index(chosen, whole), strict=True)
    ]


def compile_crops(
    net: SlidingNet, stride: int, variables: Any, images: jax.Array, crops: Sequence[Crop]
) -> tuple[dict[tuple, Callable], float]:
    """({size: compiled program}, seconds to compile) for the sizes of all crops."""
    compiled = {
        size: harness.compile_call(
            partial(_crop_outputs, net, stride, size), variables, images, np.zeros(4, np.int32)
        )
        for size in {crop.size for crop in crops}
    }
    programs = {size: program for size, (program, _) in compiled.items()}
    return programs, sum(seconds for _, seconds in compiled.values())


def run_crops(
    programs: dict[tuple, Callable], variables: Any, images: jax.Array, crops: Sequence[Crop]
) -> list[jax.Array]:
    """Outputs [images, rows, columns, outputs] of each crop, one call per crop."""
    return [programs[crop.size](variables, images, crop.start) for crop in crops]


def stack_outputs(outputs: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Outputs [*shape, outputs] of crops in row-major order."""
    on_host = (out.cpu() if hasattr(out, "cpu") else out for out in outputs)  # PyTorch, on a GPU
    flat = [np.asarray(out).reshape(-1, out.shape[-1]) for out in on_host]
    return np.concatenate(flat).reshape(*shape, -1)


def run_both(
    pair: NetPair, images: np.ndarray, stride: int, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of both forms on images [B, H, W, C], each [B, rows, columns, outputs].

    The outputs are computed in full float32 on any device. Raises MemoryError as
    `require_map_memory` does.
    """
    require_map_memory(pair.convolutional, images.shape)
    net, grid = pair.sequential, window_grid(pair.sequential, images.shape, stride)
    inputs = jax.device_put(images)
    with jax.default_matmul_precision("highest"):
        crops = split_into_crops(net, images.shape, stride, chunk)
        programs, _ = compile_crops(net, stride, pair.variables, inputs, crops)
        outputs = run_crops(programs, pair.variables, inputs, crops)
        dense = jax.jit(pair.convolutional.apply)(pair.converted, inputs)
    return stack_outputs(outputs, (len(images), grid.rows, grid.columns)), np.asarray(dense)


def require_map_memory(net: SlidingNet, shape: Sequence[int]) -> None:
    """Raise MemoryError if the convolutional form has no room for images [B, H, W, C].

    XLA's own estimate leaves out the buffers inside its fused convolutions.
    """
    harness.require_memory(int(MAP_OVERHEAD * feature_map_bytes(net, shape)), jax.devices()[0])


def feature_map_bytes(net: SlidingNet, shape: Sequence[int]) -> int:
    """Bytes of all float32 feature maps of the convolutional form for images [B, H, W, C]."""
    batch, *sides, channels = shape
    total = 0
    for layer in net.plan():
        sides = [windows.output_size((layer.layer,), side) for side in sides]
        channels = layer.channels or channels
        total += 4 * batch * sides[0] * sides[1] * channels
    return total


def make_workload(pair: NetPair, images: np.ndarray, chunk: int, sample: int) -> Workload:
    """Images with the crops of "loop", at most `sample` of them, and of "chunks".

    chunk: see `split_into_crops`.
    """
    net = pair.sequential
    stride = windows.receptive_field(net.chain()).stride
    grid = window_grid(net, images.shape, stride)
    crops = {
        "loop": single_windows(net, images.shape, stride, sample),
        "chunks": split_into_crops(net, images.shape, stride, chunk),
    }
    return Workload(pair, images, stride, (len(images), grid.rows, grid.columns), crops)


def compare(work: Workload, libraries: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """One row per library and form; calls are interleaved, each form for `seconds` in total."""
    rows = [_planned_row(work, library, form) for library in libraries for form in FORMS]
    prepared = [harness.within_memory(_prepare, work, row) for row in rows]
    ready = [form for form in prepared if form]
    samples = timing.sample_interleaved([form.call for form in ready], seconds=seconds)
    for form, times in zip(ready, samples, strict=True):
        found = timing.summarize(0.0, times)
        form.row["seconds"] = found.median / form.fraction
        form.row["spread_s"] = found.spread / form.fraction
        form.row["repeats"] = found.repeats
    return [
        form.row if form else {**row, "note": "out of memory"}
        for form, row in zip(prepared, rows, strict=True)
    ]


def cost_ratios(pair: NetPair, size: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Multiply-adds of both forms on one image, and ratios of the times in `rows`."""
    cost = {
        net.form: multiply_adds(net, size, size) for net in (pair.sequential, pair.convolutional)
    }
    seconds = {f"{row['library']}_{row['form']}": row.get("seconds") for row in rows}

    def ratio(slow, fast):
        slow, fast = seconds.get(slow), seconds.get(fast)
        return slow / fast if slow and fast else None

    return {
        "size": size,
        **cost,
        "multiply_adds": cost["sequential"] / cost["convolutional"],
        **{
            f"{library}_{form}": ratio(f"{library}_{form}", f"{library}_convolutional")
            for library in LIBRARIES
            for form in ("loop", "chunks")
        },
        "jax_torch": ratio("jax_convolutional", "torch_convolutional"),
    }


def _crop_outputs(net, stride, size, variables, images, start):
    """Outputs for a crop of the images: its windows are one batch of the network."""
    crop = jax.lax.dynamic_slice(images, tuple(start), size)  # [n, h, W, C]
    grid = window_grid(net, size, stride)
    cut = jax.vmap(windows.extract, (0, None))(crop, grid)  # [n, rows, columns, window, window, C]
    out = net.apply(variables, cut.reshape(-1, *cut.shape[3:]))
    return out.reshape(*cut.shape[:3], -1)


def _planned_row(work, library, form):
    """The columns of a row that are known before the form runs."""
    total = int(np.prod(work.shape))
    timed = len(work.crops["loop"]) if form == "loop" else total
    return {
        "size": work.images.shape[1],
        "library": library,
        "form": form,
        "windows": total,
        "timed_windows": timed,
        "note": "extrapolated" if timed < total else None,
    }


def _prepare(work, row) -> PreparedForm:
    """Compile a form and run it once; raises MemoryError if its feature maps do not fit."""
    form = row["form"]
    if form == "convolutional":
        require_map_memory(work.pair.convolutional, work.images.shape)
    build = {"jax": _jax_call, "torch": _torch_call}[row["library"]]
    call, compile_s = build(work, form)
    first = harness.first_call(call)
    counts_jax_only = jax.default_backend() != "cpu"
    fraction = row["timed_windows"] / row["windows"]
    shape = work.shape if fraction == 1 else (row["timed_windows"],)
    output = first.value if form == "convolutional" else stack_outputs(first.value, shape)
    measured = {
        "compile_s": compile_s,
        "peak_bytes": None if counts_jax_only and row["library"] == "torch" else first.peak,
        "peak_source": first.peak_source,
        "output": list(output.shape),
    }
    return PreparedForm({**row, **measured}, call, fraction)


def _jax_call(work, form):
    """(call, seconds to compile) of a form in jax."""
    pair, images = work.pair, jax.device_put(work.images)
    if form == "convolutional":
        program, seconds = harness.compile_call(pair.convolutional.apply, pair.converted, images)
        return partial(program, pair.converted, images), seconds
    crops = work.crops[form]
    programs, seconds = compile_crops(pair.sequential, work.stride, pair.variables, images, crops)
    return partial(run_crops, programs, pair.variables, images, crops), seconds


def _torch_call(work, form):
    """(call, None) of a form in PyTorch, which is not compiled."""
    from benchmarks.torch_refs import backend
    from benchmarks.torch_refs import sliding as torch_sliding

    place = backend.device()
    backend.set_precision("tf32")  # as JAX, by default
    images = torch_sliding.to_channels_last(work.images).to(place)
    pair = work.pair
    nets = torch_sliding.build_nets(pair.converted["params"], softmax=pair.sequential.softmax)
    sequential, convolutional = (net.to(place) for net in nets)
    if form == "convolutional":
        call = partial(torch_sliding.run_convolutional, convolutional, images)
    else:
        window, crops = pair.sequential.window, work.crops[form]
        call = partial(torch_sliding.run_sequential, sequential, images, crops, window, work.stride)
    return backend.blocked(call, place), None
