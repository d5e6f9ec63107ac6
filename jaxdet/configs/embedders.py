"""Networks of faces: a backbone or stages of one's own, and the embedding upon their last map."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from jaxdet.config import BackboneOptions
from jaxdet.configs import backbones, stages
from jaxdet.errors import InputError

Model = Literal[*get_args(backbones.Backbone), *stages.STAGED]


@dataclass(frozen=True)
class Embedding(stages.Stages, BackboneOptions):
    """The network of the feature maps, and what makes embeddings of the last one."""

    size: int = 112
    """side of the network's input in pixels"""
    model: Model = "resnet18"
    """network of the feature maps"""
    width: float = 0.5
    """resnets: channels as a share of the usual ones; trained weights want 1"""
    parts: int = 0
    """how many parts of a backbone there are, from the first on; 0: all"""
    dim: int = 256
    """numbers of an embedding; 0: channels of the last map"""
    bnneck: bool = False
    """batch norm of the embedding (arXiv:1903.07071)"""
    hidden: tuple[int, ...] = ()
    """widths of the classifier's hidden layers"""
    dropout: float = 0.0
    """share of an embedding's numbers that are dropped before the classifier"""
    head: Literal["softmax", "arcface", "cosface", "l_softmax", "lgm"] = "softmax"
    """margin of the logits in training"""


def network(config, classes=40):
    """The network of an `Embedding`, and the shape [B, H, W, C] of its input."""
    import jax.numpy as jnp

    from jaxdet.kernels import conv
    from jaxdet.models.embedder import Embedder

    stages.check(config)
    dtype = jnp.bfloat16 if config.bfloat16 else None
    part = {
        "conv_general_dilated": partial(conv.conv_general_dilated, impl=config.conv),
        "dtype": dtype,
    }
    net = Embedder(
        features=partial(_features(config), **part),
        classes=classes,
        dim=config.dim,
        bnneck=config.bnneck,
        hidden=config.hidden,
        variances=config.head == "lgm",
        rates=(1.0,) * (1 + len(config.hidden)),  # times `dropout`, a number of the state
        dtype=dtype,
    )
    return net, (1, config.size, config.size, 3)


def _features(config):
    from jaxdet.models import bottleneck, convnext

    if config.model in stages.STAGED:
        make = {"bottleneck": bottleneck.Bottlenecks, "convnext": convnext.Tiny}[config.model]
        return partial(make, classes=0, **stages.fields(config))
    thin = {"width": round(64 * config.width)} if config.model.startswith("resnet") else {}
    frozen = {"frozen": len(backbones.kept(config)), "fixed_norm": config.fixed_norm}
    return partial(backbones.features(config.model, config.parts), **thin, **frozen)


def pretrained(config, variables):
    """The variables of the network of an `Embedding`, its backbone's from `config.weights`."""
    return backbones.pretrained(config.model, config.weights, variables, built=config.parts)


def levels(config):
    """The normalisation that the network of an `Embedding` expects."""
    from jaxdet.data.normalize import CENTERED, EFFICIENTNET_LITE, IMAGENET

    if not config.weights:
        return CENTERED
    return EFFICIENTNET_LITE if config.model == "lite0" else IMAGENET


def check(config):
    """Refuse options that do not fit the network or each other."""
    stages.check(config)
    if config.model in stages.STAGED:
        for name in ("weights", "freeze", "fixed_norm", "parts"):
            if getattr(config, name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for a backbone, and {config.model} is none")
        return
    backbones.check(config)
    count = len(backbones.parts(config.model))
    if config.parts and not 2 <= config.parts <= count:
        raise InputError(f"--parts {config.parts}: {config.model} has {count}; at least 2")
    if config.weights and config.model.startswith("resnet") and config.width != 1:
        raise InputError(f"--width {config.width:g}: --weights are for a width of 1")
