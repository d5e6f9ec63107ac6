import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import flops
from jaxdet.models.cifar import Deep, Tiny
from tests.models.helpers import outputs, paths, random_like, shaped, size

IMAGES = shaped(1, 32, 32, 3)
SMALL = Tiny(stem=4, widths=(4, 6), depth=(1, 0), classes=3)

# Kernels in order: pixels of the map, pixels a side, channels in and out.
TINY = [(1024, 3, 3, 16), (1024, 3, 16, 32), *[(256, 3, 32, 32)] * 2]
TINY += [(256, 3, 32, 64), *[(64, 3, 64, 64)] * 2, (64, 3, 64, 64), *[(16, 3, 64, 64)] * 2]
DEEP = [(1024, 3, 3, 24), (1024, 1, 24, 48)]
DEEP += [(256, 1, 48, 24), (256, 3, 24, 24), (256, 1, 24, 48)] * 3 + [(256, 1, 48, 96)]
DEEP += [(64, 1, 96, 48), (64, 3, 48, 48), (64, 1, 48, 96)] * 3 + [(64, 1, 96, 128)]
DEEP += [(16, 1, 128, 64), (16, 3, 64, 64), (16, 1, 64, 128)] * 2


@pytest.mark.parametrize(
    "net, kernels, parameters, multiply_adds",
    [(Tiny(), TINY, 227_866, 22_856_320), (Deep(), DEEP, 242_146, 17_016_064)],
    ids=["tiny", "deep"],
)
def test_sizes_worked_out_by_hand(net, kernels, parameters, multiply_adds):
    _, variables = outputs(net, IMAGES)
    last = kernels[-1][-1]
    with_norms = sum(k * k * c * d + 2 * d for _, k, c, d in kernels)
    assert size(variables["params"]) == with_norms + 10 * last + 10 == parameters
    found = flops.count(net.apply, variables, IMAGES, convention="mac").total()
    assert found == sum(n * k * k * c * d for n, k, c, d in kernels) + 10 * last == multiply_adds
    made = [leaf.shape for leaf in paths(variables["params"]).values() if leaf.ndim == 4]
    assert sorted(made) == sorted((k, k, c, d) for _, k, c, d in kernels)


def test_names_of_the_layers():
    rows = flops.count(SMALL.apply, outputs(SMALL, IMAGES)[1], IMAGES).by_layer
    inner = ("conv1", "conv1_norm", "conv1_gelu", "conv2", "conv2_norm", "conv2_gelu", "add")
    assert [path.removeprefix("Tiny/") for path, _ in rows] == [
        *("stem", "stem_norm", "stem_gelu"),
        *("stage1", "stage1_pool", "stage1_norm", "stage1_gelu"),
        *(f"stage1_block1/{name}" for name in inner),
        *("stage2", "stage2_pool", "stage2_norm", "stage2_gelu"),
        *("pool", "logits", "scale"),
    ]


@pytest.fixture(scope="module")
def made():
    """Random variables of a small network, images, and their logits."""
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    variables = random_like(outputs(SMALL, images)[1])
    return variables, images, jax.jit(SMALL.apply)(variables, images)


def test_the_scale_multiplies_the_logits(made):
    variables, images, logits = made
    larger = jax.jit(SMALL.clone(scale=1.0).apply)(variables, images)
    np.testing.assert_allclose(larger, 8 * logits, rtol=1e-5)


def test_maxima_tell_where_a_thing_is_seen_and_means_how_often(made):
    variables, images, logits = made
    means = jax.jit(SMALL.clone(pool=jnp.mean).apply)(variables, images)
    assert means.shape == logits.shape and (means != logits).all()
    one = images[:, :4, :4]  # a last map of one pixel, where both are the same
    found = [jax.jit(SMALL.clone(pool=p).apply)(variables, one) for p in (jnp.max, jnp.mean)]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_without_what_its_block_adds_a_map_goes_through_unchanged(made):
    variables, images, _ = made
    params = dict(variables["params"])
    block = params.pop("stage1_block1")
    norm = {name: 0 * leaf for name, leaf in block["conv2_norm"].items()}
    silent = params | {"stage1_block1": {**block, "conv2_norm": norm}}
    found = jax.jit(SMALL.apply)({**variables, "params": silent}, images)
    stats = {k: v for k, v in variables["batch_stats"].items() if "block" not in k}
    without = SMALL.clone(depth=(0, 0))
    wanted = jax.jit(without.apply)({"params": params, "batch_stats": stats}, images)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
