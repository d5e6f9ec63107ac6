"""Faces in images of any form and size: found by MTCNN, cut out and aligned by five landmarks.

    detector = FaceDetector()
    found = detector.detect("group.jpg")  # boxes, scores and landmarks in pixels of the image
    face = detector.align("portrait.jpg", side=112)  # [112, 112, 3] uint8, or None without a face

The weights are those of the package facenet-pytorch, or of a folder; see `models.mtcnn`.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxdet import files
from jaxdet.data import image_folder, image_inputs, images, threads
from jaxdet.data.image_folder import LabeledImage
from jaxdet.errors import InputError, first_problem, printable
from jaxdet.kernels import compiler
from jaxdet.models import mtcnn
from jaxdet.ops import alignment
from jaxdet.types import Array, Faces

LOG = logging.getLogger(__name__)
NO_FACE = "no face found"
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


class FaceDetector:
    """MTCNN with published weights; see `models.mtcnn`.

    weights: "package:mtcnn" for the installed package facenet-pytorch, or a folder with pnet.pt,
      rnet.pt and onet.pt.
    min_face: side of the smallest faces that are found, in pixels.

    Raises InputError if the package or a file is missing, and for a `min_face` below 12.
    """

    def __init__(self, weights: str | Path = "package:mtcnn", *, min_face: int = mtcnn.MIN_FACE):
        if min_face < mtcnn.WINDOW:
            raise InputError(f"min_face must be at least {mtcnn.WINDOW} pixels, got {min_face}")
        self.min_face = min_face
        self.variables = mtcnn.load(weights)
        self._compiled = compiler.jit(partial(mtcnn.detect, min_face=min_face))

    def detect(self, images: Any) -> Any:
        """The `Faces` in an image, or a list of them for a list of images.

        `images` has the same forms as in `Run.predict`.  Images of similar sizes share a compiled
        program.
        """
        one, several = image_inputs.as_list(images)
        found = [self._detect(_read(image)) for image in several]
        return found[0] if one else found

    def align(self, images: Any, *, side: int = 112) -> Any:
        """The largest face of an image, aligned: [side, side, 3] uint8, or None without a face.

        For a list of images, a list of these; see `align_face`.
        """
        one, several = image_inputs.as_list(images)
        found = [self._align(_read(image), side) for image in several]
        return found[0] if one else found

    def _detect(self, pixels: np.ndarray) -> Faces:
        size = pixels.shape[:2]
        height, width = map(_canvas_side, size)
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: size[0], : size[1]] = pixels
        sizes = mtcnn.image_sizes(size, (height, width), min_face=self.min_face)
        found = jax.device_get(self._compiled(self.variables, canvas, sizes))
        return Faces(*(column[found.valid] for column in found[:3]))

    def _align(self, pixels: np.ndarray, side: int) -> np.ndarray | None:
        found = self._detect(pixels)
        if not len(found.boxes):
            return None
        largest = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1).argmax()
        return align_face(pixels, found.landmarks[largest], side)


def align_face(pixels: np.ndarray, landmarks: Array, side: int) -> np.ndarray:
    """Cut out a face, rotated and scaled to the template: [side, side, 3] uint8.

    The template is moved nearest to the landmarks, see `ops.alignment.similarity_transform`.
    Resampling is bilinear, antialiased when shrinking; pixels at the border of the image extend
    outwards.

    pixels: [H, W, 3] uint8.
    landmarks: [5, 2] in pixels: eyes, nose, corners of the mouth.
    """
    back = np.array(alignment.similarity_transform(alignment.FACE_TEMPLATE * side, landmarks))
    corners = np.asarray(alignment.apply(back, side * CORNERS))  # in the image
    height, width = pixels.shape[:2]
    outside = max(0, -corners.min(), (corners - [width, height]).max())
    margin = math.ceil(outside) + 1
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "edge")
    back[:, 2] += margin
    fine = max(round(math.hypot(*back[:, 0])), 1)  # samples per pixel of the result, in a row
    cut = Image.fromarray(padded).transform(
        (fine * side, fine * side),
        Image.Transform.AFFINE,
        tuple((back / [fine, fine, 1]).ravel().tolist()),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(cut.reduce(fine))


def align_before(
    detector: FaceDetector, read_image: Callable[..., Any], side: int
) -> Callable[..., Any]:
    """A reader of images that aligns the face in an image before `read_image` reads it.

    An image without a face is read as it is, and a warning is logged.
    """

    def read(file: Any) -> Any:
        pixels, _ = images.read_pixels(file)
        face = detector.align(pixels, side=side)
        if face is not None:
            return read_image(Image.fromarray(face))
        name = printable(str(file)) if isinstance(file, str | Path) else "image"
        LOG.warning("%s: %s; the whole image is used", name, NO_FACE)
        return read_image(file)

    return read


class AlignedFolder(NamedTuple):
    """The outcome of `align_folder`."""

    aligned: int  # number of images with an aligned face
    kept: tuple[str, ...]  # one line for each image without a face
    faults: tuple[str, ...]  # one line for each file that cannot be read, and was left out


def align_folder(
    source: str | Path, out: Path, detector: FaceDetector, *, side: int, on_invalid: str = "skip"
) -> AlignedFolder:
    """Write the images of a folder with their faces aligned, under the same names.

    An image without a face is copied as it is.  Files that do not have the ending of an image are
    left out.

    source: folder or tar file, with folders of any names down to `image_folder.MAX_DEPTH` levels.
    out: folder that is absent or empty; it is written completely or not at all.
    on_invalid: "skip" leaves out images that cannot be read; "error" raises InputError.

    Raises InputError too if there are no images, or if none can be read.
    """
    found = _list_images(image_folder.list_files(source))
    if not found:
        raise InputError(f"{source}: no image files in it")
    with files.new_folder(out) as draft:
        align = partial(_align_file, detector=detector, draft=draft, side=side)
        results = list(threads.map_images(align, found))
        faults = tuple(note for is_face, note in results if is_face is None)
        if faults and (on_invalid == "error" or len(faults) == len(found)):
            raise InputError(
                f"{len(faults)} of {len(found)} images cannot be read{first_problem(faults)}"
            )
    kept = tuple(note for is_face, note in results if is_face is False)
    return AlignedFolder(len(found) - len(kept) - len(faults), kept, faults)


def _list_images(tree: image_folder.FileTree) -> list[LabeledImage]:
    return [
        LabeledImage("/".join(folder), name, file, tree.location(*folder, name))
        for folder, own in tree.files.items()
        for name, file in own.items()
        if Path(name).suffix.lower() in images.SUFFIXES
    ]


def _align_file(
    sample: LabeledImage, detector: FaceDetector, draft: Path, side: int
) -> tuple[bool | None, str]:
    """(whether a face was found, note); None instead for an image that cannot be read."""
    result, fault = image_folder.attempt(sample, images.read_pixels)
    if fault:
        return None, fault
    face = detector.align(result[0], side=side)
    path = draft / sample.label / sample.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if face is None:
        path.write_bytes(image_folder.file_bytes(sample.image))
        return False, f"{sample.location}: {NO_FACE}; copied as it is"
    is_gray = not np.ptp(face, -1).any()
    kind = Image.registered_extensions()[path.suffix.lower()]
    image = Image.fromarray(face[..., 0] if is_gray else face)
    image.save(path, kind, **SAVE_OPTIONS.get(kind, {}))
    return True, ""


def _read(image: Any) -> np.ndarray:
    return images.read_pixels(image_inputs.readable(image))[0]


def _canvas_side(side: int) -> int:
    """The smallest number of at least `side` that has two significant bits: 64, 96, 128, ...

    A larger canvas costs less than another compiled program.
    """
    unit = 1 << max(side.bit_length() - 2, 0)
    return -(-side // unit) * unit
