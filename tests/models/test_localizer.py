from functools import partial

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet import flops
from jaxdet.configs import backbones
from jaxdet.configs.objects import Config, network
from jaxdet.models.localizer import BOX_BIAS, MLP, DenseBoxHead, Localizer
from jaxdet.models.plain import ConvStack, deeper, simple, vgg
from jaxdet.models.resnet import ResNet, ResNet18
from jaxdet.training import host_init, optim
from tests.models.helpers import outputs, paths, random_like, shaped, size

# Kernels by layer, with three classes; the other parameters follow: see `expected`.
SIMPLE = """
conv1 3x3x3x32  conv2 3x3x32x64  conv3 3x3x64x64
classifier: dense1 576x32  dense2 32x16  out 16x3
boxer: dense1 576x32  dense2 32x16  out 16x4
"""
DEEPER = """
conv1 3x3x3x32  conv2 3x3x32x32  conv3 3x3x32x64  conv4 3x3x64x64
conv5 3x3x64x128  conv6 3x3x128x128  conv7 3x3x128x256  conv8 3x3x256x256
conv9 1x1x256x512  conv10 3x3x512x512
classifier: dense1 25088x1024  dense2 1024x512  dense3 512x256  dense4 256x128  dense5 128x64
classifier: out 64x3
boxer: dense1 25088x1024  dense2 1024x512  dense3 512x256  dense4 256x128  dense5 128x64
boxer: out 64x4
"""
VGG = """
conv1 3x3x3x64  conv2 3x3x64x128  conv3 3x3x128x256  conv4 3x3x256x256
conv5 3x3x256x512  conv6 3x3x512x512  conv7 3x3x512x512  conv8 3x3x512x512
classifier: dense1 25088x512  dense2 512x512  out 512x3
boxer: dense1 25088x512  dense2 512x512  out 512x4
"""
RESNET18 = """
stem 7x7x3x64
stage1_block1: conv1 3x3x64x64  conv2 3x3x64x64
stage1_block2: conv1 3x3x64x64  conv2 3x3x64x64
stage2_block1: conv1 3x3x64x128  conv2 3x3x128x128  around 1x1x64x128
stage2_block2: conv1 3x3x128x128  conv2 3x3x128x128
stage3_block1: conv1 3x3x128x256  conv2 3x3x256x256  around 1x1x128x256
stage3_block2: conv1 3x3x256x256  conv2 3x3x256x256
stage4_block1: conv1 3x3x256x512  conv2 3x3x512x512  around 1x1x256x512
stage4_block2: conv1 3x3x512x512  conv2 3x3x512x512
classifier: dense1 512x512  dense2 512x512  out 512x3
boxer: dense1 512x512  dense2 512x512  out 512x4
"""


def resnet18(classes, *, dtype=None, **part):
    """The localizer that `jaxdet train objects --model resnet18` makes."""
    features = partial(ResNet18, classes=0, dtype=dtype, **part)
    return Localizer(features, classes, (512, 512), (0.5, 0.5), side=1, dtype=dtype)


NETS = {"simple": simple, "deeper": deeper, "vgg": vgg, "resnet18": resnet18}
each_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)
Tiny = partial(
    Localizer,
    features=partial(ConvStack, layout="8 M2 12 M2 8/1"),
    classes=3,
    hidden=(10, 6),
    rates=(0.5, 0.3),
    side=2,
)


def expected(table, *, bias=False, norm=True):
    """Shapes by path of the parameters whose kernels a table lists."""
    shapes = {}
    for line in table.strip().splitlines():
        place, _, layers = line.rpartition(": ")
        words = layers.split()
        for name, kernel in zip(words[::2], words[1::2], strict=True):
            shape = tuple(map(int, kernel.split("x")))
            branch = place in ("classifier", "boxer")
            path = "/".join(filter(None, ("" if branch else "features", place, name)))
            shapes[f"{path}/kernel"] = shape
            if branch or bias or not norm:
                shapes[f"{path}/bias"] = shape[-1:]
            if norm and not branch:
                shapes |= {f"{path}_norm/{leaf}": shape[-1:] for leaf in ("scale", "bias")}
    return shapes


