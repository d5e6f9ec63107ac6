"""The training steps that `benchmarks.train_step` times: the same work in jaxdet and in PyTorch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import configs, tasks
from jaxdet.config import task_hparams
from jaxdet.configs import backbones, detect
from jaxdet.configs.digits import Config
from jaxdet.data.normalize import IMAGENET
from jaxdet.kernels import conv
from jaxdet.models import plain
from jaxdet.models.resnet import ResNet18
from jaxdet.ops import augment, boxes, windows
from jaxdet.tasks import localize
from jaxdet.tasks.windows import Locator
from jaxdet.training import host_init, optim, parallel
from jaxdet.training import state as training_state
from jaxdet.training.step import train_step
from jaxdet.types import Task

CLASSES = 1000
WIDE = {"widths": (24, 48, 64, 64, 64), "dense": (192, 192), "batch": 64}  # the MNIST figure's


class Work(NamedTuple):
    """A task with a batch, and the same in PyTorch."""

    batch: int
    side: int
    task: Task
    data: dict[str, np.ndarray]
    hparams: dict[str, float]
    peer: Callable | None  # data -> network, loss, images and target of PyTorch
    learns: Callable | None = None  # of `train.optimizer`


def workload(name, batch, impl, bfloat16=False):
    """The `Work` of a model's name; batch 0 is its own."""
    dtype = jnp.bfloat16 if bfloat16 else None
    return MODELS[name](batch, partial(conv.conv_general_dilated, impl=impl), dtype)


def in_jax(work, among=None):
    """A call of jaxdet's step on the first device, or on those given; the state moves on."""
    among = among or parallel.devices(1)
    parallel.check(work.batch, among)
    chosen = optim.optimizer("adamw", 1e-3, beta2=0.999, weight_decay=0.02, learns=work.learns)
    plan = training_state.Plan(1, 1, 1, 0.0)
    shown = {name: column[:1] for name, column in work.data.items()}
    hparams = {name: np.float32(value) for name, value in work.hparams.items()}
    hparams |= dict.fromkeys(training_state.LENGTH, np.int32(1))
    given = {"task": work.task, "optimizer": lambda _: chosen}
    make = partial(training_state.create, shown, hparams, **given, seed=0, ema=0)
    state = parallel.put(host_init.evaluate(make), among)
    data, rows = parallel.put(work.data, among), np.arange(work.batch)
    step = partial(train_step, **given, plan=plan)
    run = parallel.compiled(step, among, whole=2, donate=(0,))

    def call():
        nonlocal state
        state = run(state, data, rows)
        return jax.block_until_ready(state.step)

    return call


def in_torch(work, compiled=False):
    """A call of PyTorch's step."""
    from benchmarks.torch_refs import networks

    net, loss, images, target = work.peer(work.data)
    return networks.stepper(net, loss, images, target, compiled=compiled)


BUILDERS = {
    "jit": in_jax,
    "pmap": lambda work: in_jax(work, parallel.devices()),
    "torch": in_torch,
    "torch_compiled": partial(in_torch, compiled=True),
}


def locator(count, hook, dtype, *, drawn=False, **changes):
    """The digit locator on canvases that are there already, or drawn in the step."""
    config = replace(Config(), **changes)
    net = configs.network("digits", config)[0].clone(conv_general_dilated=hook, dtype=dtype)
    system = configs.build("digits", Config())
    batch = count or config.batch
    source = system.splits["train"].arrays
    data = {name: column[:batch] for name, column in source.items()}
    draw = partial(
        augment.place_on_canvas, canvas=config.canvas, degrees=config.rotate, scale=config.scale
    )
    task = Locator(net, draw).task()
    hparams = system.hparams
    if not drawn:
        data["image"] = _canvases(task, data, hparams)
        task = Locator(net, _as_it_is).task()
    peer = None if drawn else partial(peer_of_locator, net)
    return Work(batch, config.canvas, task, data, hparams, peer)


def _canvases(task, data, hparams):
    """Canvases [B, side, side, 1] in 0..255."""
    keys = jax.random.split(jax.random.key(0), len(data["label"]))
    drawn = jax.jit(lambda keys, data: task.augment(keys, data, None)["image"])(keys, data)
    return np.array(drawn) * 255


def _as_it_is(key, image):
    """A canvas that needs no drawing, with its box."""
    return image, boxes.mask_to_box(image[..., 0])


def peer_of_locator(net, data):
    """Network, loss, images and targets [B, rows, columns, 6] of PyTorch."""
    import torch

    from benchmarks.torch_refs import networks

    images = data["image"] / 255
    grid = windows.grid(net.chain(), *images.shape[1:3])

    @jax.jit
    @jax.vmap
    def encoded(image, label):
        return windows.encode_targets(boxes.mask_to_box(image[..., 0]), label, grid=grid)

    target = encoded(images, data["label"])
    shown = torch.from_numpy(images).permute(0, 3, 1, 2)
    peer = networks.Locator(net.plan())
    return peer, networks.locator_loss, shown, torch.from_numpy(np.array(target))


def resnet(batch, hook, dtype, *, side):
    """ResNet18 and the cross-entropy of 1000 classes, on random images."""
    batch = batch or 16
    draw = np.random.default_rng(0)
    data = {
        "image": draw.normal(size=(batch, side, side, 3)).astype(np.float32),
        "label": draw.integers(0, CLASSES, batch).astype(np.int32),
        "id": np.arange(batch, dtype=np.int32),
    }
    net = ResNet18(classes=CLASSES, conv_general_dilated=hook, dtype=dtype)
    return Work(batch, side, _classifier(net), data, {}, peer_of_resnet)


