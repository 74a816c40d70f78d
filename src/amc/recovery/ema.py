"""A moving average of the weights, which generalises better than the last of them (Polyak averaging)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.recovery.tensors import snapshot, tensors_of


class MovingAverage:
    """Exponential moving average of parameters and floating-point buffers; other buffers are the latest.

    average <- d·average + (1 - d)·value with d = min(decay, (1 + n) / (10 + n)) after step n, so that the first
    weights do not linger when there are few steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values = snapshot(model)

    @torch.no_grad()
    def update_(self, step: int) -> None:
        """Take in the weights after `step` (from 1)."""
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
        """The network is its average inside the block."""
        self.swap_()
        try:
            yield
        finally:
            self.swap_()

    @torch.no_grad()
    def restore_(self, values: Mapping[str, Tensor]) -> None:
        """Go on from averages that were saved."""
        for name, value in self.values.items():
            value.copy_(values[name])
