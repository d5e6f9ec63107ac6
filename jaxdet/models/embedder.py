"""Embeddings of images, and logits of their identities, from one network.

    net = Embedder(features=partial(ResNet18, classes=0), classes=7001)
    embedding, logits = net.apply(variables, images)
    embedding = net.apply(variables, images, method="embed")
    logits = net.apply(variables, embedding, method="classify")

Embeddings are not normalized.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers
from jaxdet.types import Array


class ClassVariances(nn.Module):
    """A trainable log-variance for each class and each dimension of the embedding, initially 0.

    Weight decay draws log-variances to 0, and thus variances to 1.
    """

    classes: int

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        """The log-variances [classes, D] for embeddings [B, D]."""
        return self.param("log", nn.initializers.zeros, (self.classes, embedding.shape[1]))


class Embedder(nn.Module):
    """A backbone, the global average of its last map, a linear embedding, and a classifier.

    features: constructor of the backbone, called with `axis_name` and `name`.
    dim: dimension of the embedding; 0 uses the average itself as embedding.
    bnneck: whether the embedding has batch norm, with scales and without shifts (Luo et al. 2019,
      arXiv:1903.07071).
    hidden: widths of the classifier's hidden layers, with ReLU; with () it is one linear layer,
      whose kernel [D, classes] holds the class weights of `jaxdet.losses.metric_learning`.
    rates: dropout rates in the classifier, of the embedding and of each hidden layer; () means no
      dropout.
    variances: whether each class has trainable variances, for `metric_learning.lgm`; logits here
      are computed without them.
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

    def setup(self) -> None:
        """Create the submodules."""
        linear = partial(nn.Dense, kernel_init=layers.KAIMING_FAN_IN, dtype=self.dtype)
        self.backbone = self.features(axis_name=self.axis_name, name="features")
        if self.dim:
            self.embedding = linear(self.dim)
        if self.bnneck:
            fields = {"axis_name": self.axis_name, "dtype": self.dtype}
            self.embedding_norm = nn.BatchNorm(momentum=0.9, use_bias=False, **fields)
        rates = self.rates or (0.0,) * (len(self.hidden) + 1)
        self.drops = [layers.Dropout(rate) for rate in rates]
        self.dense = [linear(width) for width in self.hidden]
        self.logits = linear(self.classes)
        if self.variances:
            self.gaussians = ClassVariances(self.classes)

    def __call__(
        self, x: Array, train: bool = False, dropout_scale: float | Array = 1.0
    ) -> tuple[Array, Array]:
        """(embedding [B, D], logits [B, classes]) of images [B, H, W, C], both float32.

        `dropout_scale` multiplies `rates`.
        """
        embedding = self.embed(x, train)
        if self.variances:
            self.gaussians(embedding)
        return embedding, self.classify(embedding, train, dropout_scale)

    @nn.nowrap  # keeps `embed` out of the layer names
    def embed(self, x: Array, train: bool = False) -> Array:
        """Embeddings [B, D] of images [B, H, W, C], float32, not L2-normalized."""
        maps = self.backbone(x, train)
        x = maps[-1] if isinstance(maps, tuple) else maps
        with jax.named_scope("pool"):
            x = x.mean((1, 2))  # [B, C]
        x = self.embedding(x) if self.dim else x
        if self.bnneck:
            x = self.embedding_norm(x, use_running_average=not train)
        return x.astype(jnp.float32)

    @nn.nowrap
    def classify(
        self, embedding: Array, train: bool = False, dropout_scale: float | Array = 1.0
    ) -> Array:
        """Logits [B, classes], float32, of embeddings [B, D]."""
        x = self.drops[0](embedding, dropout_scale, train)
        for i, dense in enumerate(self.dense):
            x = layers.relu(dense(x), f"dense_{i}_relu")
            x = self.drops[i + 1](x, dropout_scale, train)
        return self.logits(x).astype(jnp.float32)
