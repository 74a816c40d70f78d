"""ONNX, with torch's own exporters.

The TorchScript exporter takes about a second for networks of the size handled here, the one on torch.export five to ten
times as long, for files of the same speed and size. The first is deprecated, so it goes first as long as torch has it,
and whatever it cannot write, or does not write correctly, the second one may: `export` checks what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from amc.deploy.failures import ConversionError, explained
from amc.deploy.formats.base import Half
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors, expected
from amc.structure.trace import inference

OPSET = 18  # the oldest that torch's newer exporter writes; runtimes of the last years read it


class Onnx:
    """`.onnx`."""

    name = "onnx"
    suffixes: tuple[str, ...] = (".onnx",)
    runtime = "onnxruntime"
    max_batch: int | None = None
    batch_one = False
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`. Inputs are called input, input1 …, outputs output, output1 …."""
        write(module, inputs, paths[0], dynamic=dynamic, half=half)


def write(module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name) -> None:
    """By the first exporter that can; errors speak of the format `name`."""
    try:
        write_traced(module, inputs, path, dynamic=dynamic, half=half, name=name)
    except ConversionError as first:
        try:
            write_exported(module, inputs, path, dynamic=dynamic, half=half, name=name)
        except ConversionError:
            raise first from None  # it names the operator as the network has it, the second what it became


def write_traced(
    module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name
) -> None:
    """By the TorchScript exporter: what happens on `inputs` is what is written."""
    names, results = _names("input", len(inputs)), _names("output", len(expected(module, inputs)))
    axes = {name: {0: "batch"} for name in (*names, *results)} if dynamic else None
    with explained(name, module, inputs), inference(module), silenced():
        torch.onnx.export(
            Half(module).eval() if half else module, inputs, str(path), dynamo=False, opset_version=OPSET,
            input_names=names, output_names=results, dynamic_axes=axes,
        )  # fmt: skip


def write_exported(
    module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name
) -> None:
    """By the exporter on torch.export, which follows sizes instead of writing down those of the example."""
    names, results = _names("input", len(inputs)), _names("output", len(expected(module, inputs)))
    with explained(name, module, inputs), inference(module), silenced():
        torch.onnx.export(
            Half(module).eval() if half else module, inputs, str(path), dynamo=True, opset_version=OPSET,
            input_names=names, output_names=results, dynamic_shapes=batch_dims(inputs) if dynamic else None,
            external_data=False, verbose=False,
        )  # fmt: skip


def batch_dims(inputs: Tensors, most: int | None = None) -> tuple[dict[int, torch.export.Dim], ...]:
    """torch.export's description of inputs whose first dimensions are one free size, up to `most`."""
    batch = torch.export.Dim("batch", min=1, max=most)
    return tuple({0: batch} for _ in inputs)


def _names(stem: str, count: int) -> list[str]:
    return [stem if index == 0 else f"{stem}{index}" for index in range(count)]
