"""Objects: label and box of the one object in a photo, four networks and more (seed 000).

    jaxdet data inspect objects --root DIR
    jaxdet train objects --root DIR --epochs 30 --lr 2e-3
    jaxdet eval runs/objects --split all

DIR has `images/LABEL/...` and `annotations/LABEL.csv`, one line a photo: file,x0,y0,x1,y1,label.
On the 2,033 photos of Caltech-101's airplanes, faces and motorcycles, split as seed 000 had it
(--split-seed 0; 204 test photos), checkpoints chosen on val; the author's results in brackets:

| network, command | label | mean IoU | IoU > .5 | IoU > .7 | time, 2 CPU cores |
|---|---|---|---|---|---|
| Simple, as above | 1.000 | .822 (.803) | 1.000 (.971) | .926 (.775) | 53 min beside other work |
| Deeper at 112 pixels | 1.000 | .863 (.833) | 1.000 (1.00) | .956 (.912) | 40 epochs of 43 to 55 s|
| Lite0 at 160 pixels | 1.000 | .907 (.852, VGG) | 1.000 (1.00) | .995 (.971) | 37 min, not alone |

Deeper is `--model deeper --size 112 --epochs 40 --lr 1e-3 --clip 1 --box-weight 5
--best accuracy`.  Lite0 is `--model lite0 --transfer frozen --weights package:lite0 --unfreeze-last 4
--box-head cells --size 160 --epochs 12 --lr 1e-3 --clip 1 --warmup 100 --box-weight 5`; an epoch
takes 130 to 140 s alone.  With dense layers for the box it had a validation IoU of .58 after the
first epoch and .70 after four; with the mean of a box a cell .69 after the first, .82 after two.

The experiments of seed 000 are `python -m benchmarks.experiments` (`benchmarks/RESULTS.md`).  With
Simple at 112 pixels 20, 50 and 200 epochs have a mean IoU of .818, .818 and .831, and .873, .917
and .951 of the boxes pass .7; 1, 5, 10 and 20% of the photos name .387, .667, .912 and .975 of the
test photos rightly.  Without dropout and batch norm, 200 epochs have .842, the best checkpoint as
well as the last.  Lite0 in 6 epochs has .700 from scratch, .867 with ImageNet's weights frozen,
batch statistics too, and .873 with all of them learning.

Alone on the machine an epoch of Simple takes 35 to 40 s; validation IoU passes .80 in the second
or third.  The figures are of one run of one seed.

Detectors that answer the same question in other ways: TinaFace (arXiv:2011.13183) is a RetinaNet
of ResNet50, FPN, inception blocks and DIoU loss that treats faces as any small object, with many
anchors a photo; YOLO (arXiv:1506.02640) divides the photo into 7 x 7 cells, each of which predicts
boxes, their confidence and a class in one pass.  Here one box a photo is known to be there, so that
neither anchors nor suppression are needed; a photo with two faces is answered with one box between
or around them.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from jaxdet.config import TrainConfig, check_fractions, check_notes, check_scale, task_hparams
from jaxdet.configs import backbones
from jaxdet.errors import InputError
from jaxdet.training.experiment import Experiment

SMALLEST = 64  # pixels a side that every network's pools leave something of

Model = Literal["simple", "deeper", "vgg", "resnet18", "resnet34", "resnet50", "lite0"]


@dataclass(frozen=True)
class Config(TrainConfig):
    """Label and box of the one object in a photo."""

    HPARAMS: ClassVar = ("class_weight", "box_weight", "dropout_scale")
    SUBSET_FIELDS: ClassVar = ("train_fraction",)

    root: str = ""
    """folder with images/ and annotations/"""
    size: int = 224
    """side of the network's input in pixels"""
    val_fraction: float = 0.1
    """share of all photos for validation"""
    test_fraction: float = 0.1
    """share of all photos for the test"""
    train_fraction: float = 1.0
    """share of all photos for training, or what the others leave of them"""
    split_seed: int = 0
    """seed of the shuffle before the cuts; 0 with the shares above is the split of seed 000"""
    split_files: str = ""
    """folder with training_data.csv, val_data.csv and test_data.csv: a split made elsewhere"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with a photo or box that cannot be used: leave it out and say so, or stop"""
    model: Model = "simple"
    """network"""
    transfer: Literal["scratch", "frozen", "finetune"] = "scratch"
    """features from random numbers, or from --weights, which then learn or do not"""
    unfreeze_last: int = 0
    """with a frozen backbone: how many of its last stages learn nevertheless"""
    weights: str = ""
    """file of weights for the features (.safetensors, .pth), hf:OWNER/NAME, or package:lite0"""
    box_head: Literal["dense", "cells"] = "dense"
    """branch of the box: dense layers, or the weighted mean of a box a cell of the maps"""
    norm: bool = True
    """batch norm in the features; --no-norm leaves it out"""
    dropout_scale: float = 1.0
    """factor of the network's dropout rates; 0 is none"""
    box_loss: Literal["mse", "smooth_l1", "giou", "diou", "ciou"] = "ciou"
    """loss of the box; seed 000 has mse"""
    class_weight: float = 1.0
    """weight of the classification term"""
    box_weight: float = 2.0
    """weight of the box term"""
    label_smoothing: float = 0.0
    """label smoothing"""
    flip: bool = True
    """mirror half of the training photos"""
    scale: tuple[float, float] = (0.8, 1.25)
    """training photos are scaled by a factor in this range"""
    shift: float = 0.1
    """training photos are moved by up to this share of a side"""
    brightness_contrast: float = 0.3
    """brightness and contrast of training photos change by up to this share"""
    epochs: int = 20
    batch: int = 32
    eval_batch: int = 68
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.02
    ema: float = 0.99
    best: str = "right_iou"
    """validation score that chooses the best checkpoint (right_iou: IoU, 0 beside a wrong label)"""


