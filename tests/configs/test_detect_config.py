"""What of a detector learns, and how fast."""

import jax
import pytest

from jaxdet import flops
from jaxdet.configs.backbones import factor
from jaxdet.configs.detect import Config, network
from tests.models.test_efficientnet import paths
from tests.models.test_resnet import outputs, shaped


@pytest.fixture(scope="module")
def params():
    """Parameters of the default detector by path, as shapes."""
    net, (_, _, _, channels) = network(Config(size=(64, 64)))
    return paths(outputs(net, shaped(1, 64, 64, channels))[1]["params"])


@pytest.mark.parametrize("freeze, count", [(0, 0), (1, 1), (3, 3), (8, 8), (-2, 6), (-8, 0)])
def test_parts_of_the_backbone_stay_from_the_first_on(params, freeze, count):
    config = Config(freeze_stages=freeze, backbone_lr=0.25)
    stay = ("stem", *(f"stage{i}" for i in range(1, 8)))[:count]
    assert network(config)[0].backbone.keywords["frozen_stages"] == count
    for path in params:
        place, layer, *_ = path.split("/")
        expected = 1.0
        if place == "features":
            expected = 0.0 if layer.split("_")[0] in stay else 0.25
        assert factor(config, path) == expected, path


def test_freezing_counts_fewer_parameters_until_only_neck_and_head_learn(params):
    def size(freeze):
        on = [leaf for path, leaf in params.items() if factor(Config(freeze_stages=freeze), path)]
        return sum(leaf.size for leaf in on)

    sizes = [size(freeze) for freeze in range(9)]
    assert sizes == sorted(set(sizes), reverse=True)
    rest = [leaf.size for path, leaf in params.items() if not path.startswith("features/")]
    assert sizes[-1] == sum(rest) and sizes[0] == sum(leaf.size for leaf in params.values())


def test_frozen_parts_take_no_part_in_the_backward_pass():
    """Their operations are not there: those of a gradient that is masked away later would be."""

    def cost(freeze):
        net, shape = network(
            Config(size=(64, 64), freeze_stages=freeze, freeze_bn=True, conv="lax")
        )
        images = shaped(1, *shape[1:])
        variables = outputs(net, images)[1]

        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def total(params, rest, images):
            found, _ = net.apply({"params": params, **rest}, images, True, mutable="batch_stats")
            return found.classes.sum() + found.boxes.sum()

        counted = flops.count(jax.grad(total), variables["params"], rest, images)
        return counted.total("backward")

    costs = [cost(freeze) for freeze in (0, 8)]
    assert costs == sorted(set(costs), reverse=True)
