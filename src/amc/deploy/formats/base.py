"""The interface of all file formats."""

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
    suffixes: tuple[str, ...]  # of its files; the file that describes the network comes first
    runtime: str  # name of the runtime that reads the files here
    max_batch: int | None  # largest dynamic batch; None: any; 0: the batch is fixed
    batch_one: bool  # whether the format has no batch dimension and takes one example at a time
    half: bool  # whether weights can be stored in 16 bits

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """Write `module`, in eval mode, to `paths` (one path per suffix, in the same order).

        The file takes inputs of these shapes and dtypes; floats have 32 bits even with `half`. With `dynamic` it takes
        batches of any size. Raises ConversionError, which names the operator that caused it, if known.
        """
        ...


class Half(nn.Module):
    """A network that computes in 16 bits; its inputs and outputs have 32 bits."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: Tensor) -> Tensors:
        """The module's outputs, as a tuple."""
        narrow = (value.half() if value.is_floating_point() else value for value in inputs)
        outputs = outputs_of(self.module(*narrow))
        return tuple(value.float() if value.is_floating_point() else value for value in outputs)


class Flat(nn.Module):
    """A network that returns the module's outputs as a flat tuple of tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensors:
        """The module's outputs in order."""
        return outputs_of(self.module(*inputs))
