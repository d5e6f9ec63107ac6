"""Networks of faces: a backbone or stages of one's own, and the embedding upon their last map."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxdet.config import BackboneOptions
from jaxdet.configs import backbones, stages
from jaxdet.errors import InputError
from jaxdet.models import registry

Model = Literal[*registry.names("backbone", "staged")]


@dataclass(frozen=True)
class Embedding(stages.Stages, BackboneOptions):
    """The network of the feature maps, and what makes embeddings of the last one."""

    size: int = 112
    """side of the network's input in pixels"""
    model: Model = "resnet18"
    """network of the feature maps"""
    width_multiplier: float = 0.5
    """resnets: channels as a share of the usual ones; trained weights want 1"""
    backbone_stages: int = 0
    """how many parts of a backbone there are, from the first on; 0: all"""
    embedding_dim: int = 256
    """numbers of an embedding; 0: channels of the last map"""
    bnneck: bool = False
    """batch norm of the embedding (arXiv:1903.07071)"""
    fc_widths: tuple[int, ...] = ()
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
        dim=config.embedding_dim,
        bnneck=config.bnneck,
        hidden=config.fc_widths,
        variances=config.head == "lgm",
        rates=(1.0,) * (1 + len(config.fc_widths)),  # times `dropout`, a number of the state
        dtype=dtype,
    )
    return net, (1, config.size, config.size, 3)


def _features(config):
    if config.model in stages.STAGED:
        return partial(registry.backbone(config.model), **stages.fields(config))
    fields = {"frozen_stages": len(backbones.kept(config)), "freeze_bn": config.freeze_bn}
    if config.model.startswith("resnet"):
        fields["width"] = round(64 * config.width_multiplier)
    return partial(registry.backbone(config.model, stages=config.backbone_stages), **fields)


def pretrained(config, variables):
    """The variables of the network of an `Embedding`, its backbone's from `config.weights`."""
    return registry.load_pretrained(
        config.model, config.weights, variables, stages=config.backbone_stages
    )


def levels(config):
    """The normalisation that the network of an `Embedding` expects."""
    from jaxdet.data.normalize import CENTERED

    return registry.normalization(config.model) if config.weights else CENTERED


def check(config):
    """Refuse options that do not fit the network or each other."""
    stages.check(config)
    if config.model in stages.STAGED:
        for name in ("weights", "freeze_stages", "freeze_bn", "backbone_stages"):
            if getattr(config, name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for a backbone, and {config.model} is none")
        return
    backbones.check(config)
    count = len(registry.stage_names(config.model))
    if config.backbone_stages and not 2 <= config.backbone_stages <= count:
        raise InputError(
            f"--backbone-stages {config.backbone_stages}: {config.model} has {count}; at least 2"
        )
    if config.weights and config.model.startswith("resnet") and config.width_multiplier != 1:
        raise InputError(f"--width {config.width_multiplier:g}: --weights are for a width of 1")
