"""Image files as arrays, the way the networks take them."""

import io
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdet.errors import InputError

LETTERBOX_FILL = 114  # of what is beyond the edge of a photo, as YOLO's programs have it
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # no programs
Image.preinit()  # the usual formats first: else each JPEG is tried as several others
SUFFIXES = tuple(sorted(end for end, of in Image.registered_extensions().items() if of in FORMATS))
READ_ERRORS = MISSING, BROKEN = (
    "no such image",
    "not a readable image",
)  # what messages say of files
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


def read_grey(path):
    """An image file as grey levels [H, W, 1] float32 in [0, 1], and its (height, width).

    Colours are weighed (ITU-R 601).  InputError for a file that is missing or no image.
    """
    image = np.asarray(_opened(path, "L"), np.float32)[..., None] / 255
    return image, image.shape[:2]


def read_resized_float(path, side):
    """What `colour` gives, as levels [side, side, 3] float32 in [0, 1]."""
    image, size = read_resized(path, side)
    return image / np.float32(255), size


def read_resized(path, side):
    """An image file as [side, side, 3] uint8, and its own (height, width).

    Upright as its EXIF data say, grey levels as three equal colours, stretched to a square by area
    averages and bilinear interpolation.  InputError for a file that is missing or no image.
    """
    image = _opened(path, "RGB")
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small), (image.height, image.width)


def letterbox_transform(size, height, width):
    """(scale [2], offset [2]) that put a photo of `size` (height, width) into height x width.

    Its shape is kept up to a pixel's rounding, and it is in the middle: network pixel = original x
    scale + offset, of x and of y.
    """
    factor = min(height / size[0], width / size[1])
    inner = np.maximum(np.round(np.array([size[1], size[0]]) * factor), 1)
    offset = (np.array([width, height]) - inner) // 2
    return (inner / [size[1], size[0]]).astype(np.float32), offset.astype(np.float32)


def read_letterboxed(file, height, width):
    """An image as [height, width, 3] uint8 put there by `fit`, the rest `GREY`, and its own size.

    file: a path, or the bytes of one.  Upright as its EXIF data say.  InputError for a file that
    is missing or no image.
    """
    image = _opened(file, "RGB")
    size = image.height, image.width
    scale, offset = letterbox_transform(size, height, width)
    columns, rows = np.rint(scale * [image.width, image.height]).astype(int)
    left, top = offset.astype(int)
    out = np.full((height, width, 3), LETTERBOX_FILL, np.uint8)
    small = image.resize((int(columns), int(rows)), Image.Resampling.BILINEAR)
    out[top : top + rows, left : left + columns] = small
    return out, size


def read_letterboxed_float(file, height, width):
    """What `fitted` gives, as levels [height, width, 3] float32 in [0, 1]."""
    image, size = read_letterboxed(file, height, width)
    return image / np.float32(255), size


def check_header(file):
    """Refuse, with an InputError, a file that is missing or does not begin as an image."""
    with _open(file):
        return


ORIENTATION, FIRST_SWAPPED = 0x0112, 5  # EXIF's tag, and its first value that swaps the sides


def read_size(file):
    """Height and width of an image file, from its header, upright as its EXIF data say.

    file: a path, the bytes of one, or what gives them.  InputError for a file that is missing or
    does not begin as an image.
    """
    with _open(file) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED
        return image.size if turned else image.size[::-1]


def read_header(packed):
    """(whether grey, whether its EXIF data turn it) of the bytes of an image, from its header."""
    with Image.open(io.BytesIO(packed), formats=FORMATS) as image:
        return image.mode[0] in "1LIF", image.getexif().get(ORIENTATION, 1) > 1


def file_bytes(file):
    """The bytes of an image file: a path, the bytes themselves, or a function that gives them."""
    file = file() if callable(file) else file
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def read_float(path):
    """An image file as levels [H, W, 3] float32 in [0, 1], as large as it is."""
    return np.asarray(_opened(path, "RGB"), np.float32) / 255


def list_images(folder):
    """The image files of a folder and those below it, sorted; InputError when there are none."""
    every = (path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in every if path.is_file())
    if not found:
        raise InputError(f"{folder}: no image files in it")
    return found


def expand_paths(paths):
    """The files among paths, the image files of the folders, and those that patterns name.

    Tables (.csv) stay as they are.  InputError for a path that is none, a folder without images, a
    pattern that nothing matches.
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
                raise InputError(f"{path}: no file is called so")
            found += [match for match in matches if match.is_file()]
        else:
            raise InputError(f"{path}: {MISSING}")
    return found


def _opened(file, mode):
    """A path, or the bytes of an image file, or what gives them, as an upright image."""
    with _open(file) as image:
        return ImageOps.exif_transpose(image).convert(mode)


@contextmanager
def _open(path):
    """Pillow's image of a file; what goes wrong with it, or inside, is an InputError."""
    path = path() if callable(path) else path
    packed = isinstance(path, bytes)
    try:
        with Image.open(io.BytesIO(path) if packed else path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: {MISSING}") from None
    except UNREADABLE as error:
        name = f"{len(path)} bytes" if packed else path
        why = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{name}: {BROKEN} ({why})") from None
