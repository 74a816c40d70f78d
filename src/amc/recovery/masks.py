"""Masks that keep the pruned weights zero during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

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

    def among(self, optimiser: Optimizer) -> bool:
        """Whether the optimiser trains one of the masked parameters."""
        trained = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        return any(id(parameter) in trained for _, parameter, _ in self._dropped)

    @torch.no_grad()
    def apply_(self) -> None:
        """Zero the dropped weights."""
        for _, parameter, dropped in self._placed():
            parameter.masked_fill_(dropped, 0)

    @torch.no_grad()
    def mask_gradients_(self) -> None:
        """Zero the dropped weights' gradients, so that the optimiser accumulates no momentum for them."""
        for _, parameter, dropped in self._placed():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dropped, 0)

    def _placed(self) -> list[tuple[str, nn.Parameter, Tensor]]:
        """The masks beside their parameters: a trainer may have moved the network. They follow once, not each step."""
        self._dropped = [(name, parameter, dropped.to(parameter.device)) for name, parameter, dropped in self._dropped]
        return self._dropped

    def verify(self, model: nn.Module) -> None:
        """Raise RuntimeError if a dropped weight of `model` is not zero: a fault in amc or in a callback."""
        tensors = tensors_of(model)
        for name, parameter, dropped in self._dropped:
            value = tensors.get(name, parameter)
            alive = int(value.detach()[dropped.to(value.device)].count_nonzero())
            if alive:
                raise RuntimeError(f"{alive} pruned weights of {name!r} are no longer zero")


@contextmanager
def keep_zeros(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside the block the pruned weights stay zero, whatever trains the network.

    Before a step of any optimiser of torch that trains them, their gradients become zero, so that momentum gathers
    none; after it, the weights do. That holds for a loop of your own, for the trainers of transformers and Lightning,
    and for accelerate, as far as they train these parameters in this process, and not copies of them.

    masks: `Result.masks`, by parameter name bool of its shape, True = kept. None or empty: nothing is held, as for a
    network whose channels were removed. Raises AmcError for an unknown name or another shape.

    >>> linear, mask = nn.Linear(4, 2), torch.tensor([[True, True, False, False]] * 2)
    >>> with amc.keep_zeros(linear, {"weight": mask}):
    ...     optimiser = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    ...     linear(torch.ones(1, 4)).sum().backward()
    ...     optimiser.step()
    >>> int(linear.weight.count_nonzero())
    4
    """
    weights = WeightMasks(model, masks or {})

    def before(optimiser: Optimizer, *_: Any) -> None:
        if weights.among(optimiser):
            weights.mask_gradients_()

    def after(optimiser: Optimizer, *_: Any) -> None:
        if weights.among(optimiser):
            weights.apply_()

    weights.apply_()
    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        weights.apply_()
