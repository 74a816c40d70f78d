"""Residual networks for 32x32 images (He et al., *Deep Residual Learning*, arXiv 1512.03385, section 4.2).

`[N, 3, 32, 32]` in, logits `[N, num_classes]` out. Depth 6n + 2: three stages of n blocks at widths 16, 32,
64. Shortcuts have no parameters ("option A"): where the shape changes, they subsample by 2 and add channels of zeros.
Half of the zeros are before the channels and half after, as the public CIFAR-10 weights expect.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ZeroPadShortcut(nn.Module):
    """Every second pixel, with `before` and `after` channels of zeros added."""

    def __init__(self, *, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, before + C + after, H/2, W/2]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """The settings that print(model) shows."""
        return f"before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = self.bridge(in_channels, channels, stride)

    def bridge(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        """A module that changes the input to the output's shape."""
        added = channels - in_channels
        return ZeroPadShortcut(before=added // 2, after=added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C_in, H, W]` -> `[N, C, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """`blocks` residual blocks in each of three stages."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """The CIFAR ResNet of `depth` = 6n + 2 weight layers: 20, 32, 44, 56 or 110 in the paper."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
    return CifarResNet((depth - 2) // 6, num_classes)


@torch.no_grad()
def initialise_(model: nn.Module) -> None:
    """He initialisation of every convolution and linear layer (arXiv 1502.01852, equation 10), in place."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
