"""Image files as arrays: decoded upright, resized or letterboxed to the network's input.

An image is given by its path, by the bytes of a file, by a function that returns one of these, or
as a PIL image.
Images that are missing or cannot be decoded raise InputError.  Sizes are (height, width); EXIF
orientation is applied, and grayscale images become three equal channels.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdet.errors import InputError

ImageFile = str | Path | bytes | Image.Image | Callable[[], str | Path | bytes]
Size = tuple[int, int]  # height, width

LETTERBOX_FILL = 114  # pixel value of the padding, as in YOLO
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # none runs a program
Image.preinit()  # the common formats first: otherwise every JPEG is tried as several others
SUFFIXES = tuple(sorted(end for end, of in Image.registered_extensions().items() if of in FORMATS))
READ_ERRORS = MISSING, BROKEN = "no such image", "not a readable image"
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ORIENTATION, FIRST_SWAPPED = 0x0112, 5  # EXIF tag; its first value that swaps height and width


def read_float(file: ImageFile) -> np.ndarray:
    """An image in its own size, [H, W, 3] float32 in [0, 1]."""
    return np.asarray(_decode(file, "RGB"), np.float32) / 255


def read_image(file: ImageFile) -> Image.Image:
    """An upright image in its own mode, decoded; the other readers take it like a file."""
    with _open(file) as image:
        return ImageOps.exif_transpose(image)


def read_gray(file: ImageFile) -> tuple[np.ndarray, Size]:
    """A grayscale image [H, W, 1] float32 in [0, 1], and its size; colors by ITU-R 601 weights."""
    image = np.asarray(_decode(file, "L"), np.float32)[..., None] / 255
    return image, image.shape[:2]


def read_resized(file: ImageFile, side: int) -> tuple[np.ndarray, Size]:
    """An image stretched to [side, side, 3] uint8, and its original size.

    Resampling is bilinear, with area averaging when shrinking.
    """
    image = _decode(file, "RGB")
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small), (image.height, image.width)


def read_resized_float(file: ImageFile, side: int) -> tuple[np.ndarray, Size]:
    """`read_resized` as float32 in [0, 1]."""
    image, size = read_resized(file, side)
    return image / np.float32(255), size


def read_letterboxed(file: ImageFile, height: int, width: int) -> tuple[np.ndarray, Size]:
    """An image letterboxed to [height, width, 3] uint8, and its original size.

    It is resized by `letterbox_transform`; the padding is `LETTERBOX_FILL`.
    """
    image = _decode(file, "RGB")
    size = image.height, image.width
    scale, offset = letterbox_transform(size, height, width)
    columns, rows = np.rint(scale * [image.width, image.height]).astype(int)
    left, top = offset.astype(int)
    out = np.full((height, width, 3), LETTERBOX_FILL, np.uint8)
    small = image.resize((int(columns), int(rows)), Image.Resampling.BILINEAR)
    out[top : top + rows, left : left + columns] = np.asarray(small)
    return out, size


def read_letterboxed_float(file: ImageFile, height: int, width: int) -> tuple[np.ndarray, Size]:
    """`read_letterboxed` as float32 in [0, 1]."""
    image, size = read_letterboxed(file, height, width)
    return image / np.float32(255), size


def letterbox_transform(size: Size, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale [2] and offset [2], for x and y, that letterbox an image of `size` into height x width.

    Network pixel = original pixel x scale + offset.  The aspect ratio is kept up to rounding to
    whole pixels, and the image is centered.
    """
    factor = min(height / size[0], width / size[1])
    inner = np.maximum(np.round(np.array([size[1], size[0]]) * factor), 1)
    offset = (np.array([width, height]) - inner) // 2
    return (inner / [size[1], size[0]]).astype(np.float32), offset.astype(np.float32)


def check_header(file: ImageFile) -> None:
    """Refuse an image that is missing or whose header cannot be read."""
    with _open(file):
        return


def read_size(file: ImageFile) -> Size:
    """Size of an upright image, from its header."""
    with _open(file) as image:
        swapped = image.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED
        width, height = image.size
        return (width, height) if swapped else (height, width)


def read_header(content: bytes) -> tuple[bool, bool]:
    """(is grayscale, is rotated or flipped by EXIF) of the bytes of an image."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.mode[0] in "1LIF", image.getexif().get(ORIENTATION, 1) > 1


def file_bytes(file: ImageFile) -> bytes:
    """The bytes of an image file."""
    file = file() if callable(file) else file
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def list_images(folder: str | Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted; InputError where there are none."""
    every = (path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in every if path.is_file())
    if not found:
        raise InputError(f"{folder}: no image files in it")
    return found


def expand_paths(paths: Iterable[Path]) -> list[Path]:
    """Files given by paths: the files themselves, images of folders, and matches of patterns.

    Tables (.csv) stay as they are.  InputError for a path that does not exist, a folder without
    images, and a pattern without matches.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += list_images(path)
        elif path.exists() or path.suffix.lower() == ".csv":
            found.append(path)
        elif any(sign in str(path) for sign in "*?["):
            matches = sorted(map(Path, glob(str(path), recursive=True)))
            if not any(match.is_file() for match in matches):
                raise InputError(f"{path}: pattern matches no files")
            found += [match for match in matches if match.is_file()]
        else:
            raise InputError(f"{path}: {MISSING}")
    return found


def _decode(file: ImageFile, mode: str) -> Image.Image:
    """An upright image in a mode of Pillow."""
    with _open(file) as image:
        return ImageOps.exif_transpose(image).convert(mode)


@contextmanager
def _open(file: ImageFile) -> Iterator[Image.Image]:
    """Pillow's image of a file; errors of Pillow, also inside the context, become InputError."""
    file = file() if callable(file) else file
    if isinstance(file, Image.Image):
        yield file
        return
    content = isinstance(file, bytes)
    try:
        with Image.open(io.BytesIO(file) if content else file, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{file}: {MISSING}") from None
    except PILLOW_ERRORS as error:
        name = f"{len(file)} bytes" if content else file
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{name}: {BROKEN} ({why})") from None
