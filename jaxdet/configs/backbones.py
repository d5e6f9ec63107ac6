"""Options of backbones: which stages are frozen, and the learning rates of the others."""

from functools import partial
from typing import Literal

from jaxdet.errors import InputError
from jaxdet.models import registry

Backbone = Literal[*registry.names("backbone")]


def frozen(config):
    """Names of the parts of the features that do not learn, from the first layer on."""
    if config.transfer != "frozen":
        return ()
    names = registry.stage_names(config.model)
    return names[: len(names) - config.unfreeze_last]


def kept(config):
    """Names of the parts that do not learn of the backbone of a `Trained`."""
    built = getattr(config, "backbone_stages", 0) or None  # of those who have that option
    return registry.stage_names(config.model)[:built][: config.freeze_stages]


def factor(config, path):
    """The factor of the learning rate of a parameter; 0 where it stays."""
    first, *_ = path.split("/")
    if first != "features":
        return 1.0
    return config.backbone_lr if learns(kept(config), path) else 0.0


def factors(config):
    """`factor` of a `Trained`, or None where all learns alike."""
    return partial(factor, config) if config.freeze_stages or config.backbone_lr != 1 else None


def check(config):
    """Refuse options of a `Trained` that do not fit its backbone or each other."""
    count = len(registry.stage_names(config.model))
    if not abs(config.freeze_stages) <= count:
        raise InputError(
            f"--freeze-stages {config.freeze_stages}: {config.model} has {count} stages"
        )
    if config.freeze_stages and not config.weights:
        raise InputError(
            f"--freeze-stages {config.freeze_stages} wants --weights: random numbers would stay so"
        )


def without(config):
    """Fields that leave batch norm out of a backbone."""
    if not config.norm and config.model == "lite0":
        raise InputError("--no-norm: lite0 has no form without batch norm; choose another --model")
    return {} if config.norm else {"norm": False}


def learns(stay, path):
    """Whether a parameter is outside of the parts that stay."""
    first, layer, *_ = path.split("/")
    return first != "features" or not registry.in_stages(layer, stay)
