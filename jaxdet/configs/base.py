"""What every system's configuration has: the length of a run, its optimiser, its judgement."""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

Schedule = Literal["cosine", "restarts", "piecewise", "constant", "plateau"]


class System(NamedTuple):
    """A task with its data: all that the loop, `eval` and `predict` work on."""

    task: Any  # types.Task
    splits: dict[str, Any]  # name -> data.arrays.Arrays; `train` and `val` among them
    hyper: dict[str, float]  # numbers a sweep may vary, given to every step
    about: dict[str, Any]  # class names, input size, normalisation: kept with the run
    read: Callable | None = None  # path -> (image [H, W, C] for `predict`, (height, width) of it)
    table: Callable | None = None  # path -> [(path of an image, label, box in its own pixels)]
    files: tuple[tuple[str, str], ...] = ()  # (path in the run folder, text to keep there)
    notes: tuple[str, ...] = ()  # what was found wrong with the data
    weights: Callable | None = None  # variables -> variables with pretrained ones in their place
    many: bool = False  # answers are any number of boxes an image
    assigned: Callable | None = None  # variables, batch, at -> which cells learn which box
    learns: Callable | None = None  # path of a parameter -> factor of its rate; None: all learn
    order: Callable | None = None  # seed, epoch, count, batch -> rows [steps, B]; None: shuffled
    scales: tuple[float, ...] = (1.0,)  # sides of training images, a program each
    numbers: dict | None = None  # part -> {name of a photo: its id in the files of the data}
    part: Callable | None = None  # configuration with less of the same data -> its system


@dataclass(frozen=True)
class Training:
    """Settings of the one training loop.

    WEIGHTS: fields that are numbers of the task, in every state under their names.
    SHARES: fields that say how much of the training set is used; `System.part` knows how.
    JUDGED: fields that only say how answers are judged: a sweep over these trains once.
    GRIDS: options with several values by the names that `sweep --grid` takes; a tuple has the
    options of one run after the other.
    LIMITS: the most that runs may have, by the keys of rows of `compare`, whose report then has
    the best network within them.
    CUTOFFS: the least that is high, medium and low, by the names of scores: see `cutoffs`.
    """

    WEIGHTS: ClassVar[tuple[str, ...]] = ()
    SHARES: ClassVar[tuple[str, ...]] = ()
    JUDGED: ClassVar[tuple[str, ...]] = ()
    GRIDS: ClassVar[dict[str, str | tuple[str, ...]]] = {}
    LIMITS: ClassVar[dict[str, float]] = {}
    CUTOFFS: ClassVar[dict[str, tuple[float, float, float]]] = {}

    epochs: int = 10
    """passes over the training set"""
    batch: int = 64
    """images per step, over all devices"""
    eval_batch: int = 250
    """images per evaluation step, over all devices"""
    devices: int = 0
    """devices to use; 0 takes all of this machine"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum"""
    lr: float = 1e-3
    """peak learning rate"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up; cosine: with a warm-up it is one cycle; restarts: cosines
    one after the other; plateau: drops when validation is no longer better"""
    warmup: int = 0
    """updates of linear warm-up"""
    drops: tuple[float, ...] = (0.5, 0.75)
    """piecewise: fractions of the run at which the rate drops"""
    drop: float = 0.1
    """piecewise, plateau: factor of each drop"""
    drop_patience: int = 10
    """plateau: evaluations without a better value after which the rate drops"""
    drop_on: Literal["loss", "score"] = "loss"
    """plateau: value that is watched: validation loss, or 1 less the score of --best"""
    cycle: int = 20
    """restarts: epochs of the first cosine"""
    cycle_factor: int = 1
    """restarts: each cosine is so many times as long as the one before"""
    momentum: float = 0.9
    """SGD momentum, or Adam's beta 1"""
    beta2: float = 0.999
    """Adam's beta 2"""
    weight_decay: float = 0.0
    """decoupled weight decay of kernels"""
    clip: float = 0.0
    """largest global norm of the gradient; 0 does not clip"""
    accumulate: int = 1
    """steps whose mean gradient makes one update"""
    ema: float = 0.0
    """decay of the moving averages that are evaluated and kept; 0 keeps none"""
    bfloat16: bool = False
    """compute in bfloat16; parameters stay float32"""
    conv: Literal["auto", "lax"] = "auto"
    """how convolutions are computed on a CPU: the fastest way by shape, or XLA's own"""
    seed: int = 0
    """root of every random key, and of the order of the data"""
    eval_first: bool = True
    """evaluate before the first epoch"""
    best: str = "accuracy"
    """validation score that chooses the best checkpoint; ties go to the lower loss"""
    patience: int = 0
    """stop after this many evaluations without a better score; 0 never does"""
    save_minutes: float = 10.0
    """longest time between two checkpoints"""
    time_budget: float = 0.0
    """seconds for the whole run, evaluations included: --epochs is then what they allow, and a run
    that is resumed counts those of its earlier processes; 0: none"""
    max_params: int = 0
    """refuse a network with more parameters that learn, and say where they are; 0 takes any"""
    comment: str = ""
    """what is to be remembered of the run: a column of the tables of sweep and compare"""


