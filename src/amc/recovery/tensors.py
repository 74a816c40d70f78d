"""The tensors that make up a network's state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The network's own parameters and buffers by name, not copies.

    Unlike a state dict, this includes non-persistent buffers and names tied parameters once.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def copy_into_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the network's tensors of the same names."""
    for name, tensor in tensors_of(model).items():
        tensor.copy_(values[name])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of `tensors_of`."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
