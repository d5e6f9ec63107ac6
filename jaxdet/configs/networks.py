"""Networks by name: what `jaxdet describe` and the benchmarks take apart."""

import difflib
from functools import partial
from typing import Any, NamedTuple, get_args

from jaxdet import configs
from jaxdet.configs.cifar10 import Model
from jaxdet.training import run_dir

LOCALIZERS = ("simple", "deeper", "vgg")  # of seed 000
SMALL = get_args(Model)  # of seed 003
NAMES = (
    *(*configs.SYSTEMS, *LOCALIZERS, "andrew", "andrew_windows", "lenet"),
    *SMALL,
    *("resnet18", "resnet34", "resnet50", "lite0"),
    *("mobilenet_v2", "mobilenet_v3", "mobilenet_v3_small"),
)


class Named(NamedTuple):
    """A network and an input that it is made for."""

    net: Any  # a Flax module, called as net(images, train)
    input: tuple[int, int, int, int]  # B, H, W, C


def named(name):
    """The network of a name: one of `NAMES`, a system's own among them."""
    from jaxdet.errors import InputError
    from jaxdet.models import efficientnet, lenet, mobilenet, resnet, sliding

    table = {
        "andrew": (sliding.NgSlidingNet, 28),
        "andrew_windows": (partial(sliding.NgSlidingNet, form="sequential"), 14),
        "lenet": (lenet.LeNet, 32),
        "resnet18": (resnet.ResNet18, 224),
        "resnet34": (resnet.ResNet34, 224),
        "resnet50": (resnet.ResNet50, 224),
        "lite0": (efficientnet.Lite0, 224),
        "mobilenet_v2": (mobilenet.V2, 224),
        "mobilenet_v3": (mobilenet.V3Large, 224),
        "mobilenet_v3_small": (mobilenet.V3Small, 224),
    }
    if name in table:
        make, side = table[name]
        return Named(make(), (1, side, side, 3))
    if name in configs.SYSTEMS:
        return of_config(name, configs.config(name)())
    if name in LOCALIZERS:
        return of_config("objects", configs.config("objects")(model=name))
    if name in SMALL:
        return of_config("cifar10", configs.config("cifar10")(model=name))
    near = difflib.get_close_matches(name, NAMES, n=len(NAMES), cutoff=0.0)
    raise InputError(f"no model and no run {name!r}; models, nearest first: {', '.join(near)}")


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
    return of_config(system, config, len(run_dir.read_about(folder)["classes"]))
