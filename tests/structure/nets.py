"""Small whole networks of kinds that neither torchvision nor timm has, with an example input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structure.toys import Case, UNet, image


def conv(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, padding, bias=False), nn.BatchNorm2d(outside), nn.SiLU(inplace=True)
    )


class Bottlenecks(nn.Module):
    """YOLO-V8's C2f: split by an attribute, residual blocks on the last part, all parts joined."""

    def __init__(self, inside: int, outside: int, count: int) -> None:
        super().__init__()
        self.c = outside // 2
        self.cv1, self.cv2 = conv(inside, 2 * self.c, 1), conv((2 + count) * self.c, outside, 1)
        self.m = nn.ModuleList(nn.Sequential(conv(self.c, self.c), conv(self.c, self.c)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        for block in self.m:
            y.append(y[-1] + block(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Pyramid(nn.Module):
    """YOLO's SPPF: three poolings in a row, joined."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(inside, inside // 2, 1), conv(2 * inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], 5, 1, 2))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """A small YOLO-style detector: two scales, top-down path, a box and a class branch on each."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), Bottlenecks(32, 32, 1))
        self.fine = nn.Sequential(conv(32, 64, 3, 2), Bottlenecks(64, 64, 2))
        self.coarse = nn.Sequential(conv(64, 96, 3, 2), Bottlenecks(96, 96, 1), Pyramid(96, 96))
        self.merge = Bottlenecks(96 + 64, 64, 1)
        widths = (64, 96)
        self.box = nn.ModuleList(nn.Sequential(conv(w, 16), nn.Conv2d(16, 4, 1)) for w in widths)
        self.kind = nn.ModuleList(nn.Sequential(conv(w, 24), nn.Conv2d(24, classes, 1)) for w in widths)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        merged = self.merge(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1))
        found = [
            torch.cat([box(y), kind(y)], 1).flatten(2)
            for box, kind, y in zip(self.box, self.kind, (merged, coarse), strict=True)
        ]
        boxes, scores = torch.cat(found, 2).split((4, found[0].shape[1] - 4), 1)
        return {"boxes": boxes, "scores": scores.sigmoid()}


class KeywordSpotter(nn.Module):
    """Depthwise-separable 1-D convolutions over a waveform's features."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(40, width, 5, 2), nn.BatchNorm1d(width), nn.ReLU()]
        for _ in range(3):
            layers += [
                nn.Conv1d(width, width, 9, padding=4, groups=width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
            layers += [nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(-1))


class TextEncoder(nn.Module):
    """Token and position embeddings, torch's transformer encoder, the mean over tokens."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, width), nn.Parameter(torch.randn(1, 32, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        return self.classifier(self.encoder(x).mean(1))


def unet() -> Case:
    return UNet(), image(size=32, batch=1)


def yolo() -> Case:
    return Yolo(), image(size=64, batch=1)


def keyword_spotter() -> Case:
    return KeywordSpotter(), torch.randn(1, 40, 60)


def text_encoder() -> Case:
    return TextEncoder(), torch.arange(24).reshape(1, 24)


def chain(length: int, width: int = 16) -> Case:
    """`length` convolutions in a row, each with its norm."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(length - 1):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers), image(batch=1)
