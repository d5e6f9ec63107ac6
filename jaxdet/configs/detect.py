"""Detection: any number of boxes per image, from data in the common formats.

    jaxdet data inspect detect --root DIR
    jaxdet train detect --root DIR --weights package:lite0 --freeze-stages 3 --freeze-bn \\
        --backbone-lr .25 --vflip
    jaxdet eval runs/detect
    jaxdet eval runs/detect --score-threshold .1 --nms-iou .5
    jaxdet data assign runs/detect                     # which cells are assigned to which box
    jaxdet sweep detect --root DIR --one-at-a-time     # ablation

DIR is a COCO, Pascal VOC, YOLO or parquet folder; the format is recognized by its files.
`scripts/to_parquet.py` writes the parquet layout.

Blood cells (BCCD: 205 images for training, 87 for validation, 72 for the test), 416 x 320 pixels,
24 epochs, best checkpoint on validation, scores of the test split, one run of one seed:

| suppression | mAP | AP50 | AP75 |
|---|---|---|---|
| NMS IoU .6, score threshold .01, as above | .596 | .911 | .669 |
| NMS IoU .5, score threshold .1 | .592 | .904 | .665 |
| soft NMS, linear / Gaussian | .605 / .605 | .910 / .909 | |
| weighted NMS / fusion | .601 / .584 | .912 / .888 | |

In the first row, the mAP of platelets is .483, of red cells .601, of white cells .704.  Training
took 31 minutes on 2 CPU cores of a shared machine; on an idle one, an epoch takes 52 s and its
evaluation 5 s.  From scratch, `--size 256 320 --epochs 34 --vflip` gives mAP .444, AP50 .738 and
AP75 .511 in 26 minutes.

With the whole backbone frozen, 12 epochs of three seeds (`python -m benchmarks.experiments --names
assigners`): task-aligned mAP .494 (standard deviation .009), AP50 .892, AP75 .481; assignment by
IoU .500 (.007), .884, .534: no difference in mAP.  In the ablation (`benchmarks/RESULTS.md`; 256 x
192 pixels, validation, one seed) the largest gains of mAP are .029 with assignment by IoU, .023
with PAN, .021 with a background class and .020 with mosaic; the three seeds above do not confirm
the first, which shows how large the noise is.

A step takes 2.6 s with nothing frozen, 2.0 s with three frozen stages, 0.8 s with a frozen backbone
(`python -m benchmarks.train_step --models detect_unfrozen detect detect_frozen`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from jaxdet.config import (
    AugmentOptions,
    BackboneOptions,
    cached_reader,
    check_augment,
    check_backbone,
    check_fractions,
    check_minima,
    check_notes,
    task_hparams,
)
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.data.detection import DetectionDataset
    from jaxdet.data.sources import Source
    from jaxdet.tasks.detect import Assigner, DetectionTask
    from jaxdet.training.experiment import Experiment

MAX_ANCHORS = 100  # per cell
MAP_THRESHOLDS = (0.05, 0.1, 0.2)  # of assignment 2, for `report`

if TYPE_CHECKING:
    Backbone = str
else:
    Backbone = Literal[*registry.names("backbone")]


@dataclass(frozen=True)
class Config(AugmentOptions, BackboneOptions):
    """Boxes and classes of all objects in an image."""

    HPARAMS: ClassVar = (
        "classification_weight",
        "objectness_weight",
        "box_weight",
        "distance_weight",
    )
    EVAL_ONLY: ClassVar = ("score_threshold", "nms_iou", "nms_type", "max_detections", "tta")
    GRIDS: ClassVar = {
        "ablation": "--assigner tal iou --box-loss ciou diou giou iou --neck fpn pan"
        " --neck-block conv c3 c2f --background zeros class objectness --reg-max 1 16"
        " --brightness-contrast 0.2 0 --nms-type hard linear gaussian nmw wbf --mosaic 0 0.5"
        " --rotate 0 30",
    }

    root: str = ""
    """folder of the data: COCO, Pascal VOC, YOLO or parquet; or tfds:NAME, a prepared set in
    ~/tensorflow_datasets or the folder that TFDS_DATA_DIR names"""
    format: Literal["auto", "coco", "voc", "yolo", "parquet"] = "auto"
    """format of the data; auto recognizes it by its files"""
    size: tuple[int, int] = (320, 416)
    """height and width of the network's input in pixels, multiples of 32"""
    max_boxes: int = 0
    """maximum number of true boxes per image in training; 0: the largest number in any image"""
    stream: bool = False
    """read images from disk during training instead of holding them in memory (jaxdet[data])"""
    val_fraction: float = 0.1
    """fraction of the training images for validation, where the data have no validation split"""
    test_fraction: float = 0.0
    """fraction of the training images for the test, where the data have no test split"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with unusable images or boxes: report and leave out (skip), or stop (error)"""
    unknown_classes: Literal["drop", "background", "error"] = "drop"
    """what to do with images whose objects are all of unknown classes: leave out (drop), keep as
    images without objects (background), or stop at any such object (error)"""
    model: Backbone = "lite0"
    """backbone"""
    neck: Literal["fpn", "pan"] = "fpn"
    """how feature maps of different scales are combined: top-down (fpn), or top-down and then
    bottom-up (pan)"""
    neck_block: Literal["conv", "c3", "c2f"] = "conv"
    """block of the neck: a 3x3 convolution as in the papers, YOLOv5's C3, or YOLOv8's C2f"""
    neck_channels: int = 96
    """channels of neck and head"""
    background: Literal["zeros", "class", "objectness"] = "zeros"
    """how background is encoded: all-zero targets, a background class, or an objectness score"""
    reg_max: int = 1
    """outputs per side of a box; above 1: logits of a distribution over distances (DFL, usually
    16)"""
    anchors_per_cell: int = 0
    """boxes per cell, as offsets from anchors; 0: one box, as distances from the center"""
    anchor_scales: tuple[float, ...] = ()
    """sides of the anchors in strides; default: n scales of 4 x 2^(i / n) for i from 0 to n - 1"""
    anchor_ratios: tuple[float, ...] = (1.0,)
    """height over width of the anchors; there is one anchor per scale and ratio"""
    assigner: Literal["tal", "iou"] = "tal"
    """how cells are assigned to boxes: by their predictions (tal, task-aligned), or by the IoU of
    an anchor (iou)"""
    tal_from: int = 0
    """first epoch of tal; epochs before it assign by IoU"""
    topk: int = 10
    """tal: maximum number of cells (or anchors) per box"""
    alpha: float = 0.5
    """tal: exponent of the score"""
    beta: float = 6.0
    """tal: exponent of the IoU"""
    positive_iou: float = 0.5
    """iou, and before --tal-from: minimum IoU of an anchor with the box that it is assigned to"""
    box_loss: Literal["ciou", "diou", "giou", "iou", "smooth_l1"] = "ciou"
    """box loss; smooth_l1 compares offsets from anchors"""
    classification_weight: float = 1.0
    """weight of the classification loss"""
    objectness_weight: float = 1.0
    """weight of the objectness loss"""
    box_weight: float = 5.0
    """weight of the box loss"""
    distance_weight: float = 1.5
    """weight of the loss of distributions over distances (DFL)"""
    multiscale: tuple[float, ...] = (1.0,)
    """factors of --size, one of which is drawn per training step; each one is compiled"""
    score_threshold: float = 0.01
    """minimum score of a detection"""
    nms_iou: float = 0.6
    """NMS IoU threshold"""
    nms_type: Literal["hard", "linear", "gaussian", "nmw", "wbf"] = "hard"
    """what happens to overlapping boxes: removed (hard), lowered in score (soft NMS: linear,
    gaussian), or merged (weighted NMS: nmw, weighted boxes fusion: wbf)"""
    max_detections: int = 100
    """maximum detections per image"""
    tta: bool = False
    """predict from six views of an image: three sizes, each also mirrored"""
    epochs: int = 24
    batch: int = 8
    eval_batch: int = 8
    lr: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 10.0
    ema: float = 0.99
    best: Literal[
        "map",
        "map50",
        "map75",
        "map_small",
        "map_medium",
        "map_large",
        "recall1",
        "recall10",
        "recall100",
    ] = "map"


