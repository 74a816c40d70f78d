"""A small detector that torch.export cannot follow as a whole: how often it loops depends on what it sees.

It finds plus signs (class 0) and squares (class 1) of 4 pixels in images of 16 x 16, each in a cell of an 8 x 8 grid.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLUS = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).float()
SQUARE = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).float()


class Backbone(nn.Module):
    """[N, 1, 16, 16] -> {"fine": [N, 8, 8, 8], "coarse": [N, 8, 4, 4]}."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.fine = nn.Conv2d(24, 8, 3, padding=1)
        self.coarse = nn.Conv2d(24, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(images))
        return OrderedDict(fine=self.fine(features), coarse=self.coarse(features))


class Detector(nn.Module):
    """A list of images [1, 16, 16], or a tensor [N, 1, 16, 16] -> for each image its objects.

    They have their cells [n, 2] and labels [n] and, as torchvision's detectors give them, boxes [n, 4] and scores [n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.objects, self.classify = nn.Conv2d(8, 1, 1), nn.Linear(8, 2)
        self.context = nn.Conv2d(8, 8, 1)

    def maps(self, images: Any) -> tuple[Tensor, Tensor]:
        """Features [N, 8, 8, 8] and logits of objects [N, 8, 8]."""
        found = self.backbone(torch.stack([*images]))
        features = found["fine"] + F.interpolate(self.context(found["coarse"]), scale_factor=2.0)
        return features, self.objects(features)[:, 0]

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        answers = []
        for features, logits in zip(*self.maps(images), strict=True):
            cells = (logits > 0).nonzero()
            labels = [int(self.classify(features[:, row, column]).argmax()) for row, column in cells.tolist()]
            answers.append({
                "cells": cells, "labels": torch.tensor(labels, dtype=torch.long),
                "boxes": boxes_of(cells), "scores": logits[tuple(cells.T)].sigmoid(),
            })  # fmt: skip
        return answers


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, 1, 16, 16] of one object each, its cell [N, 2] and its label [N]."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(7, (count, 2), generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    images = 0.2 * torch.randn(count, 1, 16, 16, generator=generator)
    for image, (row, column), label in zip(images, cells.tolist(), labels.tolist(), strict=True):
        image[0, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += (PLUS, SQUARE)[label]
    return images, cells, labels


def boxes_of(cells: Tensor) -> Tensor:
    """The boxes [n, 4] of objects in these cells [n, 2]: x1, y1, x2, y2 in pixels."""
    corners = 2.0 * cells.flip(1)
    return torch.cat([corners, corners + 4], 1)


def targets(count: int, seed: int) -> list[dict[str, Tensor]]:
    """The boxes and labels of `scenes`."""
    _, cells, labels = scenes(count, seed)
    return [{"boxes": boxes_of(cells[[n]]), "labels": labels[[n]]} for n in range(count)]


HELD_OUT = 96


def share_found(network: nn.Module, seed: int = 9) -> float:
    """The share of images in which the detector finds the object, the right one, and nothing else."""
    images, cells, labels = scenes(HELD_OUT, seed)
    with torch.no_grad():
        answers = network([*images])
    right = [
        answer["cells"].tolist() == [cell] and answer["labels"].tolist() == [label]
        for answer, cell, label in zip(answers, cells.tolist(), labels.tolist(), strict=True)
    ]
    return sum(right) / len(right)


def trained(steps: int = 60) -> Detector:
    """A detector that was trained for about a second."""
    return _trained(steps)


@cache
def _trained(steps: int) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Detector().train()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(steps):
        images, cells, labels = scenes(48, 100 + step)
        features, logits = net.maps(images)
        wanted = torch.zeros_like(logits)
        places = (torch.arange(48), cells[:, 0], cells[:, 1])
        wanted[places] = 1
        found = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=torch.tensor(20.0))
        loss = found + F.cross_entropy(net.classify(features[places[0], :, places[1], places[2]]), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()
