"""YOLOX against golden outputs, and against the names and shapes of the published checkpoints."""

import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models import pretrained, registry, yolox
from tests.models.helpers import outputs, paths, shaped, size, variable_shapes

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = json.loads((GOLDENS / "yolox_names.json").read_text())  # {size: {name: shape}}
GOLDEN = np.load(GOLDENS / "yolox.npz")


def formula(name, shape):
    """The value of a tensor under the weights of the golden outputs, see goldens/README.md."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    is_vector = len(shape) == 1
    if name.endswith("running_var") or (name.endswith("weight") and is_vector):
        return draw.uniform(0.5, 1.5, shape)
    if name.endswith("weight"):
        kernel = draw.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        return kernel * (0.02 if "_preds" in name else 1)
    return draw.normal(size=shape) * 0.1 * (not name.endswith("num_batches_tracked"))


def network(model):
    """The network of a published detector."""
    return registry.get(f"yolox_{model}").build()


@pytest.mark.parametrize("model", NAMES)
def test_names_and_shapes_are_those_of_the_published_weights(model):
    variables = variable_shapes(network(model))
    arrays = {name: np.broadcast_to(np.float32(0), of) for name, of in NAMES[model].items()}
    pretrained.assign_arrays(variables, arrays, yolox.torch_name)  # equal shapes, none missing
    assigned = [yolox.torch_name(path) for path in paths(variables)]
    counters = [name for name in arrays if name.endswith("num_batches_tracked")]
    assert sorted([*assigned, *counters]) == sorted(arrays)


@pytest.mark.parametrize(
    "model",
    ["nano", *(pytest.param(name, marks=pytest.mark.long) for name in ("tiny", "s"))],
)
def test_outputs_are_the_golden_ones(model):
    net, images = network(model), np.float32(GOLDEN["image"])[None]
    arrays = {name: formula(name, of) for name, of in NAMES[model].items()}
    variables = pretrained.assign_arrays(variable_shapes(net), arrays, yolox.torch_name)

    def apply(variables, images):
        is_neck = {"capture_intermediates": lambda module, _: module.name == "neck"}
        with jax.default_matmul_precision("highest"):
            return net.apply(variables, images, mutable="intermediates", **is_neck)

    output, captured = jax.jit(apply)(variables, images)
    (maps,) = captured["intermediates"]["neck"]["__call__"]
    for i, found in enumerate(maps):
        expected = GOLDEN[f"{model}_neck{i}"]
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4 * np.std(expected))
    low, high = np.split(output.boxes[0], 2, -1)
    scores = [jax.nn.sigmoid(logits) for logits in (output.objectness[0, :, None], output.classes)]
    columns = [(low + high) / 2, high - low, scores[0], scores[1][0]]
    np.testing.assert_allclose(np.concatenate(columns, -1), GOLDEN[f"{model}_output"], rtol=1e-4)


@pytest.mark.parametrize(
    "model, parameters",
    [
        *(("nano", 0.91), ("tiny", 5.06), ("s", 8.97)),
        *(
            pytest.param(*large, marks=pytest.mark.long)
            for large in (("m", 25.3), ("l", 54.2), ("x", 99.1))
        ),
    ],
)
def test_numbers_of_parameters_are_the_published_ones(model, parameters):
    count = size(variable_shapes(network(model))["params"])
    assert abs(count / 1e6 - parameters) <= 0.05


def test_operations_are_the_published_ones():
    """26.8 GFLOPs at 640 x 640 pixels, two per multiply-add; they also count the batch norms."""
    images = shaped(1, 640, 640, 3)
    net = network("s")
    _, variables = outputs(net, images)
    count = flops.count(net.apply, variables, images, convention="mac").total()
    assert 0.99 < 2 * count / 26.8e9 < 1


def test_squares_of_four_pixels_go_into_channels_column_by_column():
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    found = yolox.space_to_depth(image)
    np.testing.assert_array_equal(found[0, 0, 1], [2, 6, 3, 7])
    np.testing.assert_array_equal(found[0, 1, 0], [8, 12, 9, 13])


def test_every_layer_of_the_backbone_belongs_to_one_stage():
    stages = registry.stage_names("yolox_nano")
    layers = {
        path.split("/")[2]
        for path in paths(variable_shapes(network("nano")))
        if "/features/" in path
    }
    for layer in layers:
        assert sum(registry.in_stages(layer, [stage]) for stage in stages) == 1, layer
