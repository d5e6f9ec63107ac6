"""The five systems, one file each: the options `Config`, their checks, network and experiment.

    config = configs.config("digits")(epochs=30)
    experiment = configs.build("digits", config)  # reads the data

The fields of a `Config` are the options of the command line; the text below a field is its help.
Each module has `network`, `build`, `from_splits` (the experiment for given sources) and
`check`; it may have `summarize` for `jaxdet data inspect`, `split_tables` for `jaxdet data split`,
`table_row` for `jaxdet compare --report`, `report` for `jaxdet eval --report` and `build_external`
for `jaxdet eval --root`.  Importing a configuration imports neither jax nor flax, so that `--help`
is fast.
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from jaxdet.config import TrainConfig, check
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.training.experiment import Experiment

SYSTEMS = ("digits", "objects", "detect", "cifar10", "faces")
NETWORK_NAMES = (*SYSTEMS, *registry.MODELS)
_SYSTEM_OF_KIND = {"localizer": "objects", "cifar": "cifar10"}  # system that builds such a model


class NamedNetwork(NamedTuple):
    """A network, and the input shape for which it is described."""

    net: "nn.Module"  # called as net(images, train)
    input: tuple[int, ...]  # B, H, W, C


def config(name: str) -> type[TrainConfig]:
    """The configuration class of a system."""
    return import_module(f"jaxdet.configs.{name}").Config


def build(name: str, config: Any) -> "Experiment":
    """The experiment of a configuration of the system `name`, with its data.

    Raises InputError, which names the invalid option or file.
    """
    from jaxdet.training import time_budget

    module = checked_module(name, config)
    if config.max_params:
        net, shape = module.network(config)
        time_budget.check_parameters(net, shape, config.max_params)
    return module.build(config)


def build_external(name: str, config: Any, classes: tuple[str, ...], split: Path) -> "Experiment":
    """The experiment of a run on the data in `config.root`, which may be the run's own data.

    classes: class names of the run.  split: folder of the tables that keep its split.
    """
    module = checked_module(name, config)
    if not hasattr(module, "build_external"):
        return build(name, config)
    return module.build_external(config, classes, split)


def without_data(name: str, config: Any, metadata: Mapping[str, Any]) -> "Experiment":
    """The experiment of a run, with one blank record in place of its data.

    metadata: metadata of the run, with `classes` and `record` (see `data.sources.record_spec`).
    """
    from jaxdet.data import sources

    splits = {"train": sources.blank_source(metadata["record"])}
    module = checked_module(name, config)
    return module.from_splits(config, tuple(metadata["classes"]), splits)


def network(name: str, config: Any, *classes: int) -> "tuple[nn.Module, tuple[int, ...]]":
    """(network, input shape [B, H, W, C]) of a configuration, without its data.

    classes: number of classes; by default that of the system's usual data.
    """
    check(config)
    return import_module(f"jaxdet.configs.{name}").network(config, *classes)


def named_network(name: str) -> NamedNetwork:
    """The network of a model or, with its default options, of a system.

    InputError lists all `NETWORK_NAMES`, the nearest first.
    """
    if name in SYSTEMS:
        return network_of_config(name, config(name)())
    if name not in registry.MODELS:
        near = difflib.get_close_matches(name, NETWORK_NAMES, n=len(NETWORK_NAMES), cutoff=0.0)
        raise InputError(f"no model and no run {name!r}; models, nearest first: {', '.join(near)}")
    spec = registry.get(name)
    if spec.kind in _SYSTEM_OF_KIND:
        system = _SYSTEM_OF_KIND[spec.kind]
        return network_of_config(
            system, import_module(f"jaxdet.configs.{system}").Config(model=name)
        )
    return NamedNetwork(spec.build(), (1, spec.image_size, spec.image_size, 3))


def network_of_config(name: str, config: Any, *classes: int) -> NamedNetwork:
    """`network` with the dropout rate of the configuration, which is traced in training."""
    net, shape = network(name, config, *classes)
    if name == "cifar10":
        net = net.clone(rate=config.dropout)
    return NamedNetwork(net, shape)


def network_of_run(folder: Path, config: Any) -> NamedNetwork:
    """The network of a run with the configuration `config`, for the classes of its data."""
    from jaxdet.training import run_dir

    run = run_dir.read_config(folder)
    return network_of_config(run.system, config, len(run.metadata["classes"]))


def checked_module(name: str, config: Any) -> ModuleType:
    """The module of a system, once its `check` has accepted the configuration."""
    module = import_module(f"jaxdet.configs.{name}")
    check(config)
    _check_model(config)
    module.check(config)
    return module


def _check_model(config: Any) -> None:
    """Raise InputError for a model that the system cannot use, even if it is registered."""
    if not hasattr(config, "model"):
        return
    kinds = {registry.MODELS[name].kind for name in get_args(get_type_hints(type(config))["model"])}
    if registry.get(config.model).kind not in kinds:
        known = ", ".join(registry.names(*kinds))
        raise InputError(f"--model must be one of {known}, got {config.model}")


def __getattr__(name: str) -> ModuleType:
    """`configs.detect` and the other systems, imported on first use."""
    if name in SYSTEMS:
        return import_module(f"jaxdet.configs.{name}")
    raise AttributeError(f"module 'jaxdet.configs' has no attribute {name!r}")
