"""A small residual network for the built-in 8x8 digits: the network of the demo.

`[N, 1, 8, 8]` in, logits `[N, 10]` out. Three stages at 8x8, 4x4 and 2x2 pixels. Where the width changes, the
shortcut is a 1x1 convolution. Thus the residual streams can be pruned, not only the inside of the blocks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.zoo.resnet import BasicBlock, initialise_

WIDTHS = (8, 16, 32)
BLOCKS = 2  # in each stage


class ProjectionBlock(BasicBlock):
    """A basic block whose shortcut is a 1x1 convolution where the shape changes."""

    def bridge(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        """1x1 convolution and batch norm."""
        projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        return nn.Sequential(projection, nn.BatchNorm2d(channels))


class DigitsCNN(nn.Module):
    """A 3x3 convolution, three residual stages, global mean, linear classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, stride=1)
        self.layer2 = _stage(first, second, stride=2)
        self.layer3 = _stage(second, third, stride=2)
        self.linear = nn.Linear(third, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    first = ProjectionBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(ProjectionBlock(channels, channels, 1) for _ in range(BLOCKS - 1)))
