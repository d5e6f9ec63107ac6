"""Objects: predict the label and the box of the one object in an image.

    jaxdet data inspect objects --root DIR
    jaxdet train objects --root DIR --epochs 30 --lr 2e-3
    jaxdet eval runs/objects --split all

DIR has images in `images/LABEL/` and their boxes in `annotations/LABEL.csv`, one line per image:
file,x0,y0,x1,y1,label.  The table has scores on 204 test images of the 2,033 airplanes, faces and
motorcycles of Caltech-101 (--split-seed 0), of the checkpoint selected on validation, for one run
of one seed each.  Results of the author of the assignment are in parentheses; "shared" means that
other programs ran on the machine.

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

In experiments with Simple at 112 pixels (`python -m benchmarks.experiments`,
`benchmarks/RESULTS.md`), 20, 50 and 200 epochs give a mean IoU of .818, .818 and .831, and .873,
.917 and .951 of the boxes have an IoU above .7.  Trained on 1, 5, 10 and 20% of the images, it has
an accuracy of .387, .667, .912 and .975.  Without dropout and batch norm, 200 epochs give a mean
IoU of .842, both for the best checkpoint and for the last.  Lite0 reaches, in 6 epochs, a mean IoU
of .700 from scratch, .867 with frozen ImageNet features, and .873 fine-tuned.

On an idle machine, an epoch of Simple takes 35 to 40 s; validation IoU exceeds .80 in the second or
third epoch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxdet.config import (
    ClassWeightOptions,
    check_fractions,
    check_notes,
    check_scale,
    check_train_fraction,
    parse_class_weights,
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
MIN_SIZE = 64  # pixels per side; the pools of some networks leave nothing of smaller images

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*registry.names("localizer"), "resnet18", "resnet34", "resnet50", "lite0"]


@dataclass(frozen=True)
class Config(ClassWeightOptions):
    """Predict the label and the box of the one object in an image."""

    HPARAMS: ClassVar = ("class_weight", "box_weight", "dropout_scale")
    SUBSET_FIELDS: ClassVar = ("train_fraction",)

    root: str = ""
    """folder that contains the folders images and annotations"""
    size: int = 224
    """side of the network's input in pixels"""
    val_fraction: float = 0.1
    """fraction of all images that is set aside for validation"""
    test_fraction: float = 0.1
    """fraction of all images that is set aside for the test"""
    train_fraction: float = 1.0
    """number of training images as a fraction of all images; at most the images that are not set
    aside are used"""
    split_seed: int = 0
    """seed of the random order in which images are divided into splits"""
    split_files: str = ""
    """folder with an existing split in training_data.csv, val_data.csv and test_data.csv; empty:
    split at random"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with unusable images and boxes: report them and leave them out (skip), or stop
    (error)"""
    model: Model = "simple"
    """network: a stack of convolutions and max pools (simple, deeper, vgg), or the backbone of a
    classifier (resnets, lite0), each with a class branch and a box branch"""
    transfer: Literal["scratch", "frozen", "finetune"] = "scratch"
    """how the feature layers start and train: from random values (scratch), or from --weights and
    then kept (frozen) or trained further (finetune)"""
    unfreeze_last: int = 0
    """with --transfer frozen: number of stages, counted from the last, that are trained; 0: none"""
    weights: str = ""
    """for --transfer frozen or finetune: pretrained weights of the feature layers, in a
    .safetensors or .pth file, hf:OWNER/NAME, or package:lite0; or the variables of a run, as
    run:DIR or a .safetensors file of `jaxdet export`, whose class outputs are matched by the names
    of the classes"""
    box_head: Literal["mlp", "per_cell"] = "mlp"
    """how the box is predicted: by fully connected layers from pooled features (mlp), or as the
    weighted mean of the boxes that all cells of a feature map predict (per_cell: resnets, lite0)"""
    norm: bool = True
    """use batch norm in the feature layers; must be true for lite0"""
    dropout_scale: float = 1.0
    """factor of the network's dropout rates; 0: no dropout"""
    box_loss: Literal["mse", "smooth_l1", "giou", "diou", "ciou"] = "ciou"
    """box loss: mean squared error (mse) or smooth L1 loss (smooth_l1) of the corners, or 1 minus
    GIoU, DIoU or CIoU"""
    class_weight: float = 1.0
    """weight of the classification loss"""
    box_weight: float = 2.0
    """weight of the box loss"""
    label_smoothing: float = 0.0
    """fraction of the target probability that is spread evenly over all classes; 0: no label
    smoothing"""
    flip: bool = True
    """flip half of the training images horizontally"""
    scale: tuple[float, float] = (0.8, 1.25)
    """range of the random factor by which training images are scaled; 1 1 with --shift 0: no
    scaling"""
    shift: float = 0.1
    """largest random translation of training images, as a fraction of the image's side; 0: none"""
    brightness_contrast: float = 0.3
    """random change of brightness, by at most this fraction of the range of pixel values, and of
    contrast, by at most this fraction; 0: no change"""
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
    """The network of a `Config`, and its input shape (B, H, W, C)."""
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
    """(a table row per label, notes) on the data in `root`, for `jaxdet data inspect`."""
    from jaxdet.data import localization

    return localization.summarize(root)


