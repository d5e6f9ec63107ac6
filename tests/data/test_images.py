import contextlib
import os
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.Image import Transpose

from jaxdet.data import images
from jaxdet.errors import InputError
from tests import datasets

once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def save_gradient(path, size=(30, 20), mode="RGB", **options):
    """Write an image of `size` (height, width) whose rows have one pixel value each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(20, 200, size[0], dtype=np.uint8)[:, None]
    image = Image.fromarray(np.broadcast_to(rows, size).copy()).convert(mode)
    image.save(path, **options)
    return image


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_get_three_channels(tmp_path, mode):
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    image = save_gradient(path, mode=mode)
    found, size = images.read_resized(path, 16)
    assert (found.shape, found.dtype, size) == ((16, 16, 3), np.uint8, (30, 20))
    expected = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, axis=2))


def test_float_images_are_bytes_over_255(tmp_path):
    path = tmp_path / "a.png"
    image = save_gradient(path)
    found, size = images.read_resized_float(path, 16)
    assert (found.dtype, size) == (np.float32, (30, 20))
    np.testing.assert_array_equal(np.rint(found * 255), images.read_resized(path, 16)[0])
    np.testing.assert_array_equal(np.rint(images.read_float(path) * 255), np.asarray(image))


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    "name, values",
    [
        ("a.png", np.uint16(RAMP * 65535)),
        ("a.tif", np.uint16(RAMP * 65535)),
        ("a.pgm", np.uint16(RAMP * 65535)),
        ("float.tif", np.float32(RAMP)),
        ("a.png", np.uint8(RAMP * 255)),
    ],
)
def test_values_are_scaled_by_the_range_of_their_type(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    expected = np.rint(RAMP * 255)
    for image in (
        images.read_resized(tmp_path / name, 64)[0][..., 0],
        images.read_letterboxed(tmp_path / name, 64, 64)[0][..., 1],
        images.read_float(tmp_path / name)[..., 2] * 255,
        images.read_gray(tmp_path / name)[0][..., 0] * 255,
    ):
        np.testing.assert_allclose(image, expected, atol=1)


@pytest.mark.parametrize(
    "values, says",
    [
        (np.int32(RAMP * 65535), "8 or 16 bits per value, got 32-bit integers"),
        (np.float32(RAMP * 255), r"floats must be in \[0, 1\]"),
        (np.full((8, 8), np.nan, np.float32), "floats must be in"),
    ],
)
def test_values_without_a_known_range_are_refused_by_name(tmp_path, values, says):
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (images.read_float, images.read_gray, partial(images.read_resized, side=8)):
        with pytest.raises(InputError, match=rf"a\.tif: not a readable image .*{says}"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)  # the left half is black and transparent
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    found = images.read_float(tmp_path / "a.png")
    np.testing.assert_array_equal(found[:, :4], np.ones((8, 4, 3)))
    red = (76 / 255,) * 3 if mode == "LA" else (1, 0, 0)
    np.testing.assert_allclose(found[:, 4:], np.broadcast_to(red, (8, 4, 3)), atol=1e-6)


def smooth_jpeg(path, size=(240, 320), **options):
    rows, columns = np.meshgrid(*(np.linspace(0, 200, side) for side in size), indexing="ij")
    noise = np.random.default_rng(0).integers(0, 40, size)
    pixels = np.stack([rows, columns, noise], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90, **options)
    return path


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_jpeg_that_lacks_a_few_bytes_is_read_with_a_warning(tmp_path, caplog, cut):
    path = smooth_jpeg(tmp_path / "a.jpg")
    whole = images.read_float(path)
    path.write_bytes(path.read_bytes()[:-cut])
    found = images.read_float(path)
    assert "a.jpg: the JPEG is cut short" in caplog.text
    np.testing.assert_allclose(found[:220], whole[:220], atol=1e-6)
    images.read_resized(path.read_bytes(), 16)


def test_a_jpeg_that_lacks_more_is_refused(tmp_path):
    path = smooth_jpeg(tmp_path / "a.jpg")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match=r"a\.jpg: not a readable image \(.*truncated"):
        images.read_float(path)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, monkeypatch):
    path, sizes = smooth_jpeg(tmp_path / "a.jpg", (1200, 1600)), []
    transpose = ImageOps.exif_transpose
    monkeypatch.setattr(
        ImageOps, "exif_transpose", lambda image: sizes.append(image.size) or transpose(image)
    )
    small, size = images.read_letterboxed(path, 96, 128)
    with Image.open(path) as image:
        exact = image.resize((128, 96), Image.Resampling.BILINEAR)
    assert size == (1200, 1600) and sizes == [(400, 300)]
    assert np.abs(small - np.asarray(exact, float)).max() < 6
    images.read_letterboxed(path, 480, 640)
    assert sizes[1:] == [(1600, 1200)]  # 2 x 640 pixels are needed


@pytest.mark.parametrize("make", ["pipe", "device", "folder"])
def test_only_regular_files_are_images(tmp_path, make):
    path = tmp_path / "a.png"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (images.read_float, images.read_size, images.check_header):
        with pytest.raises(InputError, match=r"a\.png: not a readable image \(not a regular file"):
            read(path)


# How an upright image is stored under each EXIF orientation (JEITA CP-3451, tag 0x0112).
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def save_oriented(path, upright, orientation):
    """Save an image as stored under an EXIF orientation."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    stored = upright.transpose(STORED[orientation]) if orientation > 1 else upright
    stored.save(path, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_images_are_upright_in_every_exif_orientation(tmp_path, orientation):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    upright.save(tmp_path / "upright.png")
    save_oriented(tmp_path / "stored.png", upright, orientation)
    expected = images.read_resized(tmp_path / "upright.png", 16)
    found = images.read_resized(tmp_path / "stored.png", 16)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1] == (30, 20)
    np.testing.assert_array_equal(
        images.read_float(tmp_path / "stored.png"), images.read_float(tmp_path / "upright.png")
    )


