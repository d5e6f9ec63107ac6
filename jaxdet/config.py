"""Options that several systems share, and their checks, with the standard library only.

A configuration is a frozen dataclass.  Its fields are options of the command line, the text below a
field is its help, and the values are stored as JSON in the run folder.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from jaxdet import files
from jaxdet.errors import InputError

Schedule = Literal["cosine", "restarts", "piecewise", "constant", "plateau"]

Optimizer = Literal["adamw", "adam", "sgd", "momentum", "rmsprop"]

RUN = "run:"  # prefix of --weights that names a run folder
OPTIMIZER_HPARAMS = ("lr", "momentum", "beta2", "weight_decay")  # fields that may be traced


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training loop, shared by every system.

    A system sets these class variables:

    HPARAMS: fields that are traced hyper-parameters of the task, stored by name in the state.
    SUBSET_FIELDS: fields that select a part of the training set; see `Experiment.subset`.
    EVAL_ONLY: fields that affect only evaluation; a sweep over these fields trains once.
    GRIDS: named grids of `sweep --grid`.  A grid is a text of options with several values, or a
      tuple with the text of the options of each run.
    LIMITS: {column of `compare`: upper limit}; `compare --report` names the best network within all
      limits.
    CUTOFFS: {score: lower limits of the levels "high", "medium" and "low"}.
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
    """images per evaluation step, over all devices; also called --test-batch"""
    steps_per_call: int = 0
    """training steps per call of the compiled program; signals, callbacks and the progress bar wait
    for a call to end; 0: one step on a CPU, and also with --stream or with several image sizes;
    otherwise as many steps as take 50 ms"""
    devices: int = 0
    """number of devices of each process; 0: all devices of its machine"""
    optimizer: Optimizer = "adamw"
    """AdamW, Adam, SGD with Nesterov momentum (sgd) or with plain momentum (momentum), or
    RMSprop"""
    lr: float = 1e-3
    """peak learning rate"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up: one cosine, cosine restarts, piecewise constant, constant,
    or lowered when validation reaches a plateau"""
    warmup: int = 0
    """number of parameter updates of the linear warm-up"""
    decay_at: tuple[float, ...] = (0.5, 0.75)
    """piecewise: fractions of the run at which the learning rate is lowered"""
    lr_decay: float = 0.1
    """piecewise, plateau: factor by which the learning rate is multiplied to lower it"""
    plateau_patience: int = 10
    """plateau: evaluations without improvement before the learning rate is lowered"""
    plateau_metric: Literal["loss", "score"] = "loss"
    """plateau: value that must fall, the validation loss (loss) or 1 minus the score of --best
    (score)"""
    restart_period: int = 20
    """restarts: number of epochs of the first cosine"""
    restart_factor: int = 1
    """restarts: length of each cosine as a multiple of the previous one"""
    momentum: float = 0.9
    """momentum of SGD and RMSprop, or beta 1 of Adam"""
    beta2: float = 0.999
    """beta 2 of Adam, or decay of the mean square of RMSprop"""
    weight_decay: float = 0.0
    """weight decay of kernels: decoupled for adamw and sgd; for the other optimizers an L2 penalty,
    whose gradient is added, as in PyTorch"""
    clip: float = 0.0
    """largest global norm of the gradient; 0: no clipping"""
    accumulate: int = 1
    """number of steps per parameter update; the update uses the mean of their gradients"""
    ema: float = 0.0
    """decay of the moving averages of parameters and batch statistics, which are evaluated in place
    of the latest values; 0: no moving averages"""
    bfloat16: bool = False
    """compute in bfloat16; parameters stay float32"""
    conv: Literal["auto", "lax"] = "auto"
    """convolutions on a CPU: the fastest algorithm for each shape (auto), or XLA's own (lax)"""
    seed: int = 0
    """root of all random keys and of the order of the data"""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """images of an epoch: each once (shuffled), or images with rare classes more often and others
    less often (balanced: repeat-factor sampling)"""
    balance_below: float = 0.5
    """balanced: threshold t for the fraction f of training images that have a class; images with a
    class whose f is below t are sampled about sqrt(t / f) times as often"""
    eval_first: bool = True
    """evaluate before the first epoch"""
    count_operations: bool = False
    """after each epoch, print and record the additions, multiplications, maxima and operations per
    second of the epoch's training and evaluation"""
    monitor: Literal["val", "test"] = "val"
    """splits that are evaluated during training: validation (val), or validation and test (test);
    test scores are only recorded: they do not select checkpoints or end the run"""
    best: str = "accuracy"
    """validation score that selects the best checkpoint; ties go to the lower loss"""
    patience: int = 0
    """number of evaluations without improvement after which the run ends; 0: no early stopping"""
    save_minutes: float = 10.0
    """longest time between two checkpoints, in minutes"""
    time_budget: float = 0.0
    """time limit of the run in seconds, including evaluations and the time used before a resume; it
    replaces --epochs by the number of epochs that fit; 0: no limit"""
    max_params: int = 0
    """maximum number of parameters, including frozen stages; 0: no limit"""
    weights: str = ""
    """run:DIR, or a .safetensors file of `jaxdet export`, to start from the variables of
    another run; class outputs are matched by the names of the classes"""
    comment: str = ""
    """free text, shown as a column by sweep and compare"""


