"""Models by name: constructors, stages, published weights."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from jaxdet.errors import InputError
from jaxdet.models import convnext, efficientnet, layers, registry
from tests.marks import long_for
from tests.models.helpers import (
    apply,
    outputs,
    paths,
    random_like,
    shaped,
    torch_arrays,
    variable_shapes,
)

IMAGES = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)


def test_the_first_stages_return_the_maps_of_the_whole_backbone():
    whole, part = registry.backbone("resnet18")(), registry.backbone("resnet18", stages=3)()
    variables = random_like(variable_shapes(whole))
    expected_paths = paths(variable_shapes(part))
    assert {path.split("/")[1].split("_")[0] for path in expected_paths} == {
        *registry.stage_names("resnet18")[:3]
    }
    assert expected_paths.keys() < paths(variables).keys()
    first = jax.tree.map_with_path(
        lambda where, _: paths(variables)[jax.tree_util.keystr(where, simple=True, separator="/")],
        variable_shapes(part),
    )
    expected = apply(whole, variables, IMAGES)[1]
    found = apply(part, first, IMAGES)[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_mobilenets_are_cut_after_a_block():
    part = registry.backbone("mobilenet_v2", stages=14)()
    (*_, last), variables = outputs(part, shaped(1, 64, 64, 3))
    assert last.shape == (1, 4, 4, 96)
    assert "block13" in variables["params"] and "block14" not in variables["params"]


@pytest.mark.parametrize("names", [efficientnet.torch_name, efficientnet.timm_name])
def test_the_first_stages_are_loaded_from_a_file_of_the_whole_backbone(names, tmp_path):
    whole = random_like(variable_shapes(registry.backbone("lite0")()))
    arrays = torch_arrays(whole, names)
    path = tmp_path / "w.safetensors"
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    part = variable_shapes(registry.backbone("lite0", stages=3)())
    inside = {collection: {"features": tree} for collection, tree in part.items()}
    found = registry.load_pretrained("lite0", path, inside, stages=3)
    expected = paths(whole)
    for place, leaf in paths({c: found[c]["features"] for c in found}).items():
        np.testing.assert_array_equal(leaf, expected[place])
    with pytest.raises(InputError, match=r"w.safetensors: no variable of the model for \d+ arrays"):
        registry.load_pretrained("lite0", path, inside)


@pytest.mark.parametrize(
    "count, built, expected",
    [(0, 0, 0), (2, 0, 2), (-1, 0, 7), (2, 6, 2), (-1, 6, 5), (0, 6, 0), (8, 6, 6)],
)
def test_frozen_stages_count_from_the_first_among_those_that_are_built(count, built, expected):
    frozen = registry.frozen_stages("lite0", count, built=built)
    assert frozen == registry.stage_names("lite0")[:expected]


def test_learning_rates_differ_in_frozen_stages_the_backbone_and_the_rest():
    assert registry.lr_multiplier(()) is None
    factor = registry.lr_multiplier(("stem", "stage1"), 0.5)
    backbone = [factor(path) for path in ("features/stem/kernel", "features/stage2_block1/x")]
    assert (*backbone, factor("embedding/kernel")) == (0.0, 0.5, 1.0)
    assert factor("features/stage10_block1/x") == 0.5


GOLDEN = Path(__file__).parents[1] / "goldens" / "model_variables.json"
BACKBONES = registry.names("backbone")
LARGER = {  # than another model of the same blocks
    *("lite1", "lite2", "b1", "b2", "b3", "resnet34", "mobilenet_v3", "convnext_small"),
}


def each_model(names):
    """Test each model of these names; the larger ones take long."""
    return pytest.mark.parametrize("name", long_for(names, LARGER))


def described(name):
    """{path: shape} of the variables of a model at its default size."""
    spec = registry.get(name)
    args = (3,) if spec.kind == "localizer" else ()
    images = shaped(1, spec.image_size, spec.image_size, 3)
    _, variables = outputs(spec.build(*args), images)
    return {path: list(leaf.shape) for path, leaf in sorted(paths(variables).items())}


def test_the_table_is_read_without_jax_and_flax():
    code = "import sys; from jaxdet.models import registry; registry.names('backbone')"
    code += "; sys.exit(bool({'jax', 'flax', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@each_model(json.loads(GOLDEN.read_text()))
def test_variables_are_those_of_earlier_releases(name):
    digest = hashlib.sha256(json.dumps(described(name)).encode()).hexdigest()
    assert digest == json.loads(GOLDEN.read_text())[name]


def test_an_unknown_name_lists_all_models_nearest_first():
    with pytest.raises(InputError, match="unknown model 'resnet-18'; .*: resnet18") as caught:
        registry.get("resnet-18")
    assert all(name in str(caught.value) for name in registry.MODELS)


def test_a_classifier_is_not_a_backbone():
    with pytest.raises(InputError, match="^tiny is not a backbone; backbones: .*resnet18"):
        registry.backbone("tiny")


@each_model(registry.names("backbone", "staged", "localizer"))
def test_every_layer_of_a_backbone_belongs_to_one_stage(name):
    stages = registry.stage_names(name)
    layer_names = {path.split("/")[1] for path in paths(variable_shapes(registry.backbone(name)()))}
    for layer in layer_names:
        assert sum(registry.in_stages(layer, [stage]) for stage in stages) == 1, layer
    for stage in stages:
        assert any(registry.in_stages(layer, [stage]) for layer in layer_names), stage


@each_model(BACKBONES)
def test_the_first_stages_have_the_variables_of_the_whole_backbone(name):
    whole = paths(variable_shapes(registry.backbone(name)()))
    count = len(registry.stage_names(name)) - 1
    first = paths(variable_shapes(registry.backbone(name, stages=count)()))
    stages = registry.stage_names(name)[:count]
    assert first == {p: x for p, x in whole.items() if registry.in_stages(p.split("/")[1], stages)}


def test_a_stage_is_not_another_whose_name_begins_alike():
    assert registry.in_stages("conv1", ["conv1"]) and registry.in_stages("conv1_norm", ["conv1"])
    assert not registry.in_stages("conv10", ["conv1"])
    assert not registry.in_stages("conv10_norm", ["conv1"])


@pytest.mark.parametrize("modules", [convnext.PAPER_MODULES, convnext.TIMM_MODULES])
@pytest.mark.parametrize("stages", [0, 2])
def test_weights_of_convnexts_are_loaded(tmp_path, monkeypatch, modules, stages):
    thin = partial(convnext.ConvNeXt, widths=(4, 6, 8, 10), blocks=(1, 1, 2, 1))
    spec = replace(registry.get("convnext_tiny"), constructor=thin)
    monkeypatch.setitem(registry.MODELS, "convnext_tiny", spec)
    net = registry.get("convnext_tiny").build()
    whole = {"params": random_like(variable_shapes(net))["params"]}
    arrays = torch_arrays(whole, partial(convnext.torch_name, modules=modules))
    path = tmp_path / "weights.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    part = variable_shapes(registry.backbone("convnext_tiny", stages=stages)())
    inside = {"params": {"features": part["params"], "head": {"bias": shaped(2)}}}
    found = registry.load_pretrained("convnext_tiny", path, inside, stages=stages)["params"]
    assert found["head"]["bias"] == shaped(2)  # is not the backbone's
    expected = paths(whole["params"])
    for place, leaf in paths(found["features"]).items():
        np.testing.assert_array_equal(leaf, expected[place])
    same = registry.load_pretrained("convnext_tiny", path, variable_shapes(net), module="")
    jax.tree.map(np.testing.assert_array_equal, same, whole)


def test_a_model_without_published_weights_says_so():
    with pytest.raises(InputError, match="no pretrained weights for simple; choose another"):
        registry.load_pretrained("simple", "gone.pth", {})


class Strided(layers.Freezable):
    """A backbone of two strided convolutions."""

    classes: int = 0

    @nn.nowrap
    def stage_names(self):
        return ("stage1", "stage2")

    @nn.compact
    def __call__(self, x, train=False):
        maps = []
        for i in range(2):
            options = {"stride": 4, "train": self.stage_train(train, i)}
            x = self.conv_norm_act(x, 4, 3, f"stage{i + 1}", **options)
            x = self.stop_frozen_gradient(x, i, train)
            maps.append(x)
        return tuple(maps)


def test_one_line_adds_a_backbone(monkeypatch):
    spec = registry.ModelSpec("strided", Strided, "backbone")
    monkeypatch.setitem(registry.MODELS, "strided", spec)
    assert "strided" in registry.names("backbone")
    assert registry.stage_names("strided") == ("stage1", "stage2")
    net = registry.backbone("strided")(frozen_stages=1, name="features")
    assert {"stage1", "stage2"} <= {path.split("/")[1] for path in paths(variable_shapes(net))}
    with pytest.raises(NotImplementedError, match="Strided cannot be cut"):
        registry.backbone("strided", stages=1)
