"""Image files as arrays: decoded upright, resized or letterboxed to the network's input.

An image is given as a path, as the bytes of a file, as a function that returns one of these, or as
a PIL image.  Images that are missing or cannot be decoded raise InputError.  Sizes are (height,
width).  EXIF orientation is applied.  RGB arrays of grayscale images have three equal channels.
Integers of 16 bits are scaled from 0..65535, floats from [0, 1].  Transparent pixels become white.
"""

import io
import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from glob import glob
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdet.errors import InputError, printable

ImageFile = str | Path | bytes | Image.Image | Callable[[], str | Path | bytes]
Size = tuple[int, int]  # height, width


class Letterbox(NamedTuple):
    """How an image is scaled and placed in the network's input, which may have another shape.

    centered: whether the image is centered, its sides rounded to the nearest pixel; otherwise it is
      at the top left, and its sides are rounded down.
    antialias: whether shrinking averages all pixels, rather than the four nearest pixels.
    scale: pixels of the input per pixel of the image; 0: as many as fit.
    """

    centered: bool = True
    antialias: bool = True
    scale: float = 0.0


CENTERED = Letterbox()
TOP_LEFT = Letterbox(centered=False, antialias=False)  # of YOLOX, which resizes as OpenCV does
LETTERBOX_FILL = 114  # pixel value of the padding, as in YOLO
# Formats that Pillow decodes itself; for others, such as EPS, it runs a program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Image.preinit()  # registers common formats first, so that a JPEG is not tried as rarer ones before
for name in ("Jpeg2K", "Tiff", "WebP"):  # `Image.init` would import all formats
    import_module(f"PIL.{name}ImagePlugin")
SUFFIXES = tuple(sorted(end for end, of in Image.EXTENSION.items() if of in FORMATS))
READ_ERRORS = MISSING, BROKEN = "no such image", "not a readable image"
LEFT_BEHIND = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")
ANNOTATION_SUFFIXES = (
    *(".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".cache", ".md", ".npy", ".names"),
)
TRANSPARENT_FILL = 255  # pixel value behind transparent pixels: white, as browsers show them
RANGE_65535 = ("PNG", "PPM")  # formats whose 16-bit values may be read as 32-bit integers
DRAFT_FACTOR = 2  # a JPEG decoded at reduced size is at least this many times as large as needed
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
MAX_LOST = 0.05  # fraction of the pixels of a JPEG that may be missing
CUT = "truncated"  # word in Pillow's error for a file that is cut short
LOG = logging.getLogger(__name__)
ORIENTATION, FIRST_SWAPPED = 0x0112, 5  # EXIF tag; its first value that swaps height and width


def read_float(file: ImageFile) -> np.ndarray:
    """Read an image at its original size as [H, W, 3] float32 in [0, 1]."""
    return np.asarray(_decode(file, "RGB")[0], np.float32) / 255


def read_pixels(file: ImageFile, longest: int | None = None) -> tuple[np.ndarray, Size]:
    """Read an image; return ([h, w, 3] uint8, its original size).

    A JPEG that is much larger than `longest`, the longer side to which it will be resized, is
    decoded at a fraction of its size.
    """
    image, size = _decode(file, "RGB", longest)
    return np.asarray(image), size


def read_gray(file: ImageFile) -> tuple[np.ndarray, Size]:
    """Read an image in grayscale; return ([H, W, 1] float32 in [0, 1], its size).

    Colors are converted with the weights of ITU-R 601.
    """
    image, size = _decode(file, "L")
    return np.asarray(image, np.float32)[..., None] / 255, size


def read_resized(file: ImageFile, side: int) -> tuple[np.ndarray, Size]:
    """Read an image and stretch it; return ([side, side, 3] uint8, its original size).

    Resampling is bilinear, antialiased when shrinking.
    """
    image, size = _decode(file, "RGB", side)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)), size


def read_resized_float(file: ImageFile, side: int) -> tuple[np.ndarray, Size]:
    """The same as `read_resized`, with the image as float32 in [0, 1]."""
    image, size = read_resized(file, side)
    return image / np.float32(255), size


def read_letterboxed(
    file: ImageFile, height: int, width: int, letterbox: Letterbox = CENTERED
) -> tuple[np.ndarray, Size]:
    """Read and letterbox an image; return ([height, width, 3] uint8, its original size).

    The image is placed as `letterbox_transform` says; pixels of the padding are `LETTERBOX_FILL`.
    """
    image, size = _decode(file, "RGB", max(height, width) if letterbox.antialias else None)
    scale, offset = letterbox_transform(size, height, width, letterbox)
    columns, rows = np.rint(scale * [size[1], size[0]]).astype(int)
    left, top = offset.astype(int)
    out = np.full((height, width, 3), LETTERBOX_FILL, np.uint8)
    if letterbox.antialias:
        small = np.asarray(image.resize((int(columns), int(rows)), Image.Resampling.BILINEAR))
    else:
        small = _interpolate(np.asarray(image), int(rows), int(columns))
    out[top : top + rows, left : left + columns] = small
    return out, size


