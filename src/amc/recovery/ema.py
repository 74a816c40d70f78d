"""A moving average of the weights (Polyak averaging). It generalises better than the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.recovery.tensors import snapshot, tensors_of


class MovingAverage:
    """Exponential moving average of parameters and floating-point buffers; other buffers keep their latest value.

    average <- d·average + (1 - d)·value with d = min(decay, (1 + n) / (10 + n)) after step n. A smaller d in
    the first steps removes the initial weights from the average, also in a short training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values = snapshot(model)

    @torch.no_grad()
    def update_(self, step: int) -> None:
        """Add the weights after `step` (from 1) to the average."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in tensors_of(self.model).items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, share)
            else:
                self.values[name].copy_(tensor)

    @torch.no_grad()
    def swap_(self) -> None:
        """Exchange the network's tensors and their averages."""
        for name, tensor in tensors_of(self.model).items():
            own = tensor.clone()
            tensor.copy_(self.values[name])
            self.values[name].copy_(own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        self.swap_()
        try:
            yield
        finally:
            self.swap_()

    @torch.no_grad()
    def restore_(self, values: Mapping[str, Tensor]) -> None:
        """Restore saved averages."""
        for name, value in self.values.items():
            value.copy_(values[name])