def shapes(tree):
    return {path: leaf.shape for path, leaf in paths(tree).items()}


@pytest.mark.parametrize(
    "make, table, bias, with_norm, without",
    [
        (simple, SIMPLE, False, 94_583, 94_423),
        (deeper, DEEPER, False, 56_442_919, 56_440_935),
        (vgg, VGG, True, 35_446_023, 35_440_519),
        (resnet18, RESNET18, False, 12_230_727, 12_225_927),
    ],
    ids=NETS,
)
@pytest.mark.parametrize("norm", [True, False])
def test_layers_and_number_of_parameters(make, table, bias, norm, with_norm, without):
    _, variables = outputs(make(3, norm=norm), shaped(1, 64, 64, 3))
    assert shapes(variables["params"]) == expected(table, bias=bias, norm=norm)
    assert size(variables["params"]) == (with_norm if norm else without)
    assert set(variables) == ({"params", "batch_stats"} if norm else {"params"})


@pytest.mark.parametrize("name", NETS)
def test_configs_build_these_networks(name):
    configured, shape = network(Config(model=name, size=96), classes=5)
    assert shape == (1, 96, 96, 3)
    ours, theirs = (outputs(net, shaped(2, 96, 96, 3)) for net in (NETS[name](5), configured))
    assert ours == theirs
    assert ours[0][0].shape == (2, 5)


@pytest.mark.parametrize(
    "make, width, sides",
    [
        (simple, 64, {224: 3, 112: 1, 64: 1}),
        (deeper, 512, {224: 7, 112: 3, 64: 2}),
        (vgg, 512, {224: 7, 112: 3, 64: 2}),
        (resnet18, 512, {224: 7, 112: 4, 64: 2}),
    ],
    ids=NETS,
)
def test_maps_shrink_with_the_image_and_branches_do_not(make, width, sides):
    net, found = make(3), []
    for side, of_map in sides.items():
        maps, _ = outputs(net.features(), shaped(2, side, side, 3))
        last = maps[-1] if isinstance(maps, tuple) else maps
        assert last.shape == (2, of_map, of_map, width)
        (logits, box), variables = outputs(net, shaped(2, side, side, 3))
        assert (logits.shape, box.shape) == ((2, 3), (2, 4))
        found.append(shapes(variables))
    assert found[0] == found[1] == found[2]


def test_images_need_not_be_square():
    (logits, box), variables = outputs(simple(3), shaped(2, 64, 160, 3))
    assert (logits.shape, box.shape) == ((2, 3), (2, 4))
    assert shapes(variables["params"]) == expected(SIMPLE)


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
    wanted = x
    for layer in dense[:2]:
        wanted = np.maximum(0, wanted @ layer["kernel"] + layer["bias"])
    wanted = wanted @ dense[2]["kernel"] + dense[2]["bias"]
    np.testing.assert_allclose(branch.apply(variables, x), wanted, atol=1e-5)


def dense_box_head_example():
    """A small head, its random variables, and two maps of a pyramid."""
    branch, random = DenseBoxHead(channels=6, levels=2), np.random.default_rng(3)
    maps = tuple(random.normal(size=(3, *of)).astype(np.float32) for of in ((4, 6, 5), (2, 3, 7)))
    variables = random_like(outputs(branch, maps)[1])
    return branch, variables, maps


@partial(jax.jit, static_argnums=(0, 3))
def said(branch, variables, maps, train=False):
    """(boxes [B, 4], the five outputs of all cells [B, h, w, 5])."""
    kept = ["intermediates", "batch_stats"]
    box, seen = branch.apply(variables, maps, train, capture_intermediates=True, mutable=kept)
    return box, seen["intermediates"]["out"]["__call__"][0]


