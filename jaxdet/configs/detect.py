"""Detection: many boxes a photo, in the formats people have (seed 002).

    jaxdet data inspect detect --root DIR
    jaxdet train detect --root DIR --weights package:lite0 --freeze-stages 3 --freeze-bn \\
        --backbone-lr .25 --vflip
    jaxdet eval runs/detect
    jaxdet eval runs/detect --score-threshold .1 --nms-iou .5        # as seed 002 judges
    jaxdet data assign runs/detect                     # which cells learn which box
    jaxdet sweep detect --root DIR --one-at-a-time     # ablation: what each part is worth

DIR is a COCO, Pascal VOC, YOLO or parquet folder; the format is found by what is in it.
The Halo set of seed 002 is parquet: put its files `train*.parquet`, `validation*.parquet` and
`test*.parquet` into DIR and use the same words; `scripts/to_parquet.py` writes that layout.

Blood cells (BCCD: 205 photos for training, 87 for validation, 72 for the test), 416 x 320 pixels,
24 epochs, checkpoint chosen on val, test split, one run of one seed:

| suppression | mAP | AP50 | AP75 |
|---|---|---|---|
| hard, IoU .6, score .01, as above | .596 | .911 | .669 |
| as seed 002 judges: IoU .5, score .1 | .592 | .904 | .665 |
| soft, linear / Gaussian | .605 / .605 | .910 / .909 | |
| weighted / fused | .601 / .584 | .912 / .888 | |

From scratch, `--size 256 320 --epochs 34 --vflip`, 26 minutes for all: .444, .738, .511.
Platelets .483, red cells .601, white cells .704 in the first row, which took 31 minutes on 2 CPU
cores beside other work, 52 + 5 s an epoch alone; seed 002's thresholds, .05, .1 and .2, are passed
in the second.
Assignment, three seeds of 12 epochs with all of the backbone frozen (`python -m
benchmarks.experiments --names assigners`): task-aligned mAP .494 (standard deviation .009), AP50
.892, AP75 .481; by overlap .500 (.007), .884, .534: neither is better on round cells that hardly
overlap, where the anchor of a box is plain.  The three questions of seed 002, by the ablation
(`benchmarks/RESULTS.md`; 192 x 256 pixels, validation, one seed: gains below .02 are noise):
the best assignment is by overlap (+.029), with boxes that fit closer; the largest gains after it
are PAN (+.023), a background class (+.021) and mosaic (+.020), more than any loss, block or
suppression; 16 bins (-.055) and fusion (-.023) cost most, since 12 epochs are short for the first
and the second averages boxes that were right.  Rotation, GIoU and soft suppression change nothing:
cells are round, and few overlap.

A step takes 2.6 s with nothing frozen, 2.0 with three parts of the backbone, 0.8 with all of them
(`python -m benchmarks.train_step --models detect_unfrozen detect detect_frozen`).
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from jaxdet.config import (
    AugmentOptions,
    BackboneOptions,
    cached_reader,
    check_augment,
    check_fractions,
    check_notes,
    task_hparams,
)
from jaxdet.configs import backbones
from jaxdet.errors import InputError
from jaxdet.models import registry
from jaxdet.training.experiment import Experiment


@dataclass(frozen=True)
class Config(AugmentOptions, BackboneOptions):
    """Boxes and classes of all objects in a photo."""

    HPARAMS: ClassVar = tuple(
        f"{term}_weight" for term in ("classification", "objectness", "box", "distance")
    )
    EVAL_ONLY: ClassVar = ("score_threshold", "nms_iou", "nms_type", "max_detections", "tta")
    GRIDS: ClassVar = {
        "ablation": "--assigner tal iou --box-loss ciou diou giou iou --neck fpn pan"
        " --neck-block conv c3 c2f --background zeros noobj-bg yolox --reg-max 1 16 --brightness-contrast 0.2 0"
        " --nms-type hard linear gaussian nmw wbf --mosaic 0 0.5 --rotate 0 30",
    }

    root: str = ""
    """folder of data: COCO, Pascal VOC, YOLO or parquet; or tfds:NAME, a set prepared before in
    ~/tensorflow_datasets or the folder that the variable TFDS_DATA_DIR names"""
    format: Literal["auto", "coco", "voc", "yolo", "parquet"] = "auto"
    """how the data are kept; auto looks"""
    size: tuple[int, int] = (320, 416)
    """height and width of the network's input in pixels, multiples of 32"""
    multiscale: tuple[float, ...] = (1.0,)
    """training draws one of these factors of --size a step; a program is compiled for each"""
    max_boxes: int = 0
    """true boxes a photo has room for; 0 is as many as the fullest photo needs"""
    stream: bool = False
    """read photos when they are needed instead of holding them in memory (jaxdet[data])"""
    val_fraction: float = 0.1
    """share of the training photos for validation, where the data have no part for it"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with a photo or box that cannot be used: leave it out and say so, or stop"""
    model: backbones.Backbone = "lite0"
    """backbone"""
    neck: Literal["fpn", "pan"] = "fpn"
    """how the levels of the backbone are joined"""
    neck_block: Literal["conv", "c3", "c2f"] = "conv"
    """what the neck has where the papers have a 3x3 convolution"""
    neck_channels: int = 96
    """channels of neck and head"""
    background: Literal["noobj-zero", "noobj-bg", "yolox"] = "noobj-zero"
    """nothing is: zeros for all classes, a class for the background, or an objectness"""
    reg_max: int = 1
    """numbers for each side of a box; 16 is a distribution over distances (DFL)"""
    assigner: Literal["tal", "iou"] = "tal"
    """cells learn a box by how well they answer (task-aligned), or by the overlap of an anchor"""
    tal_from: int = 0
    """epoch before which tal is iou"""
    topk: int = 10
    """tal: most cells that learn a box"""
    alpha: float = 0.5
    """tal: power of the score; seed 002 has the two powers the other way round"""
    beta: float = 6.0
    """tal: power of the overlap"""
    positive_iou: float = 0.5
    """iou: overlap from which an anchor learns a box"""
    box_loss: Literal["ciou", "diou", "giou", "iou"] = "ciou"
    """loss of the box"""
    classification_weight: float = 1.0
    """weight of the classification term"""
    objectness_weight: float = 1.0
    """weight of the objectness term"""
    box_weight: float = 5.0
    """weight of the box term"""
    distance_weight: float = 1.5
    """weight of the term of distributions over distances"""
    score_threshold: float = 0.01
    """least score of a box; seed 002 has .1"""
    nms_iou: float = 0.6
    """overlap from which boxes are one; seed 002 has .5"""
    nms_type: Literal["hard", "linear", "gaussian", "nmw", "wbf"] = "hard"
    """drop what overlaps, lower its score (soft), or merge it (weighted, fusion)"""
    max_detections: int = 100
    """boxes a photo at most"""
    tta: bool = False
    """judge and answer by six views of a photo: three sizes, each mirrored as well"""
    epochs: int = 24
    batch: int = 8
    eval_batch: int = 8
    lr: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 10.0
    ema: float = 0.99
    best: str = "map"


