"""One file a system: a frozen dataclass `Config` (fields = flags = help = kept JSON) and `build`.

`build` reads the data of a configuration and gives them to `system`, which needs no more of them
than their classes and what a record of them is like.  Nothing here imports jax before one of the
functions is called, so that `--help` is quick.
"""

from importlib import import_module

from jaxdet.config import check

SYSTEMS = ("digits", "objects", "detect", "cifar10", "faces")


def config(name):
    """The configuration class of a system."""
    return import_module(f"jaxdet.configs.{name}").Config


def build(name, chosen):
    """The system that a configuration describes, with its data: a `base.System`."""
    from jaxdet.training import time_budget

    module = _checked(name, chosen)
    if chosen.max_params:
        time_budget.check_parameters(*module.network(chosen), chosen.max_params)
    return module.build(chosen)


def without_data(name, chosen, about):
    """The system of a run with one blank record in place of its data.

    `about` is what the run says of them: `classes`, and `record` as `data.arrays.record` has it.
    """
    from jaxdet.data import sources

    splits = {"train": sources.blank_source(about["record"])}
    return _checked(name, chosen).system(chosen, tuple(about["classes"]), splits)


def network(name, chosen, *classes):
    """(network, input shape [B, H, W, C]) of a configuration, without its data.

    `classes` is how many its data have; left out, it is as many as the system's usual data.
    """
    check(chosen)
    return import_module(f"jaxdet.configs.{name}").network(chosen, *classes)


def _checked(name, chosen):
    """The module of a system, once it has nothing against a configuration."""
    module = import_module(f"jaxdet.configs.{name}")
    check(chosen)
    module.check(chosen)
    return module
