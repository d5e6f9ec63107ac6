"""A depthwise network for CIFAR-10 with fewer than 100,000 parameters (seed 003).

Our own, after the description of xvel/cifar10-tiniest (97,530 parameters, 94.4% after 200 epochs):
in each block a quarter of the channels sees 3x3 pixels, one 7x7, one 7x7 with gaps and one only its
own; all are normalised over channels and go through a gated MLP.  The split is as in InceptionNeXt
(Yu et al. 2023, arXiv:2303.16900), the gate as in GEGLU (Shazeer 2020, arXiv:2002.05202).  Here it
has 97,306 parameters and 43,878,176 multiply-adds, most of them in 1x1 convolutions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import blocks, cifar, layers

MIXERS = {"depthwise3": (3, 1), "depthwise7": (7, 1), "dilated7": (7, 2)}  # pixels, dilation


class Part(cifar.Part):
    """What the modules of `Tiniest` share: `norm` is of channels at a pixel, not of a batch."""

    @nn.nowrap
    def normal(self, x, name):
        """Layer norm of x [B, H, W, C] over channels (Ba et al. 2016, arXiv:1607.06450)."""
        if not self.norm:
            return x
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)


class Block(Part):
    """Depthwise convolutions on three quarters, layer norm and a gated MLP, beside the identity."""

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to the same; C is a multiple of 4."""
        width = x.shape[-1]
        same, *quarters = jnp.split(x, 4, -1)
        for i, (name, (kernel, dilation)) in enumerate(MIXERS.items()):
            how = {"groups": width // 4, "dilation": dilation}
            quarters[i] = self.plain(quarters[i], width // 4, kernel, name, **how)
        y = self.normal(blocks.joined(same, *quarters), "norm")
        values, gates = jnp.split(self.plain(y, 2 * width, 1, "expand"), 2, -1)
        gates = self.activate(gates, "gate")
        with jax.named_scope("gate"):
            y = values * gates
        y = self.plain(y, width, 1, "project")
        with jax.named_scope("add"):
            return x + y


class Tiniest(Part):
    """A 3x3 stem, stages of blocks with a max pool and a 1x1 convolution between, a linear layer.

    widths: channels of each stage, multiples of 4.  depth: blocks in each stage.
    classes: outputs.  rate: of dropout before the linear layer.
    """

    widths: tuple[int, ...] = (48, 80)
    depth: tuple[int, ...] = (3, 3)
    activation: Callable = nn.gelu
    classes: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, drop=1.0):
        """Logits [B, classes] of images [B, H, W, C]; `drop` multiplies the dropout rate."""
        for i, (width, count) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            if i == 1:
                x = self.plain(x, width, 3, "stem")
            else:
                x = layers.max_pool(x, f"stage{i}_pool", kernel=2, stride=2)
                x = self.plain(x, width, 1, f"stage{i}")
            x = self.normal(x, f"stage{i}_norm")
            for j in range(1, count + 1):
                x = Block(**self.shared(), name=f"stage{i}_block{j}")(x)
        return cifar.classify(self, self.normal(x, "last_norm"), train, drop)
