import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.lenet import LeNet
from jaxdet.ops import flops
from tests.models.test_sliding import fill

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def shapes(net=None, images=IMAGES):
    return jax.eval_shape((net or LeNet()).init, jax.random.key(0), images)


def test_parameters():
    params = shapes()["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (5, 5, 3, 6),
        "conv2": (5, 5, 6, 16),
        "dense1": (400, 120),
        "dense2": (120, 84),
        "logits": (84, 10),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 62_006


def test_operations_worked_out_by_hand():
    found = flops.count(LeNet().apply, shapes(), IMAGES)
    multiplications = {
        path.removeprefix("LeNet/"): c.multiplications for (path, _), c in found.rows.items()
    }
    assert {name: number for name, number in multiplications.items() if number} == {
        "conv1": 28 * 28 * 6 * 75,
        "conv2": 10 * 10 * 16 * 150,
        "dense1": 400 * 120,
        "dense2": 120 * 84,
        "logits": 84 * 10,
    }
    whole = found.sum()
    assert whole.multiplications == whole.additions == whole.multiply_adds == 651_720
    assert whole.maxima == 11_236
    assert found.total() == 1_314_676


def loss(params, images):
    """Cross-entropy with the first class."""
    return -jax.nn.log_softmax(LeNet().apply({"params": params}, images))[:, 0].mean()


def test_gradients_are_finite_on_a_blank_image_too():
    params = fill(shapes())["params"]
    draw = np.random.default_rng(0).uniform(size=(3, 32, 32, 3))
    for images in (draw, jnp.zeros((3, 32, 32, 3))):
        gradient = jax.jit(jax.grad(loss))(params, images)
        chex.assert_tree_all_finite(gradient)
        assert any(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "size, features", [((16, 16), 16), ((32, 32), 400), ((33, 47), 5 * 8 * 16)]
)
def test_any_size_from_16_pixels(size, features):
    images = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    out, variables = jax.eval_shape(LeNet().init_with_output, jax.random.key(0), images)
    assert out.shape == (2, 10)
    assert variables["params"]["dense1"]["kernel"].shape == (features, 120)


def test_widths_classes_and_type():
    net = LeNet(widths=(4, 5, 6), dense=(7,), classes=3, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert (out.shape, out.dtype) == ((2, 3), jnp.bfloat16)
    assert sorted(variables["params"]) == ["conv1", "conv2", "conv3", "dense1", "logits"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_convolutions_go_through_the_given_function():
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    shapes(LeNet(conv_general_dilated=spy))
    assert calls == [(5, 5, 3, 6), (5, 5, 6, 16)]
