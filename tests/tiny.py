"""Experiments small enough for tests: a digit locator, and tasks made of functions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import pytest

from jaxdet import configs
from jaxdet.configs.digits import Config
from jaxdet.data import digits
from jaxdet.training.experiment import Experiment

CONFIG = Config(  # seconds to compile, milliseconds per step
    layout="c6s4,p2",
    channels=(8,),
    fc_widths=(16,),
    window=40,
    canvas=56,
    epochs=2,
    batch=16,
    eval_batch=16,
    devices=1,
    lr=2e-3,
    warmup=0,
    weight_decay=0.0,
    ema=0.0,
)
WORDS = [
    *("--layout", "c6s4,p2", "--channels", "8", "--fc-widths", "16", "--window", "40"),
    *("--canvas", "56", "--epochs", "2", "--batch", "64", "--eval-batch", "100"),
    *("--devices", "1"),
]


@contextmanager
def few_digits() -> Iterator[None]:
    """Embedded digits for three steps of 64 per epoch, and 100 each for validation and test."""
    few = digits.embedded().first(192 + 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "embedded", lambda: few)
        patch.setattr(digits, "EMBEDDED_TRAIN", 192)
        patch.setattr(digits, "EMBEDDED_TEST", 100)
        yield


class FunctionTask(NamedTuple):
    """A `Task` made of functions."""

    init: Callable
    augment: Callable
    loss: Callable
    predict: Callable
    measure: Callable
    report: Callable


def experiment(rows: int = 48, **changes) -> Experiment:
    """The tiny locator, with the first `rows` rows of every split and changed options."""
    whole = configs.build("digits", replace(CONFIG, **changes))
    return replace(
        whole, splits={name: source.first(rows) for name, source in whole.splits.items()}
    )