def read_letterboxed_float(
    file: ImageFile, height: int, width: int, letterbox: Letterbox = CENTERED
) -> tuple[np.ndarray, Size]:
    """The same as `read_letterboxed`, with the image as float32 in [0, 1]."""
    image, size = read_letterboxed(file, height, width, letterbox)
    return image / np.float32(255), size


def letterbox_transform(
    size: Size, height: int, width: int, letterbox: Letterbox = CENTERED
) -> tuple[np.ndarray, np.ndarray]:
    """Scale [2] and offset [2], for x and y, that letterbox an image of `size` into height x width.

    Network pixel = original pixel x scale + offset.  The aspect ratio is kept up to rounding to
    whole pixels.
    """
    if letterbox.scale:
        inner = np.array(scaled_size(size, letterbox.scale)[::-1])
    else:  # without rounding errors, as in `ops.resize`
        factor = min(Fraction(height, size[0]), Fraction(width, size[1]))
        rounded = round if letterbox.centered else math.floor
        inner = np.array([max(rounded(side * factor), 1) for side in (size[1], size[0])])
    offset = (np.array([width, height]) - inner) // 2 * letterbox.centered
    return (inner / [size[1], size[0]]).astype(np.float32), offset.astype(np.float32)


def scaled_size(size: Size, scale: float) -> Size:
    """(height, width) of an image of `size` that is resized by a factor, at least one pixel."""
    height, width = (max(round(side * scale), 1) for side in size)
    return height, width


def _interpolate(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [H, W, C] uint8 from the four nearest pixels, as OpenCV's INTER_LINEAR does.

    Exact values are rounded to the nearest integer, as in `ops.resize.letterbox_top_left`.
    """
    kind = np.uint32 if 4 * 256 * height * width < 2**32 else np.uint64

    def neighbors(size, inner):
        center = (2 * np.arange(inner) + 1) * size - inner
        first = center // (2 * inner)
        low, high = (np.clip(row, 0, size - 1) for row in (first, first + 1))
        return low, high, (center - first * 2 * inner).astype(kind)[:, None]

    top, bottom, down = neighbors(image.shape[0], height)
    left, right, across = neighbors(image.shape[1], width)
    columns, rows = kind(2 * width), kind(2 * height)
    upper, lower = (
        (columns - across) * row.take(left, 1) + across * row.take(right, 1)
        for row in (image.take(top, 0), image.take(bottom, 0))
    )
    total = (rows - down[..., None]) * upper + down[..., None] * lower
    area = kind(4 * height * width)
    return ((total + area // kind(2)) // area).astype(np.uint8)


@cache
def shrinks_rows_first() -> bool:
    """Whether this Pillow resizes the rows of a tall image before its columns, as version 13 does.

    The order changes roundings, see `ops.resize`.
    """
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(16, 4) * 37)
    once, row_by_row = (image.resize(size, Image.Resampling.BILINEAR) for size in ((3, 5), (4, 5)))
    return once.tobytes() == row_by_row.resize((3, 5), Image.Resampling.BILINEAR).tobytes()


def check_header(file: ImageFile) -> None:
    """Raise InputError if an image is missing or its header cannot be read."""
    with _open(file):
        return


def read_size(file: ImageFile) -> Size:
    """Read the (height, width) of an image after EXIF rotation; only its header is read."""
    with _open(file) as image:
        swapped = image.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED
        width, height = image.size
        return (width, height) if swapped else (height, width)


def read_header(content: bytes) -> tuple[bool, bool]:
    """Return (is grayscale, is rotated or flipped by EXIF) for the bytes of an image file."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.mode[0] in "1LIF", image.getexif().get(ORIENTATION, 1) > 1


def file_bytes(file: ImageFile) -> bytes:
    """The bytes of an image file."""
    file = file() if callable(file) else file
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def scan(folder: str | Path) -> tuple[list[Path], list[str]]:
    """Return (sorted image files in a folder and its subfolders, remarks).

    The remarks count files of other formats.  Hidden files, files left behind by other programs,
    and annotation files are skipped and not counted.
    """
    found, others = [], Counter()
    for path in walk(folder):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            found.append(path)
        elif suffix not in ANNOTATION_SUFFIXES:
            others[suffix or "no ending"] += 1
    counts = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(others.items()))
    text = f"{folder}: {others.total()} files have no known image format ({counts})"
    return sorted(found), [printable(text)] if others else []


