import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
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
