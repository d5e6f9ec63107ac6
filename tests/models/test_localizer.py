from functools import partial

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet import flops
from jaxdet.configs.objects import Config, network
from jaxdet.models import registry
from jaxdet.models.localizer import BOX_BIAS, MLP, DenseBoxHead, Localizer
from jaxdet.models.plain import ConvStack
from jaxdet.models.resnet import ResNet
from jaxdet.training import host_init, optim
from tests.models.helpers import outputs, paths, random_like, shaped, size

Tiny = partial(
    Localizer,
    features=partial(ConvStack, layout="8 M2 12 M2 8/1"),
    classes=3,
    hidden=(10, 6),
    rates=(0.5, 0.3),
    side=2,
)


def shapes(tree):
    return {path: leaf.shape for path, leaf in paths(tree).items()}


@pytest.fixture(scope="module")
def example():
    """Random variables of the tiny localizer, and images."""
    images = np.random.default_rng(1).normal(size=(6, 16, 16, 3)).astype(np.float32)
    return random_like(outputs(Tiny(), images)[1]), images


@partial(jax.jit, static_argnums=0)
def evaluated(net, variables, images):
    return net.apply(variables, images)


def trained(net, variables, images, drop=1.0, seed=0):
    """((logits, box), statistics) in training."""
    return training(net, variables, images, drop, seed)


@partial(jax.jit, static_argnums=0)
def training(net, variables, images, drop, seed):
    rngs = {"dropout": jax.random.key(seed)}
    out, changed = net.apply(variables, images, True, drop, mutable="batch_stats", rngs=rngs)
    return out, changed.get("batch_stats", {})


def test_boxes_are_fractions_of_the_image(example):
    variables, images = example
    wild = jax.tree.map(lambda leaf: 10 * leaf, variables)
    _, box = evaluated(Tiny(), wild, images)
    assert box.min() >= 0 and box.max() <= 1
    assert box.min() < 0.01 and box.max() > 0.99


def test_initial_boxes_cover_the_middle():
    net = Tiny(features=partial(ConvStack, layout="M8"), hidden=(4,), rates=(0.5,))
    images = np.zeros((1, 16, 16, 3), np.float32)
    fresh = host_init.initialize(net.init, jax.random.key(0), images)
    np.testing.assert_array_equal(fresh["params"]["boxer"]["out"]["bias"], np.float32(BOX_BIAS))
    np.testing.assert_array_equal(fresh["params"]["classifier"]["out"]["bias"], 0)
    _, box = evaluated(net, fresh, images)  # all that comes in is 0
    np.testing.assert_allclose(box, [[0.2, 0.2, 0.8, 0.8]], atol=0.01)


def test_branches_share_only_the_features(example):
    variables, images = example
    logits, box = evaluated(Tiny(), variables, images)
    for branch, same, other in (("boxer", logits, box), ("classifier", box, logits)):
        doubled = jax.tree.map(lambda leaf: 2 * leaf, variables["params"][branch])
        changed = {**variables, "params": {**variables["params"], branch: doubled}}
        found = evaluated(Tiny(), changed, images)
        now, then = found if branch == "boxer" else found[::-1]
        np.testing.assert_array_equal(now, same)
        assert (np.asarray(then) != other).all()


def test_branches_are_dense_layers_with_relu_between():
    branch = MLP((5, 4), 3)
    variables = random_like(outputs(branch, shaped(2, 6))[1])
    x = np.random.default_rng(2).normal(size=(2, 6)).astype(np.float32)
    dense = [variables["params"][name] for name in ("dense1", "dense2", "out")]
    expected_value = x
    for layer in dense[:2]:
        expected_value = np.maximum(0, expected_value @ layer["kernel"] + layer["bias"])
    expected_value = expected_value @ dense[2]["kernel"] + dense[2]["bias"]
    np.testing.assert_allclose(branch.apply(variables, x), expected_value, atol=1e-5)