@dataclass(frozen=True)
class ClassWeightOptions(TrainConfig):
    """Options of systems whose losses may be weighted by class."""

    class_weights: str = ""
    """factors of the training losses of each class: of its images or, for detect, of the cells that
    are assigned to its objects; "balanced", inversely proportional to the number of training images
    (objects) of the class, or one number per class, such as 1,1,5, in the order of the classes;
    empty: no factors"""


@dataclass(frozen=True)
class BackboneOptions(TrainConfig):
    """Options of systems whose backbone, `model`, may start from pretrained weights."""

    weights: str = ""
    """pretrained weights of the backbone: a .safetensors or .pth file, hf:OWNER/NAME, or
    package:lite0; or the variables of a run, as run:DIR or a .safetensors file of `jaxdet export`,
    whose class outputs are matched by the names of the classes"""
    freeze_stages: int = 0
    """number of stages of the backbone, counted from the first, that are not trained; a negative
    number -n freezes all but the last n: -2 leaves the last two trainable"""
    freeze_bn: bool = False
    """also in training, use the running statistics of the backbone's batch norms"""
    backbone_lr: float = 1.0
    """learning rate of the backbone as a factor of --lr"""


@dataclass(frozen=True)
class AugmentOptions(TrainConfig):
    """Augmentation of training images and their boxes; 0, or the range 1 1, turns an option off."""

    flip: bool = True
    """flip half of the training images horizontally"""
    vflip: bool = False
    """flip half of the training images vertically"""
    scale: tuple[float, float] = (0.75, 1.3)
    """range of the random factor by which training images are scaled; 1 1 with --shift 0: no
    scaling"""
    shift: float = 0.1
    """largest random translation of training images, as a fraction of the image's side; 0: none"""
    crop_area: tuple[float, float] = (1.0, 1.0)
    """range of the area of random crops, as fractions of the image; half of the images are
    cropped"""
    rotate: float = 0.0
    """largest random rotation in degrees; half of the images are rotated"""
    brightness_contrast: float = 0.2
    """random change of brightness, by at most this fraction of the range of pixel values, and of
    contrast, by at most this fraction; 0: no change"""
    color_jitter: float = 0.2
    """random change of saturation, by at most this fraction, and rotation of hue, by at most this
    fraction of a tenth of a turn; 0: no change"""
    noise: float = 0.0
    """largest standard deviation of Gaussian noise, as a fraction of the range of pixel values"""
    cutout_holes: int = 0
    """number of gray rectangles that hide parts of a training image"""
    photometric: Literal["all", "random_order", "one", "some"] = "all"
    """which of brightness-contrast, color-jitter, noise and cutout an image gets: all in this
    order, all in random order, one at random, or half of them (rounded up) at random"""
    mosaic: float = 0.0
    """probability that a training image is a mosaic of four"""
    mixup: float = 0.0
    """probability that a training image is mixed with another"""
    close_mosaic_epochs: int = 5
    """number of final epochs without mosaic and mixup"""


