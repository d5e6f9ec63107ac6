from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.models.sliding import NgSlidingNet, SlidingNet, multiply_adds, to_convolutional
from jaxdet.ops import windows
from tests.models.helpers import apply, random_like
from tests.reference import windows as reference

Small = partial(SlidingNet, channels=(4,), fc_widths=(8, 6), outputs=3, window=14)
Deep = partial(SlidingNet, channels=(4, 5), fc_widths=(8,), outputs=3)


def pair(net, channels=3):
    """A sequential network, its variables, its convolutional form and the variables of that."""
    net = net.clone(form="sequential")
    x = jnp.zeros((1, net.window, net.window, channels))
    variables = random_like(jax.eval_shape(net.init, jax.random.key(0), x))
    return net, variables, net.clone(form="convolutional"), to_convolutional(net, variables)


def slide(net, variables, images, stride=None):
    """Outputs [B, rows, columns, outputs] of a sequential network, window by window."""
    stride = stride or windows.receptive_field(net.stages).stride
    cut = np.stack(
        [reference.cut_windows(np.asarray(image), net.window, stride) for image in images]
    )
    out = apply(net, variables, cut.reshape(-1, *cut.shape[3:]))
    return out.reshape(*cut.shape[:3], net.outputs)


def both(net, size, channels=3, stride=None):
    """Outputs of the two forms on the same two images."""
    images = np.random.default_rng(1).uniform(-1, 1, (2, *size, channels)).astype(np.float32)
    sequential, variables, dense, converted = pair(net, channels)
    return slide(sequential, variables, images, stride), apply(dense, converted, images)


@pytest.mark.parametrize(
    "activation, size",
    [(None, (14, 14)), (None, (15, 15)), (None, (16, 16)), (nn.relu, (17, 22)), (None, (28, 28))],
)
def test_both_forms_of_the_lecture_network_agree(activation, size):
    net = NgSlidingNet(activation=activation)
    grid = windows.grid(net.chain(), *size)
    slid, dense = both(net, size)
    assert dense.shape == (2, grid.rows, grid.columns, 4)
    chex.assert_trees_all_close(slid, dense, atol=1e-5)
    assert windows.differences(net.stages, net.window, size[0]) == ()


def test_a_softmax_is_taken_window_by_window():
    logits, probabilities = (both(NgSlidingNet(softmax=on), (16, 18)) for on in (False, True))
    chex.assert_trees_all_close(*probabilities, atol=1e-6)
    np.testing.assert_allclose(probabilities[1].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities[1], nn.softmax(logits[1]), atol=1e-6)


@pytest.mark.parametrize(
    "words, window, size",
    [
        ("c5,p2,c3", 14, 20),
        ("c5,p2,c3,p2", 16, 28),
        ("c3s2,c3,p2", 13, 25),
        ("c3,p3s2,c2", 11, 18),
        ("c5,p2,c5,p2", 28, 34),
    ],
)
def test_deeper_and_strided_chains_agree_at_the_product_of_strides(words, window, size):
    net = Deep(stages=windows.parse(words), window=window)
    assert windows.differences(net.stages, window, size) == ()
    chex.assert_trees_all_close(*both(net, (size, size)), atol=1e-5)


def test_integers_agree_exactly():
    sequential, variables, dense, _ = pair(Small(stages=windows.parse("c5,p2")))
    draw = np.random.default_rng(2)
    signs = jax.tree.map(lambda x: draw.integers(-1, 2, x.shape).astype(np.float32), variables)
    images = draw.integers(0, 2, (2, 18, 18, 3)).astype(np.float32)
    slid = slide(sequential, signs, images)
    largest = 76 * (4 * 25 + 1) * (8 + 1) * (6 + 1)  # of any partial sum
    assert slid.std() > 1 and largest < 2**24  # up to where float32 holds every whole number
    chex.assert_trees_all_equal(slid, apply(dense, to_convolutional(sequential, signs), images))


def test_both_forms_agree_with_batch_norm_and_mask_channel():
    net = Small(stages=windows.parse("c5,p2"), norm=True, mask_channel=True)
    chex.assert_trees_all_close(*both(net, (20, 17)), atol=1e-5)


@pytest.mark.parametrize(
    "net, size, stride, reasons",
    [
        (Small(stages=windows.parse("c5,p2"), window=15), 16, None, ["floor", "count"]),
        (Small(stages=windows.parse("c5p2,p2")), 20, None, ["padding"]),
        (Deep(stages=windows.parse("c5,p2,c3,p2"), window=16), 28, 2, ["stride", "count"]),
    ],
)
def test_differences_explains_where_the_forms_disagree(net, size, stride, reasons):
    slid, dense = both(net, (size, size), stride=stride)
    assert slid.shape != dense.shape or abs(slid - dense).max() > 1e-2
    found = windows.differences(net.stages, net.window, size, stride)
    assert [reason.split(":")[0] for reason in found] == reasons


