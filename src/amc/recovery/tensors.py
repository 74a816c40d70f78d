"""The tensors that make up a network's state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the ones in use, each once.

    Unlike a state dict this holds buffers that are not saved with the network and names tied parameters once.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def copy_into_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give the network's tensors the `values` of the same names."""
    for name, tensor in tensors_of(model).items():
        tensor.copy_(values[name])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of `tensors_of`."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
