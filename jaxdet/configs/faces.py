"""Faces: the identity of a face, and whether two images show the same one.

    jaxdet data inspect faces --root DIR           # images per identity, sizes, unreadable files
    jaxdet train faces --root DIR
    jaxdet eval runs/faces                         # accuracy; AUC and equal error rate of pairs
    jaxdet train faces --root DIR --identities 20  # train on 20 identities only
    jaxdet eval runs/faces --split others          # scores on all the others
    jaxdet predict runs/faces TEST --submit classification.csv --sample SAMPLE.csv
    jaxdet verify probe runs/faces FOLDER          # whether embeddings are linearly separable

DIR is a folder, or a tar file of a folder, with the files IDENTITY/FILE, or SPLIT/IDENTITY/FILE
where SPLIT is train, val (or dev) or test.  If the data have no splits, images of each identity are
drawn for validation and test; if they have train and val, nothing is drawn.  Files directly in
test/ are for `predict`.

On the 40 identities of ORL, `--size 64 --val-fraction 0 --test-fraction .3` trains on 7 images of
each; the last checkpoint has an accuracy of 0.992 on the other 120 images, after 60 epochs in 5
minutes on 2 CPU cores of a shared machine.  On twelve identities of LFW, which come with a split,
`--size 64 --epochs 40 --cutout .3 --label-smoothing .1` gives an accuracy of 0.985 on the 65 test
images, and AUC .991 and equal error rate .026 on their pairs, in 12 minutes on a shared machine.

Identities not seen in training are harder to tell apart.  The table has scores on all pairs of
images of 20 identities of ORL, for the last checkpoint of a training on the 20 others
(`--identities 20 --val-fraction 0 --test-fraction 0`):

| further options | AUC | equal error rate |
|---|---|---|
| ImageNet weights, all frozen | .986 | .056 |
| ImageNet weights, the last stage trained | .989 | .049 |
| from scratch (embeddings without the mirror image) | .938 | .129 |
| the same, triplets: `--embedding-loss triplet_hard --samples-per-class 4` | .946 | .123 |
| the same, more augmentation: `--cutout .4 --scale .8 1.25 --shift .1` | .945 | .100 |
| this augmentation, `--head arcface --logit-scale 16 --margin .3` | .952 | .126 |

The first row has the options `--model lite0 --weights package:lite0 --backbone-stages 6
--freeze-stages 6 --embedding-dim 0 --bnneck true --size 96 --epochs 40`; the second has
`--freeze-stages 5 --freeze-bn --backbone-lr .1 --label-smoothing .1 --epochs 30` in place of the
same options of the first row.  The rows with triplets also have `--embedding-loss-weight 1`, and
the rows with more augmentation also have `--brightness-contrast .4 --label-smoothing .1`.

Features of stride 16 separate unseen identities best: without any training on faces, the cosines of
averaged and centered feature maps of Lite0 with strides 4, 8, 16 and 32 have an AUC of .945, .967,
.989 and .970.  Twenty identities are too few for training from scratch: even the cosines of pixels,
whitened within identities, have an AUC of .959.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxdet.config import (
    RUN,
    BackboneOptions,
    ClassWeightOptions,
    check_backbone,
    check_fractions,
    check_minima,
    check_notes,
    check_scale,
    check_train_fraction,
    option,
    parse_class_weights,
    task_hparams,
)
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.data.normalize import Normalization
    from jaxdet.data.sources import Source
    from jaxdet.training.experiment import Experiment

MIN_SIZE = 32  # pixels per side; smaller images would leave the last stages nothing to convolve
STEM_STRIDE = 4

STAGED = registry.names("staged")
PER_STAGE = {  # option with one value per stage -> field of the networks
    "channels": "widths",
    "blocks": "blocks",
    "strides": "strides",
    "dilations": "dilations",
    "se_ratios": "squeezes",
    "stage_dropout": "rates",
}
STAGE_OPTIONS = (*PER_STAGE, "block", "depthwise", "activation")
_SHAPE_OPTIONS = ("channels", "blocks", "strides", "dilations")
_NEEDED = {"bottleneck": "strides", "convnext": "blocks"}  # required with other --channels

_PLAIN = "--model bottleneck --batch 128 --depthwise false --activation relu"
_DEEP = (
    "--model bottleneck --batch 128 --channels 32 64 128 256 512 --stage-dropout .2 0 .2 0 .2 "
    "--activation relu6"
)
_LAST = f"{_DEEP} --strides 1 1 2 2 2 --se-ratios .25 .25 .25 .25 .25 --optimizer sgd"
_AUTHOR_ROWS = (  # (options, epochs, restart period or 0) of a run; see docs/assignments.md
    (  # strides of 2 where channels double
        f"{_PLAIN} --block convnext --channels 32 32 64 64 128 128 128 128 "
        "--strides 1 1 2 1 2 1 1 1 --optimizer sgd --lr .01",
        *(500, 20),
    ),
    (
        f"{_PLAIN} --channels 32 64 64 128 128 256 --strides 1 2 1 2 1 2 --optimizer sgd --lr .01",
        *(500, 20),
    ),
    (
        f"{_PLAIN} --channels 32 64 128 256 --strides 1 2 2 2 --stage-dropout .1 .1 .1 .1 "
        "--optimizer adamw --lr .01",
        *(500, 0),
    ),
    (
        f"{_DEEP} --strides 1 2 2 2 2 --se-ratios 0 0 .25 .25 .25 --optimizer adamw --lr .01",
        *(500, 5),
    ),
    *(
        (f"{_LAST} --lr {lr}", epochs, period)
        for epochs, period, lr in (
            *((500, 20, 0.01), (150, 20, 0.1), (150, 50, 0.01), (150, 60, 0.01)),
            *((95, 100, 0.01), (145, 150, 0.01), (195, 200, 0.01), (478, 20, 0.001)),
        )
    ),
)
PATIENCE = 100  # evaluations; runs with a longer restart period have that period as patience


def _reference_rows(scale: int = 1) -> tuple[str, ...]:
    """Options of each run of the grids `reference` (`scale` 1) and `reference_tenth` (10)."""
    rows = []
    for words, epochs, period in _AUTHOR_ROWS:
        patience, schedule = max(PATIENCE, period) // scale, "plateau"
        if scale > 1:
            period = max(period // scale, 1) if period else 0
            cycle = period or 1
            epochs = round(epochs / scale / cycle) * cycle
        if period:
            schedule = f"restarts --restart-period {period}"
        rows.append(f"{words} --epochs {epochs} --patience {patience} --schedule {schedule}")
    return tuple(rows)


if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*registry.names("backbone", "staged")]


@dataclass(frozen=True)
class Config(BackboneOptions, ClassWeightOptions):
    """Classify faces, by embeddings that can also compare identities not seen in training."""

    HPARAMS: ClassVar = ("dropout", "embedding_loss_weight")
    CUTOFFS: ClassVar = {"accuracy": (0.9, 0.84, 0.82), "verification": (0.55, 0.49, 0.3)}
    GRIDS: ClassVar = {
        "arch": "--model resnet18 mobilenet_v2 bottleneck convnext",
        "loss": (
            "--embedding-loss none",
            "--embedding-loss center --embedding-loss-weight .003",
            *(
                f"--embedding-loss {name} --embedding-loss-weight 1 --samples-per-class 4"
                for name in ("contrastive", "triplet_hard", "triplet_semihard")
            ),
        ),
        "head": "--head softmax arcface cosface l_softmax lgm",
        "opt": "--optimizer sgd adamw --lr 0.1 0.01 0.001",
        "schedule": "--schedule restarts --restart-period 5 20 50 60 100 150 200",
        "dropout": "--model bottleneck --stage-dropout 0,0,0,0,0 .1,.1,.1,.1,.1 .2,0,.2,0,.2",
        "squeeze": "--model bottleneck --se-ratios 0,0,0,0,0 0,0,.25,.25,.25 .25,.25,.25,.25,.25",
        "act": "--model bottleneck --activation relu relu6 gelu",
        "reference": _reference_rows(),
        "reference_tenth": _reference_rows(10),
    }

    root: str = ""
    """folder or tar file that contains a folder of images for each identity"""
    size: int = 112
    """side of the network's input in pixels"""
    stream: bool = False
    """read images from disk during training instead of holding them in memory; needs the package
    grain: pip install jaxdet[data]"""
    image_cache: str = ""
    """--stream: folder in which decoded and resized images are kept, height x width x 3 bytes each,
    so that later epochs and runs need not decode them; several runs may share it; empty: none"""
    identities: int = 0
    """number of identities to train on, in the order of their names; the remaining identities form
    the split others; 0: all"""
    val_fraction: float = 0.1
    """fraction of each identity's images that is set aside for validation, if the data have no
    split val; with 0, validation uses the training images, so evaluate the last checkpoint, not the
    best"""
    test_fraction: float = 0.2
    """fraction of each identity's images that is set aside for the test, unless the data have a
    split test, or both train and val; if there are no test images, the test uses the validation
    images"""
    train_fraction: float = 1.0
    """fraction of each identity's training images that is used; at least one image is used"""
    split_seed: int = 0
    """seed of the random splits and of the random choice of --train-fraction"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with files that cannot be read as images: report them and leave them out (skip),
    or stop (error)"""
    model: Model = "resnet18"
    """backbone of the network"""
    width_multiplier: float = 0.5
    """resnets: factor by which the number of channels is multiplied; must be 1 with published
    --weights"""
    normalization: Literal["auto", "centered", "published"] = "auto"
    """normalization of images: to the range -1 to 1 (centered), or as the published weights of the
    model expect (published); auto: published with published --weights, else centered"""
    backbone_stages: int = 0
    """number of stages of the backbone that are built, counted from the stem; 0: all"""
    channels: tuple[int, ...] = ()
    """bottleneck, convnext: number of channels in each stage; empty: the model's default"""
    blocks: tuple[int, ...] = ()
    """bottleneck, convnext: number of blocks in each stage; empty: the model's default"""
    strides: tuple[int, ...] = ()
    """bottleneck, convnext: stride of each stage; empty: the model's default"""
    dilations: tuple[int, ...] = ()
    """bottleneck, convnext: dilation of the spatial convolutions in each stage; empty: the model's
    default"""
    se_ratios: tuple[float, ...] = ()
    """bottleneck, convnext: for each stage, the hidden channels of squeeze-and-excitation as a
    fraction of the stage's channels, usually .25; 0: no squeeze-and-excitation; empty: the model's
    default"""
    stage_dropout: tuple[float, ...] = ()
    """bottleneck: dropout rate after each stage; convnext: for each stage, the probability that an
    image skips the residual branch of a block (stochastic depth); empty: the model's default"""
    block: Literal["inverted", "convnext"] = "inverted"
    """bottleneck: type of the blocks, inverted residual (inverted) or ConvNeXt block (convnext)"""
    depthwise: bool = True
    """bottleneck, convnext: make the spatial convolutions of the blocks depthwise"""
    activation: Literal["default", "relu", "relu6", "gelu"] = "default"
    """bottleneck, convnext: activation; default: relu6 for bottleneck, gelu for convnext"""
    embedding_dim: int = 256
    """dimension of the embeddings, which a linear layer computes from the averaged last feature
    map; 0: no such layer, the average is the embedding"""
    bnneck: bool = False
    """apply batch norm to the embedding (BNNeck, arXiv:1903.07071)"""
    fc_widths: tuple[int, ...] = ()
    """number of units of each hidden layer of the classifier; empty: a linear classifier"""
    dropout: float = 0.0
    """dropout rate of the embedding and of the hidden layers in the classifier; 0: no dropout"""
    head: Literal["softmax", "arcface", "cosface", "l_softmax", "lgm"] = "softmax"
    """how logits are computed in training: by a linear layer (softmax), or with a margin for the
    true identity (arcface, cosface, l_softmax, lgm)"""
    logit_scale: float = 0.0
    """arcface, cosface: factor that turns cosines into logits; 0: 64, the value of the papers,
    which suits many identities"""
    margin: float = 0.0
    """margin of --head, for l_softmax 1, 2, 3 or 4; softmax has none; 0: the value of the head's
    paper"""
    embedding_loss: Literal["none", "center", "contrastive", "triplet_hard", "triplet_semihard"] = (
        "none"
    )
    """metric-learning loss of the embeddings that is added to the classification loss"""
    embedding_loss_weight: float = 0.003
    """weight of --embedding-loss: 0.003 for center, as in its paper; about 1 for contrastive and
    the triplet losses"""
    samples_per_class: int = 0
    """number of images per identity in a batch (PK sampling), usually 4 for contrastive and the
    triplet losses; 0: images are shuffled regardless of their identities"""
    label_smoothing: float = 0.0
    """fraction of the target probability that is spread evenly over all identities; 0: no label
    smoothing"""
    tta: bool = True
    """test-time augmentation: add the embedding of the mirror image to the embedding of an image"""
    flip: bool = True
    """flip half of the training images horizontally"""
    scale: tuple[float, float] = (0.9, 1.1)
    """range of the random factor by which training images are scaled; 1 1 with --shift 0: no
    scaling"""
    shift: float = 0.06
    """largest random translation of training images, as a fraction of the image's side; 0: none"""
    rotate: float = 0.0
    """largest random rotation of training images, in degrees; 0: no rotation"""
    brightness_contrast: float = 0.2
    """random change of brightness, by at most this fraction of the range of pixel values, and of
    contrast, by at most this fraction; 0: no change"""
    cutout: float = 0.0
    """largest side of a random gray rectangle in each training image, as a fraction of the image's
    side; 0: no rectangle"""
    best: Literal["accuracy", "auc"] = "accuracy"
    epochs: int = 60
    batch: int = 32
    eval_batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.99


