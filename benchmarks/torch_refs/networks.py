"""ResNet18 and the digit locator in PyTorch, with one training step: what jaxdet is timed against.

Written from the papers and from seed 001.  Images are [B, C, H, W], channels-last in memory.
"""

import torch
from torch import nn
from torch.nn import functional


def convolution(channels, width, kernel, stride=1, padding=0):
    """A convolution without bias, and its batch norm."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Basic(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.first = convolution(channels, width, 3, stride, 1)
        self.second = convolution(width, width, 3, 1, 1)
        same = channels == width and stride == 1
        self.around = nn.Identity() if same else convolution(channels, width, 1, stride)

    def forward(self, x):
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.around(x))


def resnet18(classes=1000):
    """He et al. 2015, arXiv:1512.03385."""
    layers = [convolution(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for i, width in enumerate((64, 128, 256, 512)):
        layers += [Basic(channels, width, 2 if i else 1), Basic(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class Locator(nn.Module):
    """The window network of jaxdet's plan: convolutions with norm and ReLU, and pools."""

    def __init__(self, plan, channels=2):
        super().__init__()
        layers = []
        *hidden, last = plan
        for part in hidden:
            _, *sizes = part.layer  # kernel, stride, padding
            if part.width:
                layers += [convolution(channels, part.width, *sizes), nn.ReLU()]
                channels = part.width
            else:
                layers.append(nn.MaxPool2d(*sizes))
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, last.width, last.layer.kernel))

    def forward(self, x):
        """Outputs [B, rows, columns, 15] of x [B, 1, H, W]; where there is ink is a channel too."""
        x = torch.cat([x, (x > 0).float()], 1)
        return self.net(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


def locator_loss(outputs, target, box_weight=150.0):
    """The seed's gated sum over windows of target [B, rows, columns, 6]."""
    here, label, box = target[..., 0], target[..., 1].long(), target[..., 2:]
    on = here * (outputs[..., 0].detach() > 0)
    known = functional.log_softmax(outputs[..., 1:-4], -1)
    missed = -known.gather(-1, label[..., None])[..., 0]
    placed = (outputs[..., -4:] - box).square().mean(-1)
    detected = functional.binary_cross_entropy_with_logits(outputs[..., 0], here, reduction="sum")
    return detected + (on * missed).sum() + box_weight * (on * placed).sum()


class Localizer(nn.Module):
    """Label and box of seed 000: convolutions and pools told as `models.plain` tells them."""

    def __init__(self, layout, side, hidden, rates, classes=3):
        super().__init__()
        layers, channels = [], 3
        for word in layout.split():
            if word.startswith("M"):
                layers.append(nn.MaxPool2d(int(word[1:])))
                continue
            width, _, kernel = word.partition("/")
            size = int(kernel or 3)
            layers += [convolution(channels, int(width), size, 1, size // 2), nn.ReLU()]
            channels = int(width)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side))
        wide = channels * side * side
        self.classifier = branch(wide, hidden, rates, classes)
        self.boxer = branch(wide, hidden, (0.0,) * len(hidden), 4)

    def forward(self, x):
        """(logits [B, classes], boxes [B, 4] in shares) of x [B, 3, H, W]."""
        x = self.features(x).permute(0, 2, 3, 1).flatten(1)
        return self.classifier(x), self.boxer(x).sigmoid()


def branch(channels, hidden, rates, outputs):
    """Dense layers with ReLU and dropout."""
    layers = []
    for width, rate in zip(hidden, rates, strict=True):
        layers += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout(rate)]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, outputs))


def labelled_box_loss(outputs, target):
    """Cross entropy and twice 1 - CIoU, means over photos."""
    from benchmarks.torch_refs.detector import ciou

    logits, boxes = outputs
    label, true = target
    return functional.cross_entropy(logits, label) + 2 * (1 - ciou(boxes, true)).mean()


def stepper(net, loss, images, target, *, compiled=False):
    """A function without arguments that makes one AdamW step on a batch and waits for it."""
    net = net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
    run = torch.compile(net) if compiled else net

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = loss(run(images), target)
        value.backward()
        optimizer.step()
        return value.item()

    return step
