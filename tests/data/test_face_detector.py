"""Faces found, cut out and aligned on the host, with made-up weights that find a known face."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet import api
from jaxdet.cli import data_align
from jaxdet.data import face_detector, images
from jaxdet.errors import InputError
from jaxdet.ops import alignment
from tests.cli.test_main import main
from tests.models import test_mtcnn

GOLDENS = Path(__file__).parents[1] / "goldens"
SIDE = 40  # of the images: a face fills them
PLACES = np.float32([[0.3, 0.35], [0.7, 0.4], [0.5, 0.6], [0.3, 0.8], [0.65, 0.8]])  # landmarks


def value(net, name):
    """An array of weights by which each window is a face with landmarks at `PLACES`.

    The brighter a window, the higher is its score; windows darker than gray are no faces.
    """
    shape = test_mtcnn.SHAPES[net][name]
    layer, leaf = name.split(".")
    if layer == test_mtcnn.SCORES[net] and leaf == "weight":
        mean = np.full(shape, 4 / np.prod(shape[1:]), np.float32)
        return np.concatenate([-mean[:1], mean[1:]])
    if name == "dense6_3.bias":
        return PLACES.T.ravel()
    is_mean = len(shape) > 1 and (name == "conv1.weight" or shape[0] not in (4, 10))
    return np.full(shape, is_mean / np.prod(shape[1:]), np.float32)  # of what it sees; else 0


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector by these weights."""
    folder = test_mtcnn.write_weights(tmp_path_factory.mktemp("weights"), value)
    return jaxdet.FaceDetector(folder, min_face=32)


@pytest.fixture
def face():
    """A bright image with a gradient."""
    ramp = np.linspace(200, 250, SIDE)
    return np.uint8(np.stack([ramp[None] + 0 * ramp[:, None]] * 3, -1))