def network(config: Config, classes: int = 40) -> "tuple[nn.Module, tuple[int, ...]]":
    """The network of a `Config`, and its input shape (B, H, W, C)."""
    from jaxdet.models.embedder import Embedder
    from jaxdet.models.layers import layer_options

    _check_stage_options(config)
    options = layer_options(bfloat16=config.bfloat16, conv=config.conv)
    net = Embedder(
        features=partial(_features(config), **options),
        classes=classes,
        dim=config.embedding_dim,
        bnneck=config.bnneck,
        hidden=config.fc_widths,
        variances=config.head == "lgm",
        rates=(1.0,) * (1 + len(config.fc_widths)),  # multiplied by `dropout`, which is traced
        dtype=options["dtype"],
    )
    return net, (1, config.size, config.size, 3)


def _features(config: Config) -> "Callable[..., nn.Module]":
    if config.model in STAGED:
        return partial(registry.backbone(config.model), **_stage_fields(config))
    fields: dict[str, Any] = {
        "frozen_stages": len(_frozen_stages(config)),
        "freeze_bn": config.freeze_bn,
    }
    if config.model.startswith("resnet"):
        fields["width"] = round(64 * config.width_multiplier)
    return partial(registry.backbone(config.model, stages=config.backbone_stages), **fields)


