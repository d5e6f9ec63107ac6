"""A detector in PyTorch: EfficientNet-Lite0, FPN, a decoupled head per level, TAL targets.

Written from the papers (arXiv:1905.11946, 1612.03144, 2107.08430, 2108.07755). Images are
[B, C, H, W], channels-last in memory.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_refs import assign

STAGES = (  # blocks, width, kernel, stride, expansion
    *((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6)),
    *((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6)),
)
STRIDES = (8, 16, 32)
ASSIGNMENT = {"topk": 10, "alpha": 0.5, "beta": 6.0}


class SamePadConv(nn.Conv2d):
    """A convolution that pads to size / stride rounded up, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D, H / stride, W / stride]."""
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


def head_module(
    channels: int, width: int, kernel: int, activation: type[nn.Module] | None = nn.SiLU
) -> nn.Sequential:
    """Convolution, batch norm and activation, as in the neck and in the head."""
    return conv_module(channels, width, kernel, activation=activation, eps=1e-5)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project. Sandler et al. 2018, arXiv:1801.04381."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = channels * expand
        layers = [conv_module(channels, wide, 1)] if expand > 1 else []
        layers.append(conv_module(wide, wide, kernel, stride, wide))
        layers.append(conv_module(wide, width, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = self.layers(x)
        return x + y if self.has_shortcut else y


class Backbone(nn.Module):
    """Feature maps of strides 8, 16 and 32; of stem and stages, the first `frozen` are frozen."""

    def __init__(self, frozen: int):
        super().__init__()
        stages, channels = [conv_module(3, 32, 3, 2)], 32
        for blocks, width, kernel, stride, expand in STAGES:
            stage = []
            for i in range(blocks):
                stage.append(InvertedResidual(channels, width, kernel, 1 if i else stride, expand))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        for stage in stages[:frozen]:
            stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to three maps, fine to coarse."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in (3, 5, 7):  # the last of their resolution
                maps.append(x)
        return maps


class Detector(nn.Module):
    """Class logits [B, A, K], boxes [B, A, 4] in pixels, points [A, 2] of images [B, 3, H, W]."""

    def __init__(self, classes: int, width: int = 96, frozen: int = 3):
        super().__init__()
        self.backbone = Backbone(frozen)
        self.lateral = nn.ModuleList(head_module(c, width, 1, None) for c in (40, 112, 320))
        self.out = nn.ModuleList(head_module(width, width, 3) for _ in STRIDES)
        self.stem = nn.ModuleList(head_module(width, width, 1) for _ in STRIDES)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(*(head_module(width, width, 3) for _ in range(2))) for _ in range(2)
            )
            for _ in STRIDES
        )
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in STRIDES)
        self.sides = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        for last in self.classes:
            nn.init.constant_(last.bias, -math.log(99))

    def train(self, mode: bool = True) -> "Detector":
        """Switch modes, except for the batch norms of the backbone, which stay in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        maps = [lateral(m) for lateral, m in zip(self.lateral, self.backbone(x), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + functional.interpolate(maps[i + 1], size=maps[i].shape[-2:])
        classes, boxes, points = [], [], []
        for i, (stride, m) in enumerate(zip(STRIDES, maps, strict=True)):
            m = self.stem[i](self.out[i](m))
            class_features, box_features = (branch(m) for branch in self.branches[i])
            classes.append(self.classes[i](class_features).flatten(2).transpose(1, 2))
            ltrb = self.sides[i](box_features).flatten(2).transpose(1, 2).clamp(max=8).exp()
            centers = _grid_centers(m.shape[-2:], stride)
            ltrb = ltrb * stride
            boxes.append(torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], -1))
            points.append(centers)
        return torch.cat(classes, 1), torch.cat(boxes, 1), torch.cat(points)


def detection_loss(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Binary cross entropy and 5 x CIoU loss, divided by the sum of the target scores.

    target: true boxes [B, G, 4], true labels [B, G] and valid [B, G].
    """
    classes, boxes, points = outputs
    true_boxes, true_labels, valid = target
    assigned = assign.task_aligned(
        classes.sigmoid(),
        boxes.detach(),
        points,
        true_boxes,
        true_labels,
        valid,
        **ASSIGNMENT,
    )
    positive, _, scores, true = assigned
    total = scores.sum().clamp(min=1)
    class_loss = functional.binary_cross_entropy_with_logits(classes, scores, reduction="sum")
    weight = scores.sum(-1)[positive]
    box_loss = (1 - ciou(boxes[positive], true[positive])) * weight
    return (class_loss + 5 * box_loss.sum()) / total


def ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU [N] of boxes [N, 4]; the weight of its aspect term passes no gradient."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    (wa, ha), (wb, hb) = ((x[:, 2:] - x[:, :2]).unbind(-1) for x in (a, b))
    iou = intersection / (wa * ha + wb * hb - intersection + eps)
    diagonal = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    between = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    v = 4 / math.pi**2 * (torch.atan2(wa, ha) - torch.atan2(wb, hb)).square()
    alpha = (v / (1 - iou + v + eps)).detach()
    return iou - between.square().sum(-1) / (diagonal.square().sum(-1) + eps) - alpha * v


def _grid_centers(shape, stride):
    """Centers [A, 2] of the cells of a map, in pixels."""
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in shape), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * stride
