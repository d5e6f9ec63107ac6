"""Networks by name: the models of `jaxdet describe` and of the benchmarks."""

import difflib
from typing import Any, NamedTuple

from jaxdet import configs
from jaxdet.errors import InputError
from jaxdet.models import registry
from jaxdet.training import run_dir

NAMES = (*configs.SYSTEMS, *registry.MODELS)
SYSTEM_OF_KIND = {"localizer": "objects", "cifar": "cifar10"}  # whose options complete the model


class Named(NamedTuple):
    """A network and the shape of the input that it is described with."""

    net: Any  # a Flax module, called as net(images, train)
    input: tuple[int, int, int, int]  # B, H, W, C


def named(name):
    """The network of a model or, with its default options, of a system; see `NAMES`."""
    if name in configs.SYSTEMS:
        return of_config(name, configs.config(name)())
    if name not in registry.MODELS:
        near = difflib.get_close_matches(name, NAMES, n=len(NAMES), cutoff=0.0)
        raise InputError(f"no model and no run {name!r}; models, nearest first: {', '.join(near)}")
    spec = registry.get(name)
    if spec.kind in SYSTEM_OF_KIND:
        system = SYSTEM_OF_KIND[spec.kind]
        return of_config(system, configs.config(system)(model=name))
    return Named(spec.build(), (1, spec.image_size, spec.image_size, 3))


def of_config(system, config, *classes):
    """The network of a system's configuration, for so many classes, or as many as is usual.

    Its rate of dropout is the configuration's; in training that is a number of the state.
    """
    net, shape = configs.network(system, config, *classes)
    if system == "cifar10":
        net = net.clone(rate=config.dropout)
    return Named(net, shape)


def of_run(folder, config):
    """The network of a run with the configuration `config`, for the classes that it has learnt."""
    system, _ = run_dir.read_config(folder)
    return of_config(system, config, len(run_dir.read_metadata(folder)["classes"]))