def walk(folder: str | Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; hidden files and folders are skipped.

    Links to folders are followed, but no folder is visited twice.
    """
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inner[:] = [] if real in seen else sorted(name for name in inner if not is_hidden(name))
        if real not in seen:
            seen.add(real)
            yield from (Path(place, name) for name in sorted(names) if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one of `LEFT_BEHIND`."""
    return name.startswith(".") or name in LEFT_BEHIND


def list_images(folder: str | Path) -> list[Path]:
    """Sorted image files in a folder and its subfolders; InputError if there are none.

    A warning is logged with the number of files of other formats, if there are any.
    """
    found, remarks = scan(folder)
    if not found:
        raise InputError("; ".join([f"{folder}: no image files in it", *remarks]))
    for remark in remarks:
        LOG.warning(remark)
    return found


def expand_paths(paths: Iterable[Path]) -> list[Path]:
    """Replace each folder by the image files in it, and each pattern by the files it matches.

    Paths of files, and of tables (.csv) even if they do not exist, stay as they are.  Raises
    InputError for other paths that do not exist, a folder without images, and a pattern without
    matches.
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


def _decode(file: ImageFile, mode: str, longest: int | None = None) -> tuple[Image.Image, Size]:
    """(upright image in `mode`, original size); a JPEG is decoded smaller if `longest` allows."""
    file = file() if callable(file) else file
    try:
        return _decode_once(file, mode, longest)
    except InputError as error:
        mended = (
            _mend_jpeg(file) if CUT in str(error) and not isinstance(file, Image.Image) else b""
        )
        if not mended:
            raise
        LOG.warning("%s: the JPEG is cut short, its last rows may be gray", _shown(file))
        return _decode_once(mended, mode, longest)


def _decode_once(
    file: str | Path | bytes | Image.Image, mode: str, longest: int | None
) -> tuple[Image.Image, Size]:
    with _open(file) as image:
        width, height = image.size
        if longest and not isinstance(file, Image.Image):
            image.draft(None, (DRAFT_FACTOR * longest,) * 2)
        upright = ImageOps.exif_transpose(_to_8_bits(image)).convert(mode)
        swapped = image.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED
        return upright, (width, height) if swapped else (height, width)


def _mend_jpeg(file: str | Path | bytes) -> bytes:
    """A truncated JPEG with an end marker; b"" for other files, and if too much is lost."""
    content = file_bytes(file)
    if not content.startswith(JPEG_START):
        return b""
    filler = bytes(range(1, 255)) * (len(content) // 254 + 1)
    ends = (JPEG_END, filler + JPEG_END)
    try:
        one, other = (np.asarray(_decode_once(content + end, "L", None)[0]) for end in ends)
    except InputError:
        return b""
    return content + JPEG_END if (one != other).mean() <= MAX_LOST else b""


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert to 8 bits per channel without transparency; ValueError for an unknown range."""
    exif, found = image.getexif(), image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in RANGE_65535):
        found = Image.fromarray(np.uint8(np.rint(np.asarray(image, np.float64) / 257)))
    elif image.mode == "I":
        raise ValueError("must have 8 or 16 bits per value, got 32-bit integers; save it again")
    elif image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            low, high = values.min(), values.max()
            raise ValueError(f"floats must be in [0, 1], got values from {low:g} to {high:g}")
        found = Image.fromarray(np.uint8(np.rint(values * 255)))
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        background = Image.new("RGBA", whole.size, (TRANSPARENT_FILL,) * 3 + (255,))
        found = Image.alpha_composite(background, whole).convert("RGB")
    if found is not image and ORIENTATION in exif:
        found.getexif()[ORIENTATION] = exif[ORIENTATION]
    return found


@contextmanager
def _open(file: ImageFile) -> Iterator[Image.Image]:
    """A context with the PIL image of a file; converts any exception raised in it to InputError."""
    file = file() if callable(file) else file
    if isinstance(file, Image.Image):
        with _image_errors("image"):
            yield file
        return
    with _image_errors(_shown(file)):
        if not isinstance(file, bytes) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("not a regular file")  # reading a pipe or a device may never end
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=FORMATS) as image:
            yield image


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """A context that converts any exception to InputError; decoders raise more than OSError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: {MISSING}") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: {BROKEN} (unknown format)") from None
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: {BROKEN} ({why})") from None


def _shown(file: str | Path | bytes) -> str:
    return f"{len(file)} bytes" if isinstance(file, bytes) else printable(str(file))