def test_boxes_and_landmarks_are_in_pixels_of_the_image(detector, face):
    found = detector.detect(face)
    assert isinstance(found, jaxdet.Faces) and len(found.boxes) == len(found.scores) >= 1
    corner, sides = found.boxes[:, None, :2], found.boxes[:, None, 2:] - found.boxes[:, None, :2]
    np.testing.assert_allclose(found.landmarks, corner + PLACES * sides, rtol=1e-4)
    assert (found.scores > 0.9).all()
    dark, *_ = detector.detect([face // 3, face])
    assert not len(dark.boxes) and dark.landmarks.shape == (0, 5, 2)


def test_the_largest_face_is_aligned(detector, face):
    assert detector.align(face // 3) is None
    aligned, none = detector.align([face, face // 3], side=24)
    found = detector.detect(face)
    largest = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1).argmax()
    expected = face_detector.align_face(face, found.landmarks[largest], 24)
    np.testing.assert_array_equal(aligned, expected)
    assert none is None and aligned.shape == (24, 24, 3) and aligned.dtype == np.uint8


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.3])
def test_landmarks_come_to_the_places_of_the_template(scale):
    """Of an image whose color tells the place: red the column, green the row."""
    side, angle = 32, 0.3
    x, y = np.meshgrid(np.arange(200), np.arange(160))
    pixels = np.uint8(np.stack([x, y, 0 * x], -1))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.float32([[cos, -sin, 60], [sin, cos, 40]])
    landmarks = np.asarray(alignment.apply(matrix, alignment.FACE_TEMPLATE * side))
    found = face_detector.align_face(pixels, landmarks, side)
    i = np.arange(side) + 0.5
    places = np.stack(np.meshgrid(i, i), -1)
    expected = np.asarray(alignment.apply(matrix[None], places)) - 0.5
    assert np.abs(found[..., :2] - expected).max() < 1.1


def test_pixels_beyond_the_border_are_those_at_the_border():
    pixels = np.full((20, 20, 3), 90, np.uint8)
    pixels[:, :4] = 200
    landmarks = alignment.FACE_TEMPLATE * 40 - 10  # twice as large as the image
    found = face_detector.align_face(pixels, landmarks, 40)
    expected = np.full((40, 40, 3), 90)
    expected[:, :14] = 200
    assert np.abs(found - expected).max() <= 1


def test_shrinking_averages():
    noise = np.random.default_rng(0).integers(0, 2, (160, 160, 1)).astype(np.uint8) * 255
    landmarks = alignment.FACE_TEMPLATE * 160
    found = face_detector.align_face(noise.repeat(3, -1), landmarks, 20)
    assert np.abs(found.astype(float) - 127).max() < 80  # means of 64 pixels


def test_canvases_hold_the_image_with_little_waste():
    sides = [face_detector._canvas_side(side) for side in range(1, 3000)]
    assert all(side <= canvas <= 1.5 * side + 1 for side, canvas in enumerate(sides, 1))
    assert len({*sides}) < 25


def test_small_windows_are_refused(tmp_path):
    with pytest.raises(InputError, match="^min_face must be at least 12 pixels, got 8$"):
        jaxdet.FaceDetector(tmp_path, min_face=8)


@pytest.fixture
def folder(tmp_path, face):
    """A folder with two bright images, a dark one, a damaged one, and other files."""
    root = tmp_path / "faces"
    for name in ("a/1.png", "b/2.jpg"):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(face).save(root / name)
    Image.fromarray(face // 3).save(root / "b" / "dark.pgm")
    (root / "b" / "broken.png").write_bytes(b"no image")
    (root / "README").write_text("faces")
    return root


def test_the_images_of_a_folder_are_aligned_under_the_same_names(folder, tmp_path, detector):
    out = tmp_path / "out"
    done = face_detector.align_folder(folder, out, detector, side=24)
    assert done.aligned == 2 and len(done.kept) == len(done.faults) == 1
    assert done.kept[0] == f"{folder}/b/dark.pgm: no face found; copied as it is"
    assert done.faults[0].startswith(f"{folder}/b/broken.png: not a readable image")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert names == ["a/1.png", "b/2.jpg", "b/dark.pgm"]
    kept, original = out / "b" / "dark.pgm", folder / "b" / "dark.pgm"
    assert kept.read_bytes() == original.read_bytes()
    expected = detector.align(folder / "a" / "1.png", side=24)
    np.testing.assert_array_equal(images.read_pixels(out / "a" / "1.png")[0], expected)
    with Image.open(out / "a" / "1.png") as image:
        assert image.mode == "L"  # as the face is gray
    with pytest.raises(InputError, match="out: must be an empty or new folder"):
        face_detector.align_folder(folder, out, detector, side=24)


def test_a_tar_file_is_read_and_a_failure_leaves_nothing(folder, tmp_path, detector):
    with tarfile.open(tmp_path / "faces.tar", "w") as tar:
        tar.add(folder, "faces")
    done = face_detector.align_folder(tmp_path / "faces.tar", tmp_path / "a", detector, side=24)
    assert done.aligned == 2 and (tmp_path / "a" / "faces" / "b" / "2.jpg").is_file()
    with pytest.raises(InputError, match="1 of 4 images cannot be read; first problem: .*broken"):
        face_detector.align_folder(folder, tmp_path / "b", detector, side=24, on_invalid="error")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("b")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image files in it"):
        face_detector.align_folder(tmp_path / "empty", tmp_path / "c", detector, side=24)


@pytest.fixture
def installed(detector, monkeypatch):
    """The detector in place of the one with published weights."""
    for module in (api, data_align):
        monkeypatch.setattr(module, "FaceDetector", lambda: detector)


def test_data_align_writes_a_folder_and_counts(installed, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main("data", "align", folder, out, "--size", "24") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = "3 images, 2 with an aligned face, 1 without a face, copied as they are"
    assert lines[-1] == f"wrote {out}: {expected}"
    assert "1 images or rows cannot be used and are left out:" in lines
    assert f"  {folder}/b/dark.pgm: no face found; copied as it is" in lines
    for words, message in {
        (folder, folder / "out"): f"DST must be outside SRC, got {folder / 'out'}",
        (folder, tmp_path / "new", "--size", "0"): "--size must be at least 1 pixel, got 0",
        (folder, tmp_path / "new", "--on-invalid", "error"): "1 of 4 images cannot be read; first",
        (tmp_path / "gone", tmp_path / "new"): "gone: cannot be read: No such file or directory",
    }.items():
        assert main("data", "align", *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_predict_aligns_faces_first(installed, detector, face, tmp_path, capsys, caplog):
    run = GOLDENS / "schema2" / "faces"
    for name, pixels in {"bright": face, "dark": face // 3}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert main("predict", run, tmp_path, "--align-faces", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["image"] for one in found] == [f"{tmp_path}/{x}.png" for x in ("bright", "dark")]
    assert caplog.messages == [f"{tmp_path}/dark.png: no face found; the whole image is used"]
    loaded = api.load(run)
    aligning = loaded.with_aligned_faces(detector)
    side = loaded.metadata["input"][0]
    expected = loaded.prepare(detector.align(face, side=side)).image
    np.testing.assert_array_equal(aligning.prepare(face).image, expected)
    assert main("predict", run, "--align-faces") == 2
    assert "--align-faces needs images; align the data with `jaxdet " in capsys.readouterr().err
    assert main("predict", GOLDENS / "schema2" / "digits", tmp_path, "--align-faces") == 2
    assert "aligning faces needs a run of faces, got a run of digits" in capsys.readouterr().err