@pytest.mark.parametrize("train", [False, True])
def test_the_dense_box_head_is_the_weighted_mean_of_its_cells(train):
    found, told = said(*dense_box_head_example(), train)
    for box, cells in zip(np.asarray(found), np.asarray(told, float), strict=True):
        total, wanted = 0.0, np.zeros(4)
        for i in range(4):
            for j in range(6):
                left, top, right, bottom, logit = cells[i, j]
                x, y = (j + 0.5) / 6, (i + 0.5) / 4
                total += np.exp(logit)
                wanted += np.exp(logit) * np.array([x - left, y - top, x + right, y + bottom])
        wanted /= total
        np.testing.assert_allclose(box, wanted if train else wanted.clip(0, 1), atol=1e-5)
    assert not train or (found < 0).any() or (found > 1).any()


def test_initial_boxes_of_the_dense_head_cover_the_middle():
    branch, _, maps = dense_box_head_example()
    fresh = host_init.initialize(branch.init, jax.random.key(0), maps)
    box, _ = said(branch, fresh, tuple(0 * m for m in maps))
    np.testing.assert_allclose(box, [[0.25, 0.25, 0.75, 0.75]] * 3, atol=1e-6)


def test_every_parameter_of_the_dense_box_head_has_a_gradient():
    branch, variables, maps = dense_box_head_example()

    @jax.jit
    @jax.grad
    def slopes(params):
        box, _ = said(branch, {**variables, "params": params}, maps, True)
        return jnp.square(box - 0.3).sum()

    for path, leaf in paths(slopes(variables["params"])).items():
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
    assert network(Config(model="lite0", box_head="cells"))[0].box_head.func is DenseBoxHead


def test_every_layer_is_a_row_of_the_operation_table():
    images = shaped(1, 64, 64, 3)
    rows = flops.count(simple(3).apply, outputs(simple(3), images)[1], images).by_layer
    names = {path.removeprefix("Localizer/") for path, _ in rows}
    assert names >= {f"features/{kind}{i}" for kind in ("conv", "pool") for i in (1, 2, 3)}
    assert names >= {f"features/conv{i}_{after}" for after in ("norm", "relu") for i in (1, 2, 3)}
    for branch in ("classifier", "boxer"):
        assert names >= {f"{branch}/{x}" for x in ("dense1", "dense2", "dense2_relu", "out")}
    assert "pool" in names


def test_a_dropout_factor_of_0_is_no_dropout(example):
    variables, images = example
    none = trained(Tiny(rates=(0.0, 0.0)), variables, images)
    chex.assert_trees_all_equal(trained(Tiny(), variables, images, 0.0), none)
    (logits, box), stats = trained(Tiny(), variables, images, 1.0)
    (wanted, same), still = none
    assert (logits != wanted).any()
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
    found = jax.jit(partial(Tiny().apply, drop=1.5))(variables, images)
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


def test_batch_statistics_are_synchronised_over_devices(example):
    variables, images = example
    step = partial(trained, Tiny(axis_name="devices", rates=(0.0, 0.0)), variables)
    (_, spread) = jax.vmap(partial(step, drop=0.0), axis_name="devices")(
        images.reshape(2, 3, *images.shape[1:])
    )
    (_, whole) = trained(Tiny(), variables, images, 0.0)
    first = jax.tree.map(lambda x: x[0], jax.device_get(spread))
    chex.assert_trees_all_close(first, whole, atol=1e-5)