def network(config, classes=3):
    """The network of a `Config`, and the shape [B, H, W, C] of its input."""
    import jax.numpy as jnp

    from jaxdet.kernels import conv
    from jaxdet.models import necks
    from jaxdet.models.detector import Detector
    from jaxdet.models.heads import DecoupledHead

    dtype = jnp.bfloat16 if config.bfloat16 else None
    part = {
        "conv_general_dilated": partial(conv.conv_general_dilated, impl=config.conv),
        "dtype": dtype,
    }
    block = {"conv": necks.ConvBlock, "c3": necks.C3, "c2f": necks.C2f}[config.neck_block]
    neck = {"fpn": necks.FPN, "pan": necks.PAN}[config.neck]
    reading = _reading(config)
    features = registry.backbone(config.model)
    how = {"frozen_stages": len(backbones.kept(config)), "freeze_bn": config.freeze_bn}
    shape = {"channels": config.neck_channels, **part}
    outputs = {"classes": reading.num_logits(classes), "objectness": reading.objectness}
    net = Detector(
        backbone=partial(features, **how, **part),
        neck=partial(neck, block=block, **shape),
        head=partial(DecoupledHead, **outputs, **shape),
        reg_max=config.reg_max,
    )
    return net, (1, *config.size, 3)


def build(config):
    """The system of a `Config`, with its data."""
    found, numbers, splits, notes = _data(config)
    check_notes(config, notes)
    made = system(config, found.classes, splits)
    about = {**made.about, "numbers": list(found.class_ids)} if found.class_ids else made.about
    return made._replace(notes=notes, about=about, numbers=numbers)


