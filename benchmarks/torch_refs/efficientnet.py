"""EfficientNet-B0 and EfficientNet-Lite0 in PyTorch, and their blocks.

Written from the papers (arXiv:1905.11946, 1801.04381, 1709.01507). Images are [B, C, H, W],
channels-last in memory.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

STAGES = (  # blocks, width, kernel, stride, expansion
    *((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6)),
    *((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6)),
)


class SamePadConv(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels per side.

    If the number of padding pixels is odd, the extra one is at the bottom or right, as in
    TensorFlow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, D, H / stride, W / stride], sides rounded up."""
        pads = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [need // 2, need - need // 2]
        return super().forward(functional.pad(x, pads) if any(pads) else x)


def conv_module(
    channels: int,
    width: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
    eps: float = 1e-3,
) -> nn.Sequential:
    """Convolution, batch norm and activation, by default as in EfficientNet-Lite."""
    conv = SamePadConv(channels, width, kernel, stride, groups=groups, bias=False)
    norm = nn.BatchNorm2d(width, eps=eps)
    return nn.Sequential(conv, norm, activation() if activation else nn.Identity())


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: scale channels by weights computed from their global averages."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the same shape."""
        y = functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.expand(y).sigmoid()


class InvertedResidual(nn.Module):
    """An inverted residual block, with squeeze-and-excitation unless `squeeze` is 0."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int,
        expand: int,
        *,
        activation: type[nn.Module] = nn.ReLU6,
        squeeze: float = 0.0,
    ):
        super().__init__()
        wide = channels * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers.append(conv_module(channels, wide, 1, activation=activation))
        layers.append(conv_module(wide, wide, kernel, stride, wide, activation))
        if squeeze:
            layers.append(SqueezeExcite(wide, max(1, int(squeeze * channels))))
        layers.append(conv_module(wide, width, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, width, H / stride, W / stride], sides rounded up."""
        y = self.layers(x)
        return x + y if self.has_shortcut else y


def build_stages(
    activation: type[nn.Module] = nn.ReLU6, squeeze: float = 0.0
) -> list[nn.Sequential]:
    """The stem and the seven stages of blocks; by default of EfficientNet-Lite0."""
    stages, channels = [conv_module(3, 32, 3, 2, activation=activation)], 32
    for blocks, width, kernel, stride, expand in STAGES:
        stage = []
        for i in range(blocks):
            options = {"activation": activation, "squeeze": squeeze}
            stride = 1 if i else stride
            stage.append(InvertedResidual(channels, width, kernel, stride, expand, **options))
            channels = width
        stages.append(nn.Sequential(*stage))
    return stages


def classifier(
    classes: int = 1000, *, activation: type[nn.Module] = nn.ReLU6, squeeze: float = 0.0
) -> nn.Sequential:
    """A network from images [B, 3, H, W] to logits [B, classes], without dropout, as in jaxdet."""
    head = conv_module(320, 1280, 1, activation=activation)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*build_stages(activation, squeeze), head, *pool, nn.Linear(1280, classes))


def lite0(classes: int = 1000) -> nn.Sequential:
    return classifier(classes)


def b0(classes: int = 1000) -> nn.Sequential:
    return classifier(classes, activation=nn.SiLU, squeeze=0.25)
