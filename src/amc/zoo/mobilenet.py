"""MobileNet-V1 (Howard et al., arXiv 1704.04861, table 1), for 224x224 and for 32x32 images.

The variants differ in the stride of the first convolution: 2 in the paper, 1 for small images. A 32x32 image then has
2x2 pixels at the last layer. `[N, 3, H, W]` in, logits `[N, num_classes]` out.
"""

from torch import Tensor, nn

from amc.zoo.resnet import initialise_

# (output channels at width 1, stride of the depthwise convolution) of each depthwise-separable layer
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """A 3x3 convolution, thirteen depthwise-separable layers, global mean, linear classifier.

    `width` multiplies every channel count (the paper's alpha).
    """

    def __init__(self, width: float = 1.0, num_classes: int = 10, stem_stride: int = 1) -> None:
        super().__init__()
        before = max(1, round(32 * width))
        stem = nn.Conv2d(3, before, 3, stem_stride, padding=1, bias=False)
        layers = [nn.Sequential(stem, nn.BatchNorm2d(before), nn.ReLU(inplace=True))]
        for channels, stride in LAYERS:
            after = max(1, round(channels * width))
            layers.append(separable(before, after, stride=stride))
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(before, num_classes))
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def separable(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    """A 3x3 depthwise convolution, then a 1x1 convolution to `channels`; batch norm and relu after each."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(
        depthwise,
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        pointwise,
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