@each_net
def test_parameters_stay_float32_when_computing_in_bfloat16(make):
    net, images = make(3, dtype=jnp.bfloat16), shaped(1, 64, 64, 3)
    _, variables = outputs(net, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    closed = jax.make_jaxpr(net.apply)(variables, images)
    assert {dtype.name for dtype in products(closed.jaxpr)} == {"bfloat16"}


def products(jaxpr):
    """Dtypes of the operands of the convolutions and matrix products of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (of.aval.dtype for of in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


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


def test_kernels_of_a_layout():
    _, variables = outputs(ConvStack(layout="4 M2 6/1 5/7"), shaped(1, 8, 8, 3))
    kernels = {p: s for p, s in shapes(variables["params"]).items() if p.endswith("kernel")}
    assert kernels == {
        "conv1/kernel": (3, 3, 3, 4),
        "conv2/kernel": (1, 1, 4, 6),
        "conv3/kernel": (7, 7, 6, 5),
    }
    assert ConvStack(layout="4 M2 6/1 5/7").stage_names() == ("conv1", "conv2", "conv3")


def test_a_stack_is_convolution_norm_relu_and_pool():
    net, images = ConvStack(layout="4 M2"), np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    images = images.astype(np.float32)
    variables = random_like(outputs(net, images)[1])
    params, stats = (variables[of] for of in ("params", "batch_stats"))
    x = jax.lax.conv_general_dilated(
        *(images, params["conv1"]["kernel"], (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x, norm, running = np.asarray(x), params["conv1_norm"], stats["conv1_norm"]
    x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
    wanted = np.maximum(0, x).reshape(2, 3, 2, 3, 2, 4).max((2, 4))
    np.testing.assert_allclose(evaluated(net, variables, images), wanted, atol=1e-5)


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
    slopes, stats = gradient(net, variables, images)
    chex.assert_tree_all_finite((slopes, stats))
    stay = [path for path in paths(slopes) if within(path, names[:frozen])]
    assert len(stay) >= 3 * frozen
    for path, leaf in paths(slopes).items():
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
    "model, last, stay",
    [
        ("simple", 0, ("conv1", "conv2", "conv3")),
        ("simple", 1, ("conv1", "conv2")),
        ("deeper", 2, tuple(f"conv{i + 1}" for i in range(8))),
        ("vgg", 8, ()),
        ("resnet18", 2, ("stem", "stage1", "stage2")),
        ("resnet50", 5, ()),
        ("lite0", 3, ("stem", *(f"stage{i + 1}" for i in range(4)))),
    ],
)
def test_all_but_the_last_k_stages_are_frozen(model, last, stay):
    config = Config(model=model, transfer="frozen", unfreeze_last=last)
    assert backbones.frozen(config) == stay
    assert network(config)[0].features().frozen_stages == len(stay)
    for backbone in ("scratch", "finetune"):
        free = Config(model=model, transfer=backbone, unfreeze_last=last)
        assert backbones.frozen(free) == ()
        assert network(free)[0].features().frozen_stages == 0


@pytest.mark.parametrize(
    "model, last, accumulate", [("resnet18", 2, 1), ("simple", 1, 2), ("simple", 0, 1)]
)
def test_only_trainable_parameters_change_in_an_update_with_weight_decay(model, last, accumulate):
    stay = backbones.frozen(Config(model=model, transfer="frozen", unfreeze_last=last))
    features = TinyResNet if model == "resnet18" else partial(ConvStack, layout="4 M2 6 M2 4")
    before = frozen_localizer(features, len(stay))[1]["params"]
    still = {path for path in paths(before) if within(path, stay)}

    def slope(where, leaf):
        path = jax.tree_util.keystr(where, simple=True, separator="/")
        return np.full_like(leaf, path not in still)

    slopes = jax.tree.map_with_path(slope, before)

    def moved(learns):
        options = {
            "weight_decay": 0.1,
            "clip": 1.0,
            "accumulate": accumulate,
            "lr_multiplier": learns,
        }
        transform = optim.optimizer("adamw", 0.1, **options)

        @jax.jit
        def after(params):
            state = transform.init(params)
            for _ in range(accumulate):
                updates, state = transform.update(slopes, state, params)
                params = optax.apply_updates(params, updates)
            return params

        memory = size(jax.eval_shape(transform.init, before))
        pairs = zip(paths(before).items(), paths(after(before)).values(), strict=True)
        return {path for (path, old), new in pairs if (np.asarray(new) != old).any()}, memory

    found, memory = moved(partial(backbones.learns, stay))
    assert found == set(paths(before)) - still
    by_decay = {path for path in still if path.endswith("kernel")}
    every, larger = moved(None)
    assert by_decay and every == found | by_decay
    assert memory < larger


def test_a_part_that_stays_is_not_taken_for_another_whose_name_begins_alike():
    stay = ("conv1",)
    for path in ("features/conv1/kernel", "features/conv1_norm/scale"):
        assert not backbones.learns(stay, path)
    for path in ("features/conv10/kernel", "features/conv10_norm/bias", "conv1/dense1/kernel"):
        assert backbones.learns(stay, path)