def test_training_updates_every_statistic():
    net, variables, _, _ = pair(Small(stages=windows.parse("c5,p2"), norm=True))
    x = np.random.default_rng(3).uniform(size=(3, 14, 14, 3))
    train = jax.jit(partial(net.apply, train=True, mutable="batch_stats"))
    _, updates = train(variables, x)
    before, after = variables["batch_stats"], updates["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed))
    assert sorted(after) == ["conv1_norm", "dense1_norm", "dense2_norm"]


def test_batch_statistics_are_synchronized_over_devices():
    net, variables, _, _ = pair(Small(stages=windows.parse("c5,p2"), norm=True))
    x = np.random.default_rng(3).uniform(size=(4, 14, 14, 3))
    options = {"train": True, "mutable": "batch_stats"}
    out, together = jax.jit(partial(net.apply, variables, **options))(x)
    step = partial(net.clone(axis_name="devices").apply, variables, **options)
    halves, updates = jax.jit(jax.vmap(step, axis_name="devices"))(x.reshape(2, 2, 14, 14, 3))
    chex.assert_trees_all_close(out, halves.reshape(out.shape), atol=1e-4)
    chex.assert_trees_all_close(together, jax.tree.map(lambda x: x[0], updates), atol=1e-4)


def test_both_forms_name_their_layers_alike():
    net = Deep(stages=windows.parse("c3,p2,c3"), window=12, norm=True)
    _, variables, _, converted = pair(net)
    chex.assert_trees_all_equal_structs(variables, converted)
    assert [part.name for part in net.plan()] == ["conv1", "pool1", "conv2", "dense1", "dense2"]


def test_to_convolutional_has_the_shapes_of_init_and_keeps_its_input():
    _, variables, dense, converted = pair(Small(stages=windows.parse("c5,p2"), norm=True))
    fresh = jax.eval_shape(dense.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)))
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, converted)
    assert variables["params"]["dense1"]["kernel"].ndim == 2
    chex.assert_trees_all_equal(converted, to_convolutional(dense, converted))


def test_parameters_stay_float32_when_computing_in_bfloat16():
    net = Small(stages=windows.parse("c5,p2"), dtype=jnp.bfloat16, norm=True)
    x = jnp.zeros((1, 14, 14, 3))
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_every_convolution_uses_conv_general_dilated():
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    net = NgSlidingNet(conv_general_dilated=spy)
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert calls == [(5, 5, 3, 16), (5, 5, 16, 400), (1, 1, 400, 400), (1, 1, 400, 4)]


def test_gradients_of_the_two_forms_agree():
    net, variables, dense, converted = pair(Small(stages=windows.parse("c5,p2")))
    x = np.random.default_rng(4).uniform(size=(2, 14, 14, 3))

    def gradient(net, variables):
        return jax.jit(jax.grad(lambda v: (apply(net, v, x) ** 2).sum()))(variables)

    slid = to_convolutional(net, gradient(net, variables))
    chex.assert_trees_all_close(slid, gradient(dense, converted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form, size", [("sequential", 16), ("convolutional", 13)])
def test_an_image_of_the_wrong_size_is_refused(form, size):
    with pytest.raises(ValueError, match=f"{form} form must be .*, got {size} x {size}"):
        jax.eval_shape(
            NgSlidingNet(form=form).init, jax.random.key(0), jnp.zeros((1, size, size, 3))
        )


def test_each_convolution_needs_channels():
    with pytest.raises(ValueError, match="one value for each of 2 convolutions, got"):
        Small(stages=windows.parse("c5,p2,c3")).plan()


# 25 * 3 * 16 a pixel of conv1, 25 * 16 * 400 + 400 * 400 + 400 * 4 a window: worked out by hand.
@pytest.mark.parametrize(
    "size, sequential, convolutional",
    [
        (14, 441_600, 441_600),
        (16, 1_766_400, 1_459_200),
        (28, 28_262_400, 21_273_600),
        (720, 55_339_545_600, 40_916_812_800),
        (1080, 125_924_889_600, 93_095_500_800),
    ],
)
def test_multiply_adds_of_the_lecture_network(size, sequential, convolutional):
    assert multiply_adds(NgSlidingNet(form="sequential"), size, size) == sequential
    assert multiply_adds(NgSlidingNet(), size, size) == convolutional


def test_multiply_adds_are_half_the_operations_xla_counts():
    net, (height, width) = NgSlidingNet(mask_channel=True), (20, 17)
    x = jnp.zeros((1, height, width, 1))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    flops = jax.jit(net.apply).lower(variables, x).cost_analysis()["flops"]
    assert flops == pytest.approx(2 * multiply_adds(net, height, width, channels=1), rel=0.01)
