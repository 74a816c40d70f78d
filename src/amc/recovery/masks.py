"""Masks that keep the pruned weights zero during training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.recovery.tensors import tensors_of


class WeightMasks:
    """Masks of a network's parameters: bool, of the parameter's shape, True = kept.

    Raises AmcError if a mask has an unknown parameter name or another shape.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._dropped: list[tuple[str, nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in parameters:
                raise AmcError(f"there is a mask for {name!r}, which is no parameter of the network; correct its name")
            parameter = parameters[name]
            if mask.shape != parameter.shape:
                raise AmcError(
                    f"the mask of {name!r} has shape {list(mask.shape)} and the parameter {list(parameter.shape)}; "
                    "they must be equal"
                )
            self._dropped.append((name, parameter, ~mask.to(parameter.device, torch.bool)))

    @torch.no_grad()
    def apply_(self) -> None:
        """Zero the dropped weights."""
        for _, parameter, dropped in self._dropped:
            parameter.masked_fill_(dropped, 0)

    @torch.no_grad()
    def mask_gradients_(self) -> None:
        """Zero the dropped weights' gradients, so that the optimiser accumulates no momentum for them."""
        for _, parameter, dropped in self._dropped:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dropped, 0)

    def verify(self, model: nn.Module) -> None:
        """Raise RuntimeError if a dropped weight of `model` is not zero: a fault in amc or in a callback."""
        tensors = tensors_of(model)
        for name, parameter, dropped in self._dropped:
            value = tensors.get(name, parameter)
            alive = int(value.detach()[dropped].count_nonzero())
            if alive:
                raise RuntimeError(f"{alive} pruned weights of {name!r} are no longer zero")
