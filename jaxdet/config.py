"""Options that several systems share, and their checks; standard library only.

A configuration is a frozen dataclass: its fields are the flags of the command line, the text below
a field is its help, and its values are kept as JSON in the run folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, TypeVar

from jaxdet.errors import InputError

Schedule = Literal["cosine", "restarts", "piecewise", "constant", "plateau"]

OPTIMIZER_HPARAMS = ("lr", "momentum", "beta2", "weight_decay")  # may be traced


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training loop, shared by every system.

    HPARAMS: fields that are traced hyper-parameters of the task, kept in every state by name.
    SUBSET_FIELDS: fields that select a part of the training set; see `Experiment.subset`.
    EVAL_ONLY: fields that affect evaluation only; a sweep over them trains once.
    GRIDS: named grids of `sweep --grid`: options with several values, or a tuple with the options
    of one run per entry.
    LIMITS: upper limits, by column of `compare`, within which its report names the best network.
    CUTOFFS: lower limits of "high", "medium" and "low", by score.
    """

    HPARAMS: ClassVar[tuple[str, ...]] = ()
    SUBSET_FIELDS: ClassVar[tuple[str, ...]] = ()
    EVAL_ONLY: ClassVar[tuple[str, ...]] = ()
    GRIDS: ClassVar[dict[str, str | tuple[str, ...]]] = {}
    LIMITS: ClassVar[dict[str, float]] = {}
    CUTOFFS: ClassVar[dict[str, tuple[float, float, float]]] = {}

    epochs: int = 10
    """passes over the training set"""
    batch: int = 64
    """images per training step, over all devices"""
    eval_batch: int = 250
    """images per evaluation step, over all devices"""
    devices: int = 0
    """number of devices; 0 uses all of this machine"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum"""
    lr: float = 1e-3
    """peak learning rate"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up: one cosine, cosine restarts, piecewise constant, constant,
    or lowered when validation reaches a plateau"""
    warmup: int = 0
    """updates of linear warm-up"""
    decay_at: tuple[float, ...] = (0.5, 0.75)
    """piecewise: fractions of the run at which the learning rate is lowered"""
    lr_decay: float = 0.1
    """piecewise, plateau: factor by which the learning rate is lowered"""
    plateau_patience: int = 10
    """plateau: evaluations without improvement before the learning rate is lowered"""
    plateau_metric: Literal["loss", "score"] = "loss"
    """plateau: validation loss, or 1 - the score of --best"""
    restart_period: int = 20
    """restarts: epochs of the first cosine"""
    restart_factor: int = 1
    """restarts: length of each cosine as a multiple of the previous one"""
    momentum: float = 0.9
    """momentum of SGD, or beta 1 of Adam"""
    beta2: float = 0.999
    """beta 2 of Adam"""
    weight_decay: float = 0.0
    """decoupled weight decay of kernels"""
    clip: float = 0.0
    """largest global norm of the gradient; 0 does not clip"""
    accumulate: int = 1
    """steps whose mean gradient makes one update"""
    ema: float = 0.0
    """decay of the moving averages of parameters and batch statistics, which are then evaluated; 0
    keeps none"""
    bfloat16: bool = False
    """compute in bfloat16; parameters stay float32"""
    conv: Literal["auto", "lax"] = "auto"
    """convolutions on a CPU: the fastest algorithm for each shape, or XLA's own"""
    seed: int = 0
    """root of all random keys and of the order of the data"""
    eval_first: bool = True
    """evaluate before the first epoch"""
    best: str = "accuracy"
    """validation score that selects the best checkpoint; ties go to the lower loss"""
    patience: int = 0
    """stop after this many evaluations without improvement; 0 never stops early"""
    save_minutes: float = 10.0
    """longest time between two checkpoints, in minutes"""
    time_budget: float = 0.0
    """seconds for the whole run, evaluations included, over all its processes; --epochs is then
    derived from it; 0 sets no limit"""
    max_params: int = 0
    """largest number of trainable parameters; 0 sets no limit"""
    comment: str = ""
    """free text, shown as a column by sweep and compare"""


