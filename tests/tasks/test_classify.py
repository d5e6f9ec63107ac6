from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import special

from jaxdet import rng
from jaxdet.losses import classification as classification_losses
from jaxdet.models.lenet import LeNet
from jaxdet.ops import augment
from jaxdet.tasks import classify
from jaxdet.training import parallel
from jaxdet.types import StepContext
from tests.models.helpers import outputs, random_like
from tests.reference import augment as reference_augment
from tests.reference import classification as reference_classification

CLASSES = ("cup", "hat", "owl")
TRAIN, EVALUATE = (StepContext(train, 0, 0, {"dropout": 0.0}) for train in (True, False))
LOSSES = ("cross_entropy", "binary", "squared", "hinge")
Tiny = partial(LeNet, channels=(4,), fc_widths=(8,), classes=3, norm=True, rate=0.5)


class ConstantNet(nn.Module):
    """A network that returns its variables."""

    axis_name: str | None = None

    def __call__(self, x, train=False, dropout_scale=1.0):
        """Logits [B, 3]."""
        return self.variables["params"]["logits"]


def make_task(net=None, **fields):
    return classify.ClassificationTask(net or ConstantNet(), CLASSES, **fields)


def random_logits(count=6, seed=0):
    return np.float32(2 * np.random.default_rng(seed).normal(size=(count, 3)))


def random_batch(count=6, seed=1, real=None):
    """A batch of 8-bit images with one label each."""
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(256, size=(count, 16, 16, 3)).astype(np.uint8),
        "label": random.integers(3, size=count).astype(np.int32),
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def prepare(batch, context=TRAIN, seed=0, **fields):
    """The batch as the network sees it."""
    keys = rng.row_keys(jax.random.key(seed), jnp.arange(len(batch["label"])))
    augment = partial(make_task(**fields).augment, context=context)
    return jax.device_get(jax.jit(augment)(keys, batch))


def loss_and_gradient(logits, batch, name="cross_entropy"):
    """((loss, terms), gradient of the loss with respect to the logits)."""

    @jax.jit
    def compute(logits, batch):
        def loss(logits):
            variables = {"params": {"logits": logits}}
            task = make_task(loss_name=name)
            value, (_, terms) = task.loss(variables, batch, jax.random.key(0), TRAIN)
            return value, terms

        return jax.value_and_grad(loss, has_aux=True)(logits)

    return jax.device_get(compute(logits, batch))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_equals_scalar_reference(name, smoothing):
    logits, batch = random_logits(), random_batch()
    (loss, terms), gradient = loss_and_gradient(
        logits, prepare(batch, label_smoothing=smoothing), name
    )
    expected = [
        reference_classification.classification_loss(
            name, row, reference_classification.smoothed_label(label, 3, smoothing)
        )
        for row, label in zip(logits, batch["label"], strict=True)
    ]
    right = [
        int(np.argmax(row)) == label for row, label in zip(logits, batch["label"], strict=True)
    ]
    assert 0 < np.mean(right) < 1
    assert terms == pytest.approx({"accuracy": np.mean(right), "loss": np.mean(expected)}, 1e-5)
    assert loss == pytest.approx(np.mean(expected), 1e-5)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_allclose(
        gradient, numerical_gradient(name, logits, batch, smoothing), atol=2e-3
    )


def test_class_weights_are_weights_of_the_mean_loss_in_training():
    logits, batch = random_logits(), prepare(random_batch(real=[1, 1, 1, 1, 1, 0]))
    losses = optax.softmax_cross_entropy(logits, batch["target"])
    task, variables = make_task(class_weights=(1.0, 4.0, 0.5)), {"params": {"logits": logits}}
    assert len({*batch["label"][:5].tolist()}) == 3
    weights = np.array([1.0, 4.0, 0.5])[batch["label"]] * batch["real"]
    for context, own in ((TRAIN, weights), (EVALUATE, batch["real"])):
        loss, (_, terms) = task.loss(variables, batch, jax.random.key(0), context)
        assert float(loss) == pytest.approx(np.average(losses, weights=own), 1e-5)
        right = (logits.argmax(-1) == batch["label"])[:5].mean()
        assert float(terms["accuracy"]) == pytest.approx(right)
    nothing = batch | {"real": np.zeros(6, np.float32)}
    assert float(task.loss(variables, nothing, jax.random.key(0), TRAIN)[0]) == 0


def numerical_gradient(name, logits, batch, smoothing, step=1e-4):
    """The gradient of the mean loss, by differences of the scalar reference."""
    out = np.zeros(logits.shape)
    for i, k in np.ndindex(logits.shape):
        targets = reference_classification.smoothed_label(batch["label"][i], 3, smoothing)
        ends = [logits[i] + sign * step * np.eye(3)[k] for sign in (1, -1)]
        up, down = (
            reference_classification.classification_loss(name, end, targets) for end in ends
        )
        out[i, k] = (up - down) / (2 * step) / len(logits)
    return out


