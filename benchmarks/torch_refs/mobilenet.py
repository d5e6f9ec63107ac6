"""MobileNetV2 in PyTorch.

Written from the paper (Sandler et al. 2018, arXiv:1801.04381). Images are [B, C, H, W],
channels-last in memory.
"""

from torch import Tensor, nn

STAGES = (  # expansion, width, blocks, stride of the first block
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def conv_module(
    channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class InvertedResidual(nn.Module):
    """An inverted residual block with a 3x3 depthwise convolution."""

    def __init__(self, channels: int, width: int, stride: int, expand: int):
        super().__init__()
        wide = channels * expand
        layers = [conv_module(channels, wide)] if expand > 1 else []
        layers.append(conv_module(wide, wide, 3, stride, wide))
        project = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)
        self.layers = nn.Sequential(*layers, *project)
        self.has_shortcut = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, width, H / stride, W / stride], sides rounded up."""
        y = self.layers(x)
        return x + y if self.has_shortcut else y


def v2(classes: int = 1000) -> nn.Sequential:
    """A network from images [B, 3, H, W] to logits [B, classes], without dropout, as in jaxdet."""
    layers, channels = [conv_module(3, 32, 3, 2)], 32
    for expand, width, blocks, stride in STAGES:
        for i in range(blocks):
            layers.append(InvertedResidual(channels, width, 1 if i else stride, expand))
            channels = width
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, conv_module(320, 1280), *pool, nn.Linear(1280, classes))