@dataclass(frozen=True)
class BackboneOptions(TrainConfig):
    """Options of systems whose backbone, `model`, may start from pretrained weights."""

    weights: str = ""
    """pretrained weights of the backbone: a .safetensors or .pth file, hf:OWNER/NAME, or
    package:lite0"""
    freeze_stages: int = 0
    """number of stages of the backbone, from the first, that are not trained; -2: all but the last
    two"""
    freeze_bn: bool = False
    """use the running statistics of the backbone's batch norms in training too"""
    backbone_lr: float = 1.0
    """factor of the learning rate in the backbone"""


@dataclass(frozen=True)
class AugmentOptions(TrainConfig):
    """Augmentation of training images and their boxes; 0, or a range of 1 1, turns one off."""

    flip: bool = True
    """flip half of the training images horizontally"""
    vflip: bool = False
    """flip half of the training images vertically"""
    scale: tuple[float, float] = (0.75, 1.3)
    """range of the random scale of training images"""
    shift: float = 0.1
    """largest random translation, as a fraction of a side"""
    crop_area: tuple[float, float] = (1.0, 1.0)
    """range of the area that random crops keep, as fractions; half of the images are cropped"""
    rotate: float = 0.0
    """largest random rotation in degrees; half of the images are rotated"""
    brightness_contrast: float = 0.2
    """largest random change of brightness and contrast, as a fraction"""
    color_jitter: float = 0.2
    """largest random change of saturation, as a fraction; hue changes by a tenth of it"""
    noise: float = 0.0
    """largest standard deviation of Gaussian noise"""
    cutout_holes: int = 0
    """number of gray rectangles that hide parts of an image"""
    photometric: Literal["all", "one", "some"] = "all"
    """apply all of brightness-contrast, color-jitter, noise and cutout to an image, one of them, or
    a random half"""
    mosaic: float = 0.0
    """probability that a training image is a mosaic of four"""
    mixup: float = 0.0
    """probability that a training image is mixed with another"""
    close_mosaic_epochs: int = 5
    """last epochs, without mosaic and mixup"""


Kind = TypeVar("Kind", bound=TrainConfig)

_last_read: ContextVar[dict | None] = ContextVar("last_read", default=None)


@contextmanager
def reuse_data() -> Iterator[None]:
    """Inside, each `cached_reader` keeps its last result for configurations with equal fields."""
    token = _last_read.set({})
    try:
        yield
    finally:
        _last_read.reset(token)


