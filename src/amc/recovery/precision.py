"""In which arithmetic a step is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from amc.errors import AmcError
from amc.kernels import RightGradients
from amc.settings import PrecisionName

_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Arithmetic:
    """Forward pass in `precision`, weights and optimiser in float32 (arXiv 1710.03740).

    float16 has so little range that gradients vanish: the loss is scaled up before the backward pass, the gradients
    down after it, and a step whose gradients overflow is left out.
    """

    def __init__(self, precision: PrecisionName, device: torch.device) -> None:
        if precision == "float16" and device.type != "cuda":
            raise AmcError(f"float16 training needs a CUDA device and the network is on {device}; choose bfloat16")
        self.dtype = _DTYPE[precision]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if precision == "float16" else None

    def forward(self) -> AbstractContextManager[Any]:
        """Context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward_(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Gradients of `loss`, at their own scale."""
        if self.scaler is not None:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(optimiser)
        elif self.device.type == "cpu":
            with RightGradients():
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    def step_(self, optimiser: torch.optim.Optimizer) -> None:
        """Move the weights."""
        if self.scaler is None:
            optimiser.step()
        else:
            self.scaler.step(optimiser)
            self.scaler.update()

    def state(self) -> dict[str, float]:
        """What has to be remembered from step to step."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def restore_(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)