Kind = TypeVar("Kind", bound=TrainConfig)

_last_read: ContextVar[dict | None] = ContextVar("last_read", default=None)


@contextmanager
def reuse_data() -> Iterator[None]:
    """A context in which a `cached_reader` returns its last result if called with equal fields."""
    token = _last_read.set({})
    try:
        yield
    finally:
        _last_read.reset(token)


def cached_reader(*names: str, **derived: Callable[[Any], Any]) -> Callable[[Callable], Callable]:
    """Decorate a reader of data that depends only on the named fields of a configuration.

    The reader is called with a namespace of these fields and of the values `derived`, functions of
    the configuration, such as `letterbox=lambda config: ...`.  Its result must not be modified,
    because inside `reuse_data` it is shared.
    """

    def decorate(read: Callable[[SimpleNamespace], Any]) -> Callable[[Any], Any]:
        @wraps(read)
        def cached(config: Any) -> Any:
            values, cache = {name: getattr(config, name) for name in names}, _last_read.get()
            values |= {name: function(config) for name, function in derived.items()}
            if cache is None:
                return read(SimpleNamespace(**values))
            if read not in cache or cache[read][0] != values:
                cache.pop(read, None)  # free its memory before reading
                cache[read] = values, read(SimpleNamespace(**values))
            return cache[read][1]

        return cached

    return decorate


def task_hparams(config: TrainConfig) -> dict[str, float]:
    """The traced hyper-parameters of a configuration's task, as {field: value}."""
    return {name: getattr(config, name) for name in config.HPARAMS}


def traceable_fields(kind: type[TrainConfig]) -> set[str]:
    """Fields in which runs that share a compiled program may differ."""
    return {*kind.HPARAMS, *kind.SUBSET_FIELDS, *OPTIMIZER_HPARAMS, "seed", "comment"}


def largest_subset(configs: Sequence[TrainConfig]) -> TrainConfig:
    """Choose the configuration with the most data; all differ in `traceable_fields` only."""
    return max(configs, key=lambda config: [getattr(config, name) for name in config.SUBSET_FIELDS])


def option(name: str) -> str:
    """The command-line spelling of a field, such as `--eval-batch`."""
    return f"--{name.replace('_', '-')}"


