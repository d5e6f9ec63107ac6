"""Classification, localization and sliding-window networks in PyTorch, with one training step.

Written from the papers. Images are [B, C, H, W], channels-last in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_refs import backend
from benchmarks.torch_refs.detector import ciou
from jaxdet.models.sliding import LayerSpec


def conv_norm(
    channels: int, width: int, kernel: int, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution without bias, and its batch norm."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions; its shortcut may be a 1x1 convolution."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv_norm(channels, width, 3, stride, 1)
        self.conv2 = conv_norm(width, width, 3, 1, 1)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, width, H / stride, W / stride], sides rounded up."""
        residual = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, the last with 4 * width channels."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        wide = self.expansion * width
        self.conv1 = conv_norm(channels, width, 1)
        self.conv2 = conv_norm(width, width, 3, stride, 1)
        self.conv3 = conv_norm(width, wide, 1)
        same = channels == wide and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(channels, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, 4 width, H / stride, W / stride], sides rounded up."""
        y = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return functional.relu(self.conv3(y) + self.shortcut(x))


def resnet(
    classes: int, stages: Sequence[int], block: type[BasicBlock] | type[Bottleneck]
) -> nn.Sequential:
    """A ResNet with these numbers of blocks in its stages. He et al. 2015, arXiv:1512.03385."""
    layers = [conv_norm(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for i, blocks in enumerate(stages):
        width = 64 * 2**i
        for j in range(blocks):
            layers.append(block(channels, width, 2 if i and not j else 1))
            channels = block.expansion * width
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, *pool, nn.Linear(channels, classes))


def resnet18(classes: int = 1000) -> nn.Sequential:
    return resnet(classes, (2, 2, 2, 2), BasicBlock)


def resnet50(classes: int = 1000) -> nn.Sequential:
    """ResNet50, with the stride of a block in its 3x3 convolution, as in torchvision (v1.5)."""
    return resnet(classes, (3, 4, 6, 3), Bottleneck)


class SlidingWindowNet(nn.Module):
    """The convolutional form of a `SlidingNet`, built from the layers of its plan."""

    def __init__(self, plan: Sequence[LayerSpec], channels: int = 2):
        super().__init__()
        layers = []
        *hidden, last = plan
        for spec in hidden:
            _, *sizes = spec.layer  # kernel, stride, padding
            if spec.channels:
                layers += [conv_norm(channels, spec.channels, *sizes), nn.ReLU()]
                channels = spec.channels
            else:
                layers.append(nn.MaxPool2d(*sizes))
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, last.channels, last.layer.kernel))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, rows, columns, 15] of x [B, 1, H, W], with the mask `x > 0` as a channel."""
        x = torch.cat([x, (x > 0).float()], 1)
        return self.net(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


def sliding_window_loss(outputs: Tensor, target: Tensor, box_weight: float = 150.0) -> Tensor:
    """Loss of `SlidingWindowTask`, summed over windows; target [B, rows, columns, 6].

    Label and box losses count only in windows that overlap the object and in which the network
    detects it.
    """
    present, label, box = target[..., 0], target[..., 1].long(), target[..., 2:]
    mask = present * (outputs[..., 0].detach() > 0)
    log_probabilities = functional.log_softmax(outputs[..., 1:-4], -1)
    cross_entropy = -log_probabilities.gather(-1, label[..., None])[..., 0]
    box_error = (outputs[..., -4:] - box).square().mean(-1)
    detection = functional.binary_cross_entropy_with_logits(
        outputs[..., 0], present, reduction="sum"
    )
    return detection + (mask * cross_entropy).sum() + box_weight * (mask * box_error).sum()


class Localizer(nn.Module):
    """A network that predicts label and box of an image; for `layout` see `jaxdet.models.plain`."""

    def __init__(
        self,
        layout: str,
        side: int,
        hidden: Sequence[int],
        rates: Sequence[float],
        classes: int = 3,
    ):
        super().__init__()
        layers, channels = [], 3
        for word in layout.split():
            if word.startswith("M"):
                layers.append(nn.MaxPool2d(int(word[1:])))
                continue
            width, _, kernel = word.partition("/")
            size = int(kernel or 3)
            layers += [conv_norm(channels, int(width), size, 1, size // 2), nn.ReLU()]
            channels = int(width)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side))
        features = channels * side * side
        self.classifier = dense_layers(features, hidden, rates, classes)
        self.box_head = dense_layers(features, hidden, (0.0,) * len(hidden), 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, classes], boxes [B, 4] as fractions of the side) of x [B, 3, H, W]."""
        x = self.features(x).permute(0, 2, 3, 1).flatten(1)
        return self.classifier(x), self.box_head(x).sigmoid()


def dense_layers(
    features: int, hidden: Sequence[int], rates: Sequence[float], outputs: int
) -> nn.Sequential:
    """Hidden dense layers with ReLU and dropout, and a last layer without them."""
    layers = []
    for width, rate in zip(hidden, rates, strict=True):
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(rate)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, outputs))


def localization_loss(outputs: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy plus 2 (1 - CIoU), both averaged over images.

    outputs: logits [B, K] and boxes [B, 4]; target: labels [B] and boxes [B, 4].
    """
    logits, boxes = outputs
    label, true = target
    return functional.cross_entropy(logits, label) + 2 * (1 - ciou(boxes, true)).mean()


def make_step(
    net: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    images: Tensor,
    target: Any,
    *,
    compiled: bool = False,
    precision: str = "float32",
    device: torch.device | None = None,
    steps: int = 1,
) -> Callable[[], float]:
    """A function without arguments that takes `steps` AdamW steps and returns the last loss.

    It returns once the device has finished the steps. The loss is computed in float32; for
    `precision` see `backend.set_precision` and `backend.autocast`. On CUDA the update is PyTorch's
    fused AdamW.
    """
    device = device or torch.device("cpu")
    backend.set_precision(precision)
    net = net.train().to(device=device, memory_format=torch.channels_last)
    images, target = backend.to_device((images, target), device)
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02, **fused)
    run = torch.compile(net) if compiled else net

    def step():
        with backend.autocast(precision, device):
            outputs = run(images)
        value = loss(_as_float32(outputs), target)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # between steps, as in JAX, no gradient takes memory
        return value

    def call():
        for _ in range(steps - 1):
            step()
        return step().item()

    return call


def _as_float32(outputs: Any) -> Any:
    """Outputs of a network, a tensor or a tuple of tensors, in float32."""
    return tuple(x.float() for x in outputs) if isinstance(outputs, tuple) else outputs.float()
