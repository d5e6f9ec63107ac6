"""Necks: the maps of a backbone, fine to coarse, made to know of each other.

    p3, p4, p5 = FPN(width=96).apply(variables, (c3, c4, c5))

Any number of levels; each map of the answer is [B, h, w, width], as large as the one it is from.
`block` makes what stands where the papers have a 3x3 convolution: `blocks.Conv`, `C3`, `C2f`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers


class PyramidModule(layers.ConvModule):
    """What the modules of a neck and a head share."""

    width: int = 64

    @nn.nowrap
    def active(self, x, width, kernel, name, *, stride=1, train=False):
        """A convolution of x [B, H, W, C], batch norm and SiLU, called `name`."""
        x = self.convolve(x, width, kernel, name, stride=stride, train=train)
        with jax.named_scope(f"{name}_silu"):
            return nn.silu(x)


class ConvBlock(PyramidModule):
    """One 3x3 convolution, batch norm and SiLU."""

    @nn.compact
    def __call__(self, x, train=False):
        """[B, H, W, C] to [B, H, W, width]."""
        return self.active(x, self.width, 3, "conv", train=train)


class Bottleneck(PyramidModule):
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


class C3(PyramidModule):
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
        return self.active(layers.concatenate(deep, around), self.width, 1, "out", train=train)


class C2f(PyramidModule):
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
        return self.active(layers.concatenate(*parts), self.width, 1, "out", train=train)


class FPN(PyramidModule):
    """Feature pyramid: coarse maps are enlarged and added to finer ones (arXiv:1612.03144).

    1x1 convolutions to `width`, nearest neighbours, sums, and a block a level.
    """

    width: int = 256
    block: Callable = ConvBlock

    @nn.compact
    def __call__(self, maps, train=False):
        """Maps, fine to coarse, to as many."""
        part = {**self.shared(), "width": self.width}
        down = [
            self.convolve(x, self.width, 1, f"lateral{i + 1}", train=train)
            for i, x in enumerate(maps)
        ]
        for i in reversed(range(len(maps) - 1)):
            coarse = upsample_nearest(down[i + 1], down[i].shape[1:3], f"enlarge{i + 1}")
            with jax.named_scope(f"add{i + 1}"):
                down[i] = down[i] + coarse
        return tuple(
            self.block(**part, name=f"out{i + 1}")(x, train=train) for i, x in enumerate(down)
        )


class PAN(PyramidModule):
    """Path aggregation: an FPN, and the way back up, so that coarse maps see fine detail.

    Each map, halved by a 3x3 convolution, is joined to the next coarser one and goes through a
    block.  Liu et al. 2018, arXiv:1803.01534, which adds; joined as in YOLOX, arXiv:2107.08430.
    """

    width: int = 256
    block: Callable = ConvBlock

    @nn.compact
    def __call__(self, maps, train=False):
        """Maps, fine to coarse, to as many."""
        part = {**self.shared(), "width": self.width}
        made = list(FPN(**part, block=self.block, name="top_down")(maps, train))
        for i in range(1, len(made)):
            halved = self.active(made[i - 1], self.width, 3, f"halve{i}", stride=2, train=train)
            both = layers.concatenate(halved, made[i])
            made[i] = self.block(**part, name=f"up{i + 1}")(both, train=train)
        return tuple(made)


def upsample_nearest(x, sides, name):
    """Map x [B, h, w, C] by nearest neighbours as [B, *sides, C], called `name`.

    Each pixel becomes a square of whole pixels; what does not fit at the end is cut off.
    """
    with jax.named_scope(name):
        down, across = (-(-side // has) for side, has in zip(sides, x.shape[1:3], strict=True))
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(
            x[:, :, None, :, None], (batch, height, down, width, across, channels)
        )  # repeated pixels, whose gradient is a sum and not a scatter
        x = x.reshape(batch, height * down, width * across, channels)
        return x[:, : sides[0], : sides[1]]
