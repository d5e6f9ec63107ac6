"""Backbones of faces: whole or in part, with trained weights, learning or not."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdet.configs import backbones, embedders
from jaxdet.configs.embedders import Embedding
from jaxdet.data.normalize import EFFICIENTNET_LITE, IMAGENET
from jaxdet.errors import InputError
from jaxdet.models import efficientnet, registry
from tests.models.test_pretrained import filed, paths, shapes
from tests.models.test_resnet import outputs, shaped
from tests.models.test_sliding import apply, fill

IMAGES = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)


def test_part_of_a_backbone_gives_the_map_that_the_whole_one_has_there():
    whole, part = registry.backbone("resnet18")(), registry.backbone("resnet18", stages=3)()
    variables = fill(shapes(whole))
    wanted = paths(shapes(part))
    assert {path.split("/")[1].split("_")[0] for path in wanted} == {
        *registry.stage_names("resnet18")[:3]
    }
    assert wanted.keys() < paths(variables).keys()
    first = jax.tree.map_with_path(
        lambda where, _: paths(variables)[jax.tree_util.keystr(where, simple=True, separator="/")],
        shapes(part),
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
def test_part_of_a_backbone_takes_its_weights_from_a_file_of_the_whole(names, tmp_path):
    whole = fill(shapes(registry.backbone("lite0")()))
    arrays = filed(whole, names)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, tmp_path / "w")
    (tmp_path / "w").rename(tmp_path / "w.safetensors")
    config = Embedding(
        model="lite0", backbone_stages=3, embedding_dim=4, weights=str(tmp_path / "w.safetensors")
    )
    net, (_, *shape) = embedders.network(config, 3)
    found = embedders.pretrained(config, shapes(net))
    given = paths(whole)
    for path, leaf in paths({c: found[c]["features"] for c in found}).items():
        np.testing.assert_array_equal(leaf, given[path])
    with pytest.raises(InputError, match="arrays in the file that no variable takes"):
        embedders.pretrained(replace(config, backbone_stages=0), shapes(net))


def test_frozen_parts_count_among_those_that_are_built():
    for freeze, kept in [(2, 2), (-1, 5), (0, 0), (8, 6)]:
        config = Embedding(model="lite0", backbone_stages=6, freeze_stages=freeze, weights="x")
        assert len(backbones.kept(config)) == kept
        assert embedders.network(config, 3)[0].features().frozen_stages == kept
    assert backbones.factors(Embedding()) is None
    factor = backbones.factors(Embedding(model="lite0", freeze_stages=2, backbone_lr=0.5))
    factors = [factor(path) for path in ("features/stem/kernel", "features/stage2_block1/x")]
    assert (*factors, factor("embedding/kernel")) == (0.0, 0.5, 1.0)


def test_levels_are_those_that_the_weights_were_made_with():
    assert embedders.levels(Embedding()).mean == (0.5,) * 3
    assert embedders.levels(Embedding(model="lite0", weights="x")) == EFFICIENTNET_LITE
    assert embedders.levels(Embedding(weights="x")) == IMAGENET


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model": "convnext", "weights": "x"}, "--weights is for a backbone, and convnext is"),
        ({"model": "bottleneck", "freeze_stages": 1}, "--freeze-stages is for a backbone"),
        ({"model": "bottleneck", "backbone_stages": 3}, "--backbone-stages is for a backbone"),
        ({"model": "lite0", "backbone_stages": 9}, "--backbone-stages 9: lite0 has 8; at least 2"),
        ({"model": "lite0", "backbone_stages": 1}, "--backbone-stages 1: lite0 has 8"),
        ({"model": "lite0", "freeze_stages": 2}, "--freeze-stages 2 wants --weights"),
        ({"model": "resnet18", "weights": "x"}, "--width 0.5: --weights are for a width of 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        embedders.check(Embedding(**changes))