def network(config: Config, classes: int = 3) -> "tuple[nn.Module, tuple[int, ...]]":
    """The network of a `Config`, and the shape [B, H, W, C] of its input."""
    from jaxdet.models import necks
    from jaxdet.models.detector import Detector
    from jaxdet.models.heads import DecoupledHead
    from jaxdet.models.layers import layer_options
    from jaxdet.tasks.class_encoding import ENCODINGS

    options = layer_options(bfloat16=config.bfloat16, conv=config.conv)
    neck = {"fpn": necks.FPN, "pan": necks.PAN}[config.neck]
    block = {"conv": necks.ConvBlock, "c3": necks.C3, "c2f": necks.C2f}[config.neck_block]
    encoding = ENCODINGS[config.background]
    scales = _anchor_scales(config)
    net = Detector(
        backbone=partial(
            registry.backbone(config.model),
            frozen_stages=len(_frozen_stages(config)),
            freeze_bn=config.freeze_bn,
            **options,
        ),
        neck=partial(neck, block=block, channels=config.neck_channels, **options),
        head=partial(
            DecoupledHead,
            classes=encoding.num_logits(classes),
            objectness=encoding.objectness,
            anchors=max(config.anchors_per_cell, 1),
            channels=config.neck_channels,
            **options,
        ),
        anchor_scales=scales,
        anchor_ratios=config.anchor_ratios if scales else (1.0,),
        reg_max=config.reg_max,
    )
    return net, (1, *config.size, 3)


