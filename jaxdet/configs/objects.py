"""Objects: label and box of the one object in an image.

    jaxdet data inspect objects --root DIR
    jaxdet train objects --root DIR --epochs 30 --lr 2e-3
    jaxdet eval runs/objects --split all

DIR has `images/LABEL/...` and `annotations/LABEL.csv`, one line per image: file,x0,y0,x1,y1,label.
On the 2,033 images of Caltech-101's airplanes, faces and motorcycles (--split-seed 0; 204 test
images), checkpoints selected on validation, one run of one seed; results of the author of the
assignment in brackets; shared: other programs ran on the machine:

| network, command | accuracy | mean IoU | IoU > .5 | IoU > .7 | time, 2 CPU cores |
|---|---|---|---|---|---|
| Simple, as above | 1.000 | .822 (.803) | 1.000 (.971) | .926 (.775) | 53 min, shared |
| Deeper at 112 pixels | 1.000 | .863 (.833) | 1.000 (1.00) | .956 (.912) | 40 epochs, 43 to 55 s |
| Lite0 at 160 pixels | 1.000 | .907 (.852, VGG) | 1.000 (1.00) | .995 (.971) | 37 min, shared |

Deeper is `--model deeper --size 112 --epochs 40 --lr 1e-3 --clip 1 --box-weight 5 --best accuracy`.
Lite0 is `--model lite0 --transfer frozen --weights package:lite0 --unfreeze-last 4 --box-head
per_cell --size 160 --epochs 12 --lr 1e-3 --clip 1 --warmup 100 --box-weight 5`; an epoch takes 130
to 140 s on an idle machine.  With `--box-head mlp` its validation IoU was .58 after the first epoch
and .70 after four; with `per_cell` .69 after the first and .82 after two.

Experiments (`python -m benchmarks.experiments`, `benchmarks/RESULTS.md`) with Simple at 112 pixels:
20, 50 and 200 epochs give a mean IoU of .818, .818 and .831, and .873, .917 and .951 of the boxes
have an IoU above .7; trained on 1, 5, 10 and 20% of the images, accuracy is .387, .667, .912 and
.975.  Without dropout and batch norm, 200 epochs give .842, for the best checkpoint and the last.
Lite0 in 6 epochs reaches .700 from scratch, .867 with frozen ImageNet features, and .873
fine-tuned.

On an idle machine, an epoch of Simple takes 35 to 40 s; validation IoU exceeds .80 in the second or
third epoch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxdet.config import (
    TrainConfig,
    check_fractions,
    check_notes,
    check_scale,
    check_train_fraction,
    task_hparams,
)
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from pathlib import Path

    from flax import linen as nn

    from jaxdet.data.sources import Source
    from jaxdet.training.experiment import Experiment

SET_NAMES = {"val": "validation"}  # of splits, in `report`
MIN_SIZE = 64  # pixels per side that remain for every network's pools

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*registry.names("localizer"), "resnet18", "resnet34", "resnet50", "lite0"]


@dataclass(frozen=True)
class Config(TrainConfig):
    """Label and box of the one object in an image."""

    HPARAMS: ClassVar = ("class_weight", "box_weight", "dropout_scale")
    SUBSET_FIELDS: ClassVar = ("train_fraction",)

    root: str = ""
    """folder with images/ and annotations/"""
    size: int = 224
    """side of the network's input in pixels"""
    val_fraction: float = 0.1
    """fraction of all images for validation"""
    test_fraction: float = 0.1
    """fraction of all images for the test"""
    train_fraction: float = 1.0
    """fraction of all images for training, limited to the images that the other splits leave"""
    split_seed: int = 0
    """seed of the shuffle before splitting"""
    split_files: str = ""
    """folder with an existing split: training_data.csv, val_data.csv and test_data.csv"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with unusable images or boxes: report and leave out (skip), or stop (error)"""
    model: Model = "simple"
    """network"""
    transfer: Literal["scratch", "frozen", "finetune"] = "scratch"
    """features: trained from random values (scratch), or initialized by --weights and then kept
    (frozen) or trained further (finetune)"""
    unfreeze_last: int = 0
    """with --transfer frozen: number of stages, counted from the last, that are trained"""
    weights: str = ""
    """pretrained weights of the features: a .safetensors or .pth file, hf:OWNER/NAME, or
    package:lite0"""
    box_head: Literal["mlp", "per_cell"] = "mlp"
    """box branch: fully connected layers on pooled features (mlp), or the weighted mean of one box
    per cell of the feature maps (per_cell)"""
    norm: bool = True
    """batch norm in the features"""
    dropout_scale: float = 1.0
    """factor of the network's dropout rates; 0 turns dropout off"""
    box_loss: Literal["mse", "smooth_l1", "giou", "diou", "ciou"] = "ciou"
    """box loss"""
    class_weight: float = 1.0
    """weight of the classification loss"""
    box_weight: float = 2.0
    """weight of the box loss"""
    label_smoothing: float = 0.0
    """label smoothing"""
    flip: bool = True
    """flip half of the training images horizontally"""
    scale: tuple[float, float] = (0.8, 1.25)
    """range of the random scale of training images"""
    shift: float = 0.1
    """largest random translation, as a fraction of a side"""
    brightness_contrast: float = 0.3
    """largest random change of brightness and contrast, as a fraction"""
    epochs: int = 20
    batch: int = 32
    eval_batch: int = 68
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.02
    ema: float = 0.99
    best: Literal["right_iou", "accuracy", "iou", "iou50", "iou70", "iou_median"] = "right_iou"
    """validation score that selects the best checkpoint (right_iou: IoU, 0 where the label is
    wrong); ties go to the lower loss"""