def split_tables(options: Any) -> tuple:
    """The tables that `jaxdet data split` writes; see `data.localization.split_tables`."""
    from jaxdet.data import localization

    return localization.split_tables(options)


def report(scores: Mapping[str, Any], split: str) -> str:
    """Text for `jaxdet eval --report`: accuracy of each label, as in assignment 0, then all scores.

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
    """Read the data of a `Config`, and build its experiment."""
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
    """The experiment of an existing run, with its `Config` and `classes`, on `config.root`.

    split: folder with the tables of the run's split.  If `config.root` has every row of these
      tables, it holds the run's own data, and the split is kept; otherwise all of its images form
      the split `test`.
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
    """The experiment `whole` with only the first training images; see `config.train_fraction`."""
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
    """The experiment of a `Config` on given data, {split: source}."""
    from jaxdet.configs import class_weights, starting_weights
    from jaxdet.data import images, localization
    from jaxdet.tasks.localize import LocalizationTask
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    normalization = registry.normalization(config.model)
    normalized = normalization.formula
    fields = {} if config.norm else {"norm": False}
    return Experiment(
        task=LocalizationTask(
            net,
            classes,
            _transform(config),
            box_loss=config.box_loss,
            label_smoothing=config.label_smoothing,
            normalization=normalization,
            class_weights=class_weights(config, classes, splits),
        ),
        splits=splits,
        hparams=task_hparams(config),
        metadata={
            "classes": list(classes),
            "input": shape,
            "normalization": normalized,
        },
        config=config,
        name="objects",
        read_image=partial(images.read_resized_float, side=config.size),
        read_table=partial(localization.read_labeled_images, config.root, classes),
        read_original=partial(localization.read_original, config.root),
        load_pretrained=starting_weights("objects", config, classes, normalized, **fields),
        lr_multiplier=registry.lr_multiplier(_frozen_stages(config)),
    )


def _transform(config: Config) -> Callable:
    """The function that augments one training image and its box."""
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
        raise InputError(
            f"--transfer {config.transfer} needs --weights: a file, hf:OWNER/NAME, package:lite0 "
            f"or run:DIR"
        )
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
            f"--box-head per_cell needs a resnet or lite0, got --model {config.model}; choose "
            f"--box-head mlp or another model"
        )
    if not config.norm and config.model == "lite0":
        raise InputError("--norm must be true for --model lite0, got false; choose another --model")
    check_scale(config)
    check_fractions(config, "shift", "brightness_contrast", "label_smoothing")
    check_fractions(config, "val_fraction", "test_fraction")
    check_train_fraction(config)
    parse_class_weights(config.class_weights)
    if not 0 <= config.dropout_scale < 2:
        raise InputError(
            f"--dropout-scale must be at least 0 and below 2, got {config.dropout_scale:g}"
        )


def _frozen_stages(config: Config) -> tuple[str, ...]:
    if config.transfer != "frozen":
        return ()
    names = registry.stage_names(config.model)
    return names[: len(names) - config.unfreeze_last]