def peer_of_resnet(data):
    """Network, loss, images and labels of PyTorch."""
    import torch

    from benchmarks.torch_refs import networks

    images = torch.from_numpy(data["image"]).permute(0, 3, 1, 2)
    label = torch.from_numpy(data["label"]).long()
    return networks.resnet18(CLASSES), torch.nn.functional.cross_entropy, images, label


def photos(count, hook, dtype, *, model, side):
    """Label and box of photos, by a network of seed 000, on random photos as they are."""
    config = configs.config("objects")(model=model, size=side)
    batch, draw = count or config.batch, np.random.default_rng(0)
    low = draw.uniform(0, side / 2, (batch, 1, 2))
    data = {
        "image": draw.integers(0, 256, (batch, side, side, 3), np.uint8),
        "label": draw.integers(0, 3, batch).astype(np.int32),
        "boxes": np.concatenate([low, low + side / 3], -1).astype(np.float32),
        "id": np.arange(batch, dtype=np.int32),
    }
    net = configs.network("objects", config)[0]
    hooked = partial(net.features, conv_general_dilated=hook, dtype=dtype)
    net = net.clone(features=hooked, dtype=dtype)
    task = localize.Labeller(net, ("a", "b", "c"), _same_photo, box_loss=config.box_loss).task()
    return Work(batch, side, task, data, task_hparams(config), partial(peer_of_photos, model, net))


def _same_photo(key, image, box):
    return image, box


def peer_of_photos(model, net, data):
    """Network, loss, images and targets of PyTorch."""
    import torch

    from benchmarks.torch_refs import networks

    layout = {"simple": plain.SIMPLE, "deeper": plain.DEEPER}[model]
    peer = networks.Localizer(layout, net.side, net.hidden, net.rates)
    mean, deviation = map(np.float32, IMAGENET)
    images = (data["image"] / np.float32(255) - mean) / deviation
    shown = torch.from_numpy(images).permute(0, 3, 1, 2)
    true = torch.from_numpy(data["boxes"][:, 0] / images.shape[1])
    return peer, networks.labelled_box_loss, shown, (torch.from_numpy(data["label"]).long(), true)


def detector(batch, hook, dtype, *, boxes_each=14, classes=3, freeze=3):
    """The detector of the blood cells' figure, its first parts frozen, on random photos."""
    config = configs.config("detect")(weights="package:lite0", freeze=freeze, fixed_norm=True)
    net = configs.network("detect", config)[0]
    net = net.clone(**{part: partial(getattr(net, part), **_hooked(hook, dtype)) for part in PARTS})
    draw, batch, (height, width) = np.random.default_rng(0), batch or config.batch, config.size
    side = draw.uniform(16, 100, (batch, boxes_each, 2))
    low = draw.uniform(0, [width, height] - side)
    data = {
        "image": draw.integers(0, 256, (batch, height, width, 3), np.uint8),
        "boxes": np.concatenate([low, low + side], -1).astype(np.float32),
        "labels": draw.integers(0, classes, (batch, boxes_each)).astype(np.int32),
        "valid": np.ones((batch, boxes_each), bool),
        "crowd": np.zeros((batch, boxes_each), bool),
        "id": np.arange(batch, dtype=np.int32),
    }
    task = detect.task_of(config, net, tuple(range(classes)))
    task = task._replace(change=lambda keys, batch, at: batch).task()
    hparams = task_hparams(config)
    peer = partial(peer_of_detector, classes) if freeze == 3 else None
    return Work(batch, height, task, data, hparams, peer, partial(backbones.factor, config))


PARTS = ("backbone", "neck", "head")


def _hooked(hook, dtype):
    return {"conv_general_dilated": hook, "dtype": dtype}


def peer_of_detector(classes, data):
    """Network, loss, images and targets of PyTorch."""
    import torch

    from benchmarks.torch_refs import detector

    images = torch.from_numpy((data["image"] - np.float32(127)) / 128).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data["labels"]).long()
    target = torch.from_numpy(data["boxes"]), labels, torch.from_numpy(data["valid"])
    shown = images.contiguous(memory_format=torch.channels_last)
    return detector.Detector(classes), detector.loss, shown, target


def _classifier(net):
    """As much of a task as a step needs: the mean cross-entropy of labels."""

    def loss(variables, batch, key, at):
        logits, stats = tasks.forward(key, net, variables, batch["image"], at)
        missed = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["label"]
        )
        share = missed @ batch["real"] / tasks.real_rows(batch, at)
        return share, (stats, {"loss": share})

    def init(key, batch):
        return net.init(key, batch["image"])

    return Task(init, lambda keys, batch, at: batch, loss, None, None, None)


MODELS: dict[str, Any] = {
    "digits": locator,
    "digits_drawn": partial(locator, drawn=True),
    "digits_wide": partial(locator, **WIDE),
    "resnet18_64": partial(resnet, side=64),
    "resnet18_224": partial(resnet, side=224),
    "simple_224": partial(photos, model="simple", side=224),
    "deeper_112": partial(photos, model="deeper", side=112),
    "detect": detector,
    "detect_unfrozen": partial(detector, freeze=0),
    "detect_frozen": partial(detector, freeze=8),
}