def system(config, classes, splits):
    """The system of a `Config` for data of these classes."""
    from jaxdet.data import images

    net, (_, *shape) = network(config, len(classes))
    detection = task_of(config, net, classes)
    trained = partial(registry.load_pretrained, config.model, config.weights)
    return Experiment(
        task=detection.task(),
        splits=splits,
        hparams=task_hparams(config),
        about={
            "classes": list(classes),
            "input": shape,
            "normalisation": "(level / 255 - {}) / {}".format(*detection.levels),
        },
        many=True,
        scales=config.multiscale,
        assigned=detection.assigned,
        read=partial(images.read_letterboxed_float, height=config.size[0], width=config.size[1]),
        weights=trained if config.weights else None,
        learns=backbones.factors(config),
    )


def task_of(config, net, classes):
    """The `tasks.detect.Detection` of a `Config`."""
    from jaxdet.losses import boxes as box_losses
    from jaxdet.tasks import augmentation, detect

    return detect.DetectionTask(
        net,
        classes,
        augmentation.pipeline(config),
        _assigner(config),
        _suppress(config),
        box_loss=getattr(box_losses, config.box_loss),
        reading=_reading(config),
        levels=registry.normalization(config.model),
        views=detect.TTA if config.tta else detect.SINGLE_VIEW,
    )


def inspect(root):
    """(a row a part and class, what is wrong with photos and boxes, a row an oddity) of a folder.

    Rows are {column: value}; boxes are judged by the input that `Config` has.
    """
    from jaxdet.data import detection, formats, quality_checks

    found = formats.read(root)
    oddities, bad = quality_checks.check_dataset(found, *Config.size)
    return detection.summarize(found), bad, oddities


@cached_reader("root", "format", "val_fraction", "seed", "max_boxes", "size", "stream")
def _data(config):
    """(DetectionDataset, {split: {name of an image: its id}}, {split: source}, notes)."""
    from jaxdet.data import detection, formats

    dataset = formats.read(config.root, config.format)
    samples = detection.with_validation(dataset.splits, config.val_fraction, config.seed)
    max_boxes = config.max_boxes or detection.largest_box_count(samples)
    load = detection.stream if config.stream else detection.load
    splits, notes, first = {}, [*dataset.notes], 0
    for name, own in samples.items():
        splits[name], faults = load(own, *config.size, max_boxes, first_id=first)
        notes += faults
        first += len(own)
    image_ids = {
        name: {sample.name: sample.id for sample in own if sample.id is not None}
        for name, own in samples.items()
    }
    return dataset, image_ids, splits, tuple(notes)


def _reading(config):
    from jaxdet.tasks import class_encoding

    ways = {"yolox": class_encoding.OBJECTNESS, "noobj-bg": class_encoding.BACKGROUND_CLASS}
    return ways.get(config.background, class_encoding.ZEROS)


def _assigner(config):
    from jaxdet.tasks import detect

    if config.assigner == "iou":
        return detect.make_assigner(positive=config.positive_iou)
    how = {name: getattr(config, name) for name in ("topk", "alpha", "beta", "tal_from")}
    return detect.make_assigner(positive=config.positive_iou, **how)


def _suppress(config):
    from jaxdet.ops import nms

    shared = {
        "iou_threshold": config.nms_iou,
        "max_detections": config.max_detections,
        "score_threshold": config.score_threshold,
    }
    soft = {"linear": partial(nms.soft_nms, method="linear"), "gaussian": nms.soft_nms}
    ways = {"hard": nms.nms, "nmw": nms.weighted_nms, "wbf": nms.weighted_boxes_fusion, **soft}
    return partial(ways[config.nms_type], **shared)


def check(config):
    """Refuse what no training can use, before any photo is read."""
    from jaxdet.tasks.detect import STRIDE

    height, width = config.size
    if height % STRIDE or width % STRIDE or not height * width:
        raise InputError(f"--size {height} {width}: multiples of {STRIDE} are wanted")
    backbones.check(config)
    check_augment(config)
    check_fractions(config, "score_threshold", "nms_iou", "positive_iou")
    if not config.multiscale or not all(0.1 <= size <= 10 for size in config.multiscale):
        raise InputError(f"--multiscale {config.multiscale}: factors from .1 to 10 are wanted")
    for name in ("reg_max", "max_detections", "topk", "neck_channels"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: at least 1 is wanted")
