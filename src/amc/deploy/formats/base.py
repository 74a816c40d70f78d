"""What every file format offers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from amc.deploy.tensors import Tensors, outputs_of


class Format(Protocol):
    """A way to write a network to disk."""

    name: str
    suffixes: tuple[str, ...]  # of its files, the one that describes the network first
    runtime: str  # name of the runtime that reads it here
    max_batch: int | None  # largest batch of a file with a dynamic batch; None: any; 0: the batch is fixed
    batch_one: bool  # the format knows no batch at all: one example at a time
    half: bool  # whether weights can be stored in 16 bits

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """Write `module`, in eval mode, to `paths` (one a suffix, in that order).

        The file takes inputs of these shapes and dtypes (32-bit floats in and out even with `half`), with
        `dynamic` in batches of any size. Raises ConversionError, naming the operator where one is to blame.
        """
        ...


class Half(nn.Module):
    """A network that computes in 16 bits between inputs and outputs in 32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: Tensor) -> Tensors:
        """The module's outputs, as a tuple."""
        narrow = (value.half() if value.is_floating_point() else value for value in inputs)
        outputs = outputs_of(self.module(*narrow))
        return tuple(value.float() if value.is_floating_point() else value for value in outputs)


class Flat(nn.Module):
    """A network whose outputs come as a tuple of tensors, whatever the module wraps them in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensors:
        """The module's outputs in order."""
        return outputs_of(self.module(*inputs))
