"""A network and data small enough for a whole search in a second. Also `tests.tiny:factory` for the command line."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import amc


class Tiny(nn.Module):
    """[N, 1, 6, 6] -> logits [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(1, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.b, self.norm_b = nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.c, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.a(x)).relu()
        x = self.norm_b(self.b(x)).relu()
        logits: Tensor = self.head(self.c(x).relu().mean((2, 3)))
        return logits


EXAMPLE = torch.zeros(1, 1, 6, 6)


def tiny(seed: int = 0) -> Tiny:
    """A network in training mode whose batch norms have seen data and that gives every class its share."""
    generator = torch.Generator().manual_seed(seed)
    model = Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        model.norm_a.weight.fill_(1)
        model.norm_b.weight.fill_(1)
        for _ in range(20):
            logits = model(images(64, seed))
        model.head.bias -= logits.mean(0)
    return model


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def compress(model: nn.Module, **changes: Any) -> amc.Result:
    """A search of a few episodes; everything but the model may be changed."""
    given: dict[str, Any] = {
        "calibration": [images(32, 1), images(32, 2)], "episodes": 6, "round_to": 1, "keep_sets": 0,
        "recover": "none",  # the result is then the network that was scored
    }  # fmt: skip
    if "evaluate" not in changes:
        given["evaluate"] = labelled(model, 96, 5)
    return amc.compress(model, EXAMPLE, **given | changes)


def labelled(model: nn.Module, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """A loader whose labels are what the dense network answers: its accuracy is 1."""
    x = images(count, seed)
    with torch.no_grad():
        labels = copy.deepcopy(model).eval()(x).argmax(1)
    return list(zip(x.split(32), labels.split(32), strict=True))
