from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
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
from tests.models.test_resnet import outputs
from tests.models.test_sliding import fill
from tests.reference import augment as reference_augment
from tests.reference import classification as reference_classification

CLASSES = ("cup", "hat", "owl")
TRAIN, EVALUATE = (StepContext(train, 0, 0, {"dropout": 0.0}) for train in (True, False))
KINDS = ("cross_entropy", "binary", "squared", "hinge")
Tiny = partial(LeNet, channels=(4,), fc_widths=(8,), classes=3, norm=True, rate=0.5)


class Told(nn.Module):
    """A network whose variables are what it answers."""

    axis_name: str | None = None

    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, 3]."""
        return self.variables["params"]["logits"]


def classifier(net=None, **fields):
    return classify.ClassificationTask(net or Told(), CLASSES, **fields).task()


def answers(count=6, seed=0):
    return np.float32(2 * np.random.default_rng(seed).normal(size=(count, 3)))


def drawn(count=6, seed=1, real=None):
    """A batch of images of 8 bits, with a label each."""
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(256, size=(count, 16, 16, 3)).astype(np.uint8),
        "label": random.integers(3, size=count).astype(np.int32),
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def seen(batch, at=TRAIN, seed=0, **fields):
    """The batch as the network sees it."""
    each = rng.row_keys(jax.random.key(seed), jnp.arange(len(batch["label"])))
    return jax.device_get(jax.jit(partial(classifier(**fields).augment, at=at))(each, batch))


def judged(logits, batch, kind="cross_entropy"):
    """((share, terms), gradient of the share by the logits)."""

    @jax.jit
    def judging(logits, batch):
        def share(logits):
            given = {"params": {"logits": logits}}
            loss = classifier(loss_kind=kind).loss(given, batch, jax.random.key(0), TRAIN)
            return loss[0], loss[1][1]

        return jax.value_and_grad(share, has_aux=True)(logits)

    return jax.device_get(judging(logits, batch))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_scalar_loop(kind, smoothing):
    logits, batch = answers(), drawn()
    (share, terms), slopes = judged(logits, seen(batch, smoothing=smoothing), kind)
    each = [
        reference_classification.classification_loss(
            kind, row, reference_classification.smoothed_label(label, 3, smoothing)
        )
        for row, label in zip(logits, batch["label"], strict=True)
    ]
    right = [
        int(np.argmax(row)) == label for row, label in zip(logits, batch["label"], strict=True)
    ]
    assert 0 < np.mean(right) < 1
    assert terms == pytest.approx({"accuracy": np.mean(right), "loss": np.mean(each)}, 1e-5)
    assert share == pytest.approx(np.mean(each), 1e-5)
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_allclose(slopes, slope_of(kind, logits, batch, smoothing), atol=2e-3)


def slope_of(kind, logits, batch, smoothing, step=1e-4):
    """The gradient of the mean loss by differences of the loop."""
    out = np.zeros(logits.shape)
    for i, k in np.ndindex(logits.shape):
        wanted = reference_classification.smoothed_label(batch["label"][i], 3, smoothing)
        ends = [logits[i] + sign * step * np.eye(3)[k] for sign in (1, -1)]
        up, down = (reference_classification.classification_loss(kind, end, wanted) for end in ends)
        out[i, k] = (up - down) / (2 * step) / len(logits)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_mixed_lose_by_what_they_are_mixed_of(kind):
    batch, alpha = drawn(), 0.7
    made = seen(batch, mix=partial(augment.mixup, alpha=alpha), smoothing=0.1)
    each = rng.row_keys(jax.random.key(0), jnp.arange(6))
    shares = [float(jax.random.beta(key, alpha, alpha)) for key in each]
    wanted = [
        np.array(reference_classification.smoothed_label(label, 3, 0.1)) for label in batch["label"]
    ]
    wanted = reference_augment.mixup(wanted, shares)
    np.testing.assert_allclose(made["wanted"], wanted, atol=1e-5)
    np.testing.assert_allclose(
        made["image"], reference_augment.mixup(batch["image"] / 255, shares), atol=1e-5
    )
    losses = [
        reference_classification.classification_loss(kind, *row)
        for row in zip(answers(), wanted, strict=True)
    ]
    (share, _), slopes = judged(answers(), made, kind)
    assert share == pytest.approx(np.mean(losses), 1e-4)
    chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_least_at_what_is_wanted_and_their_gradients_finite_far_from_it(kind):
    wanted, sure = np.eye(3, dtype=np.float32), 100 * np.eye(3, dtype=np.float32)
    losses = jax.jit(
        jax.value_and_grad(lambda x: classification_losses.label_loss(kind, x, wanted).sum())
    )
    for logits in (sure, -sure, np.zeros((3, 3), np.float32)):
        chex.assert_tree_all_finite(losses(logits))
    least, slope = losses(2 * sure - 100)
    assert least == pytest.approx(0, abs=1e-6) and not slope.any()
    assert losses(-sure)[0] > losses(0 * sure)[0] > 0


def test_the_hinge_is_what_the_label_lacks_of_a_lead_of_one_over_each_other():
    """Weston and Watkins 1999: the mean of max(0, 1 + an other - the label's)."""
    logits = np.float32([[3, 0, 1], [1.5, 1, 0], [0, 0, 2]])
    found = classification_losses.label_loss("hinge", logits, np.eye(3)[[0, 0, 1]])
    np.testing.assert_allclose(found, [0, 0.5 / 3, 4 / 3], rtol=1e-6)


def test_the_hinge_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    logits, labels = (
        np.random.default_rng(0).normal(size=(8, 5)).astype("float32"),
        np.arange(8) % 5,
    )
    found = classification_losses.label_loss("hinge", logits, np.eye(5, dtype="float32")[labels])
    theirs = torch.nn.MultiMarginLoss(reduction="none")
    expected = theirs(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_change_nothing(kind):
    logits, batch = answers(), seen(drawn(real=[1, 0, 1, 1, 0, 0]))
    whole, slopes = judged(logits, batch, kind)
    twice = np.tile([0, 2, 3], 2)  # of a shape that is compiled already; terms are means
    alone, less = judged(*jax.tree.map(lambda leaf: leaf[twice], (logits, batch)), kind)
    chex.assert_trees_all_close(whole, alone, rtol=1e-5)
    np.testing.assert_allclose(slopes[[0, 2, 3]], less[:3] + less[3:], rtol=1e-5)
    np.testing.assert_array_equal(slopes[[1, 4, 5]], 0)
    nothing, none = judged(logits, batch | {"real": np.zeros(6, np.float32)}, kind)
    assert not any(jax.tree.leaves(nothing)) and not none.any()


@pytest.fixture(scope="module")
def net():
    """A tiny network with dropout and batch norm, and random variables of it."""
    return Tiny(), fill(outputs(Tiny(), seen(drawn())["image"])[1])


def test_the_dropout_factor_and_the_key_reach_the_network(net):
    tiny, variables = net
    batch = seen(drawn())

    @partial(jax.jit, static_argnums=0)
    def entropy(train, factor, seed):
        context = StepContext(train, 0, 0, {"dropout": factor})
        return classifier(tiny).loss(variables, batch, jax.random.key(seed), context)[0]

    still, one, other = entropy(True, 0.0, 1), entropy(True, 1.0, 1), entropy(True, 1.0, 2)
    assert entropy(True, 0.0, 2) == still
    assert len({float(each) for each in (still, one, other)}) == 3
    assert entropy(False, 1.0, 1) == entropy(False, 0.0, 2)


def test_statistics_move_in_training_and_stay_in_evaluation(net):
    tiny, variables = net
    batch, task = seen(drawn()), classifier(tiny)

    def after(context):
        return jax.jit(lambda: task.loss(variables, batch, jax.random.key(0), context)[1][0])()

    chex.assert_trees_all_equal(after(EVALUATE), variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), after(TRAIN), variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_four_devices_give_the_loss_and_gradient_of_one(net):
    tiny, variables = net
    task = classifier(tiny, smoothing=0.1)
    batch = seen(drawn(8, real=[1, 1, 1, 0, 1, 0, 0, 0]))  # the last device has padding only

    def step(variables, batch, axis):
        def share(params):
            given, at = {**variables, "params": params}, TRAIN._replace(axis=axis)
            return task.loss(given, batch, jax.random.key(0), context)

        (loss, (stats, terms)), slopes = jax.value_and_grad(share, has_aux=True)(
            variables["params"]
        )
        return *parallel.psum((loss, terms, slopes), axis), stats

    one, four = (
        parallel.compile_step(step, parallel.devices(n), whole=1)(variables, batch) for n in (1, 4)
    )
    chex.assert_trees_all_close(one, jax.device_get(four), rtol=1e-4, atol=1e-6)
    assert float(one[0]) == pytest.approx(float(one[1]["loss"]))
    chex.assert_tree_all_finite(one)


def test_evaluation_sees_the_images_as_levels_and_their_labels_as_they_are():
    batch = drawn()
    never = {"change": None, "mix": lambda *_: 1 / 0, "smoothing": 0.3}
    found = seen(batch, EVALUATE, **never)
    np.testing.assert_allclose(found["image"] * 255, batch["image"], rtol=1e-6)
    np.testing.assert_array_equal(found["wanted"], np.eye(3)[batch["label"]])
    assert found["image"].dtype == np.float32
    same = {name: found[name] for name in ("label", "real")}
    chex.assert_trees_all_equal(same, {name: batch[name] for name in same})


def test_training_changes_each_image_by_its_own_key():
    batch, change = drawn(), augment.on_image(partial(augment.pad_and_crop, pad=3))
    found, other = (seen(batch, seed=seed, change=change)["image"] for seed in (0, 1))
    each = rng.row_keys(jax.random.key(0), jnp.arange(6))
    for i in range(6):
        image = change(each[i], batch["image"][i])
        np.testing.assert_allclose(found[i] * 255, image, rtol=1e-5)
    assert (found != other).any((1, 2, 3)).sum() > 3


def test_predictions_are_those_of_the_network_for_levels_about_zero(net):
    """PyTorch's tutorial takes one half from every level and divides by one half."""
    tiny, variables = net
    images = seen(drawn(), EVALUATE)["image"]
    found = jax.device_get(jax.jit(classifier(tiny).predict)(variables, images))
    logits = np.asarray(jax.jit(tiny.apply)(variables, 2 * images - 1))
    np.testing.assert_array_equal(found["label"], logits.argmax(-1))
    np.testing.assert_allclose(found["score"], special.softmax(logits, -1).max(-1), rtol=1e-4)


def test_measures_are_labels_and_their_report_counts_them():
    batch, task = drawn(), classifier()
    logits = 9 * np.eye(3, dtype=np.float32)[batch["label"]]
    logits[0] = np.roll(logits[0], 1)
    rows = task.measure(task.predict({"params": {"logits": logits}}, seen(batch)["image"]), batch)
    report = task.report(jax.device_get(rows))
    assert (report["count"], report["correct"]) == (6, 5)
    assert list(report["labels"]) == list(CLASSES)
    assert np.sum(report["confusion"]) == 6


def test_mirrored_answers_are_of_the_mean_logits_of_an_image_and_its_mirror_image():
    net, batch = Tiny(), drawn(4)
    views = [batch["image"] / np.float32(255)]
    views.append(views[0][:, :, ::-1])
    variables = jax.jit(net.init)(jax.random.key(0), views[0])
    plain, both = (jax.jit(classifier(net, mirrored=on).predict) for on in (False, True))
    logits = [np.float64(net.apply(variables, 2 * view - 1)) for view in views]
    chances = special.softmax(np.mean(logits, 0), -1)
    found = both(variables, views[0])
    np.testing.assert_array_equal(found["label"], chances.argmax(-1))
    np.testing.assert_allclose(found["score"], chances.max(-1), rtol=1e-5)
    np.testing.assert_allclose(both(variables, views[1])["score"], found["score"], rtol=1e-5)
    assert not np.allclose(plain(variables, views[0])["score"], found["score"], rtol=1e-4)
