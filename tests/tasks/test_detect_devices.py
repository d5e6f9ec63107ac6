"""A training step of the detector on several devices equals the step on one."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet import rng
from jaxdet.models import necks
from jaxdet.models.detector import Detector
from jaxdet.models.heads import DecoupledHead
from jaxdet.models.layers import Freezable
from jaxdet.tasks import detect
from jaxdet.training import host_init, parallel
from jaxdet.types import StepContext

HPARAMS = {f"{name}_weight": 1.0 for name in ("classification", "box")}
ROWS, SIDE, SLOTS = 8, 64, 3


class Backbone(Freezable):
    """One convolution with batch norm."""

    @nn.compact
    def __call__(self, x, train=False):
        return (self.conv_norm_act(x, 6, 5, "stem", stride=16, train=train),)


class Neck(necks.FPN):
    """The map of the backbone as it is."""

    def __call__(self, maps, train=False):
        return maps


def add_noise(keys, batch, context):
    """Noise of each row's key in place of augmentation."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (SIDE, SIDE, 3)))(keys)
    return batch | {"image": batch["image"] * noise}


def make_task():
    net = Detector(
        backbone=Backbone,
        neck=Neck,
        head=partial(DecoupledHead, classes=2, objectness=False, channels=6, convolutions=0),
        levels=1,
    )
    return detect.DetectionTask(
        net,
        ("a", "b"),
        transform=add_noise,
        assigner=detect.make_assigner(tal_from=1, positive_iou=0.4, topk=4, alpha=0.5, beta=2.0),
        suppress=None,
        class_weights=(1.0, 3.0),
    )


def make_batch():
    """Images with one to three boxes, of which one is a crowd."""
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 30, (ROWS, SLOTS, 2))
    boxes = np.concatenate([low, low + draw.uniform(14, 34, (ROWS, SLOTS, 2))], -1)
    return {
        "image": draw.uniform(0, 255, (ROWS, SIDE, SIDE, 3)).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "labels": draw.integers(0, 2, (ROWS, SLOTS)).astype(np.int32),
        "valid": np.arange(SLOTS) <= np.arange(ROWS)[:, None] % SLOTS,
        "crowd": np.arange(ROWS * SLOTS).reshape(ROWS, SLOTS) == 4,
        "real": np.ones(ROWS, np.float32),
    }


def step(variables, epoch, batch, *, axis, task):
    """Terms, batch statistics and gradient of the global batch; its inputs and targets, by row."""
    context = StepContext(True, jnp.int32(0), epoch, HPARAMS, axis)
    indices = parallel.row_indices(len(batch["real"]), axis)
    batch = task.augment(rng.row_keys(jax.random.key(5), indices), batch, context)

    def loss(params):
        return task.loss({**variables, "params": params}, batch, jax.random.key(0), context)

    (_, (stats, terms)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    targets, *_ = task.assignments(variables, batch, context)
    terms, grads = parallel.psum((terms, grads), axis)
    return terms, stats, grads, (batch["image"], batch["boxes"], targets)


@pytest.fixture(scope="module")
def compiled():
    """The step of a task on one device and on four, and variables."""
    task = make_task()
    image = np.zeros((1, SIDE, SIDE, 3), np.float32)
    variables = host_init.initialize(task.init, jax.random.key(1), {"image": image})
    one = partial(step, task=task)
    axes = {"replicated": 2, "out_axes": (None, None, None, 0)}
    return variables, {
        count: parallel.compile_step(one, parallel.local_devices(count), **axes) for count in (1, 4)
    }


@pytest.mark.parametrize("epoch", [0, 1], ids=["iou", "tal"])
def test_loss_gradient_statistics_and_assignment_on_four_devices_are_those_on_one(compiled, epoch):
    variables, steps = compiled
    found = []
    for count, run in steps.items():
        *whole, rows = jax.device_get(run(variables, jnp.int32(epoch), make_batch()))
        found.append([*whole, parallel.unshard(rows, count)])
    (terms, stats, grads, rows), (other_terms, *others) = found
    assert terms["positives"] == other_terms["positives"] > 1
    assert rows[2].positive.any(1).sum() > 4
    for name, value in terms.items():
        assert other_terms[name] == pytest.approx(value, rel=1e-5), name
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    chex.assert_trees_all_close(others[1], grads, rtol=0, atol=1e-5 * largest)
    chex.assert_trees_all_close(others[0], stats, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(others[2], rows, rtol=1e-5, atol=1e-4)
