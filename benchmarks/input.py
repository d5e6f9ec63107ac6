"""Images per second of the input pipeline: data sets, batches and augmentation.

    python -m benchmarks.input --batch 64 --json FILE --markdown FILE

`read` loads a whole set from its files into memory, as training does once; `records` takes one
batch of records on the host, one by one; `files` decodes color PNG files of 480 x 640 pixels, as
`jaxdet predict` does; `decode` reads and letterboxes JPEG files of that size, in one thread and in
one per core; `stream` makes batches of the JPEG files with the reader of `--stream`, also from an
image cache. For comparison, grain alone and PyTorch's `DataLoader` decode the files with Pillow at
full size and resize the images. `gather` takes the rows of a batch from a set on the device, and
`place` rotates, scales and places the digits of a batch, as every step of `digits` does. `gather,
flip, crop, cutout` is the work of a step of `cifar10` before its network; `gather` alone and with
one of the others is timed as well.

`--parts` chooses sources, files or augmentation. MNIST is read from $JAXDET_DATA/mnist; the set of
tensorflow-datasets is noise, prepared for the purpose. A missing set becomes a row that says so.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import harness, synthetic, units
from benchmarks.torch_refs import loading
from jaxdet import rng
from jaxdet.configs import cifar10
from jaxdet.data import digits, image_cache, images, sampler
from jaxdet.data.sources import READ_THREADS, StreamSource
from jaxdet.ops import augment
from jaxdet.profiling import timing
from jaxdet.types import Array, StepContext, Task

NAME = "input"
COLUMNS = {
    "source": "source",
    "operation": "operation",
    "images": "images",
    "median": ("median", "s"),
    "spread": ("spread", "s"),
    "images_per_s": ("images/s", ""),
    "repeats": "repeats",
    "note": "note",
}
FILES, SHAPE = 4, (480, 640, 3)  # number of PNG files, and shape of all images in files
JPEG_FILES, SIDE = 64, 416  # number of JPEG files per core, and side to which they are letterboxed
PARTS = ("sources", "files", "augmentation")
AUGMENTATIONS = {"flip": {"flip": True}, "crop": {"crop_padding": 4}, "cutout": {"cutout": 0.5}}
NOISE = 10_000  # images of the size of CIFAR-10


@dataclass(frozen=True, kw_only=True)
class Options(harness.OutputOptions):
    """Images per second of data sets, batches and augmentation."""

    parts: tuple[Literal["sources", "files", "augmentation"], ...] = PARTS
    """what to time: data sets (sources), image files (files) or augmentation (augmentation)"""
    batch: int = 64
    """images per batch"""
    canvas: int = 64
    """side of the canvas of `place` in pixels"""
    seconds: float = 1.0
    """seconds for which each row is timed; at least three calls are made"""


def main(argv: Sequence[str] | None = None) -> int:
    return harness.run_command(NAME, Options, argv, run)


def run(options: Options) -> None:
    harness.require_positive(options, "batch")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if "sources" in options.parts:
            rows += time_sources(options, Path(folder))
        if "files" in options.parts:
            rows += [time_files(options, Path(folder)), *time_threads(options, Path(folder))]
    if "augmentation" in options.parts:
        rows += [*time_digits(options), *time_augmentations(options)]
    harness.publish(NAME, options, render, rows)


def render(record: dict[str, Any]) -> str:
    return units.markdown_table(record["rows"], COLUMNS)


def summarize(record: dict[str, Any]) -> str:
    """Markdown of a record, without the augmentations that are timed one by one."""
    alone = [row["operation"].count(", ") == 1 for row in record["rows"]]
    rows = [row for row, one in zip(record["rows"], alone, strict=True) if not one]
    return render({"rows": rows})


def time_sources(options: Options, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the data sets: the time to read each, and to take records of the embedded one."""
    source = digits.embedded()
    yield _row("embedded", "read", len(source), digits.embedded, options)

    def records():
        return [source[i % len(source)] for i in range(options.batch)]

    yield _row("embedded", "records", options.batch, records, options)
    mnist = Path(os.environ.get("JAXDET_DATA", "")) / "mnist"
    if "JAXDET_DATA" in os.environ and mnist.is_dir():
        yield _row("MNIST, idx", "read", None, partial(digits.read_mnist, mnist), options)
    else:
        yield {
            "source": "MNIST, idx",
            "operation": "read",
            "note": "no data in $JAXDET_DATA/mnist",
        }
    name = "tensorflow-datasets, array_record"
    if find_spec("tensorflow_datasets") is None:
        yield {"source": name, "operation": "read", "note": "not installed"}
    else:
        synthetic.prepare_tfds(folder, "noise")
        yield _row(name, "read", None, partial(digits.read_tfds, "noise", folder), options)


def time_files(options: Options, folder: Path) -> dict[str, Any]:
    """The row for reading image files, which are created in `folder`."""
    draw = np.random.default_rng(0)
    height, width, _ = SHAPE
    paths = [folder / f"{i}.png" for i in range(FILES)]
    for path in paths:
        coarse = draw.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        path.write_bytes(synthetic.encode_image(coarse.repeat(8, 0).repeat(8, 1)))
    name = f"PNG, {height} x {width}"
    return _row(name, "files", FILES, lambda: [images.read_gray(path) for path in paths], options)


