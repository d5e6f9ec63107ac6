from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.models import cifar, efficientnet, folding, resnet, sliding
from jaxdet.models.efficientnet import Stage
from jaxdet.ops import windows

STAGES = (Stage(1, 8, expand=1), Stage(2, 8, kernel=5, stride=2))
NETWORKS = {
    "efficientnet": efficientnet.EfficientNet(stages=STAGES, classes=3),
    "resnet": resnet.ResNet(stages=(1, 1), width=4, classes=3),
    "sliding": sliding.SlidingNet(windows.parse("c3s2,p2"), (4,), (6,), 3, window=12, norm=True),
    "tiny": cifar.Tiny(stem=4, widths=(4,), depth=(1,), classes=3),
}
AFTER_POOL = "stage1_norm"  # of "tiny": max pools and negative scales do not commute


def random_variables(net, images):
    """Variables of a network with random statistics, scales of both signs, and offsets."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)

    def fill(path, leaf):
        values = draw.normal(size=leaf.shape).astype(np.float32)
        return np.square(values) + 0.1 if path[-1].key == "var" else values / 3

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_a_folded_network_gives_the_same_outputs(net):
    images = np.random.default_rng(1).normal(size=(2, 24, 24, 3)).astype(np.float32)
    variables = random_variables(net, images)
    apply = jax.jit(partial(net.apply, train=False))
    norms = folding.find_norms(apply, variables, images)
    folded = folding.fold_batch_norm(variables, norms)
    names = {key for path, _ in jax.tree.leaves_with_path(folded) for key in map(str, path)}
    left = {name for name in names if "norm" in name}
    assert left == ({f"['{AFTER_POOL}']"} if isinstance(net, cifar.Tiny) else set())
    expected, found = (jax.tree.leaves(apply(v, images)) for v in (variables, folded))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())