_read_last = ContextVar("read_last", default=None)  # reader -> (its fields' values, what it gave)


@contextmanager
def reading_once():
    """Inside, each reader made by `reads` keeps what it read last, for configurations like that."""
    token = _read_last.set({})
    try:
        yield
    finally:
        _read_last.reset(token)


def reads(*names):
    """Makes a reader of data a function of these fields of a configuration: it is given no others.

    What it gives must not be changed: see `reading_once`.
    """

    def made(read):
        @wraps(read)
        def found(config):
            chosen, kept = {name: getattr(config, name) for name in names}, _read_last.get()
            if kept is None:
                return read(SimpleNamespace(**chosen))
            if read not in kept or kept[read][0] != chosen:
                kept.pop(read, None)  # its memory is needed
                kept[read] = chosen, read(SimpleNamespace(**chosen))
            return kept[read][1]

        return found

    return made


def weights(config):
    """The numbers of the task of a configuration, by the names of its fields."""
    return {name: getattr(config, name) for name in config.WEIGHTS}


def numbers(kind):
    """Fields of a class of configurations that may differ within one compiled program."""
    from jaxdet.training import optim

    return {*kind.WEIGHTS, *kind.SHARES, *optim.NUMBERS, "seed", "comment"}


def widest(chosen):
    """That of configurations which differ in `numbers` only that uses most of the data."""
    return max(chosen, key=lambda config: [getattr(config, name) for name in config.SHARES])


LEAST = {
    **dict.fromkeys(("epochs", "batch", "eval_batch", "accumulate"), 1),
    **dict.fromkeys(("cycle", "cycle_factor", "drop_patience"), 1),
    **dict.fromkeys(("devices", "lr", "warmup", "momentum", "weight_decay", "clip", "ema"), 0),
    **dict.fromkeys(("seed", "patience", "save_minutes", "drop", "time_budget", "max_params"), 0),
}


def check(config):
    """Refuse numbers that no training can use; InputError names the option."""
    from jaxdet.errors import InputError

    for name, least in LEAST.items():
        value, option = getattr(config, name), f"--{name.replace('_', '-')}"
        if not value >= least:
            raise InputError(f"{option} {value}: a number of at least {least} is wanted")
    if config.ema >= 1:
        raise InputError(f"--ema {config.ema}: a decay under 1 is wanted, such as 0.999")
    if config.schedule == "plateau" and not 0 < config.drop < 1:
        raise InputError(f"--drop {config.drop:g}: a factor between 0 and 1 is wanted")


def check_shares(config, *names):
    """Refuse values of these fields that are no share: 0 to less than 1."""
    from jaxdet.errors import InputError

    for name in names:
        if not 0 <= getattr(config, name) < 1:
            share = f"--{name.replace('_', '-')} {getattr(config, name):g}"
            raise InputError(f"{share}: a share of at least 0, under 1 is wanted")


def check_notes(config, notes):
    """Refuse data of which `notes` say that something cannot be used, if `config` wants all."""
    from jaxdet.errors import InputError

    if notes and config.on_bad_row == "error":
        raise InputError(f"{notes[0]} ({len(notes)} such); --on-bad-row skip leaves them out")


def check_scale(config):
    """Refuse a range of factors, `scale`, that is none."""
    from jaxdet.errors import InputError

    if not 0 < config.scale[0] <= config.scale[1]:
        raise InputError(f"--scale {config.scale}: two factors above 0, the smaller first")


def from_json(kind, values):
    """A configuration of class `kind` from kept JSON; lists become tuples again.

    ValueError names the fields that this version does not know.
    """
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    frozen = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return kind(**frozen)
