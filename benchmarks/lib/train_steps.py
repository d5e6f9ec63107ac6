"""The training steps timed by `benchmarks.train_step`: the same work in jaxdet and in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.lib.precision import Precision, set_matmul
from jaxdet import configs, flops
from jaxdet.config import task_hparams
from jaxdet.configs import detect, digits, objects
from jaxdet.data.normalize import IMAGENET
from jaxdet.errors import InputError
from jaxdet.kernels import conv
from jaxdet.models import plain, registry
from jaxdet.ops import augment, boxes, windows
from jaxdet.tasks.base import forward, masked_means
from jaxdet.tasks.localize import LocalizationTask
from jaxdet.tasks.sliding_window import SlidingWindowTask
from jaxdet.training import host_init, hosts, optim, parallel
from jaxdet.training import state as training_state
from jaxdet.training.experiment import LENGTHS, Plan
from jaxdet.training.step import train_step
from jaxdet.types import Task

CLASSES = 1000
WIDE = {
    "channels": (24, 48, 64, 64, 64),
    "fc_widths": (192, 192),
    "batch": 64,
}  # as trained on MNIST
DETECTOR_PARTS = ("backbone", "neck", "head")


class Workload(NamedTuple):
    """A task and a batch, and the same work in PyTorch."""

    batch: int
    side: int
    task: Task
    data: dict[str, np.ndarray]
    hparams: dict[str, float]
    torch: Callable | None  # data -> (network, loss, images, target) in PyTorch; None: jaxdet only
    lr_multiplier: Callable | None = None  # argument of `optim.optimizer`


class StepOptions(NamedTuple):
    """Options of a step, passed to the process that builds it."""

    batch: int = 0  # images per step; 0 means the model's default
    side: int = 0  # side of the images in pixels; 0 means the model's default
    impl: conv.Impl = "auto"
    precision: Precision = "float32"
    steps: int = 1  # steps per call; the call waits for the last one


def make_workload(model: "Model", options: StepOptions) -> Workload:
    dtype = jnp.bfloat16 if options.precision == "bfloat16" else None
    convolve = partial(conv.conv_general_dilated, impl=options.impl)
    sides = {"side": options.side} if options.side else {}
    return model(options.batch, convolve, dtype, **sides)


def count_operations(work: Workload) -> int:
    """Number of additions and multiplications in the matrix products and convolutions of a step."""
    init, step = pure_step(work)
    rows = jax.ShapeDtypeStruct((work.batch,), np.int32)
    report = flops.count(
        partial(step, axis=None), jax.eval_shape(init), work.data, rows, convention="mac"
    )
    return 2 * report.total()


def jax_step(
    model: "Model", options: StepOptions, *, all_devices: bool = False
) -> Callable[[], Any]:
    """A function that takes `options.steps` steps of jaxdet, on the first device or on all.

    With several processes, the batch is split over the devices of all of them.
    """
    set_matmul(options.precision)
    work = make_workload(model, options)
    devices = jax.devices() if all_devices else parallel.local_devices(1)
    parallel.check_batch(work.batch, devices)
    init, step = pure_step(work)
    state = parallel.replicate(host_init.initialize(init), devices)
    data = parallel.replicate(work.data, devices)
    (rows,) = hosts.own_rows(np.arange(work.batch)[None])
    run = parallel.compile_step(step, devices, replicated=2, donate=(0,))

    def call():
        nonlocal state
        for _ in range(options.steps):
            state = run(state, data, rows)
        return jax.block_until_ready(state.step)

    return call


def describe_torch() -> dict[str, Any]:
    from benchmarks.torch_refs import backend

    return backend.describe()


def pure_step(work: Workload) -> tuple[Callable, Callable]:
    """(function that creates the state, training step for `parallel.compile_step`)."""
    adamw = optim.optimizer(
        "adamw", 1e-3, beta2=0.999, weight_decay=0.02, lr_multiplier=work.lr_multiplier
    )
    plan = Plan(epoch_steps=1, steps=1, accumulate=1, ema=0.0)
    example = {name: column[:1] for name, column in work.data.items()}
    hparams = {name: np.float32(value) for name, value in work.hparams.items()}
    hparams |= dict.fromkeys(LENGTHS, np.int32(1))
    given = {"task": work.task, "optimizer": lambda _: adamw}
    init = partial(training_state.create_state, example, hparams, **given, seed=0, ema=0)
    return init, partial(train_step, **given, plan=plan)


def torch_step(
    model: "Model", options: StepOptions, device: str = "cpu", *, compiled: bool = False
) -> Callable[[], float]:
    """A function that takes `options.steps` steps of PyTorch on a device, such as "cuda".

    Raises InputError for a model without a counterpart in PyTorch.
    """
    import torch

    from benchmarks.torch_refs import networks

    work = make_workload(model, options)
    if work.torch is None:
        raise InputError("this model has no counterpart in PyTorch; choose other --models")
    torch.manual_seed(0)
    net, loss, images, target = work.torch(work.data)
    return networks.make_step(
        net,
        loss,
        images,
        target,
        compiled=compiled,
        precision=options.precision,
        device=torch.device(device),
        steps=options.steps,
    )


def digit_locator(
    count: int,
    convolve: Callable,
    dtype: Any,
    *,
    side: int = digits.Config.canvas,
    drawn: bool = False,
    **changes: Any,
) -> Workload:
    """The network of `digits` on prepared canvases or, if `drawn`, on canvases made in the step.

    count: images per batch; 0 is the batch of `digits`.
    """
    config = replace(digits.Config(), canvas=side, **changes)
    net = configs.network("digits", config)[0].clone(conv_general_dilated=convolve, dtype=dtype)
    experiment = configs.build("digits", digits.Config())
    batch = count or config.batch
    source = experiment.splits["train"].arrays
    data = {name: column[:batch] for name, column in source.items()}
    draw = partial(
        augment.place_on_canvas, canvas=config.canvas, degrees=config.rotate, scale=config.scale
    )
    task = SlidingWindowTask(net, draw)
    if not drawn:
        data["image"] = _draw_canvases(task, data)
        task = SlidingWindowTask(net, _keep_canvas)
    torch = None if drawn else partial(_torch_digit_locator, net)
    return Workload(batch, config.canvas, task, data, experiment.hparams, torch)


def _draw_canvases(task, data):
    """Draw a canvas [side, side, 1] with values in 0..255 for each digit of a batch."""
    keys = jax.random.split(jax.random.key(0), len(data["label"]))
    drawn = jax.jit(lambda keys, data: task.augment(keys, data, None)["image"])(keys, data)
    return np.array(drawn) * 255


def _keep_canvas(key, image):
    """Return a prepared canvas and the box of its digit, as `SlidingWindowTask.place` must."""
    return image, boxes.mask_to_box(image[..., 0])


def _torch_digit_locator(net, data):
    """(network, loss, images, targets [B, rows, columns, 6]) in PyTorch."""
    import torch

    from benchmarks.torch_refs import networks

    images = data["image"] / 255
    grid = windows.grid(net.chain(), *images.shape[1:3])

    @jax.jit
    @jax.vmap
    def encode(image, label):
        return windows.encode_targets(boxes.mask_to_box(image[..., 0]), label, grid=grid)

    target = torch.from_numpy(np.array(encode(images, data["label"])))
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    return networks.SlidingWindowNet(net.plan()), networks.sliding_window_loss, inputs, target


def classifier(
    count: int, convolve: Callable, dtype: Any, *, model: str, side: int = 224
) -> Workload:
    """A model of the registry with the cross-entropy of 1000 classes, on random images.

    count: images per batch; 0 is 16.
    """
    batch = count or 16
    draw = np.random.default_rng(0)
    data = {
        "image": draw.normal(size=(batch, side, side, 3)).astype(np.float32),
        "label": draw.integers(0, CLASSES, batch).astype(np.int32),
        "id": np.arange(batch, dtype=np.int32),
    }
    net = registry.get(model).build(classes=CLASSES, conv_general_dilated=convolve, dtype=dtype)
    torch = partial(_torch_classifier, model)
    return Workload(batch, side, _CrossEntropy(net), data, {}, torch)


def _torch_classifier(model, data):
    """(network, loss, images, labels) in PyTorch."""
    import torch

    from benchmarks.torch_refs import efficientnet, mobilenet, networks

    build = {
        "resnet18": networks.resnet18,
        "resnet50": networks.resnet50,
        "lite0": efficientnet.lite0,
        "b0": efficientnet.b0,
        "mobilenet_v2": mobilenet.v2,
    }[model]
    images = torch.from_numpy(data["image"]).permute(0, 3, 1, 2)
    label = torch.from_numpy(data["label"]).long()
    return build(CLASSES), torch.nn.functional.cross_entropy, images, label


@dataclass(frozen=True)
class _CrossEntropy:
    """The smallest task that a step needs: mean cross-entropy, without augmentation."""

    net: nn.Module

    def init(self, key, batch):
        return self.net.init(key, batch["image"])

    def augment(self, keys, batch, context):
        return batch

    def loss(self, variables, batch, key, context):
        logits, stats = forward(key, self.net, variables, batch["image"], context)
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["label"]
        )
        terms = masked_means({"loss": entropy}, batch, context)
        return terms["loss"], (stats, terms)


def localizer(count: int, convolve: Callable, dtype: Any, *, model: str, side: int) -> Workload:
    """A network of `objects` on random images, without augmentation.

    count: images per batch; 0 is the batch of `objects`.
    """
    config = objects.Config(model=model, size=side)
    batch, draw = count or config.batch, np.random.default_rng(0)
    low = draw.uniform(0, side / 2, (batch, 1, 2))
    data = {
        "image": draw.integers(0, 256, (batch, side, side, 3), np.uint8),
        "label": draw.integers(0, 3, batch).astype(np.int32),
        "boxes": np.concatenate([low, low + side / 3], -1).astype(np.float32),
        "id": np.arange(batch, dtype=np.int32),
    }
    net = configs.network("objects", config)[0]
    features = partial(net.features, conv_general_dilated=convolve, dtype=dtype)
    net = net.clone(features=features, dtype=dtype)
    task = LocalizationTask(
        net, ("a", "b", "c"), lambda key, image, box: (image, box), box_loss=config.box_loss
    )
    torch = partial(_torch_localizer, model, net)
    return Workload(batch, side, task, data, task_hparams(config), torch)


def _torch_localizer(model, net, data):
    """(network, loss, images, targets) in PyTorch."""
    import torch

    from benchmarks.torch_refs import networks

    layout = {"simple": plain.SIMPLE, "deeper": plain.DEEPER}[model]
    module = networks.Localizer(layout, net.side, net.hidden, net.rates)
    mean, std = (np.array(values, np.float32) for values in IMAGENET[:2])
    images = (data["image"] / np.float32(255) - mean) / std
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    true = torch.from_numpy(data["boxes"][:, 0] / images.shape[1])
    target = torch.from_numpy(data["label"]).long(), true
    return module, networks.localization_loss, inputs, target


def detector(
    count: int,
    convolve: Callable,
    dtype: Any,
    *,
    side: int = 0,
    boxes_per_image: int = 14,
    classes: int = 3,
    freeze: int = 3,
) -> Workload:
    """The network of `detect`, its first `freeze` stages frozen, on random images.

    count: images per batch; 0 is the batch of `detect`.
    side: height and width of the images; 0 is the size of `detect`.
    """
    config = detect.Config(weights="package:lite0", freeze_stages=freeze, freeze_bn=True)
    config = replace(config, size=(side, side)) if side else config
    net = configs.network("detect", config)[0]
    options = {"conv_general_dilated": convolve, "dtype": dtype}
    net = net.clone(**{part: partial(getattr(net, part), **options) for part in DETECTOR_PARTS})
    draw, batch, (height, width) = np.random.default_rng(0), count or config.batch, config.size
    sides = draw.uniform(0.05, 0.3, (batch, boxes_per_image, 2)) * min(height, width)
    low = draw.uniform(0, [width, height] - sides)
    data = {
        "image": draw.integers(0, 256, (batch, height, width, 3), np.uint8),
        "boxes": np.concatenate([low, low + sides], -1).astype(np.float32),
        "labels": draw.integers(0, classes, (batch, boxes_per_image)).astype(np.int32),
        "valid": np.ones((batch, boxes_per_image), bool),
        "crowd": np.zeros((batch, boxes_per_image), bool),
        "id": np.arange(batch, dtype=np.int32),
    }
    task = detect.make_task(config, net, tuple(map(str, range(classes))))
    task = replace(task, transform=lambda keys, batch, context: batch)
    torch = partial(_torch_detector, classes) if freeze == 3 else None
    frozen = registry.frozen_stages(config.model, freeze)
    factor = registry.lr_multiplier(frozen, config.backbone_lr)
    return Workload(batch, height, task, data, task_hparams(config), torch, factor)


def _torch_detector(classes, data):
    """(network, loss, images, targets) in PyTorch."""
    import torch

    from benchmarks.torch_refs import detector

    images = torch.from_numpy((data["image"] - np.float32(127)) / 128).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data["labels"]).long()
    target = torch.from_numpy(data["boxes"]), labels, torch.from_numpy(data["valid"])
    inputs = images.contiguous(memory_format=torch.channels_last)
    return detector.Detector(classes), detector.detection_loss, inputs, target


Model = Callable[..., Workload]

MODELS: dict[str, Model] = {
    "digits": digit_locator,
    "digits_drawn": partial(digit_locator, drawn=True),
    "digits_wide": partial(digit_locator, **WIDE),
    "resnet18_64": partial(classifier, model="resnet18", side=64),
    "resnet18_224": partial(classifier, model="resnet18"),
    "resnet50_224": partial(classifier, model="resnet50"),
    "lite0_224": partial(classifier, model="lite0"),
    "b0_224": partial(classifier, model="b0"),
    "mobilenet_v2_224": partial(classifier, model="mobilenet_v2"),
    "simple_224": partial(localizer, model="simple", side=224),
    "deeper_112": partial(localizer, model="deeper", side=112),
    "detect": detector,
    "detect_unfrozen": partial(detector, freeze=0),
    "detect_frozen": partial(detector, freeze=8),
}
