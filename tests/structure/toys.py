"""Small networks, one coupling each, with an example input. Widths are chosen unequal so that mix-ups show."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Case = tuple[nn.Module, Tensor]


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(7))


class Residual(nn.Module):
    """Two blocks on one stream; the second block strides and projects, or pads its shortcut with zeros."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.b1, self.b2 = nn.Conv2d(8, 10, 3, 2, 1), nn.Conv2d(10, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(8, 12, 1, 2) if shortcut == "projection" else None
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        y = self.norm(self.b2(F.relu_(self.b1(x))))
        if self.project is not None:
            y += self.project(x)
        else:
            y = y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(y).mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined, one of them twice, as in DenseNet and Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(10, 5, 1)
        self.norm, self.out = nn.BatchNorm2d(21), nn.Conv2d(21, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([x, self.a(x)], 1)
        return self.out(F.relu(self.norm(torch.cat([y, self.b(y), x], 1))))


class Shuffle(nn.Module):
    """A ShuffleNet-V2 unit: chunk, a branch, concatenation, shuffle by reshape and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        y = torch.cat([a, F.relu(self.branch(b))], 1)
        n, c, h, w = y.shape
        return self.out(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Halves(nn.Module):
    """Parts of a dimension: split by half its size, slices by an attribute, and a slice of the rest."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.c = way, 4 if way == "attribute" else 5
        self.stem, self.out = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        if self.way == "split":
            a, b = x.split(half, dim=1)
        elif self.way == "slice":
            a, b = x[:, :half], x[:, half:]
        elif self.way == "attribute":
            a, b = x[:, : self.c], x[:, self.c :]
        else:
            a, b = x.split((self.c, self.c), 1)
        return self.out(torch.cat([b.tanh(), a], 1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x), inplace=True)
        b, c, _, _ = x.shape
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(b, c)))))
        return self.out(x * gate.view(b, c, 1, 1))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(F.max_pool2d(self.conv(x), 2).flatten(1)).relu())


class Shared(nn.Module):
    """One convolution called twice, and one weight used by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.a, self.b, self.out = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.loop(F.relu(self.loop(self.stem(x))))
        return self.out(self.a(x) * self.b(x))


class Text(nn.Module):
    """Embedding, a gated MLP between, and the embedding's weight again as output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inside, self.outside = nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.outside(F.glu(self.inside(x), dim=-1))
        return F.linear(x, self.embed.weight)


class ScaleByBuffer(nn.Module):
    """Layer scale as a parameter, a buffer of channel size, and a parameter nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.unused = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.conv(x) * self.scale + self.shift).clamp(min=0))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1)
        self.u2, self.c2 = nn.ConvTranspose2d(10, 7, 2, 2), nn.Conv2d(15, 8, 3, padding=2, dilation=2)
        self.c1, self.out = nn.Conv2d(14, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.d1(x))
        b = F.relu(self.d2(a))
        y = self.c2(torch.cat([self.u2(F.relu(self.mid(b))), b], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear")
        return self.out(F.relu(self.c1(torch.cat([y, a], 1))))


class C2f(nn.Module):
    """The YOLO-V8 block: the half width is an attribute that the forward splits by."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 5
        self.cv1, self.cv2 = nn.Conv2d(3, 2 * self.c, 1), nn.Conv2d(4 * self.c, 6, 1)
        self.m = nn.ModuleList(nn.Conv2d(self.c, self.c, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return self.head(F.silu(self.cv2(torch.cat(y, 1))))


def _chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def _grouped(inner: int, groups: int, outer: int | None = None) -> nn.Module:
    outer = outer or inner
    return _chain(
        nn.Conv2d(3, inner, 1),
        nn.Conv2d(inner, outer, 3, groups=groups, padding=1),
        nn.BatchNorm2d(outer),
        nn.Conv2d(outer, 4, 1),
    )


CASES: dict[str, Callable[[], Case]] = {
    "residual, projection": lambda: (Residual("projection"), image()),
    "residual, zero padding": lambda: (Residual("padding"), image()),
    "concatenation": lambda: (Concat(), image()),
    "grouped, few wide groups": lambda: (_grouped(16, 2), image()),
    "grouped, many narrow groups": lambda: (_grouped(16, 8), image()),
    "depthwise": lambda: (_grouped(10, 10), image()),
    "depthwise with multiplier": lambda: (_grouped(6, 6, 18), image()),
    "shuffle": lambda: (Shuffle(), image()),
    "split in half": lambda: (Halves("split"), image()),
    "slices in half": lambda: (Halves("slice"), image()),
    "slices by attribute": lambda: (Halves("attribute"), image()),
    "split by attribute": lambda: (Halves("sizes"), image()),
    "squeeze and excitation": lambda: (SqueezeExcite(), image()),
    "flatten": lambda: (Flattened(), image()),
    "shared and tied": lambda: (Shared(), image()),
    "tied embedding": lambda: (Text(), torch.tensor([[1, 5, 10], [0, 2, 2]])),
    "buffer and scale": lambda: (ScaleByBuffer(), image()),
    "u-net": lambda: (UNet(), image()),
    "yolo block": lambda: (C2f(), image()),
    "group norm": lambda: (
        _chain(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.PReLU(12), nn.Conv2d(12, 4, 1)),
        image(),
    ),
    "pixel shuffle": lambda: (
        _chain(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 6, 3), nn.PixelUnshuffle(2), nn.Conv2d(24, 3, 1)),
        image(),
    ),
    "transposed, grouped and dilated": lambda: (
        _chain(
            nn.Conv2d(3, 8, 3, dilation=2, padding=2),
            nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4, bias=False),
            nn.InstanceNorm2d(12, affine=True),
            nn.ConvTranspose2d(12, 5, 2),
        ),
        image(),
    ),
    "one dimension": lambda: (
        _chain(nn.Conv1d(4, 9, 5, stride=2), nn.BatchNorm1d(9), nn.ELU(inplace=True), nn.Conv1d(9, 3, 3)),
        torch.randn(2, 4, 20),
    ),
    "three dimensions": lambda: (
        _chain(nn.Conv3d(2, 5, 3), nn.ReLU6(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3)),
        torch.randn(1, 2, 5, 6, 7),
    ),
}