@pytest.mark.parametrize("name", LOSSES)
def test_mixup_mixes_images_and_targets_alike(name):
    batch, alpha = random_batch(), 0.7
    mixed = prepare(batch, mix=partial(augment.mixup, alpha=alpha), label_smoothing=0.1)
    keys = rng.row_keys(jax.random.key(0), jnp.arange(6))
    weights = [float(jax.random.beta(key, alpha, alpha)) for key in keys]
    targets = [
        np.array(reference_classification.smoothed_label(label, 3, 0.1)) for label in batch["label"]
    ]
    targets = reference_augment.mixup(targets, weights)
    np.testing.assert_allclose(mixed["target"], targets, atol=1e-5)
    np.testing.assert_allclose(
        mixed["image"], reference_augment.mixup(batch["image"] / 255, weights), atol=1e-5
    )
    losses = [
        reference_classification.classification_loss(name, *row)
        for row in zip(random_logits(), targets, strict=True)
    ]
    (loss, _), gradient = loss_and_gradient(random_logits(), mixed, name)
    assert loss == pytest.approx(np.mean(losses), 1e-4)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_minimal_at_the_target_with_finite_gradients_far_from_it(name):
    targets, sure = np.eye(3, dtype=np.float32), 100 * np.eye(3, dtype=np.float32)
    losses = jax.jit(
        jax.value_and_grad(lambda x: classification_losses.label_loss(name, x, targets).sum())
    )
    for logits in (sure, -sure, np.zeros((3, 3), np.float32)):
        chex.assert_tree_all_finite(losses(logits))
    least, slope = losses(2 * sure - 100)
    assert least == pytest.approx(0, abs=1e-6) and not slope.any()
    assert losses(-sure)[0] > losses(0 * sure)[0] > 0


def test_hinge_equals_its_definition():
    """Weston and Watkins 1999: the mean over classes of max(0, 1 + logit - true logit)."""
    logits = np.float32([[3, 0, 1], [1.5, 1, 0], [0, 0, 2]])
    found = classification_losses.label_loss("hinge", logits, np.eye(3)[[0, 0, 1]])
    np.testing.assert_allclose(found, [0, 0.5 / 3, 4 / 3], rtol=1e-6)


