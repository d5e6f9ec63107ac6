"""MTCNN against its cascade in plain loops, and against the original in PyTorch."""

import os
import sys
import zlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jaxdet.errors import InputError
from jaxdet.models import mtcnn, pretrained, registry
from tests.models.helpers import apply, paths, size
from tests.reference import mtcnn as reference

DATA = os.environ.get("JAXDET_DATA")
NAMES = list(mtcnn.NETS)
SHAPES = {  # of the arrays that facenet-pytorch 2.6.0 contains
    "pnet": {
        **{"conv1.weight": (10, 3, 3, 3), "conv1.bias": (10,), "prelu1.weight": (10,)},
        **{"conv2.weight": (16, 10, 3, 3), "conv2.bias": (16,), "prelu2.weight": (16,)},
        **{"conv3.weight": (32, 16, 3, 3), "conv3.bias": (32,), "prelu3.weight": (32,)},
        **{"conv4_1.weight": (2, 32, 1, 1), "conv4_1.bias": (2,)},
        **{"conv4_2.weight": (4, 32, 1, 1), "conv4_2.bias": (4,)},
    },
    "rnet": {
        **{"conv1.weight": (28, 3, 3, 3), "conv1.bias": (28,), "prelu1.weight": (28,)},
        **{"conv2.weight": (48, 28, 3, 3), "conv2.bias": (48,), "prelu2.weight": (48,)},
        **{"conv3.weight": (64, 48, 2, 2), "conv3.bias": (64,), "prelu3.weight": (64,)},
        **{"dense4.weight": (128, 576), "dense4.bias": (128,), "prelu4.weight": (128,)},
        **{"dense5_1.weight": (2, 128), "dense5_1.bias": (2,)},
        **{"dense5_2.weight": (4, 128), "dense5_2.bias": (4,)},
    },
    "onet": {
        **{"conv1.weight": (32, 3, 3, 3), "conv1.bias": (32,), "prelu1.weight": (32,)},
        **{"conv2.weight": (64, 32, 3, 3), "conv2.bias": (64,), "prelu2.weight": (64,)},
        **{"conv3.weight": (64, 64, 3, 3), "conv3.bias": (64,), "prelu3.weight": (64,)},
        **{"conv4.weight": (128, 64, 2, 2), "conv4.bias": (128,), "prelu4.weight": (128,)},
        **{"dense5.weight": (256, 1152), "dense5.bias": (256,), "prelu5.weight": (256,)},
        **{"dense6_1.weight": (2, 256), "dense6_1.bias": (2,)},
        **{"dense6_2.weight": (4, 256), "dense6_2.bias": (4,)},
        **{"dense6_3.weight": (10, 256), "dense6_3.bias": (10,)},
    },
}
SCORES = {"pnet": "conv4_1", "rnet": "dense5_1", "onet": "dense6_1"}


def formula(net, name):
    """The value of an array under made-up weights, by which many windows look like faces."""
    shape = SHAPES[net][name]
    draw = np.random.default_rng(zlib.crc32(f"{net}.{name}".encode()))
    if name.startswith("prelu"):
        return draw.uniform(0.1, 0.4, shape).astype(np.float32)
    if name.endswith("bias"):
        return draw.normal(0, 0.1, shape).astype(np.float32)
    kernel = draw.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    last = name.split(".")[0] in mtcnn.TORCH_HEADS[net].values() and "dense" in name
    factor = 3 if name.startswith(SCORES[net]) else 0.1 if last and shape[0] <= 10 else 1
    return np.float32(factor * kernel * (0.2 if name.startswith("conv4_2") else 1))


def write_weights(folder, value=formula):
    """The three files, as safetensors, which are told apart by their first bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for net, shapes in SHAPES.items():
        save_file({name: value(net, name) for name in shapes}, folder / f"{net}.pt")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of files with made-up weights."""
    return write_weights(tmp_path_factory.mktemp("mtcnn"))


@pytest.mark.parametrize(
    ("net", "parameters"), [("pnet", 6632), ("rnet", 100178), ("onet", 389040)]
)
def test_names_and_shapes_are_the_published_ones(net, parameters):
    shapes = variable_shapes_of(net)
    arrays = {name: np.broadcast_to(np.float32(0), of) for name, of in SHAPES[net].items()}
    pretrained.assign_arrays(shapes, arrays, partial(mtcnn.torch_name, net))
    assert sorted(mtcnn.torch_name(net, path) for path in paths(shapes)) == sorted(arrays)
    assert size(shapes) == parameters
    assert registry.get(f"mtcnn_{net}").image_size == mtcnn.SIDES[net]