def network(config, classes=3):
    """The network of a `Config`, and the shape [B, H, W, C] of its input."""
    import jax.numpy as jnp

    from jaxdet.kernels import conv
    from jaxdet.models import plain
    from jaxdet.models.localizer import Localizer

    dtype = jnp.bfloat16 if config.bfloat16 else None
    part = {
        "conv_general_dilated": partial(conv.conv_general_dilated, impl=config.conv),
        "dtype": dtype,
    }
    part["frozen"] = len(backbones.frozen(config))
    match config.model:
        case "simple":
            net = plain.simple(classes, norm=config.norm, **part)
        case "deeper":
            net = plain.deeper(classes, norm=config.norm, **part)
        case "vgg":
            net = plain.vgg(classes, norm=config.norm, **part)
        case name:
            features = partial(backbones.features(name), **part, **backbones.without(config))
            side = 7 if name == "lite0" else 1  # pooled, as seed 000 has it, or where things are
            shape = {"side": side, "boxer": _boxer(config, part), "dtype": dtype}
            net = Localizer(features, classes, (512, 512), (0.5, 0.5), **shape)
    return net, (1, config.size, config.size, 3)


def _boxer(config, part):
    """The branch of the box that `--box-head` names; None is the dense layers."""
    from jaxdet.models import localizer

    part = {name: value for name, value in part.items() if name != "frozen"}
    return partial(localizer.DenseBoxHead, **part) if config.box_head == "cells" else None


def inspect(root):
    """`data.localization.summarize` of a folder, for `jaxdet data inspect`."""
    from jaxdet.data import localization

    return localization.summarize(root)


def cut(options):
    """`data.localization.split_tables` of the options of `jaxdet data split`."""
    from jaxdet.data import localization

    return localization.split_tables(options)


def build(config):
    """The system of a `Config`, with its data."""
    from jaxdet.data import localization

    annotations, classes, splits, notes = localization.read_dataset(config)
    check_notes(config, notes)
    made = system(config, classes, splits)._replace(
        files=localization.format_splits(annotations), notes=notes
    )
    return made._replace(part=partial(_part, made))


def _part(whole, config):
    """A system with the training photos of `config`, which are the first of those it has."""
    from jaxdet.data import localization

    annotations, _ = localization.read_splits(config)
    train = whole.splits["train"]
    count = train.arrays["id"].searchsorted(len(annotations["train"]))
    splits = whole.splits | {"train": train.first(count)}
    return whole._replace(splits=splits, files=localization.format_splits(annotations))


def system(config, classes, splits):
    """The system of a `Config` for data of these classes."""
    from jaxdet.data import images, localization
    from jaxdet.data.normalize import EFFICIENTNET_LITE, IMAGENET
    from jaxdet.tasks import localize

    net, (_, *shape) = network(config, len(classes))
    stay = backbones.frozen(config)
    levels = EFFICIENTNET_LITE if config.model == "lite0" else IMAGENET
    task = localize.Labeller(
        net,
        classes,
        _change(config),
        box_loss=config.box_loss,
        smoothing=config.label_smoothing,
        levels=levels,
    ).task()
    return Experiment(
        task=task,
        splits=splits,
        hparams=task_hparams(config),
        about={
            "classes": list(classes),
            "input": shape,
            "normalisation": f"(level / 255 - {levels.mean}) / {levels.std}",
        },
        table=partial(localization.read_labeled_images, config.root, classes),
        weights=None if config.transfer == "scratch" else partial(_pretrained, config),
        learns=partial(backbones.learns, stay) if stay else None,
        read=partial(images.read_resized_float, side=config.size),
    )


def _pretrained(config, variables):
    return backbones.pretrained(config.model, config.weights, variables, config.norm)


def _change(config):
    """How a training photo and its box are changed."""
    from jaxdet.ops import augment

    transform = partial(
        augment.standard,
        flip=config.flip,
        scale=config.scale,
        translate=config.shift,
        lighting=config.brightness_contrast,
    )

    def change(key, image, box):
        sample = transform(key, augment.Sample(image, box[None]))
        return sample.image, sample.boxes[0]

    return change


def check(config):
    """Refuse what no training can use, before any photo is read."""
    if config.size < SMALLEST:
        raise InputError(f"--size {config.size}: at least {SMALLEST} pixels are wanted")
    if config.transfer != "scratch" and not config.weights:
        raise InputError(f"--transfer {config.transfer} wants --weights FILE")
    if config.weights and config.transfer == "scratch":
        raise InputError("--weights is not used with --transfer scratch: frozen or finetune")
    parts = len(backbones.parts(config.model))
    if not 0 <= config.unfreeze_last <= parts:
        raise InputError(
            f"--unfreeze-last {config.unfreeze_last}: {config.model} has {parts} parts"
        )
    if config.box_head == "cells" and config.model in ("simple", "deeper", "vgg"):
        raise InputError(f"--box-head cells: {config.model} has one map; choose another --model")
    check_scale(config)
    check_fractions(config, "shift", "brightness_contrast", "label_smoothing")
    if not 0 <= config.dropout_scale < 2:
        raise InputError(
            f"--dropout {config.dropout_scale:g}: a factor of at least 0, under 2 is wanted"
        )