def dense_box_head_example():
    """A small head, its random variables, and two maps of a pyramid."""
    branch, random = DenseBoxHead(channels=6, levels=2), np.random.default_rng(3)
    maps = tuple(random.normal(size=(3, *of)).astype(np.float32) for of in ((4, 6, 5), (2, 3, 7)))
    variables = random_like(outputs(branch, maps)[1])
    return branch, variables, maps


@partial(jax.jit, static_argnums=(0, 3))
def evaluate_cells(branch, variables, maps, train=False):
    """(boxes [B, 4], the five outputs of all cells [B, h, w, 5])."""
    kept = ["intermediates", "batch_stats"]
    box, seen = branch.apply(variables, maps, train, capture_intermediates=True, mutable=kept)
    return box, seen["intermediates"]["out"]["__call__"][0]


@pytest.mark.parametrize("train", [False, True])
def test_the_dense_box_head_is_the_weighted_mean_of_its_cells(train):
    found, outputs_of_cells = evaluate_cells(*dense_box_head_example(), train)
    for box, cells in zip(np.asarray(found), np.asarray(outputs_of_cells, float), strict=True):
        total, expected_value = 0.0, np.zeros(4)
        for i in range(4):
            for j in range(6):
                left, top, right, bottom, logit = cells[i, j]
                x, y = (j + 0.5) / 6, (i + 0.5) / 4
                total += np.exp(logit)
                expected_value += np.exp(logit) * np.array(
                    [x - left, y - top, x + right, y + bottom]
                )
        expected_value /= total
        np.testing.assert_allclose(
            box, expected_value if train else expected_value.clip(0, 1), atol=1e-5
        )
    assert not train or (found < 0).any() or (found > 1).any()


def test_initial_boxes_of_the_dense_head_cover_the_middle():
    branch, _, maps = dense_box_head_example()
    fresh = host_init.initialize(branch.init, jax.random.key(0), maps)
    box, _ = evaluate_cells(branch, fresh, tuple(0 * m for m in maps))
    np.testing.assert_allclose(box, [[0.25, 0.25, 0.75, 0.75]] * 3, atol=1e-6)


def test_every_parameter_of_the_dense_box_head_has_a_gradient():
    branch, variables, maps = dense_box_head_example()

    @jax.jit
    @jax.grad
    def gradients(params):
        box, _ = evaluate_cells(branch, {**variables, "params": params}, maps, True)
        return jnp.square(box - 0.3).sum()

    for path, leaf in paths(gradients(variables["params"])).items():
        assert np.isfinite(leaf).all() and leaf.any() != path.startswith("neck/out2"), path


def test_the_classifier_does_not_depend_on_the_box_head():
    dense, cells = (
        outputs(Tiny(features=TinyResNet, box_head=box_head), shaped(2, 32, 48, 3))
        for box_head in (None, partial(DenseBoxHead, channels=6, levels=2))
    )
    assert [out.shape for out in cells[0]] == [(2, 3), (2, 4)]
    for part in ("features", "classifier"):
        assert shapes(cells[1]["params"][part]) == shapes(dense[1]["params"][part])
    assert cells[1]["params"]["boxer"]["neck"]["lateral2"]["kernel"].shape == (1, 1, 16, 6)


def test_the_config_selects_the_box_head():
    assert network(Config(model="lite0"))[0].box_head is None
    assert network(Config(model="lite0", box_head="per_cell"))[0].box_head.func is DenseBoxHead


def test_a_dropout_factor_of_0_is_no_dropout(example):
    variables, images = example
    none = trained(Tiny(rates=(0.0, 0.0)), variables, images)
    chex.assert_trees_all_equal(trained(Tiny(), variables, images, 0.0), none)
    (logits, box), stats = trained(Tiny(), variables, images, 1.0)
    (expected_value, same), still = none
    assert (logits != expected_value).any()
    chex.assert_trees_all_equal((box, stats), (same, still))  # the box has no dropout


