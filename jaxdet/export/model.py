"""Prediction with the program in a `.jaxdet` file, without the code or options of the network.

model = jaxdet.load_exported("detector.jaxdet")
for found in model.predict(["a.jpg", array]):
    print(found.boxes, [model.classes[label] for label in found.labels])
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet.data import image_inputs, threads
from jaxdet.data import images as image_files
from jaxdet.errors import InputError
from jaxdet.export import package, program
from jaxdet.kernels import compiler
from jaxdet.ops import resize
from jaxdet.reports import thresholds
from jaxdet.types import (
    Array,
    Candidates,
    Classification,
    Detections,
    Localization,
    Prediction,
    PreparedImage,
)

LOG = logging.getLogger(__name__)
BATCH = 8  # images per call of the program, unless the program has a fixed number
MIN_SIDE = 64  # pixels per side of the smallest array of images
MAX_PIXELS = 2**23  # per call; larger images are predicted in smaller batches


class ExportedModel:
    """A model that `Run.export` has written: its program, weights and metadata."""

    def __init__(self, path: str | Path):
        """Read a `.jaxdet` file; InputError if it is damaged, or if JAX cannot read its program."""
        self.path = Path(path)
        self.package = package.read(path)
        self._exported = package.load_program(self.package, path)

    def __repr__(self) -> str:
        return f"ExportedModel({str(self.path)!r}, system={self.system!r})"

    @property
    def system(self) -> str:
        """Name of the system of the run: digits, objects, detect, cifar10 or faces."""
        return self.package.network.system

    @property
    def metadata(self) -> dict[str, Any]:
        """Classes, input shape and normalization of the run."""
        return self.package.network.metadata

    @property
    def recorded(self) -> dict[str, Any]:
        """The same as `metadata`, under the name that `Run` has for it."""
        return self.metadata

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return tuple(self.metadata["classes"])

    @property
    def finds_many(self) -> bool:
        """Whether `predict` returns `Detections`, any number of objects per image."""
        return "valid" in self.package.description["outputs"]

    @property
    def batch(self) -> int | None:
        """Images per call of the program; None: any number."""
        return self.package.description["batch"]

    def predict(self, images: Any, *, batch_size: int = BATCH) -> Any:
        """The prediction for one image, or a list of predictions for a list of images.

        Arguments and results are as in `Run.predict`; a detector without non-maximum suppression
        gives `Candidates`.  Raises InputError for an image that cannot be read and, if the program
        does not resize images, for an image of another size.
        """
        one, several = image_inputs.as_list(images)
        found = [to_prediction(row) for row in self._rows_of(several, batch_size)]
        return found[0] if one else found

    def embed(self, images: Any, *, batch_size: int = BATCH) -> np.ndarray:
        """Embeddings [N, D] of a list of N images, or [D] of a single image; see `Run.embed`.

        Raises InputError as `predict` does, for an empty list, and for a model without embeddings.
        """
        if "embedding" not in self.package.description["outputs"]:
            raise InputError(f"{self.path}: embeddings need faces, got a model of {self.system}")
        one, several = image_inputs.as_list(images)
        if not several:
            raise InputError("embed must be given at least one image, got none")
        found = np.stack([row["embedding"] for row in self._rows_of(several, batch_size)])
        return found[0] if one else found

    def chosen_thresholds(self, *, warn: Callable[[str], None] = LOG.warning) -> np.ndarray:
        """The score thresholds that were chosen for the run; see `Run.chosen_thresholds`."""
        network = self.package.network
        if network.thresholds is None:
            raise InputError(
                f"{self.path} has no chosen thresholds; choose them for its run, and export it "
                f"again"
            )
        return thresholds.read(network.thresholds, self.path, network.step, self.classes, warn=warn)

    def prepare(self, image: Any) -> PreparedImage:
        """Decode an image, in any form that `predict` accepts; it keeps its size."""
        height, width, _ = self.metadata["input"]
        kind = self.package.description["resizing"]
        resized, antialias = kind != "none", kind in ("letterbox", "stretch")
        file = image_inputs.readable(image)
        pixels, size = image_files.read_pixels(file, max(height, width) if antialias else None)
        name = file if isinstance(file, str | Path) else "image"
        if not resized and size != (height, width):
            raise InputError(
                f"{name}: must have {height} x {width} pixels, the input of {self.path}, got "
                f"{size[0]} x {size[1]}"
            )
        if max(pixels.shape) > resize.MAX_SIDE:
            raise InputError(
                f"{name}: sides must have at most {resize.MAX_SIDE} pixels, got {size[0]} x "
                f"{size[1]}"
            )
        return PreparedImage(pixels, size, np.ones(4, np.float32), np.zeros(4, np.float32))

    def predict_prepared(
        self, images: Sequence[PreparedImage], batch_size: int = BATCH
    ) -> list[Any]:
        """Predictions for images from `prepare`, in their order."""
        return [to_prediction(row) for row in self._rows(images, batch_size)]

    def _rows_of(self, images: Sequence[Any], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of the program for each image, read in threads, a batch at a time."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        for prepared in threads.map_batches(self.prepare, images, batch_size):
            yield from self._rows(prepared, batch_size)

    def _rows(
        self, images: Sequence[PreparedImage], batch_size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of the program for each image.

        Images that the program resizes are padded to squares of one size, whose side is a power of
        two, so that few programs are compiled.
        """
        if not images:
            return
        height, width = np.max([image.image.shape[:2] for image in images], 0).tolist()
        if self.package.description["resizing"] != "none":
            side = max(MIN_SIDE, 1 << (max(height, width) - 1).bit_length())
            height = width = min(side, resize.MAX_SIDE)
        count = self.batch or max(min(batch_size, MAX_PIXELS // (height * width)), 1)
        for start in range(0, len(images), count):
            own = images[start : start + count]
            rows = self._call(own, (height, width), count)
            yield from ({name: rows[name][i] for name in rows} for i in range(len(own)))

    def _call(
        self, images: Sequence[PreparedImage], size: tuple[int, int], count: int
    ) -> dict[str, np.ndarray]:
        """The outputs of one call, for at most `count` images, padded to arrays of this size."""
        pixels = np.zeros((count, *size, 3), np.uint8)
        sizes = np.ones((2, count, 2), np.int32)
        for i, image in enumerate(images):
            height, width = image.image.shape[:2]
            pixels[i, :height, :width] = image.image
            sizes[:, i] = (height, width), image.size
        return jax.device_get(self._compiled(self._weights, pixels, *sizes))

    @cached_property
    def _weights(self) -> dict[str, Array]:
        return jax.device_put(program.flatten(self.package.network.variables))

    @cached_property
    def _compiled(self) -> Callable[..., dict[str, Array]]:
        return compiler.jit(self._exported.call)


def to_prediction(row: dict[str, np.ndarray]) -> Prediction | Candidates:
    """A prediction from the outputs of a program or model for one image."""
    if "valid" in row:
        return Detections(*(row[name][row["valid"]] for name in Detections._fields))
    if "boxes" in row:
        return Candidates(row["boxes"], row["scores"])
    kind = Localization if "box" in row else Classification
    return kind(*(row[name] for name in kind._fields))