def time_threads(options: Options, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of JPEG files, decoded and letterboxed: in one thread, in one per core, and streamed."""
    cores = len(os.sched_getaffinity(0))
    count = min(JPEG_FILES, options.batch) * cores
    draw = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path in paths:
        coarse = draw.integers(0, 256, (SHAPE[0] // 8, SHAPE[1] // 8, 3), np.uint8)
        path.write_bytes(synthetic.encode_image(coarse.repeat(8, 0).repeat(8, 1), "JPEG"))
    read = partial(images.read_letterboxed, height=SIDE, width=SIDE)
    name = f"JPEG, {SHAPE[0]} x {SHAPE[1]}"
    for threads in sorted({1, cores}):
        chosen = paths[: count * threads // cores]
        with ThreadPoolExecutor(threads) as pool:
            call = partial(_read_all, pool, read, chosen)
            title = f"decode, threads: {threads}"
            yield _row(name, title, len(chosen), call, options)
    size = min(JPEG_FILES, options.batch)
    if find_spec("grain") is None:
        yield {"source": name, "operation": "stream", "note": "needs grain"}
    else:
        cached = image_cache.cached(images.read_letterboxed, folder / "cache")
        index = np.arange(count).reshape(-1, size)
        for title, reader in {
            f"stream, batches of {size}": read,
            "stream, image cache": partial(cached, height=SIDE, width=SIDE),
        }.items():
            source = StreamSource(partial(_read_record, reader, paths), count)
            _last_batch(source, index)  # fills the cache
            yield _row(name, title, count, partial(_last_batch, source, index), options)
        yield _row(name, "grain alone", count, partial(_last_of_grain, paths, size), options)
    yield time_loader(options, name, paths, size, cores)


def time_loader(
    options: Options, name: str, paths: Sequence[Path], size: int, workers: int
) -> dict[str, Any]:
    """The row of PyTorch's `DataLoader` on the same files, with a worker process per core."""
    title = f"PyTorch DataLoader, workers: {workers}"
    if find_spec("torch") is None:
        return {"source": name, "operation": title, "note": "PyTorch is not installed"}
    from torch.utils.data import DataLoader

    loader = DataLoader(
        loading.LetterboxedFiles(paths, SIDE),  # pyright: ignore[reportArgumentType]
        batch_size=size,
        num_workers=workers,
        multiprocessing_context="spawn",  # as jax has threads
        persistent_workers=True,
    )
    return _row(name, title, len(paths), lambda: list(loader)[-1], options)


def _read_record(read, paths, index):
    return {"image": read(paths[index])[0]}


def _last_of_grain(paths, size):
    import grain

    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=2 * size)
    read = partial(loading.read_letterboxed, side=SIDE)
    records = grain.MapDataset.source(paths).map(read)
    return list(records.to_iter_dataset(options).batch(size))[-1]


def _read_all(pool, read, paths):
    return list(pool.map(read, paths))[-1]


def _last_batch(source, index):
    return list(source.batches(index))[-1]


def time_digits(options: Options) -> Iterator[dict[str, Any]]:
    """Rows of the compiled functions `gather` and `place` on the embedded digits."""
    arrays = digits.embedded().arrays
    rows = sampler.shuffled_batches(0, 0, len(arrays["id"]), options.batch)[0]
    data, gather = jax.device_put(arrays), jax.jit(sampler.gather)
    yield _row("embedded", "gather", options.batch, partial(gather, data, rows), options)
    place = jax.jit(jax.vmap(partial(augment.place_on_canvas, canvas=options.canvas)))
    keys = rng.row_keys(jax.random.key(0), np.arange(options.batch))
    image = jax.device_put(gather(data, rows)["image"] / 255.0)
    yield _row("embedded", "place", options.batch, partial(place, keys, image), options)


def time_augmentations(options: Options) -> Iterator[dict[str, Any]]:
    """Rows of the augmentations with which a step of `cifar10` prepares its batch."""
    rows = sampler.shuffled_batches(0, 0, NOISE, options.batch)[0]
    for names in ((), *((name,) for name in AUGMENTATIONS), tuple(AUGMENTATIONS)):
        fields = {name: v for each in names for name, v in AUGMENTATIONS[each].items()}
        experiment = synthetic.cifar10_experiment(cifar10.Config(**fields), train=NOISE, val=1)
        data = jax.device_put(experiment.splits["train"].arrays)
        call = partial(jax.jit(partial(augment_batch, experiment.task)), data, rows)
        yield _row("CIFAR-10 size", ", ".join(["gather", *names]), options.batch, call, options)


def augment_batch(task: Task, data: dict[str, Array], rows: Array) -> Array:
    """Images of a batch as the first training step gives them to the network."""
    context = StepContext(True, jnp.int32(0), jnp.int32(0), {})
    keys = rng.row_keys(jax.random.key(0), jnp.arange(len(rows)))
    return task.augment(keys, sampler.gather(data, rows), context)["image"]


def _row(source: str, operation: str, count: int | None, call: Callable, options: Options) -> dict:
    """The row of a timed call; count: images per call, None for the number in its result."""
    count = sum(map(len, call())) if count is None else count
    found = timing.measure(call, seconds=options.seconds)
    return {
        "source": source,
        "operation": operation,
        "images": count,
        **found._asdict(),
        "images_per_s": count / found.median,
    }


if __name__ == "__main__":
    sys.exit(main())
