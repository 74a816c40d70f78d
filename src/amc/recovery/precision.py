"""The numeric precision of a training step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from amc.errors import AmcError
from amc.recovery.kernels import RightGradients
from amc.run.settings import PrecisionName

_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Arithmetic:
    """Runs the forward pass in `precision`; weights and optimiser stay in float32 (arXiv 1710.03740).

    Small gradients underflow in float16. So the loss is scaled up before the backward pass, and the gradients are
    scaled down after it. A step whose gradients overflow is skipped.
    """

    def __init__(self, precision: PrecisionName, device: torch.device) -> None:
        if precision == "float16" and device.type != "cuda":
            raise AmcError(f"float16 training needs a CUDA device and the network is on {device}; choose bfloat16")
        self.dtype = _DTYPE[precision]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if precision == "float16" else None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward_(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Compute the gradients of `loss`, without the loss scale."""
        if self.scaler is not None:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(optimiser)
        elif self.device.type == "cpu":
            with RightGradients():
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    def step_(self, optimiser: torch.optim.Optimizer) -> None:
        """Update the weights."""
        if self.scaler is None:
            optimiser.step()
        else:
            self.scaler.step(optimiser)
            self.scaler.update()

    def state(self) -> dict[str, float]:
        """The loss scaler's state; empty if the precision needs no scaler."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def restore_(self, state: dict[str, float]) -> None:
        """Restore a state that `state` returned."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)
