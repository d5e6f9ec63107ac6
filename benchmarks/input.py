"""What feeds a network: images a second of every source, of augmentation, and of making batches.

    python -m benchmarks.input --batch 64 --json FILE --markdown FILE

Prints a Markdown table.  `read` is a whole set from its files into memory, as training does once;
`records` is one batch of records, one by one, on the host; `files` decodes image files, 480 x 640
pixels in colour, as `jaxdet predict` does.  `gather` takes the rows of a batch from a set that lies
on the device, and `place` turns, scales and places the digits of a batch, as every step does.
`gather, flip, crop, cutout` is what a step of `cifar10` does before its network: it takes its rows
of bytes, mirrors, pads and crops, and hides a rectangle; each of these beside `gather` alone.
MNIST is read from $JAXDET_DATA/mnist, the set of tensorflow-datasets is noise that is prepared for
the purpose.  What is not there is a row that says so.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import harness, synthetic
from jaxdet import rng, tables
from jaxdet.configs import cifar10
from jaxdet.data import digits, images, sampler
from jaxdet.errors import InputError
from jaxdet.ops import augment
from jaxdet.profiling import timing
from jaxdet.types import StepContext

NAME = "input"
COLUMNS = {
    "source": "source",
    "work": "work",
    "images": "images",
    "median": "median s",
    "spread": "spread s",
    "images_per_s": "images / s",
    "repeats": "repeats",
    "note": "note",
}
FILES, SHAPE = 4, (480, 640, 3)
CHANGES = {"flip": {"flip": True}, "crop": {"crop": 4}, "cutout": {"cutout": 0.5}}
NOISE = 10_000  # images of the size of CIFAR-10


@dataclass(frozen=True, kw_only=True)
class Options(harness.Kept):
    """Images a second of sources, augmentation and batches."""

    batch: int = 64
    """images of `records`, `gather` and `place`"""
    canvas: int = 64
    """side of the canvas of `place` in pixels"""
    seconds: float = 1.0
    """time for the repeats of each row; three repeats are always made"""


def main(argv=None):
    """Run with the words of the command line; returns the exit code."""
    return harness.door(NAME, Options, argv, report)


def report(options):
    """Time, print, write."""
    if options.batch < 1:
        raise InputError("--batch starts at 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = [*sources(options, Path(folder)), *files(options, Path(folder))]
    rows += [*on_device(options), *changed(options)]
    harness.show(tables.to_markdown(rows, COLUMNS), options.markdown)
    if options.json:
        harness.write(NAME, rows, options.json, jax.devices(), options=options)


def sources(options, folder):
    """Rows of the sets: `read` each, and `records` of the one that is always there."""
    source = digits.embedded()
    yield timed("embedded", "read", len(source), digits.embedded, options)
    one_by_one = partial(records, source, options.batch)
    yield timed("embedded", "records", options.batch, one_by_one, options)
    folder = Path(os.environ.get("JAXDET_DATA", "")) / "mnist"
    if "JAXDET_DATA" in os.environ and folder.is_dir():
        yield timed("MNIST, idx", "read", None, partial(digits.read_mnist, folder), options)
    else:
        yield {"source": "MNIST, idx", "work": "read", "note": "no data in $JAXDET_DATA/mnist"}
    about = {"source": "tensorflow-datasets, array_record", "work": "read"}
    if find_spec("tensorflow_datasets") is None:
        yield about | {"note": "not installed"}
    else:
        synthetic.prepare(folder, "noise")
        yield timed(*about.values(), None, partial(digits.read_tfds, "noise", folder), options)


def files(options, folder):
    """The row of image files, which are made for it."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(FILES)]
    for path in paths:
        coarse = draw.integers(0, 256, (SHAPE[0] // 8, SHAPE[1] // 8, 3), np.uint8)
        path.write_bytes(synthetic.png(coarse.repeat(8, 0).repeat(8, 1)))
    height, width, _ = SHAPE
    name = f"PNG, {height} x {width}"
    yield timed(name, "files", FILES, lambda: [images.read_grey(path) for path in paths], options)


def on_device(options):
    """Rows of what runs compiled: `gather` and `place`."""
    arrays = digits.embedded().arrays
    data, rows = (
        jax.device_put(arrays),
        sampler.shuffled_batches(0, 0, len(arrays["id"]), options.batch)[0],
    )
    gather = jax.jit(sampler.gather)
    yield timed("embedded", "gather", options.batch, partial(gather, data, rows), options)
    place = jax.jit(jax.vmap(partial(augment.place_on_canvas, canvas=options.canvas)))
    drawn = rng.row_keys(jax.random.key(0), np.arange(options.batch))
    image = jax.device_put(gather(data, rows)["image"] / 255.0)
    yield timed("embedded", "place", options.batch, partial(place, drawn, image), options)


def changed(options):
    """Rows of what a step of `cifar10` does with the images of its batch, before its network."""
    rows = sampler.shuffled_batches(0, 0, NOISE, options.batch)[0]
    for names in ((), *((name,) for name in CHANGES), tuple(CHANGES)):
        changes = {field: value for name in names for field, value in CHANGES[name].items()}
        system = synthetic.classified(cifar10.Config(**changes), train=NOISE, val=1)
        data = jax.device_put(system.splits["train"].arrays)
        call = partial(jax.jit(partial(as_in_training, system.task)), data, rows)
        yield timed("CIFAR-10's size", ", ".join(["gather", *names]), options.batch, call, options)


def as_in_training(task, data, rows):
    """Images of a batch, as the first step gives them to the network."""
    at = StepContext(True, jnp.int32(0), jnp.int32(0), {})
    drawn = rng.row_keys(jax.random.key(0), jnp.arange(len(rows)))
    return task.augment(drawn, sampler.gather(data, rows), at)["image"]


def records(source, count):
    """The first records of a source, round and round."""
    return [source[i % len(source)] for i in range(count)]


def timed(source, work, count, call, options):
    """The row of a call that gives `count` images; None counts those of the sources it gives."""
    count = sum(map(len, call())) if count is None else count
    found = timing.measure(call, seconds=options.seconds)
    about = {"source": source, "work": work, "images": count}
    return about | found._asdict() | {"images_per_s": count / found.median}


if __name__ == "__main__":
    sys.exit(main())
