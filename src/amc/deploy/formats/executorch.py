"""ExecuTorch's `.pte`: XNNPACK runs the operators that it supports, ExecuTorch's portable kernels run the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amc.deploy.extras import require
from amc.deploy.failures import explained
from amc.deploy.formats.program import exported
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors
from amc.structure.trace import inference

MAX_BATCH = 8  # memory is planned for the largest batch; larger batches may violate torch.export's guards


class ExecuTorch:
    """`.pte`. XNNPACK stores the weights of convolutions in 32 bits, so `half` would save nothing."""

    name = "executorch"
    suffixes: tuple[str, ...] = (".pte",)
    runtime = "executorch"
    max_batch: int | None = MAX_BATCH
    batch_one = False
    half = False

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        with silenced():
            xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
            exir = require("executorch.exir", "executorch")
        with explained(self.name, module, inputs), inference(module), silenced():
            program = exported(module, inputs, dynamic=dynamic, most=MAX_BATCH)
            edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
            paths[0].write_bytes(edge.to_executorch().buffer)
