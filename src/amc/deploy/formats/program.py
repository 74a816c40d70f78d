"""torch.export's `.pt2`, for PyTorch and tools based on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from amc.deploy.failures import explained
from amc.deploy.formats.base import Half
from amc.deploy.formats.onnx import batch_dims
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors, with_batch
from amc.structure.trace import inference


class Program:
    """`.pt2`."""

    name = "torch"
    suffixes: tuple[str, ...] = (".pt2",)
    runtime = "eager"
    max_batch: int | None = None
    batch_one = False
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        with explained(self.name, module, inputs), inference(module), silenced():
            torch.export.save(exported(module, inputs, dynamic=dynamic, half=half), str(paths[0]))


def exported(
    module: nn.Module, inputs: Tensors, *, dynamic: bool, half: bool = False, most: int | None = None
) -> torch.export.ExportedProgram:
    """The network's torch.export program; with `dynamic`, for batches of 1 to `most` examples (None: any)."""
    network = Half(module).eval() if half else module
    if not dynamic:
        return torch.export.export(network, inputs, strict=False)
    shapes = batch_dims(network, inputs, most)
    # torch.export treats a size of one in an example as a constant.
    return torch.export.export(network, with_batch(inputs, 2), dynamic_shapes=shapes, strict=False)
