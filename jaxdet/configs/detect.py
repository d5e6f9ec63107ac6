"""Detection: any number of boxes per image, from data in the common formats.

    jaxdet data inspect detect --root DIR
    jaxdet train detect --root DIR --weights package:lite0 --freeze-stages 3 --freeze-bn \\
        --backbone-lr .25 --vflip
    jaxdet eval runs/detect
    jaxdet eval runs/detect --score-threshold .1 --nms-iou .5
    jaxdet data assign runs/detect                     # which cells are assigned to which box
    jaxdet sweep detect --root DIR --one-at-a-time     # ablation

DIR is a folder in one of seven formats, such as COCO or YOLO, which is recognized by its files;
`jaxdet data convert` converts between formats.

Blood cells (BCCD: 205 images for training, 87 for validation, 72 for the test), 416 x 320 pixels,
24 epochs, best checkpoint on validation, scores of the test split, one run of one seed:

| suppression | mAP | AP50 | AP75 |
|---|---|---|---|
| NMS IoU .6, score threshold .01, as above | .589 | .908 | .674 |
| NMS IoU .5, score threshold .1 | .584 | .900 | .667 |
| soft NMS, linear / Gaussian | .595 / .595 | .907 / .906 | .688 / .688 |
| weighted NMS / fusion | .594 / .576 | .907 / .879 | .689 / .669 |

In the first row, mAP is .483 for platelets, .589 for red cells and .694 for white cells.  Training
took 31 minutes on 2 CPU cores of a shared machine; on an idle one, an epoch takes 52 s and its
evaluation 5 s.  From scratch, `--size 256 320 --epochs 34 --vflip` gives mAP .445, AP50 .735 and
AP75 .514 in 26 minutes.

With the whole backbone frozen, training for 12 epochs with each of three seeds (`python -m
benchmarks.experiments --names assigners`) gives mAP .506 (standard deviation .014), AP50 .890 and
AP75 .529 with task-aligned assignment, and mAP .510 (.012), AP50 .884 and AP75 .559 with assignment
by IoU: the two do not differ in mAP.  In the ablation (`benchmarks/RESULTS.md`; 256 x 192 pixels,
scores on validation, one seed) the largest gains of mAP are .029 with assignment by IoU, .023 with
PAN, .021 with a background class and .020 with mosaic; the three seeds above do not confirm the
first gain, which shows how large the noise is.

A training step takes 2.6 s with nothing frozen, 2.0 s with three frozen stages and 0.8 s with a
frozen backbone (`python -m benchmarks.train_step --models detect_unfrozen detect detect_frozen`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from jaxdet import files
from jaxdet.config import (
    AugmentOptions,
    BackboneOptions,
    ClassWeightOptions,
    cached_reader,
    check_augment,
    check_backbone,
    check_fractions,
    check_minima,
    check_notes,
    check_train_fraction,
    option,
    parse_class_weights,
    task_hparams,
)
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from flax import linen as nn

    from jaxdet.data.detection import AnnotatedImage, DetectionDataset
    from jaxdet.data.images import ImageFile, Letterbox, Size
    from jaxdet.data.sources import Source
    from jaxdet.ops.tiles import Tiling
    from jaxdet.tasks.class_encoding import ClassEncoding
    from jaxdet.tasks.detect import Assigner, DetectionTask
    from jaxdet.training.experiment import Experiment

MAX_ANCHORS = 100  # per cell
MAX_OVERLAP = 0.9  # of tiles
TILES = re.compile("([1-9][0-9]?)x([1-9][0-9]?)|([1-9][0-9]{1,4})")
COMPOSED = (  # options of the parts around a backbone
    *("neck", "neck_block", "neck_channels", "background", "reg_max"),
    *("anchors_per_cell", "anchor_scales", "anchor_ratios"),
)
MAP_THRESHOLDS = (0.05, 0.1, 0.2)  # of assignment 2, for `report`

if TYPE_CHECKING:
    Backbone = str
else:
    Backbone = Literal[*registry.names("backbone", "detector")]


@dataclass(frozen=True)
class Config(AugmentOptions, BackboneOptions, ClassWeightOptions):
    """Predict the box and the class of every object in an image."""

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
    """folder with the data; or tfds:NAME, a data set that tensorflow-datasets has prepared in
    ~/tensorflow_datasets or in the folder named by TFDS_DATA_DIR"""
    format: Literal["auto", "coco", "voc", "yolo", "parquet", "labelme", "cvat", "csv"] = "auto"
    """format of the data in the folder; auto: recognize it by the files"""
    size: tuple[int, int] = (320, 416)
    """height and width of the network's input in pixels, multiples of 32"""
    tiles: str = ""
    """overlapping tiles of --size pixels into which images are cut: rows x columns, such as 2x2
    (each image is resized to the size of the grid), or how many pixels of an image the longer side
    of a tile shows, such as 640 (all images are resized by the same factor, and each has as many
    tiles as cover it); training sees a random tile of each image, and predictions come from all
    tiles and from the whole image; empty: images are not cut"""
    overlap: float = 0.2
    """--tiles: fraction of a tile's side that it shares with its neighbor; tiles are placed at
    multiples of 32 pixels"""
    max_boxes: int = 0
    """maximum number of true boxes per image in training, where further boxes are ignored; 0: the
    largest number of boxes in any image"""
    stream: bool = False
    """read images from disk during training instead of holding them in memory; needs the package
    grain: pip install jaxdet[data]"""
    image_cache: str = ""
    """--stream: folder in which decoded and resized images are kept, height x width x 3 bytes each,
    so that later epochs and runs need not decode them; several runs may share it; empty: none"""
    val_fraction: float = 0.1
    """fraction of the training images that is set aside for validation, if the data have no
    validation split"""
    test_fraction: float = 0.0
    """fraction of the training images that is set aside for the test, if the data have no test
    split; 0: no test split"""
    train_fraction: float = 1.0
    """fraction of the training images that is used, drawn at random (see --seed); at least one
    image is used"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with unusable images and boxes: report them and leave them out (skip), or stop
    (error)"""
    unknown_classes: Literal["drop", "background", "error"] = "drop"
    """what to do with an image whose objects are all of classes that the data do not list: leave it
    out (drop), or keep it as an image without objects (background); error: stop at any object of
    such a class"""
    classes: tuple[str, ...] = ()
    """classes to learn, by name; objects of other classes are left out, as if the data did not list
    their classes (see --unknown-classes); default: all classes of the data"""
    model: Backbone = "lite0"
    """backbone of the network; or a whole published detector, yolox_nano to yolox_x, which has its
    own neck and head and takes images as published (BGR, placed at the top left): the options of
    neck, head, anchors and background then stay at their defaults"""
    neck: Literal["fpn", "pan"] = "fpn"
    """how feature maps of different scales are combined: top-down (fpn), or top-down and then
    bottom-up (pan)"""
    neck_block: Literal["conv", "c3", "c2f"] = "conv"
    """block of the neck: a 3x3 convolution as in the papers (conv), the C3 block of YOLOv5 (c3), or
    the C2f block of YOLOv8 (c2f)"""
    neck_channels: int = 96
    """number of channels in the neck and in the head"""
    background: Literal["zeros", "class", "objectness"] = "zeros"
    """how background is encoded: by all-zero targets (zeros), a background class (class), or an
    objectness score (objectness)"""
    reg_max: int = 1
    """number of outputs for each side of a box; 1: the distance of the side from the cell's center;
    above 1, usually 16: a distribution over distances (DFL)"""
    anchors_per_cell: int = 0
    """number of boxes per cell, predicted as offsets from anchors; 0: one box per cell, predicted
    as distances of its sides from the cell's center"""
    anchor_scales: tuple[float, ...] = ()
    """sides of square anchors, in strides; empty: 4 x 2^(i / n) for i from 0 to n - 1, where n is
    --anchors-per-cell divided by the number of --anchor-ratios"""
    anchor_ratios: tuple[float, ...] = (1.0,)
    """height over width of the anchors; each cell has one anchor for each pair of scale and
    ratio"""
    assigner: Literal["tal", "iou"] = "tal"
    """how true boxes are assigned to cells: by the scores and boxes that the cells predict (tal,
    task-aligned), or by IoU with the cells' anchors (iou)"""
    tal_from: int = 0
    """tal: first epoch of task-aligned assignment, counted from 0; epochs before it assign by IoU
    with the anchors"""
    topk: int = 10
    """tal: maximum number of cells (or anchors) that are assigned to a true box"""
    alpha: float = 0.5
    """tal: exponent of the score in the alignment metric"""
    beta: float = 6.0
    """tal: exponent of the IoU in the alignment metric"""
    positive_iou: float = 0.5
    """iou, and tal before --tal-from: an anchor is assigned to the true box that it overlaps most
    if their IoU is at least this value; a true box always gets its best anchor"""
    box_loss: Literal["ciou", "diou", "giou", "iou", "smooth_l1"] = "ciou"
    """box loss: 1 minus CIoU, DIoU, GIoU or IoU, or the smooth L1 loss of offsets from anchors
    (smooth_l1), which needs --anchors-per-cell"""
    classification_weight: float = 1.0
    """weight of the classification loss"""
    objectness_weight: float = 1.0
    """weight of the objectness loss, which exists only with --background objectness"""
    box_weight: float = 5.0
    """weight of the box loss"""
    distance_weight: float = 1.5
    """weight of the distribution focal loss (DFL), which exists only with --reg-max above 1"""
    multiscale: tuple[float, ...] = (1.0,)
    """factors of --size, of which each training step draws one; the scaled sides are rounded to
    multiples of 32 pixels, and a step is compiled for each factor"""
    score_threshold: float = 0.01
    """score that a detection must exceed"""
    nms_iou: float = 0.6
    """IoU above which NMS takes two boxes of one class for the same object"""
    nms_type: Literal["hard", "linear", "gaussian", "nmw", "wbf"] = "hard"
    """what happens to overlapping boxes: all but the best are removed (hard), their scores are
    lowered (soft NMS: linear, gaussian), or they are merged (weighted NMS: nmw; weighted boxes
    fusion: wbf)"""
    max_detections: int = 100
    """maximum number of detections per image"""
    tta: bool = False
    """test-time augmentation: predict from six views of an image, three sizes and their mirror
    images"""
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
    """The network of a `Config`, and its input shape (B, H, W, C)."""
    from jaxdet.models import necks
    from jaxdet.models.detector import Detector
    from jaxdet.models.heads import DecoupledHead
    from jaxdet.models.layers import layer_options

    options = layer_options(bfloat16=config.bfloat16, conv=config.conv)
    stages = {"frozen_stages": len(_frozen_stages(config)), "freeze_bn": config.freeze_bn}
    shape = (1, *config.size, 3)
    if registry.is_detector(config.model):
        return registry.get(config.model).build(classes=classes, **stages, **options), shape
    neck = {"fpn": necks.FPN, "pan": necks.PAN}[config.neck]
    block = {"conv": necks.ConvBlock, "c3": necks.C3, "c2f": necks.C2f}[config.neck_block]
    encoding = _encoding(config)
    scales = _anchor_scales(config)
    net = Detector(
        backbone=partial(
            registry.backbone(config.model),
            **stages,
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
    return net, shape


def summarize(
    root: str,
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """Tables for `jaxdet data inspect` of the data in the folder `root`.

    Returns (a row per split and class, notes, a row per quality check).  Boxes are checked at the
    default size of the network's input.
    """
    from jaxdet.data import detection, formats, quality_checks

    dataset = formats.read(root)
    checks, notes = quality_checks.check_dataset(dataset, *Config.size)
    return detection.summarize(dataset), notes, checks


def report(scores: Mapping[str, Any], split: str) -> str:
    """Text for `jaxdet eval --report`: the mAP, and which thresholds of assignment 2 it reaches."""
    from jaxdet.metrics import detection

    passed = detection.passed_thresholds(scores["map"], MAP_THRESHOLDS)
    lines = [f"{name} {'yes' if reached else 'no'}" for name, reached in passed.items()]
    return "\n".join([f"{split} map {scores['map']:.4f}", *lines])


def build(config: Config) -> "Experiment":
    """Read the data of a `Config`, and build its experiment."""
    data = _read_dataset(config)
    if "train" not in data.splits:
        known = ", ".join(data.splits)
        raise InputError(f"--root {config.root}: must have training images, got only {known}")
    return _experiment(config, data)


def build_external(config: Config, classes: tuple[str, ...], split: "Path") -> "Experiment":
    """The experiment of an existing run on the data in `config.root`, its own or other data.

    classes: class names of the run.  Other data may have only some of these classes, in any order.
    split: is ignored.

    Unlike for `build`, the data need no training images.
    """
    return _experiment(config, _read(config, _letterbox(config), classes))


def _experiment(config: Config, data: "_Data") -> "Experiment":
    from jaxdet.data import detection

    check_notes(config, detection.faults(data.notes))
    experiment = from_splits(config, data.dataset.classes, data.splits)
    metadata = experiment.metadata
    if data.dataset.class_ids:
        metadata = {**metadata, "category_ids": list(data.dataset.class_ids)}
    fields = {"image_ids": data.image_ids, "samples": data.samples}
    return replace(experiment, notes=data.notes, metadata=metadata, **fields)


def from_splits(
    config: Config, classes: tuple[str, ...], splits: "dict[str, Source]"
) -> "Experiment":
    """The experiment of a `Config` on given data, {split: source}."""
    from jaxdet.configs import class_weights, starting_weights
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    task = make_task(config, net, classes, class_weights(config, classes, splits))
    normalized, letterbox = task.normalization.formula, _letterbox(config)
    shape[:2] = _canvas(config, letterbox.scale)
    if letterbox.scale and splits:
        shape = [*next(iter(splits.values())).first(1).arrays["image"].shape[1:]]
    return Experiment(
        task=task,
        splits=splits,
        hparams=task_hparams(config),
        metadata={
            "classes": list(classes),
            "input": shape,
            "normalization": normalized,
        },
        config=config,
        name="detect",
        read_image=_image_reader(config),
        letterbox=letterbox,
        scales=config.multiscale,
        load_pretrained=starting_weights("detect", config, classes, normalized),
        lr_multiplier=registry.lr_multiplier(_frozen_stages(config), config.backbone_lr),
    )


def make_task(
    config: Config,
    net: "nn.Module",
    classes: tuple[str, ...],
    class_weights: tuple[float, ...] = (),
) -> "DetectionTask":
    """The task of a `Config`, for a network and the names of its classes.

    class_weights: see `DetectionTask`.
    """
    from jaxdet.losses import boxes as box_losses
    from jaxdet.tasks import augmentation, detect

    return detect.DetectionTask(
        net,
        classes,
        transform=augmentation.pipeline(config),
        assigner=_assigner(config),
        suppress=_suppress(config),
        box_loss=getattr(box_losses, config.box_loss),
        offset_loss=config.box_loss == "smooth_l1",
        encoding=_encoding(config),
        normalization=registry.normalization(config.model),
        views=detect.TTA if config.tta else detect.SINGLE_VIEW,
        class_weights=class_weights,
        tiling=_tiling(config),
    )


def _tiling(config: Config) -> "Tiling | None":
    from jaxdet.ops.tiles import Tiling

    if not config.tiles:
        return None
    found = TILES.fullmatch(config.tiles)
    if not found:
        raise InputError(
            f"--tiles must be rows x columns from 1x1 to 99x99, such as 2x2, or pixels from 10 to "
            f"99999, such as 640, got {config.tiles}"
        )
    rows, columns, pixels = (number and int(number) for number in found.groups())
    grid = (None, None) if pixels else (rows, columns)
    return Tiling(*grid, config.overlap, *config.size)


def _letterbox(config: Config) -> "Letterbox":
    """The letterbox of the model; with --tiles in pixels, at their scale and the upper left."""
    found = registry.letterbox(config.model)
    if not config.tiles.isdecimal():
        return found
    return found._replace(centered=False, scale=max(config.size) / int(config.tiles))


def _canvas(config: Config, scale: float, sizes: "Iterable[Size]" = ()) -> tuple[int, int]:
    """Height and width of the array into which images are read.

    scale: of the letterbox; if it is not 0, the array holds scaled images of all `sizes`.
    """
    from jaxdet.data import images

    tiling = _tiling(config)
    if not tiling:
        return config.size
    scaled = [images.scaled_size(size, scale) for size in sizes]
    height, width = map(max, zip((1, 1), *scaled, strict=True))
    return tiling.covering(height, width).canvas


def _image_reader(config: Config) -> Callable:
    """The function from an image file to (input of the network, original size)."""
    from jaxdet.data import images

    letterbox = _letterbox(config)
    if letterbox.scale:
        return partial(_read_tiled, config, letterbox)
    height, width = _canvas(config, letterbox.scale)
    sizes = {"height": height, "width": width, "letterbox": letterbox}
    return partial(images.read_letterboxed_float, **sizes)


def _read_tiled(
    config: Config, letterbox: "Letterbox", file: "ImageFile"
) -> "tuple[np.ndarray, Size]":
    """Read an image into the smallest grid of tiles that covers it."""
    from jaxdet.data import images

    canvas = _canvas(config, letterbox.scale, [images.read_size(file)])
    return images.read_letterboxed_float(file, *canvas, letterbox)


def _encoding(config: Config) -> "ClassEncoding":
    from jaxdet.tasks.class_encoding import ENCODINGS, OBJECTNESS

    return OBJECTNESS if registry.is_detector(config.model) else ENCODINGS[config.background]


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
    return registry.frozen_stages(config.model, config.freeze_stages)


class _Data(NamedTuple):
    dataset: "DetectionDataset"
    image_ids: dict[str, dict[str, int | str]]  # split -> {image name: its id in the data's files}
    samples: "dict[str, list[AnnotatedImage]]"
    splits: "dict[str, Source]"
    notes: tuple[str, ...]


@cached_reader(
    "root",
    "format",
    "unknown_classes",
    "classes",
    "val_fraction",
    "test_fraction",
    "train_fraction",
    "seed",
    "max_boxes",
    "size",
    "tiles",
    "overlap",
    "stream",
    "on_invalid",
    "image_cache",
    letterbox=_letterbox,
)
def _read_dataset(config: Any) -> _Data:
    return _read(config, config.letterbox)


def _read(config: Any, letterbox: "Letterbox", classes: tuple[str, ...] = ()) -> _Data:
    """Read the data of a configuration; classes: of an existing run, () for a new run."""
    from jaxdet.data import detection, formats, image_sizes

    index = files.cache_folder("index") if config.stream else None
    options = {"classes": config.classes, "cache": index}
    dataset = formats.read(config.root, config.format, config.unknown_classes, **options)
    if not dataset.classes:
        first = f"; first note: {dataset.notes[0]}" if dataset.notes else ""
        raise InputError(f"--root {config.root}: must hold objects with a class, got none{first}")
    if classes:
        dataset = detection.match_classes(dataset, classes)
    samples = dataset.splits
    if "train" in samples:
        fractions = config.val_fraction, config.seed, config.test_fraction
        samples = detection.with_validation(samples, *fractions)
        train = detection.draw_fraction(samples["train"], config.train_fraction, config.seed)
        samples = {**samples, "train": train}
    max_boxes = config.max_boxes or detection.largest_box_count(samples)
    load = detection.load
    if config.stream:
        options = {"on_invalid": config.on_invalid, "cache": config.image_cache, "index": index}
        load = partial(detection.stream, **options)
    sizes = []
    if letterbox.scale:
        listed = [sample.image for of_split in samples.values() for sample in of_split]
        sizes = [size for size in image_sizes.read(listed, index) if isinstance(size, tuple)]
    height, width = _canvas(config, letterbox.scale, sizes)
    splits, notes, first = {}, [*dataset.notes], 0
    for name, own in samples.items():
        options = {"first_id": first, "letterbox": letterbox}
        splits[name], faults = load(own, height, width, max_boxes, **options)
        notes += faults
        first += len(own)
    image_ids = {
        name: {sample.name: sample.id for sample in own if sample.id is not None}
        for name, own in samples.items()
    }
    return _Data(dataset, image_ids, samples, splits, tuple(notes))


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
    check_train_fraction(config)
    check_fractions(config, "test_fraction", "score_threshold", "nms_iou", "positive_iou")
    if not config.multiscale or not all(0.1 <= factor <= 10 for factor in config.multiscale):
        factors = " ".join(f"{factor:g}" for factor in config.multiscale)
        raise InputError(
            f"--multiscale must be one or more factors from 0.1 to 10, got {factors or 'none'}"
        )
    check_minima(
        config, max_boxes=0, val_fraction=0, reg_max=1, max_detections=1, topk=1, neck_channels=1
    )
    _tiling(config)
    if not 0 <= config.overlap <= MAX_OVERLAP:
        raise InputError(f"--overlap must be from 0 to {MAX_OVERLAP}, got {config.overlap:g}")
    parse_class_weights(config.class_weights)
    _check_anchors(config)
    _check_detector(config)


def _check_detector(config: Config) -> None:
    """Raise InputError for an option that a published detector does not have."""
    if not registry.is_detector(config.model):
        return
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in COMPOSED and value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(
                f"{option(field.name)} {shown} has no effect with --model {config.model}, a whole "
                f"detector; leave it out"
            )


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
            raise InputError(
                "--anchor-scales and --anchor-ratios need --anchors-per-cell above 0, got 0"
            )
        if config.box_loss == "smooth_l1":
            raise InputError(
                "--box-loss smooth_l1 needs --anchors-per-cell above 0, got 0: it compares offsets "
                "from anchors"
            )
        return
    if config.reg_max > 1:
        raise InputError(
            f"--reg-max must be 1 with --anchors-per-cell, since boxes are predicted as offsets "
            f"from anchors, got {config.reg_max}"
        )
    per_scale = len(scales) or count // max(len(ratios), 1)
    if count > MAX_ANCHORS or per_scale * len(ratios) != count:
        number = f"a multiple of {len(ratios)}, the number of ratios"
        if scales:
            number = f"the number of scales times the number of ratios, {per_scale * len(ratios)}"
        raise InputError(
            f"--anchors-per-cell must be at most {MAX_ANCHORS} and {number}, got {count}"
        )
