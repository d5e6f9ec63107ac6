"""Compare jaxdet's YOLOX with onnxruntime on real weights.

    pip install onnx onnxruntime
    pip install --no-deps ddddocr
    python scripts/check_yolox.py [MODEL.onnx]

The package ddddocr (MIT license) has a YOLOX-tiny with one class, trained to find characters, as an
ONNX file.  Its weights are read into jaxdet's network, and jaxdet and onnxruntime predict from one
image of text.  The largest differences are printed; the exit code is 1 if one exceeds `TOLERANCE`.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from PIL import Image, ImageDraw

from jaxdet.data import images, normalize
from jaxdet.models import pretrained, yolox
from jaxdet.ops import boxes

TOLERANCE = 1e-4  # of scores, and of box sides in strides
SIDE = 416
BLOCK = (
    "conv1",
    "conv2",
    "m.0.conv1",
    "m.0.conv2",
    "conv3",
)  # convolutions of a block, as they run
DEEP_BLOCK = (*BLOCK[:2], *(f"m.{i}.conv{j}" for i in range(3) for j in (1, 2)), "conv3")
NECK = ("lateral_conv0", "C3_p4", "reduce_conv1", "C3_p3", "bu_conv2", "C3_n3", "bu_conv1", "C3_n4")
HEAD = (
    *("stems.{}", "cls_convs.{}.0", "cls_convs.{}.1", "cls_preds.{}"),
    *("reg_convs.{}.0", "reg_convs.{}.1", "reg_preds.{}", "obj_preds.{}"),
)


def main(words: list[str]) -> int:
    """Print the largest differences; returns the exit code."""
    model = onnx.load(words[0] if words else _packaged())
    arrays = published_arrays(model.graph)
    net = yolox.Tiny(classes=1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    variables = pretrained.assign_arrays(shapes, arrays, yolox.torch_name)
    pixels, _ = images.read_letterboxed(text_image(), SIDE, SIDE, images.TOP_LEFT)
    inputs = normalize.normalize(pixels[None] / np.float32(255), normalize.BGR_255)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected: Any = session.run(None, {"images": inputs.transpose(0, 3, 1, 2)})[0]
    with jax.default_matmul_precision("highest"):
        output = jax.jit(net.apply)(variables, inputs)
    strides = np.asarray(output.strides)[:, None]
    corner = np.asarray(output.points) - strides / 2
    center, sides = expected[0, :, :2] * strides + corner, np.exp(expected[0, :, 2:4]) * strides
    true = boxes.from_cxcywh(np.concatenate([center, sides], 1))
    differences = {
        "boxes, in strides": (output.boxes[0] - true) / strides,
        "objectness": jax.nn.sigmoid(output.objectness[0]) - expected[0, :, 4],
        "class scores": jax.nn.sigmoid(output.classes[0]) - expected[0, :, 5:],
    }
    largest = {name: float(np.abs(values).max()) for name, values in differences.items()}
    count = int((expected[0, :, 4] * expected[0, :, 5] > 0.5).sum())
    print(f"{expected.shape[1]} cells, {count} of them with a score above .5; largest differences:")
    for name, value in largest.items():
        print(f"  {name}: {value:.2g}")
    return int(max(largest.values()) > TOLERANCE)


def published_arrays(graph: onnx.GraphProto) -> Mapping[str, np.ndarray]:
    """The weights of a YOLOX-tiny in ONNX under the names of the published checkpoints.

    The file's convolutions are in the order in which they run, with the batch norms folded into
    them, so that the batch norms of jaxdet's network only add the bias.
    """
    initializers = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    arrays = {}
    for name, node in zip(layer_names(), convolutions, strict=True):
        kernel, bias = (initializers[each] for each in node.input[1:])
        if "_preds" in name:
            arrays |= {f"{name}.weight": kernel, f"{name}.bias": bias}
            continue
        ones = np.ones_like(bias)
        norm = {"weight": ones, "bias": bias, "running_mean": 0 * ones}
        norm["running_var"] = ones - np.float32(yolox.NORM["epsilon"])
        arrays |= {f"{name}.conv.weight": kernel}
        arrays |= {f"{name}.bn.{key}": value for key, value in norm.items()}
    return arrays


def layer_names() -> list[str]:
    """Names of the convolutions of a YOLOX-tiny, in the order in which they run."""
    names = ["backbone.backbone.stem.conv"]
    for i, block in ((2, BLOCK), (3, DEEP_BLOCK), (4, DEEP_BLOCK)):
        names += [
            f"backbone.backbone.dark{i}.{layer}" for layer in ("0", *(f"1.{n}" for n in block))
        ]
    names += [f"backbone.backbone.dark5.{layer}" for layer in ("0", "1.conv1", "1.conv2")]
    names += [f"backbone.backbone.dark5.2.{layer}" for layer in BLOCK]
    for name in NECK:
        inner = [f".{layer}" for layer in BLOCK] if name.startswith("C3") else [""]
        names += [f"backbone.{name}{layer}" for layer in inner]
    return names + [f"head.{layer.format(level)}" for level in range(3) for layer in HEAD]


def text_image() -> Image.Image:
    """A picture of a few words."""
    image = Image.new("RGB", (320, 200), (230, 220, 200))
    draw = ImageDraw.Draw(image)
    for i, word in enumerate(("jaxdet", "YOLOX", "2107", "Abc")):
        color = (40 * i, 20, 120 - 30 * i)
        draw.text((20 + 60 * i, 20 + 40 * i), word, fill=color, font_size=28)
    return image


def _packaged() -> Path:
    spec = find_spec("ddddocr")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("ddddocr is not installed: pip install --no-deps ddddocr, or name an ONNX file")
    return Path(spec.submodule_search_locations[0]) / "common_det.onnx"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
