"""Networks by name: what `jaxdet describe` and the benchmarks take apart."""

import difflib
from typing import Any, NamedTuple

from jaxdet import configs

LOCALIZERS = ("simple", "deeper", "vgg")  # of seed 000
NAMES = (
    *(*configs.SYSTEMS, *LOCALIZERS, "andrew", "andrew_windows", "lenet"),
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

    match name:
        case "andrew":
            return Named(sliding.Andrew(), (1, 28, 28, 3))
        case "andrew_windows":
            return Named(sliding.Andrew(form="sequential"), (1, 14, 14, 3))
        case "lenet":
            return Named(lenet.LeNet(), (1, 32, 32, 3))
        case "resnet18":
            return Named(resnet.ResNet18(), (1, 224, 224, 3))
        case "resnet34":
            return Named(resnet.ResNet34(), (1, 224, 224, 3))
        case "resnet50":
            return Named(resnet.ResNet50(), (1, 224, 224, 3))
        case "lite0":
            return Named(efficientnet.Lite0(), (1, 224, 224, 3))
        case "mobilenet_v2":
            return Named(mobilenet.V2(), (1, 224, 224, 3))
        case "mobilenet_v3":
            return Named(mobilenet.V3Large(), (1, 224, 224, 3))
        case "mobilenet_v3_small":
            return Named(mobilenet.V3Small(), (1, 224, 224, 3))
    if name in configs.SYSTEMS:
        return of_config(name, configs.config(name)())
    if name in LOCALIZERS:
        return of_config("objects", configs.config("objects")(model=name))
    near = difflib.get_close_matches(name, NAMES, n=len(NAMES), cutoff=0.0)
    raise InputError(f"no model and no run {name!r}; models, nearest first: {', '.join(near)}")


def of_config(system, config):
    """The network of a system's configuration."""
    return Named(*configs.network(system, config))