def to_words(config: TrainConfig) -> list[str]:
    """The command-line arguments for a configuration: its values that differ from the defaults."""
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words.append(option(field.name))
            words += [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return words


MAX_INT = 2**31 - 1  # a compiled program has integers of 32 bits
MAX_SEED = 2**32 - 1  # jax.random.key takes larger seeds modulo 2^32

MINIMA = {  # field -> its smallest valid value
    **dict.fromkeys(("epochs", "batch", "eval_batch", "accumulate"), 1),
    **dict.fromkeys(("restart_period", "restart_factor", "plateau_patience"), 1),
    **dict.fromkeys(("devices", "lr", "warmup", "momentum", "weight_decay", "clip", "ema"), 0),
    **dict.fromkeys(("seed", "patience", "save_minutes", "lr_decay", "time_budget"), 0),
    "steps_per_call": 0,
    "max_params": 0,
}


def check(config: TrainConfig) -> None:
    """Raise InputError, naming the option, for an invalid value."""
    check_minima(config, **MINIMA)
    _check_range(config)
    if not 0 < config.balance_below <= 1:
        raise InputError(
            f"--balance-below must be above 0 and at most 1, got {config.balance_below:g}"
        )
    if config.ema >= 1:
        raise InputError(f"--ema must be below 1, such as 0.999, got {config.ema:g}")
    if config.schedule == "plateau" and not 0 < config.lr_decay < 1:
        raise InputError(
            f"--lr-decay must be above 0 and below 1 with --schedule plateau, got "
            f"{config.lr_decay:g}"
        )


def _check_range(config: TrainConfig) -> None:
    """Raise InputError for numbers that are not finite, and for integers beyond 32 bits."""
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{option(field.name)} must be finite, got {number}")
            if isinstance(number, int) and abs(number) > MAX_INT and field.name != "seed":
                limit = f"at most {MAX_INT}" if number > 0 else f"at least {-MAX_INT}"
                raise InputError(f"{option(field.name)} must be {limit}, got {number}")


def check_to_train(config: TrainConfig) -> list[str]:
    """Raise InputError for invalid options and combinations; returns warnings.

    Warnings name options without effect, and a run that ends in the middle of a restart cycle.
    This is checked when training starts, but not when a run is loaded, so that all checkpoints stay
    usable.
    """
    check_fractions(config, "momentum", "beta2")
    if config.seed > MAX_SEED:
        raise InputError(f"--seed must be at most {MAX_SEED}, got {config.seed}")
    if config.schedule == "piecewise" and not all(0 < x < 1 for x in config.decay_at):
        raise InputError(
            f"--decay-at must be fractions above 0 and below 1, got "
            f"{' '.join(f'{x:g}' for x in config.decay_at)}"
        )
    if (
        config.schedule == "plateau"
        and config.plateau_metric == "score"
        and 0 < config.patience <= config.plateau_patience
    ):
        raise InputError(
            f"--patience must be above --plateau-patience {config.plateau_patience}, or the run "
            f"ends before the learning rate is lowered, got {config.patience}"
        )
    if not (getattr(config, "backbone_lr", 1.0) or getattr(config, "weights", "")):
        raise InputError("--backbone-lr 0 needs --weights: the backbone would stay random")
    if getattr(config, "tal_from", 0) and getattr(config, "assigner", "tal") != "tal":
        raise InputError("--tal-from needs --assigner tal, got --assigner iou")
    scheduled = {
        "decay_at": ("piecewise",),
        "lr_decay": ("piecewise", "plateau"),
        "plateau_patience": ("plateau",),
        "plateau_metric": ("plateau",),
        "restart_period": ("restarts",),
        "restart_factor": ("restarts",),
    }
    conditions = {
        name: (config.schedule in kinds, f"--schedule {' or '.join(kinds)}")
        for name, kinds in scheduled.items()
    }
    with_beta2 = ("adamw", "adam", "rmsprop")
    conditions["beta2"] = (config.optimizer in with_beta2, f"--optimizer {' or '.join(with_beta2)}")
    conditions["image_cache"] = (getattr(config, "stream", False), "--stream")
    conditions["balance_below"] = (config.sampling == "balanced", "--sampling balanced")
    mixes = any(getattr(config, name, 0) for name in ("mosaic", "mixup"))
    conditions["close_mosaic_epochs"] = (mixes, "--mosaic or --mixup")
    ineffective = [
        f"{option(field.name)} has no effect without {conditions[field.name][1]}"
        for field in fields(config)
        if field.name in conditions
        and not conditions[field.name][0]
        and getattr(config, field.name) != field.default
    ]
    return ineffective + _check_cycles(config)


def _check_cycles(config: TrainConfig) -> list[str]:
    """Warnings about a run that ends, or may end, in the middle of a restart cycle."""
    if config.schedule != "restarts":
        return []
    notes, cycle, factor = [], config.restart_period, config.restart_factor
    if 0 < config.patience < config.restart_period:
        notes.append(
            f"--patience {config.patience} is below --restart-period {config.restart_period}: the "
            f"run may end in the middle of a cycle"
        )
    end = -(-config.epochs // cycle) * cycle if factor == 1 else cycle
    while end < config.epochs:
        cycle *= factor
        end += cycle
    if end != config.epochs and not config.time_budget:
        before = f"{end - cycle} or " if end > cycle else ""
        notes.append(
            f"--epochs {config.epochs} ends in the middle of a cycle of --restart-period "
            f"{config.restart_period}; cycles end after {before}{end} epochs"
        )
    return notes


def check_minima(config: TrainConfig, **minima: float) -> None:
    """Raise InputError for a field whose value is below its minimum or is NaN."""
    for name, least in minima.items():
        value = getattr(config, name)
        if not value >= least:
            raise InputError(f"{option(name)} must be at least {least}, got {value}")


def check_fractions(config: TrainConfig, *names: str) -> None:
    """Raise InputError for a field whose value is outside [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise InputError(f"{option(name)} must be at least 0 and below 1, got {value:g}")


def check_train_fraction(config: Any) -> None:
    """Raise InputError for a `train_fraction` outside (0, 1]."""
    if not 0 < config.train_fraction <= 1:
        raise InputError(
            f"--train-fraction must be above 0 and at most 1, got {config.train_fraction:g}"
        )


def check_scale(config: Any) -> None:
    """Raise InputError unless `scale` is a range of positive factors."""
    low, high = config.scale
    if not 0 < low <= high:
        raise InputError(
            f"--scale must be two positive factors, the smaller first, got {low:g} {high:g}"
        )


def check_notes(config: Any, notes: Sequence[str]) -> None:
    """Raise InputError if there are `notes` on unusable data and `--on-invalid error` is given."""
    if notes and config.on_invalid == "error":
        raise InputError(
            f"{notes[0]} (problem 1 of {len(notes)}); leave unusable data out with "
            f"--on-invalid skip"
        )


def check_starting_run(config: Any) -> None:
    """Raise InputError for `weights` other than `run:DIR`, in systems without published weights."""
    if config.weights and not config.weights.startswith(RUN):
        raise InputError(
            f"--weights must be the variables of another run, as {RUN}DIR, got {config.weights}"
        )


def check_backbone(config: Any, stages: int) -> None:
    """Raise InputError for `BackboneOptions` that do not fit a backbone with `stages` stages."""
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


def parse_class_weights(text: str) -> tuple[float, ...]:
    """The numbers in a value of `class_weights`, () for "balanced" and for an empty value.

    Raises InputError for anything else, and for numbers that are not positive.
    """
    try:
        weights = tuple(map(float, text.split(","))) if text not in ("", "balanced") else ()
    except ValueError:
        weights = (-1.0,)
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(
            f"--class-weights must be balanced, or positive numbers such as 1,1,5, got {text}"
        )
    return weights


def check_augment(config: AugmentOptions) -> None:
    """Raise InputError, naming the option, for an invalid augmentation option."""
    check_scale(config)
    check_fractions(config, "shift", "brightness_contrast", "color_jitter", "noise")
    low, high = config.crop_area
    if not 0 < low <= high <= 1:
        raise InputError(
            f"--crop-area must be two fractions above 0 and at most 1, the smaller first, got "
            f"{low:g} {high:g}"
        )
    for name, most in (("mosaic", 1), ("mixup", 1), ("rotate", 180), ("cutout_holes", 100)):
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise InputError(f"{option(name)} must be from 0 to {most}, got {value:g}")
    check_minima(config, close_mosaic_epochs=0)
    if (config.mosaic or config.mixup) and config.close_mosaic_epochs >= config.epochs:
        raise InputError(
            f"--close-mosaic-epochs must be below --epochs {config.epochs} with --mosaic or "
            f"--mixup, got {config.close_mosaic_epochs}"
        )


def from_json(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Make a configuration of class `kind` from the values in JSON, where tuples became lists.

    Raises ValueError, naming the fields, for fields that this version does not know and for values
    that a field cannot have.  Any string is accepted as `model`, because models can be registered
    later; `configs.build` checks it.
    """
    hints = get_type_hints(kind) | {"model": str}
    unknown = sorted(set(values) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    return kind(**{k: files.conform(v, hints[k], option(k)) for k, v in values.items()})


def conform(config: Kind) -> Kind:
    """Convert the values of a configuration to the types of its fields, paths to strings.

    Raises InputError for the first value that cannot be converted.
    """
    values = json.loads(json.dumps(asdict(config), default=str))  # tuples to lists, paths to text
    try:
        return from_json(type(config), values)
    except ValueError as error:
        raise InputError(str(error)) from None
