"""LiteRT's (TensorFlow Lite's) `.tflite`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amc.deploy.extras import require
from amc.deploy.failures import explained
from amc.deploy.formats.sparse_tflite import sparsify_tflite
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors
from amc.structure.trace import inference


class LiteRT:
    """`.tflite`. The batch is fixed: XNNPACK's kernels cannot be resized in networks that pad or slice."""

    name = "litert"
    suffixes: tuple[str, ...] = (".tflite",)
    runtime = "litert"
    max_batch: int | None = 0
    batch_one = False
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        with silenced():
            package = require("litert_torch", "litert")
        with explained(self.name, module, inputs), inference(module), silenced():
            edge = package.convert(module, inputs)
            if not half:
                edge.export(str(paths[0]))
                return
            with tempfile.TemporaryDirectory() as folder:
                full = Path(folder, "model.tflite")
                edge.export(str(full))
                _store_in_half(full, paths[0])


class SparseLiteRT(LiteRT):
    """`.tflite` with pruned weights in TFLite's sparse format (docs/sparse.md)."""

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        super().write(module, inputs, paths, dynamic=dynamic, half=half)
        paths[0].write_bytes(sparsify_tflite(paths[0].read_bytes()))


def _store_in_half(source: Path, target: Path) -> None:
    """Store the weights in 16 bits; the runtime converts them to 32 bits when it loads the file."""
    quantizer = require("ai_edge_quantizer.quantizer", "litert")
    types = require("ai_edge_quantizer.qtyping", "litert")
    weights = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
    casting = quantizer.Quantizer(str(source))
    casting.update_quantization_recipe(
        regex=".*",
        operation_name=types.TFLOperationName.ALL_SUPPORTED,
        op_config=types.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=types.ComputePrecision.FLOAT, explicit_dequantize=True
        ),
        algorithm_key=quantizer.algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    casting.quantize().export_model(str(target), overwrite=True)