def variable_shapes_of(net):
    """Variables of a network, as shapes."""
    images = jax.ShapeDtypeStruct((1, mtcnn.SIDES[net], mtcnn.SIDES[net], 3), "float32")
    return jax.eval_shape(mtcnn.NETS[net]().init, jax.random.key(0), images)


THRESHOLDS = mtcnn.Thresholds(0.08, 0.2, 0.5)
LIMITS = mtcnn.Limits(windows=256, rnet=128, onet=64, faces=32)
MIN_FACE = 16


def plain(net, variables):
    """A network as a function of an array [N, H, W, 3] that returns three arrays."""
    function = jax.jit(lambda images: mtcnn.NETS[net]().apply(variables, images))
    return lambda images: [np.float64(x) for x in function(np.float32(images))]


def test_the_cascade_is_the_one_in_plain_loops(weights):
    """On a part of a canvas, whose other pixels do not matter."""
    variables = mtcnn.load(weights)
    canvas = np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8)
    detect = jax.jit(partial(mtcnn.detect, min_face=MIN_FACE, thresholds=THRESHOLDS, limits=LIMITS))
    nets = [plain(net, variables[net]) for net in NAMES]
    for height, width in ((41, 52), (48, 33)):
        image = np.uint8(canvas[:height, :width] * np.linspace(0.2, 1, width)[:, None])
        canvas[:height, :width] = image
        sizes = mtcnn.image_sizes((height, width), canvas.shape[:2], min_face=MIN_FACE)
        found = detect(variables, canvas, sizes)
        expected = reference.detect(nets, image, MIN_FACE, THRESHOLDS)
        assert 1 < len(expected) < LIMITS.faces
        assert found.valid.sum() == len(expected)
        scores, boxes, landmarks = (np.array(column) for column in zip(*expected, strict=True))
        rows = slice(len(expected))
        np.testing.assert_allclose(found.scores[rows], scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes[rows], boxes - [1, 1, 0, 0], atol=1e-3)
        np.testing.assert_allclose(found.landmarks[rows], landmarks, atol=1e-3)
        assert not found.landmarks[len(expected) :].any()


def test_an_image_smaller_than_a_face_has_none(weights):
    image = np.zeros((19, 40, 3), np.uint8)
    found = jax.jit(mtcnn.detect)(mtcnn.load(weights), image, mtcnn.image_sizes((19, 40)))
    assert found.boxes.shape[1:] == (4,) and not found.valid.any()
    assert mtcnn.image_sizes((19, 40), (24, 40)).tolist() == [[19, 40], [0, 0]]


@pytest.mark.parametrize("side", [4, 11])
def test_parts_of_images_are_resized_by_averaging(side):
    image = np.random.default_rng(1).integers(0, 256, (13, 12, 3), np.uint8)
    table = mtcnn._integral_image(image)
    found = mtcnn._cut(table, np.array([3, 2]), np.array([9, 7]), side=side)
    expected = reference.resize(np.float64(image[2:9, 3:12]), side, side)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sums_of_areas_are_exact_although_the_table_overflows():
    table = np.zeros((2, 2, 3), np.int32)
    table[0, 1] = table[1, 0] = 2**31 - 5
    table[1, 1] = np.array(2**32 - 10 + 7, np.uint32).view(np.int32)
    ends = np.array([0]), np.array([1])
    assert mtcnn._mean(jnp.array(table), ends, ends).tolist() == [[7.0] * 3]


@pytest.mark.parametrize("size", [(20, 20), (112, 92), (250, 250), (64, 900), (1500, 1000)])
def test_levels_of_a_pyramid_do_not_overlap(size):
    levels = mtcnn.pyramid(*size)
    covered = np.zeros(levels.canvas, int)
    for (top, left), (height, width) in zip(levels.corners, levels.sizes, strict=True):
        covered[top : top + height, left : left + width] += 1
    assert covered.max() == 1 and covered.sum() == levels.sizes.prod(1).sum()
    assert not (levels.corners % mtcnn.STRIDE).any()
    assert covered.mean() > 0.6
    np.testing.assert_allclose(levels.scales, reference.scales(*size, 20))


