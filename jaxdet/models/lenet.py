"""The small network of PyTorch's CIFAR-10 tutorial, after LeNet-5 (seed 003).

LeCun et al., "Gradient-based learning applied to document recognition", 1998.  With ReLU, max pools
and three channels it has 62,006 parameters and, on 32 x 32 pixels, 651,720 multiplications.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxdet.models import layers


class LeNet(nn.Module):
    """Two 5x5 convolutions without padding, each pooled, then three dense layers.

    widths, dense: channels of the convolutions, and of the hidden dense layers.
    classes: outputs.
    dtype: of the computation; parameters stay float32.
    conv_general_dilated: how a convolution is computed, as linen's `nn.Conv` takes it.
    """

    widths: tuple[int, ...] = (6, 16)
    dense: tuple[int, ...] = (120, 84)
    classes: int = 10
    dtype: Any = None
    conv_general_dilated: Callable | None = None

    @nn.compact
    def __call__(self, x, train=False):
        """Logits [B, classes] of images [B, H, W, C]; 16 x 16 pixels are the least."""
        for i, width in enumerate(self.widths, 1):
            x = self._convolution(x, width, f"conv{i}")
            x = layers.relu(x, f"conv{i}_relu")
            x = layers.max_pool(x, f"conv{i}_pool", kernel=2, stride=2)
        x = x.reshape(len(x), -1)  # [B, rows * columns * channels]
        for i, width in enumerate(self.dense, 1):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
            x = layers.relu(x, f"dense{i}_relu")
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x)

    @nn.nowrap
    def _convolution(self, x, width, name):
        return nn.Conv(
            width,
            kernel_size=(5, 5),
            padding="VALID",
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )(x)
