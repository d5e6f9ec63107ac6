"""Which parameters of the detector are trained, and at which learning rate."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet import flops
from jaxdet.cli import flags, options
from jaxdet.configs.detect import Config, check, from_splits, network
from jaxdet.data.images import Letterbox
from jaxdet.errors import InputError
from jaxdet.models import registry
from tests.models.helpers import outputs, paths, shaped


@pytest.fixture(scope="module")
def params():
    """Parameters of the default detector by path, as shapes."""
    net, (_, _, _, channels) = network(Config(size=(64, 64)))
    return paths(outputs(net, shaped(1, 64, 64, channels))[1]["params"])


def lr_multiplier(config):
    frozen = registry.frozen_stages(config.model, config.freeze_stages)
    return registry.lr_multiplier(frozen, config.backbone_lr) or (lambda path: 1.0)


@pytest.mark.parametrize("freeze, count", [(0, 0), (1, 1), (3, 3), (8, 8), (-2, 6), (-8, 0)])
def test_stages_of_the_backbone_are_frozen_from_the_first_on(params, freeze, count):
    config = Config(freeze_stages=freeze, backbone_lr=0.25)
    frozen = ("stem", *(f"stage{i}" for i in range(1, 8)))[:count]
    assert network(config)[0].backbone.keywords["frozen_stages"] == count
    factor = lr_multiplier(config)
    for path in params:
        module, layer, *_ = path.split("/")
        expected = 1.0
        if module == "features":
            expected = 0.0 if layer.split("_")[0] in frozen else 0.25
        assert factor(path) == expected, path


def test_freezing_leaves_fewer_trainable_parameters_down_to_neck_and_head(params):
    def size(freeze):
        factor = lr_multiplier(Config(freeze_stages=freeze))
        return sum(leaf.size for path, leaf in params.items() if factor(path))

    sizes = [size(freeze) for freeze in range(9)]
    assert sizes == sorted(set(sizes), reverse=True)
    rest = [leaf.size for path, leaf in params.items() if not path.startswith("features/")]
    assert sizes[-1] == sum(rest) and sizes[0] == sum(leaf.size for leaf in params.values())


def test_frozen_stages_have_no_backward_pass():
    """A gradient that is computed and masked afterwards would have the operations."""

    def cost(freeze):
        options = {"freeze_stages": freeze, "freeze_bn": True, "conv": "lax"}
        config = Config(model="resnet18", size=(64, 64), **options)
        net, shape = network(config)
        images = shaped(1, *shape[1:])
        variables = outputs(net, images)[1]
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def total(params, rest, images):
            found, _ = net.apply({"params": params, **rest}, images, True, mutable="batch_stats")
            return found.classes.sum() + found.boxes.sum()

        counted = flops.count(jax.grad(total), variables["params"], rest, images)
        return counted.total("backward")

    costs = [cost(freeze) for freeze in (0, 5)]
    assert costs == sorted(set(costs), reverse=True)


def test_the_command_of_the_assignment_freezes_the_whole_backbone():
    text = (Path(jaxdet.__file__).parents[1] / "docs" / "assignments.md").read_text()
    (line,) = re.findall(
        r"^jaxdet train detect .*--out runs/assignment$", text.replace("\\\n", ""), re.M
    )
    words = shlex.split(line)[3:]
    _, config = flags.parse_with_config("train detect", words, (options.Train(), Config()))
    check(config)
    assert registry.frozen_stages(config.model, config.freeze_stages) == registry.stage_names(
        "lite0"
    )
    assert (config.rotate, config.scale, config.box_loss, config.tal_from) == (
        30,
        (1, 1),
        "diou",
        5,
    )
    _, unfrozen = flags.parse_with_config(
        "train detect", [*words, "--freeze-stages", "-2"], (options.Train(), Config())
    )
    assert len(registry.frozen_stages(unfrozen.model, unfrozen.freeze_stages)) == 6


def test_scales_of_anchors_follow_from_their_number_and_ratios():
    anchors = [
        ({"anchors_per_cell": 3}, 3),
        ({"anchors_per_cell": 6, "anchor_ratios": (0.5, 1.0, 2.0)}, 2),
        ({"anchors_per_cell": 2, "anchor_scales": (2.0,), "anchor_ratios": (1.0, 2.0)}, 1),
    ]
    for chosen, scales in anchors:
        config = Config(**chosen)
        check(config)
        net, _ = network(config)
        assert len(net.anchor_scales) == scales
        assert net.head.keywords["anchors"] == config.anchors_per_cell
    assert network(Config())[0].anchor_scales == ()


def test_tiles_make_images_larger_than_the_input_of_the_network():
    def experiment(**options):
        config = Config(size=(64, 96), overlap=0.25, **options)
        check(config)
        return from_splits(config, ("a",), {})

    plain, alone, several = experiment(), experiment(tiles="1x1"), experiment(tiles="2x3")
    assert plain.task.tiling is None
    assert plain.metadata["input"] == alone.metadata["input"] == [64, 96, 3]
    assert several.metadata["input"] == [128, 224, 3]
    pixels = experiment(tiles="48")  # of an image, on the longer side of a tile of 96 pixels
    assert pixels.task.tiling.rows is None and pixels.letterbox == Letterbox(False, True, 2.0)
    assert pixels.metadata["input"] == [64, 96, 3]
    for size, canvas in (((10, 10), (64, 96)), ((33, 48), (128, 96)), ((64, 100), (128, 224))):
        image, found = pixels.read_image(Image.new("RGB", size[::-1]))
        assert found == size and image.shape == (*canvas, 3)
        np.testing.assert_array_equal(image[: 2 * size[0], : 2 * size[1]], 0)
    for text in ("2", "0x2", "2x", "100x1", "axb", "9", "100000", "6.4", "-64"):
        with pytest.raises(InputError, match="--tiles must be rows x columns from 1x1 to 99x99"):
            experiment(tiles=text)
    with pytest.raises(InputError, match="--overlap must be from 0 to 0.9, got 1"):
        check(Config(tiles="2x2", overlap=1.0))