def network(config: Config, classes: int = 3) -> "tuple[nn.Module, tuple[int, ...]]":
    """The network of a `Config`, and the shape [B, H, W, C] of its input."""
    from jaxdet.models.layers import layer_options
    from jaxdet.models.localizer import DenseBoxHead, Localizer

    options = layer_options(bfloat16=config.bfloat16, conv=config.conv)
    fields = options | {"frozen_stages": len(_frozen_stages(config))}
    fields |= {} if config.norm else {"norm": False}
    spec = registry.get(config.model)
    if spec.kind == "localizer":
        net = spec.build(classes, **fields)
    else:
        net = Localizer(
            features=partial(registry.backbone(config.model), **fields),
            classes=classes,
            hidden=(512, 512),
            rates=(0.5, 0.5),
            side=7 if config.model == "lite0" else 1,  # ResNets are pooled globally
            box_head=partial(DenseBoxHead, **options) if config.box_head == "per_cell" else None,
            dtype=options["dtype"],
        )
    return net, (1, config.size, config.size, 3)


def summarize(root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """`data.localization.summarize` of a folder, for `jaxdet data inspect`."""
    from jaxdet.data import localization

    return localization.summarize(root)


def split_tables(options: Any) -> tuple:
    """`data.localization.split_tables` of the options of `jaxdet data split`."""
    from jaxdet.data import localization

    return localization.split_tables(options)


def report(scores: Mapping[str, Any], split: str) -> str:
    """The scores of a split as assignment 0 prints them: accuracies by label, then all scores.

    Labels are in the order in which the data are read.
    """
    from jaxdet.data import localization

    lines = [
        f"*** {SET_NAMES.get(split, split)} set accuracy",
        f"Mean accuracy for all labels: {scores['accuracy']!r}",
    ]
    for name in localization.label_order(scores["labels"]):
        of_label = scores["labels"][name]
        accuracy = repr(of_label["accuracy"]) if of_label["count"] else "no sample"
        lines.append(f"    Mean accuracy for label {name}: {accuracy}")
        lines.append(f"             {of_label['correct']} over {of_label['count']} samples")
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    return "\n".join([*lines, *(f"{name} {value!r}" for name, value in numbers.items())])


def build(config: Config) -> "Experiment":
    """The experiment of a `Config`, with its data."""
    from jaxdet.data import localization

    data = localization.read_dataset(config)
    check_notes(config, data.notes)
    whole = replace(
        from_splits(config, data.classes, data.splits),
        files=localization.format_splits(data.annotations),
        notes=data.notes,
    )
    return replace(whole, subset=partial(_subset, whole))


def build_external(config: Config, classes: tuple[str, ...], split: "Path") -> "Experiment":
    """The experiment of a run, with its `Config` and `classes`, on the data in `config.root`.

    Data that contain every row of the split in the folder `split` are the run's own data and keep
    this split.  Of any other data, all images form the split `test`.
    """
    from jaxdet.data import detection, external_images, localization

    if localization.has_split(config.root, split):
        return build(replace(config, split_files=str(split.absolute())))
    data = external_images.read(config.root, classes, config.size)
    check_notes(config, detection.faults(data.notes))
    whole = from_splits(config, classes, {"test": data.source})
    task = replace(whole.task, boxed=data.all_have_boxes)
    return replace(whole, task=task, notes=data.notes, read_original=data.read_original)


def _subset(whole: "Experiment", config: Config) -> "Experiment":
    """The experiment `whole` with the first training images only, by `config.train_fraction`."""
    from jaxdet.data import localization

    annotations, _ = localization.read_splits(config)
    train = whole.splits["train"]
    count = train.arrays["id"].searchsorted(len(annotations["train"]))
    splits = whole.splits | {"train": train.first(count)}
    return replace(
        whole, config=config, splits=splits, files=localization.format_splits(annotations)
    )


def from_splits(
    config: Config, classes: tuple[str, ...], splits: "dict[str, Source]"
) -> "Experiment":
    """The experiment of a `Config` for given sources, {split: source}."""
    from jaxdet.data import images, localization
    from jaxdet.tasks.localize import LocalizationTask
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    normalization = registry.normalization(config.model)
    pretrained = None
    if config.transfer != "scratch":
        fields = {} if config.norm else {"norm": False}
        pretrained = partial(registry.load_pretrained, config.model, config.weights, **fields)
    return Experiment(
        task=LocalizationTask(
            net,
            classes,
            _transform(config),
            box_loss=config.box_loss,
            label_smoothing=config.label_smoothing,
            normalization=normalization,
        ),
        splits=splits,
        hparams=task_hparams(config),
        metadata={
            "classes": list(classes),
            "input": shape,
            "normalization": f"(pixel value / 255 - {normalization.mean}) / {normalization.std}",
        },
        config=config,
        name="objects",
        read_image=partial(images.read_resized_float, side=config.size),
        read_table=partial(localization.read_labeled_images, config.root, classes),
        read_original=partial(localization.read_original, config.root),
        load_pretrained=pretrained,
        lr_multiplier=registry.lr_multiplier(_frozen_stages(config)),
    )


def _transform(config: Config) -> Callable:
    """Augmentation of one training image and its box."""
    from jaxdet.ops import augment

    transform = partial(
        augment.standard,
        flip=config.flip,
        scale=config.scale,
        translate=config.shift,
        lighting=config.brightness_contrast,
    )

    def transformed(key, image, box):
        sample = transform(key, augment.Sample(image, box[None]))
        return sample.image, sample.boxes[0]

    return transformed


def check(config: Config) -> None:
    """Raise InputError for invalid options, before any image is read."""
    if config.size < MIN_SIZE:
        raise InputError(f"--size must be at least {MIN_SIZE} pixels, got {config.size}")
    if config.transfer != "scratch" and not config.weights:
        raise InputError(f"--transfer {config.transfer} needs --weights FILE")
    if config.weights and config.transfer == "scratch":
        raise InputError("--weights needs --transfer frozen or finetune, got scratch")
    stages = len(registry.stage_names(config.model))
    if not 0 <= config.unfreeze_last <= stages:
        raise InputError(
            f"--unfreeze-last must be from 0 to {stages} for --model {config.model}, got "
            f"{config.unfreeze_last}"
        )
    if config.box_head == "per_cell" and registry.get(config.model).kind == "localizer":
        raise InputError(
            f"--box-head must be mlp for --model {config.model}, which has one feature map, got "
            f"per_cell; choose a resnet or lite0"
        )
    if not config.norm and config.model == "lite0":
        raise InputError("--norm must be true for --model lite0, got false; choose another --model")
    check_scale(config)
    check_fractions(config, "shift", "brightness_contrast", "label_smoothing")
    check_fractions(config, "val_fraction", "test_fraction")
    check_train_fraction(config)
    if not 0 <= config.dropout_scale < 2:
        raise InputError(
            f"--dropout-scale must be at least 0 and below 2, got {config.dropout_scale:g}"
        )


def _frozen_stages(config: Config) -> tuple[str, ...]:
    """Names of the stages of the features that are not trained."""
    if config.transfer != "frozen":
        return ()
    names = registry.stage_names(config.model)
    return names[: len(names) - config.unfreeze_last]