def summarize(
    root: str,
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """(a table row per split and class, notes, a table row per quality check) of a folder.

    Boxes are checked at the default size of the network's input.
    """
    from jaxdet.data import detection, formats, quality_checks

    dataset = formats.read(root)
    checks, notes = quality_checks.check_dataset(dataset, *Config.size)
    return detection.summarize(dataset), notes, checks


def report(scores: Mapping[str, Any], split: str) -> str:
    """The mAP of a split, and which thresholds of assignment 2 it reaches."""
    from jaxdet.metrics import detection

    passed = detection.passed_thresholds(scores["map"], MAP_THRESHOLDS)
    lines = [f"{name} {'yes' if reached else 'no'}" for name, reached in passed.items()]
    return "\n".join([f"{split} map {scores['map']:.4f}", *lines])


def build(config: Config) -> "Experiment":
    """The experiment of a `Config`, with its data."""
    from jaxdet.data import detection

    data = _read_dataset(config)
    check_notes(config, detection.faults(data.notes))
    experiment = from_splits(config, data.dataset.classes, data.splits)
    metadata = experiment.metadata
    if data.dataset.class_ids:
        metadata = {**metadata, "category_ids": list(data.dataset.class_ids)}
    return replace(experiment, notes=data.notes, metadata=metadata, image_ids=data.image_ids)


def from_splits(
    config: Config, classes: tuple[str, ...], splits: "dict[str, Source]"
) -> "Experiment":
    """The experiment of a `Config` for given sources, {split: source}."""
    from jaxdet.data import images
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    height, width = config.size
    task = make_task(config, net, classes)
    mean, std = task.normalization
    pretrained = None
    if config.weights:
        pretrained = partial(registry.load_pretrained, config.model, config.weights)
    return Experiment(
        task=task,
        splits=splits,
        hparams=task_hparams(config),
        metadata={
            "classes": list(classes),
            "input": shape,
            "normalization": f"(pixel value / 255 - {mean}) / {std}",
        },
        config=config,
        name="detect",
        read_image=partial(images.read_letterboxed_float, height=height, width=width),
        scales=config.multiscale,
        load_pretrained=pretrained,
        lr_multiplier=registry.lr_multiplier(_frozen_stages(config), config.backbone_lr),
    )


def make_task(config: Config, net: "nn.Module", classes: tuple[str, ...]) -> "DetectionTask":
    """The task of a `Config`, for a network and the names of its classes."""
    from jaxdet.losses import boxes as box_losses
    from jaxdet.tasks import augmentation, detect
    from jaxdet.tasks.class_encoding import ENCODINGS

    return detect.DetectionTask(
        net,
        classes,
        transform=augmentation.pipeline(config),
        assigner=_assigner(config),
        suppress=_suppress(config),
        box_loss=getattr(box_losses, config.box_loss),
        offset_loss=config.box_loss == "smooth_l1",
        encoding=ENCODINGS[config.background],
        normalization=registry.normalization(config.model),
        views=detect.TTA if config.tta else detect.SINGLE_VIEW,
    )


def _anchor_scales(config: Config) -> tuple[float, ...]:
    """Scales of the anchors of a cell; empty without anchors."""
    from jaxdet.ops import anchors

    count = config.anchors_per_cell // len(config.anchor_ratios)
    return config.anchor_scales or anchors.octave_scales(count) if count else ()


def _assigner(config: Config) -> "Assigner":
    from jaxdet.tasks.detect import make_assigner

    if config.assigner == "iou":
        return make_assigner(positive_iou=config.positive_iou)
    return make_assigner(
        tal_from=config.tal_from,
        positive_iou=config.positive_iou,
        topk=config.topk,
        alpha=config.alpha,
        beta=config.beta,
    )


def _suppress(config: Config) -> Callable:
    """The function (boxes, scores, labels) -> `nms.Detections` of one image."""
    from jaxdet.ops import nms

    functions = {
        "hard": nms.nms,
        "linear": partial(nms.soft_nms, method="linear"),
        "gaussian": nms.soft_nms,
        "nmw": nms.weighted_nms,
        "wbf": nms.weighted_boxes_fusion,
    }
    return partial(
        functions[config.nms_type],
        iou_threshold=config.nms_iou,
        max_detections=config.max_detections,
        score_threshold=config.score_threshold,
    )


def _frozen_stages(config: Config) -> tuple[str, ...]:
    """Names of the stages of the backbone that are not trained."""
    return registry.frozen_stages(config.model, config.freeze_stages)


class _Data(NamedTuple):
    """The data of a `Config`."""

    dataset: "DetectionDataset"
    image_ids: dict[str, dict[str, int | str]]  # split -> {image name: its id in the data's files}
    splits: "dict[str, Source]"
    notes: tuple[str, ...]


@cached_reader(
    "root",
    "format",
    "unknown_classes",
    "val_fraction",
    "test_fraction",
    "seed",
    "max_boxes",
    "size",
    "stream",
)
def _read_dataset(config: Any) -> _Data:
    from jaxdet.data import detection, formats

    dataset = formats.read(config.root, config.format, config.unknown_classes)
    if not dataset.classes:
        first = f"; first: {dataset.notes[0]}" if dataset.notes else ""
        raise InputError(f"--root {config.root}: must hold objects with a class, got none{first}")
    samples = detection.with_validation(
        dataset.splits, config.val_fraction, config.seed, config.test_fraction
    )
    max_boxes = config.max_boxes or detection.largest_box_count(samples)
    load = detection.stream if config.stream else detection.load
    height, width = config.size
    splits, notes, first = {}, [*dataset.notes], 0
    for name, own in samples.items():
        splits[name], faults = load(own, height, width, max_boxes, first_id=first)
        notes += faults
        first += len(own)
    image_ids = {
        name: {sample.name: sample.id for sample in own if sample.id is not None}
        for name, own in samples.items()
    }
    return _Data(dataset, image_ids, splits, tuple(notes))


def check(config: Config) -> None:
    """Raise InputError for invalid options, before any image is read."""
    from jaxdet.tasks.detect import STRIDE

    height, width = config.size
    if height % STRIDE or width % STRIDE or min(height, width) < STRIDE:
        raise InputError(
            f"--size must be two positive multiples of {STRIDE} pixels, got {height} {width}"
        )
    check_backbone(config, len(registry.stage_names(config.model)))
    check_augment(config)
    check_fractions(config, "test_fraction", "score_threshold", "nms_iou", "positive_iou")
    if not config.multiscale or not all(0.1 <= factor <= 10 for factor in config.multiscale):
        factors = " ".join(f"{factor:g}" for factor in config.multiscale)
        raise InputError(f"--multiscale must be factors from 0.1 to 10, got {factors or 'none'}")
    check_minima(
        config, max_boxes=0, val_fraction=0, reg_max=1, max_detections=1, topk=1, neck_channels=1
    )
    _check_anchors(config)


def _check_anchors(config: Config) -> None:
    """Raise InputError for options of anchors that contradict each other."""
    check_minima(config, anchors_per_cell=0)
    count, scales, ratios = config.anchors_per_cell, config.anchor_scales, config.anchor_ratios
    for name, values in (("scales", scales), ("ratios", ratios)):
        if not all(value > 0 for value in values):
            given = " ".join(f"{value:g}" for value in values)
            raise InputError(f"--anchor-{name} must be positive, got {given}")
    if not count:
        if scales or ratios != (1.0,):
            raise InputError("--anchor-scales and --anchor-ratios need --anchors-per-cell above 0")
        if config.box_loss == "smooth_l1":
            raise InputError("--box-loss smooth_l1 needs --anchors-per-cell: it compares offsets")
        return
    if config.reg_max > 1:
        raise InputError(
            f"--reg-max must be 1 with --anchors-per-cell, which predicts offsets, got "
            f"{config.reg_max}"
        )
    per_scale = len(scales) or count // max(len(ratios), 1)
    if count > MAX_ANCHORS or per_scale * len(ratios) != count:
        many = f"{len(scales)} scales x " if scales else "a multiple of the "
        raise InputError(
            f"--anchors-per-cell must be at most {MAX_ANCHORS} and {many}{len(ratios)} ratios, got "
            f"{count}"
        )
