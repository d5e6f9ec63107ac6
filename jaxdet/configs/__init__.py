"""The five systems, one module each: its options, their checks, its network and its experiment.

    config = configs.config("digits")(epochs=30)
    experiment = configs.build("digits", config)  # reads the data

The options are the fields of the class `Config`; the text below a field is its help on the command
line.  Each module also has the functions `network`, `build`, `from_splits` (the experiment on given
sources) and `check`; it may have `summarize` for `jaxdet data inspect`, `split_tables` for
`jaxdet data split`, `table_row` for `jaxdet compare --report`, `report` for `jaxdet eval --report`
and `build_external` for `jaxdet eval --root`.  Importing a configuration imports neither jax nor
flax, so that `--help` is fast.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from jaxdet.config import RUN, TrainConfig, check, parse_class_weights
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.data.sources import Source
    from jaxdet.training.experiment import Experiment
    from jaxdet.types import Tree

SYSTEMS = ("digits", "objects", "detect", "cifar10", "faces")
NETWORK_NAMES = (*SYSTEMS, *registry.MODELS)
MAX_NAMED = 10  # classes in a message
_SYSTEM_OF_KIND = {"localizer": "objects", "cifar": "cifar10"}  # kind of model -> its system


class NamedNetwork(NamedTuple):
    """A network, and the shape of an input of its usual size."""

    net: "nn.Module"  # called as net(images, train)
    input: tuple[int, ...]  # B, H, W, C


def config(name: str) -> type[TrainConfig]:
    """The class `Config` of a system, one of `SYSTEMS`."""
    return import_module(f"jaxdet.configs.{name}").Config


def build(name: str, config: Any) -> "Experiment":
    """Read the data of a configuration of the system `name`, and build its experiment.

    Raises InputError, which names the option or file, if one is invalid.
    """
    from jaxdet.training import time_budget

    module = checked_module(name, config)
    if config.max_params:
        net, shape = module.network(config)
        time_budget.check_parameters(net, shape, config.max_params)
    return module.build(config)


def build_external(name: str, config: Any, classes: tuple[str, ...], split: Path) -> "Experiment":
    """The experiment of an existing run on the data in `config.root`, its own or other data.

    classes: class names of the run.
    split: folder with the tables of the run's split.
    Systems without a function `build_external` treat all data as their own.
    """
    module = checked_module(name, config)
    if not hasattr(module, "build_external"):
        return build(name, config)
    return module.build_external(config, classes, split)


def without_data(name: str, config: Any, metadata: Mapping[str, Any]) -> "Experiment":
    """The experiment of an existing run, with a single blank record in place of its data.

    metadata: the run's metadata, with `classes` and `record` (see `data.sources.record_spec`).
    """
    from jaxdet.data import sources

    splits = {"train": sources.blank_source(metadata["record"])}
    module = checked_module(name, config)
    return module.from_splits(config, tuple(metadata["classes"]), splits)


def network(name: str, config: Any, *classes: int) -> "tuple[nn.Module, tuple[int, ...]]":
    """The network of a configuration and its input shape (B, H, W, C); no data are read.

    classes: the number of classes; by default, as in the system's usual data set.
    """
    check(config)
    return import_module(f"jaxdet.configs.{name}").network(config, *classes)


def starting_weights(
    name: str,
    config: Any,
    classes: Sequence[str],
    normalization: str,
    *,
    first_class: int | None = None,
    **backbone: Any,
) -> "Callable[[Tree], Tree] | None":
    """A function that puts the weights that `config.weights` names into the initial variables.

    The weights are read when the function is called.  None if `config.weights` is empty.

    name: the system.
    classes: names of the classes of this run.
    normalization: normalization of the network's images, as in the metadata of a run.
    first_class: place of the first class in the network's outputs, see `warm_start.Layout`.
    backbone: for published weights, further arguments of `registry.load_pretrained`.
    """
    if not config.weights:
        return None
    is_run = config.weights.startswith(RUN)
    if is_run or registry.is_detector(config.model):
        from jaxdet.training import warm_start

        shapes = partial(_variable_shapes, name, config)
        read = partial(warm_start.read_detector, getattr(config, "model", ""), config.weights)
        if is_run:
            read = partial(warm_start.read_run, config.weights.removeprefix(RUN))
        return warm_start.WarmStart(read, tuple(classes), shapes, normalization, first_class)
    return partial(registry.load_pretrained, config.model, config.weights, **backbone)


def class_weights(
    config: Any, classes: Sequence[str], splits: "Mapping[str, Source]"
) -> tuple[float, ...]:
    """The weight of each class, () for none; "balanced" counts the labels of the training set.

    Raises InputError if `config.class_weights` has another number of values than there are classes.
    """
    if config.class_weights == "balanced":
        import numpy as np

        from jaxdet.losses.classification import balanced_weights

        sets = splits["train"].label_sets if "train" in splits else None
        labels = np.concatenate([*(sets or []), np.zeros(0, int)]).astype(int)
        return tuple(balanced_weights(np.bincount(labels, minlength=len(classes))).tolist())
    weights = parse_class_weights(config.class_weights)
    if weights and len(weights) != len(classes):
        few = ", ".join(classes[:MAX_NAMED]) + ", ..." * (len(classes) > MAX_NAMED)
        raise InputError(
            f"--class-weights must be one number per class ({few}), got {config.class_weights}"
        )
    return weights


def _variable_shapes(name: str, config: Any, classes: int) -> "Tree":
    import jax

    net, shape = network(name, config, classes)
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32"))


def named_network(name: str) -> NamedNetwork:
    """The network of a registered model, or of a system with its default options.

    Raises InputError for any other name; the message lists all `NETWORK_NAMES`, the nearest first.
    """
    if name in SYSTEMS:
        return network_of_config(name, config(name)())
    if name not in registry.MODELS:
        import difflib  # for this message only

        near = difflib.get_close_matches(name, NETWORK_NAMES, n=len(NETWORK_NAMES), cutoff=0.0)
        raise InputError(
            f"{name!r} is neither a model nor a run folder; models, nearest first: "
            f"{', '.join(near)}"
        )
    spec = registry.get(name)
    if spec.kind in _SYSTEM_OF_KIND:
        system = _SYSTEM_OF_KIND[spec.kind]
        return network_of_config(
            system, import_module(f"jaxdet.configs.{system}").Config(model=name)
        )
    return NamedNetwork(spec.build(), (1, spec.image_size, spec.image_size, 3))


def network_of_config(name: str, config: Any, *classes: int) -> NamedNetwork:
    """The network of a configuration, to be described; no data are read.

    Training passes the dropout rate of `cifar10` to its network as a traced factor; here the rate
    is set in the network.
    """
    net, shape = network(name, config, *classes)
    if name == "cifar10":
        net = net.clone(rate=config.dropout)
    return NamedNetwork(net, shape)


def network_of_run(folder: Path, config: Any) -> NamedNetwork:
    """The network of the run in `folder`, with as many classes as the run's data.

    config: the configuration of the run.
    """
    from jaxdet.training import run_dir

    run = run_dir.read_config(folder)
    return network_of_config(run.system, config, len(run.metadata["classes"]))


def checked_module(name: str, config: Any) -> ModuleType:
    """The module of a system.  Raises InputError if the configuration has an invalid option."""
    module = import_module(f"jaxdet.configs.{name}")
    check(config)
    _check_model(config)
    module.check(config)
    return module


def _check_model(config: Any) -> None:
    """Raise InputError for a model of a kind that the system cannot use."""
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
