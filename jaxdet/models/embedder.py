"""Embeddings of images, and the classes of who is on them, from one network (seed 004).

net = Embedder(features=partial(ResNet18, classes=0), classes=7001)
embedding, logits = net.apply(variables, images)
embedding = net.apply(variables, images, method="embed")
logits = net.apply(variables, embedding, method="classify")
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers
from jaxdet.models.layers import KAIMING_FAN_IN


class ClassVariances(nn.Module):
    """Logarithms of the variances of each number of the embeddings of each class, 0 to begin with.

    classes: how many.  Weight decay draws them to 0, the identity.
    """

    classes: int

    @nn.compact
    def __call__(self, embedding):
        """[classes, D] for embeddings [B, D]."""
        return self.param("log", nn.initializers.zeros, (self.classes, embedding.shape[1]))


class Embedder(nn.Module):
    """A backbone's last map, averaged; an embedding of `dim` numbers; a classifier upon it.

    features: makes the module of the maps, given `axis_name` and `name`; of several the last is
    used.  dim: 0 takes the average as it is.  bnneck: batch norm of the embedding, with scales and
    without shifts (Luo et al. 2019, arXiv:1903.07071), so that no number has the same sign for all.
    hidden: widths of the classifier's hidden layers, with ReLUs; () is a linear layer alone, whose
    kernel [D, classes], turned over, holds the weights of `jaxdet.losses.metric_learning`.
    rates: dropout of the embedding and of each hidden layer, on the way to the classes; () is none.
    What the backbone drops is its own.  variances: each class has its own, which learn, for
    `embedding_losses.lgm`; logits here are without them.
    """

    features: Callable[..., nn.Module]
    classes: int
    dim: int = 512
    bnneck: bool = False
    hidden: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    variances: bool = False
    axis_name: str | None = None
    dtype: Any = None

    def setup(self):
        """Layers by name; linear ones begin with Kaiming's normal numbers."""
        linear = partial(nn.Dense, kernel_init=KAIMING_FAN_IN, dtype=self.dtype)
        self.backbone = self.features(axis_name=self.axis_name, name="features")
        if self.dim:
            self.embedding = linear(self.dim)
        if self.bnneck:
            how = {"axis_name": self.axis_name, "dtype": self.dtype}
            self.embedding_norm = nn.BatchNorm(momentum=0.9, use_bias=False, **how)
        rates = self.rates or (0.0,) * (len(self.hidden) + 1)
        self.drops = [layers.Dropout(rate) for rate in rates]
        self.dense = [linear(width) for width in self.hidden]
        self.logits = linear(self.classes)
        if self.variances:
            self.gaussians = ClassVariances(self.classes)

    def __call__(self, x, train=False, drop=1.0):
        """(embedding [B, D], logits [B, classes]) of images [B, H, W, C], float32 both.

        `drop`, traced or not, multiplies `rates`.
        """
        embedding = self.embed(x, train)
        if self.variances:
            self.gaussians(embedding)
        return embedding, self.classify(embedding, train, drop)

    @nn.nowrap  # its name is no layer of the operation table
    def embed(self, x, train=False):
        """Embeddings [B, D] of images [B, H, W, C], of any length, float32."""
        maps = self.backbone(x, train)
        x = maps[-1] if isinstance(maps, tuple) else maps
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        x = self.embedding(x) if self.dim else x
        if self.bnneck:
            x = self.embedding_norm(x, use_running_average=not train)
        return x.astype(jnp.float32)

    @nn.nowrap
    def classify(self, embedding, train=False, drop=1.0):
        """Logits [B, classes], float32, of embeddings [B, D]."""
        x = self.drops[0](embedding, drop, train)
        for i, dense in enumerate(self.dense):
            x = layers.relu(dense(x), f"dense_{i}_relu")
            x = self.drops[i + 1](x, drop, train)
        return self.logits(x).astype(jnp.float32)