def _stage_fields(config: Config) -> dict[str, Any]:
    """The fields of a network in `STAGED` that the options set, by name."""
    from flax import linen as nn

    from jaxdet.models import convnext, layers
    from jaxdet.models.inverted_residual import InvertedResidual

    fields: dict[str, Any] = {
        field: getattr(config, name) for name, field in PER_STAGE.items() if getattr(config, name)
    }
    if config.activation != "default":
        fields["activation"] = getattr(nn, config.activation)
    if config.model == "convnext":
        fields["kernel_init"] = layers.KAIMING_FAN_OUT
    use_convnext = "convnext" in (config.model, config.block)
    block = convnext.Block if use_convnext else InvertedResidual
    return {**fields, "block": partial(block, depthwise=config.depthwise)}


def _frozen_stages(config: Config) -> tuple[str, ...]:
    return registry.frozen_stages(config.model, config.freeze_stages, built=config.backbone_stages)


def _normalization(config: Config) -> "Normalization":
    """The normalization that `config.normalization` stands for."""
    from jaxdet.data.normalize import CENTERED

    auto = "published" if _has_published_weights(config) else "centered"
    chosen = auto if config.normalization == "auto" else config.normalization
    return CENTERED if chosen == "centered" else registry.normalization(config.model)


def _has_published_weights(config: Config) -> bool:
    """Whether `--weights` names published weights, not another run."""
    return bool(config.weights) and not config.weights.startswith(RUN)


