"""A network and images small enough to be trained in milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc.recovery.tensors import tensors_of
from amc.zoo import Augmentation, ImageSet


def stripes(count: int = 128) -> ImageSet:
    """Two classes: bright columns or bright rows, with noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[labels == 0, :, :, ::2] += 1.5
    images[labels == 1, :, ::2] += 1.5
    return ImageSet(images, labels, None, Augmentation(pad=1, flip=True))


def small_network(seed: int = 0) -> nn.Sequential:
    """With a batch norm, whose buffers are state, and a dropout, which draws random numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """To the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def half_masks(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random masks of the convolution's and the linear layer's weights."""
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    return {name: torch.rand(named[name].shape, generator=generator) < 0.5 for name in ("0.weight", "6.weight")}
