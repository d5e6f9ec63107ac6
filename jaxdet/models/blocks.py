"""Blocks of a detector's neck: a map [B, H, W, C] to [B, H, W, width], with a SiLU after each norm.

`Conv` is one 3x3 convolution; `C3` and `C2f` split the map, send one part through bottlenecks and
join the parts again (cross stage partial networks, Wang et al. 2019, arXiv:1911.11929), as YOLOv5
and YOLOv8 have them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers


class Part(layers.Part):
    """What the modules of a neck and a head share."""

    width: int = 64

    @nn.nowrap
    def active(self, x, width, kernel, name, *, stride=1, train=False):
        """A convolution of x [B, H, W, C], batch norm and SiLU, called `name`."""
        x = self.convolve(x, width, kernel, name, stride=stride, train=train)
        with jax.named_scope(f"{name}_silu"):
            return nn.silu(x)


class Conv(Part):
    """One 3x3 convolution, batch norm and SiLU."""

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]."""
        return self.active(x, self.width, 3, "conv", train=train)


class Bottleneck(Part):
    """A convolution of `kernel` pixels, one of 3x3, and the identity around both."""

    kernel: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]; added to x where shapes agree."""
        y = self.active(x, self.width, self.kernel, "conv1", train=train)
        y = self.active(y, self.width, 3, "conv2", train=train)
        if y.shape != x.shape:
            return y
        with jax.named_scope("add"):
            return x + y


class C3(Part):
    """Two 1x1 convolutions to half the width; bottlenecks on one; joined and 1x1 again."""

    blocks: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]."""
        half = self.width // 2
        deep = self.active(x, half, 1, "deep", train=train)
        around = self.active(x, half, 1, "around", train=train)
        for i in range(self.blocks):
            part = {**self.shared(), "width": half, "name": f"block{i + 1}"}
            deep = Bottleneck(**part)(deep, train)
        return self.active(joined(deep, around), self.width, 1, "out", train=train)


class C2f(Part):
    """A 1x1 convolution, split in two; bottlenecks of 3x3 in a chain; all joined and 1x1 again."""

    blocks: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]."""
        half = self.width // 2
        x = self.active(x, 2 * half, 1, "in", train=train)
        parts = [x[..., :half], x[..., half:]]
        for i in range(self.blocks):
            part = {**self.shared(), "width": half, "name": f"block{i + 1}"}
            parts.append(Bottleneck(**part, kernel=3)(parts[-1], train))
        return self.active(joined(*parts), self.width, 1, "out", train=train)


def joined(*maps):
    """Maps [B, H, W, ...] side by side in channels."""
    with jax.named_scope("join"):
        return jnp.concatenate(maps, -1)
