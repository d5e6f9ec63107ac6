"""A run as one function: from the pixels of images to predictions in pixels of the originals.

Resizing, normalization, network, non-maximum suppression and the mapping back to the original image
are in the function, as `Run.predict` does them: resizing to the same bits, the rest up to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import export

from jaxdet.data import images as image_files
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.ops import boxes, resize
from jaxdet.tasks.detect import DetectionTask, boxes_to_original
from jaxdet.tasks.sliding_window import SlidingWindowTask
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array, Tree

PLATFORMS = ("cpu", "cuda")
Resizing = Literal["letterbox", "top_left", "stretch", "none"]
Program = Callable[[dict[str, Array], Array, Array, Array], dict[str, Array]]


def resizing_of(experiment: Experiment) -> Resizing:
    """How images become the network's input: letterboxed, stretched, or not resized.

    A letterboxed image is centered and antialiased, or at the top left without antialiasing.
    """
    if isinstance(experiment.task, DetectionTask):
        return "letterbox" if experiment.letterbox.centered else "top_left"
    return "none" if isinstance(experiment.task, SlidingWindowTask) else "stretch"


def make(experiment: Experiment, *, nms: bool = True) -> Program:
    """The function (weights, images, sizes, original sizes) -> predictions.

    Its arguments are:
        weights: the variables of the network by path, see `flatten`.
        images: [B, H, W, 3] uint8, RGB, each in the upper left corner of its array.
        sizes: [B, 2] int32, height and width of each image in its array.
        original sizes: [B, 2] int32, height and width of the image in whose pixels boxes are
          returned; equal to `sizes`, unless the image was decoded at a fraction of its size.

    Without resizing, images must fill their arrays, of the size of the network's input.

    nms: False: a detector returns all candidates, `boxes [B, A, 4]` and `scores [B, A, K]`.

    Raises InputError for an experiment whose images are prepared in another way.
    """
    task: Any = experiment.task
    kind = resizing_of(experiment)
    reader = getattr(experiment.read_image, "func", experiment.read_image)
    readers = {
        **dict.fromkeys(("letterbox", "top_left"), image_files.read_letterboxed_float),
        "stretch": image_files.read_resized_float,
        "none": image_files.read_gray,
    }
    if experiment.letterbox.scale:
        raise InputError(
            "--format stablehlo needs inputs of one size, which --tiles in pixels does not give; "
            "train with rows x columns, such as --tiles 2x2"
        )
    if reader is not readers[kind]:
        raise InputError("--format stablehlo needs the image reader of a system; choose onnx")
    if not nms and not isinstance(task, DetectionTask):
        raise InputError(f"--nms false needs a run of detect, got a run of {experiment.name}")
    predict = task.predict if nms else partial(_candidates, task)
    height, width, _ = experiment.metadata["input"]
    if kind == "top_left" and height * width > resize.MAX_AREA:
        raise InputError(
            f"--format stablehlo: --size must have at most {resize.MAX_AREA:,} pixels for this "
            f"model, got {height} x {width}"
        )
    rows_first = image_files.shrinks_rows_first()

    def resize_one(image, size, original_size):
        fill = image_files.LETTERBOX_FILL
        if kind == "top_left":
            found = resize.letterbox_geometry(original_size, height, width, centered=False)
            options = {"shape": (height, width), "fill": fill}
            return resize.letterbox_top_left(image, size, found[0], **options), *found
        if kind == "letterbox":
            inner, offset = resize.letterbox_geometry(original_size, height, width)
        else:
            inner, offset = jnp.array([height, width], jnp.int32), jnp.zeros(2, jnp.int32)
        first = resize.shrinks_rows_first(size, inner) if rows_first else False
        resized = resize.letterbox(
            image, size, inner, offset, shape=(height, width), fill=fill, rows_first=first
        )
        return resized, inner, offset

    def program(weights, images, sizes, original_sizes):
        if kind == "none":
            return predict(unflatten(weights), resize.gray(images) / jnp.float32(255))
        pictures = images, sizes, original_sizes
        resized, inner, offsets = jax.lax.map(lambda one: resize_one(*one), pictures)
        found = predict(unflatten(weights), resized / jnp.float32(255))
        return _to_original(found, inner, offsets, original_sizes)

    return program


def export_program(
    experiment: Experiment, variables: Tree, *, batch: int | None = None, nms: bool = True
) -> export.Exported:
    """The program of an experiment, lowered for `PLATFORMS`.

    batch: images per call; None: any number.  The sizes of the arrays are not fixed, unless images
    are not resized.
    """
    height, width, _ = experiment.metadata["input"]
    kind = resizing_of(experiment)
    sides = f"{height}, {width}" if kind == "none" else "height, width"
    limits = (
        [] if kind == "none" else [f"{side} <= {resize.MAX_SIDE}" for side in sides.split(", ")]
    )
    shape = export.symbolic_shape(f"{batch or 'batch'}, {sides}, 3", constraints=limits)
    weights = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in flatten(variables).items()
    }
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    sizes = jax.ShapeDtypeStruct((shape[0], 2), jnp.int32)
    with conv.default_impl("lax"):
        program = jax.jit(make(experiment, nms=nms))
        return export.export(program, platforms=PLATFORMS)(weights, pixels, sizes, sizes)


def flatten(variables: Tree) -> dict[str, Array]:
    """The variables of a network by path, such as `params/head/kernel`."""
    paths: Any = traverse_util.flatten_dict(variables, sep="/")
    return paths


def unflatten(weights: dict[str, Array]) -> Tree:
    """The variables of a network from `flatten`."""
    return traverse_util.unflatten_dict(weights, sep="/")


def _candidates(task: DetectionTask, variables: Tree, images: Array) -> dict[str, Array]:
    scores, found = task.candidates(variables, images)
    return {"boxes": boxes.clip(found, *images.shape[1:3]), "scores": scores}


def _to_original(
    found: dict[str, Array], inner: Array, offsets: Array, original_sizes: Array
) -> dict[str, Array]:
    """Predictions with boxes in pixels of the original images, as from `Run.to_original`."""
    scale = inner[:, ::-1] / original_sizes[:, ::-1].astype(jnp.float32)  # [B, 2]: x, y
    to_original = jnp.concatenate([1 / scale, -offsets[:, ::-1] / scale], 1)
    if "box" in found:
        return found | {"box": boxes_to_original(found["box"][:, None], to_original)[:, 0]}
    if "boxes" not in found:
        return found
    mapped = boxes_to_original(found["boxes"], to_original)
    mapped = jax.vmap(boxes.clip)(mapped, original_sizes[:, 0], original_sizes[:, 1])
    if "valid" in found:
        mapped = jnp.where(found["valid"][..., None], mapped, 0)
    return found | {"boxes": mapped}