def test_hinge_equals_pytorch():
    torch = pytest.importorskip("torch")
    logits, labels = (
        np.random.default_rng(0).normal(size=(8, 5)).astype("float32"),
        np.arange(8) % 5,
    )
    found = classification_losses.label_loss("hinge", logits, np.eye(5, dtype="float32")[labels])
    theirs = torch.nn.MultiMarginLoss(reduction="none")
    expected = theirs(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_padded_rows_have_no_effect(name):
    logits, batch = random_logits(), prepare(random_batch(real=[1, 0, 1, 1, 0, 0]))
    whole, gradient = loss_and_gradient(logits, batch, name)
    twice = np.tile([0, 2, 3], 2)  # a shape that is compiled already; terms are means
    packed, packed_gradient = loss_and_gradient(
        *jax.tree.map(lambda leaf: leaf[twice], (logits, batch)), name
    )
    chex.assert_trees_all_close(whole, packed, rtol=1e-5)
    np.testing.assert_allclose(
        gradient[[0, 2, 3]], packed_gradient[:3] + packed_gradient[3:], rtol=1e-5
    )
    np.testing.assert_array_equal(gradient[[1, 4, 5]], 0)
    empty, empty_gradient = loss_and_gradient(
        logits, batch | {"real": np.zeros(6, np.float32)}, name
    )
    assert not any(jax.tree.leaves(empty)) and not empty_gradient.any()


@pytest.fixture(scope="module")
def net():
    """(tiny network with dropout and batch norm, random variables)."""
    return Tiny(), random_like(outputs(Tiny(), prepare(random_batch())["image"])[1])


def test_dropout_factor_and_key_reach_the_network(net):
    network, variables = net
    batch = prepare(random_batch())

    @partial(jax.jit, static_argnums=0)
    def entropy(train, factor, seed):
        context = StepContext(train, 0, 0, {"dropout": factor})
        return make_task(network).loss(variables, batch, jax.random.key(seed), context)[0]

    off, one, other = entropy(True, 0.0, 1), entropy(True, 1.0, 1), entropy(True, 1.0, 2)
    assert entropy(True, 0.0, 2) == off
    assert len({float(value) for value in (off, one, other)}) == 3
    assert entropy(False, 1.0, 1) == entropy(False, 0.0, 2)


def test_batch_statistics_change_in_training_only(net):
    network, variables = net
    batch, task = prepare(random_batch()), make_task(network)

    def after(context):
        return jax.jit(lambda: task.loss(variables, batch, jax.random.key(0), context)[1][0])()

    chex.assert_trees_all_equal(after(EVALUATE), variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), after(TRAIN), variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_four_devices_give_loss_and_gradient_of_one(net):
    network, variables = net
    task = make_task(network, label_smoothing=0.1, class_weights=(1.0, 3.0, 0.5))
    # The last device has padding only.
    batch = prepare(random_batch(8, real=[1, 1, 1, 0, 1, 0, 0, 0]))

    def step(variables, batch, axis):
        def loss_of(params):
            context = TRAIN._replace(axis=axis)
            given = {**variables, "params": params}
            return task.loss(given, batch, jax.random.key(0), context)

        (loss, (stats, terms)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            variables["params"]
        )
        return *parallel.psum((loss, terms, gradient), axis), stats

    one, four = (
        parallel.compile_step(step, parallel.local_devices(n), replicated=1)(variables, batch)
        for n in (1, 4)
    )
    chex.assert_trees_all_close(one, jax.device_get(four), rtol=1e-4, atol=1e-6)
    assert float(one[0]) == pytest.approx(float(one[1]["loss"]))
    chex.assert_tree_all_finite(one)


def test_evaluation_scales_images_to_0_1_and_keeps_labels_one_hot():
    batch = random_batch()
    unused = {"transform": lambda *_: 1 / 0, "mix": lambda *_: 1 / 0, "label_smoothing": 0.3}
    found = prepare(batch, EVALUATE, **unused)
    np.testing.assert_allclose(found["image"] * 255, batch["image"], rtol=1e-6)
    np.testing.assert_array_equal(found["target"], np.eye(3)[batch["label"]])
    assert found["image"].dtype == np.float32
    same = {name: found[name] for name in ("label", "real")}
    chex.assert_trees_all_equal(same, {name: batch[name] for name in same})


def test_training_augments_each_image_with_its_own_key():
    batch, transform = random_batch(), augment.on_image(partial(augment.pad_and_crop, pad=3))
    found, other = (prepare(batch, seed=seed, transform=transform)["image"] for seed in (0, 1))
    keys = rng.row_keys(jax.random.key(0), jnp.arange(6))
    for i in range(6):
        image = transform(keys[i], batch["image"][i])
        np.testing.assert_allclose(found[i] * 255, image, rtol=1e-5)
    assert (found != other).any((1, 2, 3)).sum() > 3


def test_predictions_are_those_of_the_network_on_normalized_images(net):
    """PyTorch's tutorial subtracts 0.5 from every pixel value and divides by 0.5."""
    network, variables = net
    images = prepare(random_batch(), EVALUATE)["image"]
    found = jax.device_get(jax.jit(make_task(network).predict)(variables, images))
    logits = np.asarray(jax.jit(network.apply)(variables, 2 * images - 1))
    np.testing.assert_array_equal(found["label"], logits.argmax(-1))
    np.testing.assert_allclose(found["score"], special.softmax(logits, -1).max(-1), rtol=1e-4)


def test_report_counts_measured_labels():
    batch, task = random_batch(), make_task()
    logits = 9 * np.eye(3, dtype=np.float32)[batch["label"]]
    logits[0] = np.roll(logits[0], 1)
    rows = task.measure(
        task.predict({"params": {"logits": logits}}, prepare(batch)["image"]), batch
    )
    report = task.report(jax.device_get(rows))
    assert (report["count"], report["correct"]) == (6, 5)
    assert list(report["labels"]) == list(CLASSES)
    assert np.sum(report["confusion"]) == 6


def test_tta_predicts_from_mean_logits_of_image_and_mirror_image():
    net, batch = Tiny(), random_batch(4)
    views = [batch["image"] / np.float32(255)]
    views.append(views[0][:, :, ::-1])
    variables = jax.jit(net.init)(jax.random.key(0), views[0])
    plain, both = (jax.jit(make_task(net, tta=tta).predict) for tta in (False, True))
    logits = [np.float64(net.apply(variables, 2 * view - 1)) for view in views]
    chances = special.softmax(np.mean(logits, 0), -1)
    found = both(variables, views[0])
    np.testing.assert_array_equal(found["label"], chances.argmax(-1))
    np.testing.assert_allclose(found["score"], chances.max(-1), rtol=1e-5)
    np.testing.assert_allclose(both(variables, views[1])["score"], found["score"], rtol=1e-5)
    assert not np.allclose(plain(variables, views[0])["score"], found["score"], rtol=1e-4)
