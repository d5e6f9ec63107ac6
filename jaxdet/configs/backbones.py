"""Backbones by name: the modules, their parts that may be frozen, and their trained weights."""

from functools import partial
from typing import Literal

from jaxdet.errors import InputError

Backbone = Literal[
    *("lite0", "b0", "b1", "b2", "b3", "resnet18", "resnet34", "resnet50"),
    *("mobilenet_v2", "mobilenet_v3", "mobilenet_v3_small"),
]


def features(name):
    """Makes the feature maps of a backbone, given the fields that all have."""
    from jaxdet.models import efficientnet, mobilenet, resnet

    match name:
        case "mobilenet_v2":
            return partial(mobilenet.V2, classes=0)
        case "mobilenet_v3":
            return partial(mobilenet.V3Large, classes=0)
        case "mobilenet_v3_small":
            return partial(mobilenet.V3Small, classes=0)
        case "resnet18":
            return partial(resnet.ResNet18, classes=0)
        case "resnet34":
            return partial(resnet.ResNet34, classes=0)
        case "resnet50":
            return partial(resnet.ResNet50, classes=0)
        case "b0" | "b1" | "b2" | "b3":
            return partial(getattr(efficientnet, name.upper()), classes=0)
    return partial(efficientnet.Lite0, classes=0)


def parts(name):
    """How the names of its layers begin, from the first on: what `frozen` counts."""
    from jaxdet.models import deeper, efficientnet, mobilenet, plain, resnet, simple, vgg

    match name:
        case "mobilenet_v2" | "mobilenet_v3" | "mobilenet_v3_small":
            return mobilenet.parts(features(name)().rows)
        case "simple":
            return plain.parts(simple.LAYOUT)
        case "deeper":
            return plain.parts(deeper.LAYOUT)
        case "vgg":
            return plain.parts(vgg.LAYOUT)
        case "lite0" | "b0" | "b1" | "b2" | "b3":
            return efficientnet.PARTS[:-1]  # without the head of the classifier
    return resnet.PARTS


def frozen(config):
    """Names of the parts of the features that do not learn, from the first layer on."""
    if config.backbone != "frozen":
        return ()
    names = parts(config.model)
    return names[: len(names) - config.learn_last]


def without(config):
    """Fields that leave batch norm out of a backbone."""
    if not config.norm and config.model == "lite0":
        raise InputError("--no-norm: lite0 has no form without batch norm; choose another --model")
    return {} if config.norm else {"norm": False}


def pretrained(name, file, variables, norm=True):
    """The variables of a network, those of its `features`, called `name`, from a file of weights.

    file: as `jaxdet.pretrained.fetch` takes it.
    """
    from jaxdet import pretrained, weights
    from jaxdet.models import efficientnet

    match name:
        case "lite0" | "b0" | "b1" | "b2" | "b3":
            stages = features(name)().scaled()
            names = partial(efficientnet.torch_name, stages=stages)
        case "vgg":
            names = partial(pretrained.vgg, norm=norm)
        case "mobilenet_v2" | "mobilenet_v3" | "mobilenet_v3_small":
            names = partial(pretrained.mobilenet, features(name)())
        case "resnet18" | "resnet34" | "resnet50":
            names = pretrained.resnet
        case _:
            raise InputError(f"--weights: nobody has trained {name}; choose another --model")
    arrays = weights.read(pretrained.fetch(file))
    last = [f"features.{len(parts(name))}."] if name.startswith("mobilenet") else []
    spare = (*pretrained.HEADS, *efficientnet.HEADS, *last)
    return pretrained.overlay(variables, arrays, partial(_of_features, names), spare=spare)


def _of_features(names, path):
    """A name map of a backbone as that of the network that has it for `features`."""
    collection, first, *rest = path.split("/")
    return names("/".join([collection, *rest])) if first == "features" else None


def learns(stay, path):
    """Whether a parameter is outside of the parts that stay."""
    first, layer, *_ = path.split("/")
    return first != "features" or not any(layer == p or layer.startswith(f"{p}_") for p in stay)
