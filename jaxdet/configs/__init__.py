"""One file a system: a frozen dataclass `Config` (fields = flags = help = kept JSON) and `build`.

Nothing here imports jax before `build` is called, so that `--help` is quick.
"""

from importlib import import_module

from jaxdet.configs import base

SYSTEMS = ("digits", "objects", "detect", "cifar10", "faces")


def config(name):
    """The configuration class of a system."""
    return import_module(f"jaxdet.configs.{name}").Config


def build(name, chosen):
    """The system that a configuration describes, with its data: a `base.System`."""
    from jaxdet import budget

    if chosen.max_params:
        budget.check_parameters(*network(name, chosen), chosen.max_params)
    base.check(chosen)
    return import_module(f"jaxdet.configs.{name}").build(chosen)


def network(name, chosen, *classes):
    """(network, input shape [B, H, W, C]) of a configuration, without its data.

    `classes` is how many its data have; left out, it is as many as the system's usual data.
    """
    base.check(chosen)
    return import_module(f"jaxdet.configs.{name}").network(chosen, *classes)