def cached_reader(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: make a reader of data a function of these fields of a configuration alone.

    The reader is called with a namespace of the named fields and nothing else.  Its result must not
    be modified: inside `reuse_data` it is shared.
    """

    def decorate(read: Callable[[SimpleNamespace], Any]) -> Callable[[Any], Any]:
        @wraps(read)
        def cached(config: Any) -> Any:
            values, cache = {name: getattr(config, name) for name in names}, _last_read.get()
            if cache is None:
                return read(SimpleNamespace(**values))
            if read not in cache or cache[read][0] != values:
                cache.pop(read, None)  # free its memory before reading
                cache[read] = values, read(SimpleNamespace(**values))
            return cache[read][1]

        return cached

    return decorate


def task_hparams(config: TrainConfig) -> dict[str, float]:
    """Traced hyper-parameters of the task of a configuration, by field name."""
    return {name: getattr(config, name) for name in config.HPARAMS}


def traceable_fields(kind: type[TrainConfig]) -> set[str]:
    """Fields in which runs of one compiled program may differ."""
    return {*kind.HPARAMS, *kind.SUBSET_FIELDS, *OPTIMIZER_HPARAMS, "seed", "comment"}


def largest_subset(configs: Sequence[TrainConfig]) -> TrainConfig:
    """Of configurations that differ in `traceable_fields` only, one that uses the most data."""
    return max(configs, key=lambda config: [getattr(config, name) for name in config.SUBSET_FIELDS])


def option(name: str) -> str:
    """The command-line spelling of a field, such as `--eval-batch`."""
    return f"--{name.replace('_', '-')}"


MINIMA = {
    **dict.fromkeys(("epochs", "batch", "eval_batch", "accumulate"), 1),
    **dict.fromkeys(("restart_period", "restart_factor", "plateau_patience"), 1),
    **dict.fromkeys(("devices", "lr", "warmup", "momentum", "weight_decay", "clip", "ema"), 0),
    **dict.fromkeys(("seed", "patience", "save_minutes", "lr_decay", "time_budget"), 0),
    "max_params": 0,
}


def check(config: TrainConfig) -> None:
    """Refuse values that no training can use; InputError names the option."""
    check_minima(config, **MINIMA)
    if config.ema >= 1:
        raise InputError(f"--ema must be below 1, such as 0.999, got {config.ema:g}")
    if config.schedule == "plateau" and not 0 < config.lr_decay < 1:
        raise InputError(f"--lr-decay must be between 0 and 1, got {config.lr_decay:g}")


def check_minima(config: TrainConfig, **minima: float) -> None:
    """Refuse values below a minimum, given by field name; NaN is refused too."""
    for name, least in minima.items():
        value = getattr(config, name)
        if not value >= least:
            raise InputError(f"{option(name)} must be at least {least}, got {value}")


def check_fractions(config: TrainConfig, *names: str) -> None:
    """Refuse values of these fields outside [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise InputError(f"{option(name)} must be at least 0 and below 1, got {value:g}")


def check_train_fraction(config: Any) -> None:
    """Refuse a `train_fraction` outside (0, 1]."""
    if not 0 < config.train_fraction <= 1:
        raise InputError(
            f"--train-fraction must be above 0 and at most 1, got {config.train_fraction:g}"
        )


def check_scale(config: Any) -> None:
    """Refuse a `scale` that is not a range of positive factors."""
    low, high = config.scale
    if not 0 < low <= high:
        raise InputError(
            f"--scale must be two positive factors, the smaller first, got {low:g} {high:g}"
        )


def check_notes(config: Any, notes: Sequence[str]) -> None:
    """Refuse data with `notes` about unusable files or rows under `--on-invalid error`."""
    if notes and config.on_invalid == "error":
        raise InputError(f"{notes[0]} ({len(notes)} such); --on-invalid skip leaves them out")


def check_backbone(config: Any, stages: int) -> None:
    """Refuse `BackboneOptions` that do not fit a backbone with this many stages or each other."""
    if not abs(config.freeze_stages) <= stages:
        raise InputError(
            f"--freeze-stages must be from {-stages} to {stages} for --model {config.model}, got "
            f"{config.freeze_stages}"
        )
    if config.freeze_stages and not config.weights:
        raise InputError(
            f"--freeze-stages {config.freeze_stages} needs --weights: without them the frozen "
            f"stages would keep their random values"
        )


def check_augment(config: AugmentOptions) -> None:
    """Refuse augmentation that cannot be applied; InputError names the option."""
    check_scale(config)
    check_fractions(config, "shift", "brightness_contrast", "color_jitter", "noise")
    low, high = config.crop_area
    if not 0 < low <= high <= 1:
        raise InputError(
            f"--crop-area must be two fractions, the smaller first, got {low:g} {high:g}"
        )
    for name, most in (("mosaic", 1), ("mixup", 1), ("rotate", 180), ("cutout_holes", 100)):
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise InputError(f"{option(name)} must be from 0 to {most}, got {value:g}")
    check_minima(config, close_mosaic_epochs=0)
    if (config.mosaic or config.mixup) and config.close_mosaic_epochs >= config.epochs:
        raise InputError(
            f"--close-mosaic-epochs must be below --epochs {config.epochs} with mosaic or mixup, "
            f"got {config.close_mosaic_epochs}"
        )


def from_json(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """The configuration of class `kind` with values from JSON, where tuples became lists.

    ValueError names fields that this version does not know.
    """
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**options)
