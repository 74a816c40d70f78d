"""OpenVINO's intermediate representation, converted from ONNX.

The way through ONNX sends nothing over the network. OpenVINO's converter for PyTorch reports each conversion to Intel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amc.deploy.failures import explained
from amc.deploy.formats.onnx import write
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.openvino import openvino
from amc.deploy.tensors import Tensors


class OpenVino:
    """`.xml` (the graph) and `.bin` (the weights)."""

    name = "openvino"
    suffixes: tuple[str, ...] = (".xml", ".bin")
    runtime = "openvino"
    max_batch: int | None = None
    batch_one = False
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        package = openvino()
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder, "model.onnx")
            write(module, inputs, graph, dynamic=dynamic, half=False, name=self.name)
            with explained(self.name, module, inputs), silenced():
                model = package.Core().read_model(str(graph))
                package.save_model(model, str(paths[0]), compress_to_fp16=half)
