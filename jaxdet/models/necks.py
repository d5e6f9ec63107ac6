"""Necks: feature pyramids that combine the maps of a backbone.

    p3, p4, p5 = FPN(channels=96).apply(variables, (c3, c4, c5))

There may be any number of maps, ordered from fine to coarse; each output [B, h, w, channels] has
the size of its input.  `block` replaces the 3x3 convolutions of the papers: `ConvBlock`, `C3` or
`C2f`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.models import layers
from jaxdet.types import Array


class PyramidModule(layers.ConvModule):
    """Base of the modules of necks and heads, whose activation is SiLU."""

    activation: layers.Activation = nn.silu
    channels: int = 64


class ConvBlock(PyramidModule):
    """One 3x3 convolution, batch norm and SiLU."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H, W, channels]."""
        return self.conv_norm_act(x, self.channels, 3, "conv", train=train)


class Bottleneck(PyramidModule):
    """A `kernel` x `kernel` and a 3x3 convolution, with a shortcut if C equals `channels`.

    depthwise: whether the 3x3 convolution is separable.
    shortcut: False leaves the shortcut out.
    """

    kernel: int = 1
    depthwise: bool = False
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H, W, channels]."""
        y = self.conv_norm_act(x, self.channels, self.kernel, "conv1", train=train)
        y = self.conv_3x3(y, self.channels, "conv2", depthwise=self.depthwise, train=train)
        if not self.shortcut or y.shape != x.shape:
            return y
        with jax.named_scope("add"):
            return x + y


class C3(PyramidModule):
    """Cross stage partial block of YOLOv5 (arXiv:1911.11929): bottlenecks on half the channels.

    blocks: number of bottlenecks.
    depthwise, shortcut: see `Bottleneck`.
    """

    blocks: int = 1
    depthwise: bool = False
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H, W, channels]."""
        half = self.channels // 2
        deep = self.conv_norm_act(x, half, 1, "deep", train=train)
        around = self.conv_norm_act(x, half, 1, "around", train=train)
        for i in range(1, self.blocks + 1):
            block = Bottleneck(
                **self.shared_fields(),
                channels=half,
                depthwise=self.depthwise,
                shortcut=self.shortcut,
                name=f"block{i}",
            )
            deep = block(deep, train)
        both = layers.concatenate(deep, around)
        return self.conv_norm_act(both, self.channels, 1, "out", train=train)


class C2f(PyramidModule):
    """Cross stage partial block of YOLOv8: a chain of bottlenecks, all outputs concatenated."""

    blocks: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Map x [B, H, W, C] to [B, H, W, channels]."""
        half = self.channels // 2
        fields = {**self.shared_fields(), "channels": half, "kernel": 3}
        x = self.conv_norm_act(x, 2 * half, 1, "in", train=train)
        maps = [x[..., :half], x[..., half:]]
        for i in range(1, self.blocks + 1):
            maps.append(Bottleneck(**fields, name=f"block{i}")(maps[-1], train))
        return self.conv_norm_act(layers.concatenate(*maps), self.channels, 1, "out", train=train)


class FPN(PyramidModule):
    """Feature pyramid network: each coarse map is upsampled and added to the next finer one.

    Lin et al. 2016, arXiv:1612.03144.
    """

    channels: int = 256
    block: Callable[..., nn.Module] = ConvBlock

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> tuple[Array, ...]:
        """Maps [B, h, w, C], fine to coarse, to maps [B, h, w, channels] of the same sizes."""
        fields: dict[str, Any] = {**self.shared_fields(), "channels": self.channels}
        merged = [
            self.conv_norm(x, self.channels, 1, f"lateral{i}", train=train)
            for i, x in enumerate(maps, 1)
        ]
        for i in reversed(range(len(maps) - 1)):
            coarse = upsample_nearest(merged[i + 1], merged[i].shape[1:3], f"enlarge{i + 1}")
            with jax.named_scope(f"add{i + 1}"):
                merged[i] = merged[i] + coarse
        return tuple(
            self.block(**fields, name=f"out{i}")(x, train=train) for i, x in enumerate(merged, 1)
        )


class PAN(PyramidModule):
    """Path aggregation network: after an FPN, fine maps are halved and joined to coarse maps.

    Liu et al. 2018, arXiv:1803.01534, add the two maps; here they are concatenated, as in YOLOX
    (arXiv:2107.08430).
    """

    channels: int = 256
    block: Callable[..., nn.Module] = ConvBlock

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> tuple[Array, ...]:
        """Maps [B, h, w, C], fine to coarse, to maps [B, h, w, channels] of the same sizes."""
        fields: dict[str, Any] = {**self.shared_fields(), "channels": self.channels}
        merged = list(FPN(**fields, block=self.block, name="top_down")(maps, train))
        for i in range(1, len(merged)):
            options = {"stride": 2, "train": train}
            halved = self.conv_norm_act(merged[i - 1], self.channels, 3, f"halve{i}", **options)
            both = layers.concatenate(halved, merged[i])
            merged[i] = self.block(**fields, name=f"up{i + 1}")(both, train=train)
        return tuple(merged)


def upsample_nearest(x: Array, size: tuple[int, int], name: str) -> Array:
    """Upsample x [B, h, w, C] to [B, *size, C] by nearest neighbors, under the layer name `name`.

    Each pixel is repeated a whole number of times along each axis; rows and columns beyond `size`
    are cropped.
    """
    with jax.named_scope(name):
        rows, columns = (-(-side // own) for side, own in zip(size, x.shape[1:3], strict=True))
        batch, height, width, channels = x.shape
        # broadcasting, whose gradient is a sum and not a scatter
        x = jnp.broadcast_to(
            x[:, :, None, :, None], (batch, height, rows, width, columns, channels)
        )
        x = x.reshape(batch, height * rows, width * columns, channels)
        return x[:, : size[0], : size[1]]
