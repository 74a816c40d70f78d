"""Networks that convert within a second; each has a feature that is difficult for some format."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from amc.deploy.extras import MissingExtraError
from amc.deploy.formats import FORMATS, get_format
from amc.deploy.runtimes import get_runtime

EXAMPLE = torch.zeros(1, 3, 8, 8)
CONVERTERS = {"executorch": "executorch", "litert": "litert_torch", "ncnn": "pnnx", "openvino": "openvino"}


def formats() -> list[object]:
    """Every format; those whose package is missing are skipped."""
    return [
        pytest.param(name, marks=() if available(name) else pytest.mark.skip(f"{name} is missing")) for name in FORMATS
    ]


def available(name: str) -> bool:
    try:
        get_runtime(get_format(name).runtime).version()
    except MissingExtraError:
        return False
    return name not in CONVERTERS or importlib.util.find_spec(CONVERTERS[name]) is not None


class Block(nn.Module):
    """[N, 3, 8, 8] -> logits [N, 5]: grouped and depthwise convolutions, a shortcut that subsamples and pads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.grouped(self.depthwise(x).relu())
        y = y + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        logits: Tensor = self.head(y.relu().mean((2, 3)))
        return logits


class FixedBatch(nn.Module):
    """Contains its batch size as a constant, so it works for one example only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.reshape(1, 192))
        return logits


class Two(nn.Module):
    """Two inputs, the second with weight two, and two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        y = self.conv(first) - 2 * self.conv(second)
        return {"map": y, "mean": y.mean((2, 3))}


class Bessel(nn.Module):
    """An operator that no exchange format has, inside a module called `odd`."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0e(x)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.odd = nn.Conv2d(3, 4, 1), Bessel.Odd()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.conv(x)).mean((2, 3))


def block(seed: int = 0) -> Block:
    """In eval mode, with batch-norm statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    model = Block()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        model.norm.running_mean.copy_(torch.randn(8, generator=generator))  # type: ignore[union-attr,operator]
        model.norm.running_var.copy_(torch.rand(8, generator=generator) + 0.5)  # type: ignore[union-attr,operator]
    return model.eval()
