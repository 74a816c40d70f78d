"""ONNX, written by torch's exporters.

The TorchScript exporter takes about a second for typical networks. The exporter based on torch.export takes five to ten
times as long, and its files have the same speed and size. Therefore the TorchScript exporter is tried first, as long as
torch has it: it is deprecated. If it fails, or if `export` finds that its file is wrong, the other exporter is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.deploy.failures import ConversionError, explained
from amc.deploy.formats.base import Half
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Positional, Tensors, expected, takes_any_number
from amc.structure.trace import inference

OPSET = 18  # oldest version that torch's newer exporter writes; recent runtimes read it


class Onnx:
    """`.onnx`."""

    name = "onnx"
    suffixes: tuple[str, ...] = (".onnx",)
    runtime = "onnxruntime"
    max_batch: int | None = None
    batch_one = False
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`. Inputs without a name are named input, input1 …; outputs are named output, output1 …."""
        write(module, inputs, paths[0], dynamic=dynamic, half=half)


def write(module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name) -> None:
    """Write with the first exporter that succeeds; error messages name the format `name`."""
    try:
        write_traced(module, inputs, path, dynamic=dynamic, half=half, name=name)
    except ConversionError as first:
        try:
            write_exported(module, inputs, path, dynamic=dynamic, half=half, name=name)
        except ConversionError:
            raise first from None  # it names the network's operator; the second error may name a decomposed one


def write_traced(
    module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name
) -> None:
    """Write with the TorchScript exporter, which records the operations that run on `inputs`."""
    names, results = _input_names(module, inputs), _names("output", len(expected(module, inputs)))
    axes = {name: {0: "batch"} for name in (*names, *results)} if dynamic else None
    with explained(name, module, inputs), inference(module), silenced():
        torch.onnx.export(
            Half(module).eval() if half else module, inputs, str(path), dynamo=False, opset_version=OPSET,
            input_names=names, output_names=results, dynamic_axes=axes,
        )  # fmt: skip


def write_exported(
    module: nn.Module, inputs: Tensors, path: Path, *, dynamic: bool, half: bool, name: str = Onnx.name
) -> None:
    """Write with the exporter based on torch.export, which keeps sizes symbolic instead of recording the example's."""
    names, results = _input_names(module, inputs), _names("output", len(expected(module, inputs)))
    with explained(name, module, inputs), inference(module), silenced():
        network = Half(module).eval() if half else module
        torch.onnx.export(
            network, inputs, str(path), dynamo=True, opset_version=OPSET, input_names=names, output_names=results,
            dynamic_shapes=batch_dims(network, inputs) if dynamic else None, external_data=False, verbose=False,
        )  # fmt: skip


def batch_dims(module: nn.Module, inputs: Tensors, most: int | None = None) -> tuple[Any, ...]:
    """torch.export's `dynamic_shapes` of inputs that share one free batch size, at most `most`."""
    batch = torch.export.Dim("batch", min=1, max=most)
    dims = tuple({0: batch} for _ in inputs)
    return (dims,) if takes_any_number(module) else dims


def _input_names(module: nn.Module, inputs: Tensors) -> list[str]:
    given = module.names if isinstance(module, Positional) else []
    return list(given) or _names("input", len(inputs))


def _names(stem: str, count: int) -> list[str]:
    return [stem if index == 0 else f"{stem}{index}" for index in range(count)]
