"""A digit locator small enough for tests: seconds to compile, a step in milliseconds."""

from dataclasses import replace

from jaxdet import configs
from jaxdet.configs.digits import Config
from jaxdet.data.sources import ArraySource

CONFIG = Config(
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


def system(rows=48, **changes):
    """(configuration, system) of the tiny locator, with `rows` rows in every split."""
    config = replace(CONFIG, **changes)
    made = configs.build("digits", config)
    splits = {
        name: ArraySource({key: column[:rows] for key, column in source.arrays.items()})
        for name, source in made.splits.items()
    }
    return config, made._replace(splits=splits)