def test_letterboxed_grayscale_and_rotated_images(tmp_path):
    datasets.draw_image(0).convert("L").save(tmp_path / "gray.png")
    rotated = datasets.draw_image(0)
    exif = rotated.getexif()
    exif[images.ORIENTATION] = 6  # a quarter turn
    rotated.save(tmp_path / "rotated.jpg", exif=exif)
    gray, size = images.read_letterboxed(tmp_path / "gray.png", 32, 48)
    assert (gray[..., 0] == gray[..., 1]).all() and size == (40, 60)
    _, size = images.read_letterboxed(tmp_path / "rotated.jpg", 64, 64)
    assert size == images.read_size(tmp_path / "rotated.jpg") == (60, 40)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    save_gradient(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(InputError, match="a.png: not a readable image .*600 pixels"):
        images.read_resized(tmp_path / "a.png", 16)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The bytes of a JPEG and a PNG with EXIF data."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    paths = [tmp_path_factory.mktemp("encoded") / name for name in ("a.jpg", "a.png")]
    for path in paths:
        save_gradient(path, exif=exif)
    return [path.read_bytes() for path in paths]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@once
@given(st.integers(0, 1), st.floats(0, 1), st.binary(max_size=4), st.integers(0, 6))
def test_damaged_bytes_give_an_image_or_an_input_error(tmp_path, encoded, kind, at, new, gone):
    content = encoded[kind]
    at = int(at * len(content))
    path = tmp_path / "damaged"
    path.write_bytes(content[:at] + new + content[at + gone :])
    with contextlib.suppress(InputError):
        assert images.read_resized(path, 8)[0].shape == (8, 8, 3)


def test_images_are_listed_from_all_subfolders(tmp_path):
    for name in ("cat/a.jpg", "cat/more/C.JPG", "face/a.jpg"):
        save_gradient(tmp_path / name)
    (tmp_path / "face" / "text.jpg").write_text("not an image")
    (tmp_path / "face" / "notes.txt").write_text("")
    (tmp_path / "face" / "album.jpg").mkdir()
    names = ["cat/a.jpg", "cat/more/C.JPG", "face/a.jpg", "face/text.jpg"]
    assert images.list_images(tmp_path) == [tmp_path / name for name in names]
    with pytest.raises(InputError, match="album.jpg: no image files in it"):
        images.list_images(tmp_path / "face" / "album.jpg")


@pytest.mark.parametrize("size", [(37, 53), (120, 90), (16, 150)])
def test_letterbox_at_the_top_left_resizes_as_opencv_does(size):
    """Up to one value, since OpenCV interpolates with 11 bits."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found, read_size = images.read_letterboxed(Image.fromarray(pixels), 64, 96, images.TOP_LEFT)
    factor = min(64 / size[0], 96 / size[1])
    height, width = int(size[0] * factor), int(size[1] * factor)
    expected = np.full((64, 96, 3), 114, np.uint8)
    expected[:height, :width] = cv2.resize(pixels, (width, height))
    difference = abs(found.astype(int) - expected)
    assert read_size == size and difference.max() <= 1 and difference.mean() < 0.15
    scale, offset = images.letterbox_transform(size, 64, 96, images.TOP_LEFT)
    np.testing.assert_allclose(scale, [width / size[1], height / size[0]], rtol=1e-6)
    assert not offset.any()
