"""Networks without shortcuts for 32x32 images: Plain-20 and VGG-16 with batch norm.

Both have one `features` sequence of (3x3 convolution, batch norm, relu) and a linear `classifier`;
`[N, 3, 32, 32]` in, logits `[N, num_classes]` out. Plain-20 is ResNet-20 without shortcuts (arXiv 1512.03385,
section 4.2). VGG-16 is configuration D (arXiv 1409.1556, table 1) without biases in its convolutions and with one
linear layer instead of three.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from amc.zoo.resnet import initialise_

PLAIN20_WIDTHS = (16,) * 7 + (32,) * 6 + (64,) * 6
VGG16_WIDTHS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None)


class PlainNet(nn.Module):
    """3x3 convolutions at `widths`, with stride 2 where the width changes, then the global mean."""

    def __init__(self, widths: Sequence[int] = PLAIN20_WIDTHS, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = widths[0]
        for i, width in enumerate(widths):
            layers += conv_bn_relu(3 if i == 0 else before, width, stride=1 if width == before else 2)
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


class VGG(nn.Module):
    """VGG-16 at `width` times the paper's channels. Five 2x2 poolings reduce 32x32 pixels to one."""

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in VGG16_WIDTHS:
            if channels is None:
                layers.append(nn.MaxPool2d(2))
                continue
            scaled = max(1, round(channels * width))
            layers += conv_bn_relu(before, scaled, stride=1)
            before = scaled
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def conv_bn_relu(in_channels: int, channels: int, *, stride: int) -> list[nn.Module]:
    """A padded 3x3 convolution, batch norm, relu. The output size is the input size over the stride."""
    convolution = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