def summarize(root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(a table row per identity, notes) on the data at `root`, for `jaxdet data inspect`."""
    from jaxdet.data import faces

    return faces.summarize(root)


def build(config: Config) -> "Experiment":
    """Read the data of a `Config`, and build its experiment."""
    from jaxdet.data import faces

    data = faces.read_dataset(config)
    check_notes(config, data.notes)
    return replace(from_splits(config, data.classes, data.splits), notes=data.notes)


def from_splits(
    config: Config, classes: tuple[str, ...], splits: "dict[str, Source]"
) -> "Experiment":
    """The experiment of a `Config` on given data, {split: source}."""
    from jaxdet.configs import class_weights, starting_weights
    from jaxdet.data import images, sampler
    from jaxdet.tasks.verify import VerificationTask
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    normalization = _normalization(config)
    margins = (("scale", config.logit_scale), ("margin", config.margin))

    def pk_order(source: "Source") -> sampler.BatchOrder:
        return sampler.pk_sampler(source.labels, config.samples_per_class)

    normalized = normalization.formula
    stages = config.backbone_stages
    return Experiment(
        task=VerificationTask(
            net,
            len(classes),
            transform=_transform(config),
            head=config.head,
            embedding_loss=config.embedding_loss,
            margins=tuple((name, value) for name, value in margins if value),
            label_smoothing=config.label_smoothing,
            tta=config.tta,
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
        name="faces",
        read_image=partial(images.read_resized_float, side=config.size),
        load_pretrained=starting_weights("faces", config, classes, normalized, stages=stages),
        lr_multiplier=registry.lr_multiplier(_frozen_stages(config), config.backbone_lr),
        make_order=pk_order if config.samples_per_class else None,
    )


def _transform(config: Config) -> Callable:
    """The function that augments one training image with values in [0, 255]."""
    import jax
    import jax.numpy as jnp

    from jaxdet.ops import augment

    standard = partial(
        augment.standard,
        flip=config.flip,
        scale=config.scale,
        translate=config.shift,
        lighting=config.brightness_contrast,
    )
    limit = config.rotate * jnp.pi / 180

    def transformed(key, image):
        standard_key, cutout_key, angle_key = (jax.random.fold_in(key, i) for i in range(3))
        image = augment.on_image(standard)(standard_key, image / jnp.float32(255))
        if limit:
            angle = jax.random.uniform(angle_key, minval=-limit, maxval=limit)
            image = augment.rotate(image, angle)
        if config.cutout:
            cutout = partial(augment.cutout, size=config.cutout)
            image = augment.on_image(cutout)(cutout_key, image)
        return 255 * image

    return transformed


def table_row(config: Config) -> dict[str, Any]:
    """A run's row in the table of `jaxdet compare --report`: network, schedule, optimizer."""
    staged = config.model in STAGED
    parts = [config.model]
    if staged:
        block = f"{config.block} blocks, " if config.model == "bottleneck" else ""
        parts.append(f"{block}{'with' if config.depthwise else 'without'} depthwise")
        for name in _SHAPE_OPTIONS:
            values = getattr(config, name)
            parts += [f"{name} {_format_values(values)}"] if values else []
    elif config.model.startswith("resnet"):
        parts.append(f"width {config.width_multiplier:g}")
    if config.weights:
        frozen = f", {config.freeze_stages} stages frozen" if config.freeze_stages else ""
        parts.append(f"weights of {config.weights}{frozen}")
    dropout = f"{_format_values(config.stage_dropout)}, " if config.stage_dropout else ""
    return {
        "architecture": ", ".join(parts),
        "dropout": f"{dropout}{config.dropout:g} of the embedding",
        "scheduler": _describe_schedule(config),
        "optimizer": config.optimizer,
        "lr": config.lr,
        "SE": _format_values(config.se_ratios) or "none" if staged else "the model's",
        "activation": config.activation,
    }


def _describe_schedule(config: Config) -> str:
    match config.schedule:
        case "restarts":
            return f"restarts, {config.restart_period} epochs, times {config.restart_factor}"
        case "plateau":
            when = f"after {config.plateau_patience}, {config.plateau_metric}"
            return f"plateau, {config.lr_decay:g} {when}"
    return config.schedule


def check(config: Config) -> None:
    """Raise InputError for invalid options, before any image is read."""
    _check_stage_options(config)
    _check_backbone_options(config)
    if config.size < MIN_SIZE:
        raise InputError(f"--size must be at least {MIN_SIZE} pixels, got {config.size}")
    check_fractions(config, "val_fraction", "test_fraction", "dropout", "label_smoothing")
    check_fractions(config, "shift", "brightness_contrast", "cutout")
    check_train_fraction(config)
    if not 0 <= config.rotate <= 180:
        raise InputError(f"--rotate must be from 0 to 180 degrees, got {config.rotate:g}")
    check_scale(config)
    parse_class_weights(config.class_weights)
    check_minima(config, identities=0, samples_per_class=0)
    if config.batch % max(config.samples_per_class, 1):
        raise InputError(
            f"--samples-per-class must divide --batch {config.batch}, got "
            f"{config.samples_per_class}"
        )
    if config.samples_per_class and config.sampling != "shuffled":
        raise InputError(
            f"--samples-per-class {config.samples_per_class} needs --sampling shuffled, got "
            f"{config.sampling}"
        )
    if config.fc_widths and config.head != "softmax":
        raise InputError(f"--fc-widths needs --head softmax, got {config.head}")
    if config.logit_scale and config.head not in ("arcface", "cosface"):
        raise InputError(f"--logit-scale needs --head arcface or cosface, got {config.head}")
    if config.head == "l_softmax" and config.margin not in (0, 1, 2, 3, 4):
        raise InputError(
            f"--margin must be 1, 2, 3 or 4 for --head l_softmax, got {config.margin:g}"
        )


def _check_backbone_options(config: Config) -> None:
    if config.model in STAGED:
        names = ("freeze_stages", "freeze_bn", "backbone_stages")
        for name in ("weights", *names) if _has_published_weights(config) else names:
            if getattr(config, name):
                raise InputError(
                    f"{option(name)} needs a --model with stages that can be frozen, such as "
                    f"resnet18, got {config.model}"
                )
        return
    count = len(registry.stage_names(config.model))
    check_backbone(config, count)
    if config.backbone_stages and not 2 <= config.backbone_stages <= count:
        raise InputError(
            f"--backbone-stages must be from 2 to {count} for --model {config.model}, got "
            f"{config.backbone_stages}"
        )
    is_resnet = config.model.startswith("resnet")
    if _has_published_weights(config) and is_resnet and config.width_multiplier != 1:
        raise InputError(
            f"--width-multiplier must be 1 with published --weights, got "
            f"{config.width_multiplier:g}"
        )


def _check_stage_options(config: Config) -> None:
    changed = [name for name in STAGE_OPTIONS if getattr(config, name) != getattr(Config, name)]
    if config.model not in STAGED:
        if changed:
            raise InputError(
                f"{option(changed[0])} needs --model {' or '.join(STAGED)}, got {config.model}"
            )
        return
    if config.model == "convnext" and config.block != "inverted":
        raise InputError("--block needs --model bottleneck, got convnext")
    count = _stage_count(config)
    for name in PER_STAGE:
        values = getattr(config, name)
        if values:
            _check_stage_values(name, values, count)
    strides = config.strides or (1, *(2,) * (count - 1))  # convnext's, which do not pad
    smallest = STEM_STRIDE * prod(strides)
    if config.model == "convnext" and config.size < smallest:
        raise InputError(
            f"--size must be at least {smallest} pixels for a stem of stride {STEM_STRIDE} and "
            f"--strides {_format_values(strides)}, got {config.size}"
        )


def _stage_count(config: Config) -> int:
    """Number of stages; InputError if --channels changes it and a value per stage is missing."""
    default = len(registry.get(config.model).build().widths)
    count, needed = len(config.channels) or default, _NEEDED[config.model]
    if count != default and not getattr(config, needed):
        raise InputError(
            f"{option(needed)} must be {count} values, one for each of --channels "
            f"{_format_values(config.channels)}, got none"
        )
    return count


def _check_stage_values(name: str, values: tuple[float, ...], count: int) -> None:
    """Raise InputError unless there is one value per stage, all within the option's range."""
    got = f"got {_format_values(values)}"
    if len(values) != count:
        raise InputError(f"{option(name)} must be {count} values, one per stage, {got}")
    match name:
        case "se_ratios":
            fit, values_range = all(0 <= value <= 1 for value in values), "from 0 to 1"
        case "stage_dropout":
            fit, values_range = all(0 <= value < 1 for value in values), "at least 0 and below 1"
        case _:
            fit, values_range = min(values) >= 1, "at least 1"
    if not fit:
        raise InputError(f"{option(name)} must be {values_range}, {got}")


def _format_values(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