def test_dropout_depends_on_its_key(example):
    first, again, other = (trained(Tiny(), *example, 1.0, seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_traced_dropout_factor_under_jit_and_vmap_equals_a_constant_one(example):
    factors = jnp.array([0.0, 0.7, 1.5])
    (swept, _), _ = jax.jit(jax.vmap(partial(trained, Tiny(), *example)))(factors)
    plain = [trained(Tiny(), *example, float(factor))[0][0] for factor in factors]
    chex.assert_trees_all_close(swept, np.stack(plain), rtol=1e-4, atol=1e-5)
    assert (swept[1] != swept[0]).any() and (swept[1] != swept[2]).any()


def test_evaluation_has_no_dropout(example):
    variables, images = example
    found = jax.jit(partial(Tiny().apply, dropout_scale=1.5))(variables, images)
    chex.assert_trees_all_equal(found, evaluated(Tiny(rates=(0.0, 0.0)), variables, images))


def test_evaluation_is_independent_per_image(example):
    variables, images = example
    together = evaluated(Tiny(), variables, images)
    alone = [evaluated(Tiny(), variables, image[None]) for image in images]
    chex.assert_trees_all_close(
        together, jax.tree.map(lambda *x: np.concatenate(x), *alone), atol=1e-6
    )
    assert all((out.std(0) > 0).all() for out in together)


def test_without_norm_there_are_no_statistics_in_training(example):
    _, images = example
    net = Tiny(features=partial(ConvStack, layout="8 M2 8", norm=False), rates=(0.0, 0.0))
    variables = random_like(outputs(net, images)[1])
    (logits, box), stats = trained(net, {"params": variables["params"]}, images, 0.0)
    assert not stats
    chex.assert_trees_all_close((logits, box), evaluated(net, variables, images), rtol=1e-5)


def test_batch_statistics_are_synchronized_over_devices(example):
    variables, images = example
    step = partial(trained, Tiny(axis_name="devices", rates=(0.0, 0.0)), variables)
    (_, spread) = jax.vmap(partial(step, drop=0.0), axis_name="devices")(
        images.reshape(2, 3, *images.shape[1:])
    )
    (_, whole) = trained(Tiny(), variables, images, 0.0)
    first = jax.tree.map(lambda x: x[0], jax.device_get(spread))
    chex.assert_trees_all_close(first, whole, atol=1e-5)


def test_bfloat16_is_close_to_float32(example):
    variables, images = example
    features = partial(Tiny.keywords["features"], dtype=jnp.bfloat16)
    half = Tiny(features=features, dtype=jnp.bfloat16)
    logits, box = evaluated(half, variables, images)
    assert box.dtype == jnp.float32  # steps of bfloat16 are nearly a pixel of 224
    exact = evaluated(Tiny(), variables, images)
    scale = abs(exact[0]).max()
    np.testing.assert_allclose(logits.astype(jnp.float32), exact[0], atol=0.05 * scale)
    np.testing.assert_allclose(box, exact[1], atol=0.02)


WORDS = "4 M2 6 5/1 M2 4"  # four convolutions
TinyPlain = partial(ConvStack, layout=WORDS)
TinyResNet = partial(ResNet, stages=(1, 1, 1), width=4, classes=0)
FROZEN = {
    "plain": (TinyPlain, TinyPlain().stage_names()),
    "resnet": (TinyResNet, TinyResNet().stage_names()),
}


def frozen_localizer(features, frozen):
    """A tiny localizer, its random variables, and images [4, 16, 16, 3]."""
    net = Tiny(features=partial(features, frozen_stages=frozen), side=1, hidden=(6,), rates=(0.0,))
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    return net, random_like(outputs(net, images)[1]), images


def gradient(net, variables, images):
    """(gradient of a loss, new statistics) of a training step, compiled."""

    def loss(params):
        out, stats = trained(net, {**variables, "params": params}, images, 0.0)
        logits, box = out
        return -jax.nn.log_softmax(logits)[:, 0].mean() + (box**2).mean(), stats

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def within(path, names):
    """Whether a path is in one of these stages of the features."""
    place, layer, *_ = path.split("/")
    return place == "features" and layer.split("_")[0] in names


@pytest.mark.parametrize("kind, frozen", [("plain", 0), ("plain", 2), ("plain", 4), ("resnet", 3)])
def test_frozen_stages_have_no_gradients_and_keep_their_statistics(kind, frozen):
    features, names = FROZEN[kind]
    net, variables, images = frozen_localizer(features, frozen)
    gradients, stats = gradient(net, variables, images)
    chex.assert_tree_all_finite((gradients, stats))
    stay = [path for path in paths(gradients) if within(path, names[:frozen])]
    assert len(stay) >= 3 * frozen
    for path, leaf in paths(gradients).items():
        assert leaf.any() != (path in stay), path
    before = paths(variables["batch_stats"])
    for path, leaf in paths(stats).items():
        assert (leaf != before[path]).any() != within(path, names[:frozen]), path


@pytest.mark.parametrize("kind", FROZEN)
def test_freezing_changes_nothing_in_evaluation(kind):
    features, names = FROZEN[kind]
    net, variables, images = frozen_localizer(features, 0)
    frozen, _, _ = frozen_localizer(features, len(names))
    expected = evaluated(net, variables, images)
    chex.assert_trees_all_close(evaluated(frozen, variables, images), expected, rtol=1e-5)

    def slope(net):
        return jax.jit(jax.grad(lambda images: net.apply(variables, images)[0].sum()))(images)

    assert np.asarray(slope(net)).any()
    chex.assert_trees_all_close(slope(frozen), slope(net), rtol=1e-5)


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_stages_cost_no_backward_pass(kind):
    features, names = FROZEN[kind]

    def cost(frozen):
        net, variables, images = frozen_localizer(features, frozen)
        counted = flops.count(
            lambda p: gradient(net, {**variables, "params": p}, images), variables["params"]
        )
        return counted.total("backward")

    costs = [cost(frozen) for frozen in range(0, len(names) + 1, 2)]
    assert costs == sorted(set(costs), reverse=True)


@pytest.mark.parametrize(
    "model, frozen, accumulate", [("resnet18", 3, 1), ("simple", 2, 2), ("simple", 3, 1)]
)
def test_only_trainable_parameters_change_in_an_update_with_weight_decay(model, frozen, accumulate):
    stay = registry.frozen_stages(model, frozen)
    features = TinyResNet if model == "resnet18" else partial(ConvStack, layout="4 M2 6 M2 4")
    before = frozen_localizer(features, len(stay))[1]["params"]
    still = {path for path in paths(before) if within(path, stay)}

    def gradient_of(where, leaf):
        path = jax.tree_util.keystr(where, simple=True, separator="/")
        return np.full_like(leaf, path not in still)

    gradients = jax.tree.map_with_path(gradient_of, before)

    def moved(lr_multiplier):
        options = {"weight_decay": 0.1, "clip": 1.0, "accumulate": accumulate}
        transform = optim.optimizer("adamw", 0.1, **options, lr_multiplier=lr_multiplier)

        @jax.jit
        def after(params):
            state = transform.init(params)
            for _ in range(accumulate):
                updates, state = transform.update(gradients, state, params)
                params = optax.apply_updates(params, updates)
            return params

        memory = size(jax.eval_shape(transform.init, before))
        pairs = zip(paths(before).items(), paths(after(before)).values(), strict=True)
        return {path for (path, old), new in pairs if (np.asarray(new) != old).any()}, memory

    found, memory = moved(registry.lr_multiplier(stay))
    assert found == set(paths(before)) - still
    by_decay = {path for path in still if path.endswith("kernel")}
    every, larger = moved(None)
    assert by_decay and every == found | by_decay
    assert memory < larger