def test_a_missing_package_or_file_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    message = "^package:mtcnn is not installed: pip install --no-deps facenet-pytorch$"
    with pytest.raises(InputError, match=message):
        mtcnn.load()
    with pytest.raises(InputError, match="^package:lite0: must be package:mtcnn, or a folder of "):
        mtcnn.load("package:lite0")
    with pytest.raises(InputError, match="pnet.pt: no such file; MTCNN needs pnet.pt, rnet.pt and"):
        mtcnn.load(tmp_path)
    for net in NAMES:
        (tmp_path / f"{net}.pt").write_bytes((weights / "pnet.pt").read_bytes())
    with pytest.raises(InputError, match="rnet.pt: no array for .* params/hidden/bias"):
        mtcnn.load(tmp_path)
    package = SimpleNamespace(submodule_search_locations=[str(weights.parent)])
    monkeypatch.setattr(pretrained, "find_spec", lambda name: package)
    assert pretrained.fetch_folder("package:mtcnn") == weights


@pytest.fixture(scope="module")
def original():
    """The package facenet-pytorch; what it uses of torchvision is replaced if that is absent."""
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torchvision") is None:
            for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.boxes"):
                patch.setitem(sys.modules, f"torchvision{name}", ModuleType(f"torchvision{name}"))
            sys.modules["torchvision.transforms"].functional = None
            sys.modules["torchvision.ops.boxes"].batched_nms = partial(batched_nms, torch)
        package = pytest.importorskip("facenet_pytorch")
        yield SimpleNamespace(torch=torch, MTCNN=package.MTCNN)


def batched_nms(torch, boxes, scores, images, threshold):
    """The function of torchvision for a batch of one image."""
    assert not images.any()
    found = list(zip(scores.tolist(), boxes.double().numpy(), strict=True))
    return torch.tensor(reference.suppress(found, threshold, reference.iou), dtype=torch.long)


@pytest.mark.parametrize("net", NAMES)
def test_the_networks_agree_with_the_original(original, net):
    side, torch = mtcnn.SIDES[net], original.torch
    images = np.random.default_rng(2).normal(0, 0.5, (4, side, side, 3)).astype(np.float32)
    if net == "pnet":  # takes images of any size
        images = np.random.default_rng(2).normal(0, 0.5, (2, 31, 42, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = getattr(original.MTCNN(), net)(torch.tensor(images).permute(0, 3, 1, 2))
    offsets, *landmarks, scores = (np.moveaxis(x.numpy(), 1, -1) for x in theirs)
    ours = apply(mtcnn.NETS[net](), mtcnn.load()[net], images)
    np.testing.assert_allclose(ours.scores, scores[..., 1], atol=1e-5)
    np.testing.assert_allclose(ours.offsets, offsets, atol=1e-5)
    if landmarks:
        np.testing.assert_allclose(ours.landmarks, landmarks[0], atol=1e-5)


@pytest.mark.skipif(not DATA, reason="JAXDET_DATA is not set")
def test_faces_are_those_of_the_original(original):
    """Within 1e-4 of the image's side, in scores 1e-4: single faces, and six in one image."""
    root = Path(DATA or "") / "orl-faces"
    single = [np.asarray(Image.open(root / f"s{i}" / "1.pgm").convert("RGB")) for i in range(1, 7)]
    several = np.concatenate([np.concatenate(single[i : i + 3], 1) for i in (0, 3)])
    theirs = original.MTCNN(keep_all=True, select_largest=False)
    variables, detect = mtcnn.load(), jax.jit(mtcnn.detect)
    count = 0
    for image in (*single[:3], several):
        boxes, scores, landmarks = theirs.detect(Image.fromarray(image), landmarks=True)
        order = np.argsort(-np.float64(scores), kind="stable")
        found = jax.device_get(detect(variables, image, mtcnn.image_sizes(image.shape[:2])))
        assert found.valid.sum() == len(boxes)
        rows = slice(len(boxes))
        np.testing.assert_allclose(found.scores[rows], np.float64(scores)[order], atol=1e-4)
        shifted = found.boxes[rows] + [1, 1, 0, 0]
        np.testing.assert_allclose(shifted, np.float64(boxes)[order], atol=1e-4 * image.shape[0])
        points = np.float64(landmarks)[order]
        np.testing.assert_allclose(found.landmarks[rows], points, atol=1e-4 * image.shape[0])
        count += len(boxes)
    assert count > 6
