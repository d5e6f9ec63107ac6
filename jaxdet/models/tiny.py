"""Residual networks for CIFAR-10 that learn fast on two CPU cores, below 250,000 parameters.

In the spirit of github.com/KellerJordan/cifar10-airbench: convolutions are pooled before they are
normalised, the last map is pooled to its maxima, logits are scaled down.  Of 32 x 32 pixels:

| network | parameters | multiply-adds | layers that learn |
|---|---|---|---|
| Tiny | 227,866 | 22.9 M | 11 |
| Deep | 242,146 | 17.0 M | 29 |
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models.cifar import Part, classify


class Block(Part):
    """Two 3x3 convolutions, or 1x1 to `middle` channels, 3x3 and 1x1 back, beside the identity.

    The activation comes before the sum, so that nothing is lost on the way around.
    """

    middle: int = 0

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to the same."""
        y, width = x, x.shape[-1]
        narrow = ((self.middle, 1), (self.middle, 3), (width, 1))
        for i, (channels, kernel) in enumerate(narrow if self.middle else ((width, 3),) * 2, 1):
            y = self.active(y, channels, kernel, f"conv{i}", train=train)
        with jax.named_scope("add"):
            return x + y


class Tiny(Part):
    """A 3x3 stem, stages of a pooled convolution and residual blocks, and a scaled linear layer.

    stem: channels.  widths: channels of each stage, whose map has half the sides of the one before.
    entry: pixels a side of each stage's first convolution.  depth: blocks in each stage.
    middle: channels within a block as a share of its own; 0 has no 1x1 convolutions.
    pool: of the last map, jnp.max or jnp.mean.  scale: of the logits.
    classes: outputs.  rate: of dropout before the linear layer.
    """

    stem: int = 16
    widths: tuple[int, ...] = (32, 64, 64)
    entry: int = 3
    depth: tuple[int, ...] = (1, 1, 1)
    middle: float = 0.0
    activation: Callable = nn.gelu
    pool: Callable = jnp.max
    scale: float = 0.125
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; `drop` multiplies the dropout rate."""
        x = self.active(x, self.stem, 3, "stem", train=train)
        for i, (width, blocks) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            x = self.active(x, width, self.entry, f"stage{i}", pool=2, train=train)
            for j in range(1, blocks + 1):
                part = {"middle": round(self.middle * width), "name": f"stage{i}_block{j}"}
                x = Block(**self.shared(), **part)(x, train)
        logits = classify(self, x, train, drop, self.pool)
        with jax.named_scope("scale"):
            return self.scale * logits


Deep = partial(Tiny, stem=24, widths=(48, 96, 128), entry=1, depth=(3, 3, 2), middle=0.5)
