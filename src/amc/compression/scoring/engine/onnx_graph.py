"""Builds the ONNX model of a piece of a program from arrays, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from amc.compression.scoring.engine.program import Kind, UnfitError, Value

OPSET, IR_VERSION = 20, 9  # of onnx 1.15; every supported ONNX Runtime reads it
_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.bool: onnx.TensorProto.BOOL,
}

Operand = Value | str | np.ndarray[Any, Any] | np.generic


class Graph:
    """An ONNX graph under construction. An operand is a value of the program, a name of the graph, or an array."""

    def __init__(self, kinds: Mapping[int, Kind], constants: Mapping[int, Tensor]) -> None:
        self._kinds, self._constants = kinds, constants
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[onnx.TensorProto] = []
        self._names: dict[int, str] = {}
        self.result = Kind((), torch.float32)  # of the operator that is converted

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape on `FEW` images."""
        return self._kinds[value.number].shape

    def dtype(self, value: Value) -> torch.dtype:
        return self._kinds[value.number].dtype

    def input(self, number: int) -> onnx.ValueInfoProto:
        """Declare a value as an input of the graph."""
        kind = self._kinds[number]
        name = self._names[number] = f"v{number}"
        shape: list[str | int | None] = [*kind.shape]
        if kind.batched:
            shape[0] = f"batch of {name}"
        return helper.make_tensor_value_info(name, _type(kind.dtype), shape)

    def add(self, operator: str, *operands: Operand, **attributes: Any) -> str:
        """Add a node. Returns the name of its output."""
        return self.add_several(operator, 1, *operands, **attributes)[0]

    def add_several(self, operator: str, outputs: int, *operands: Operand, **attributes: Any) -> list[str]:
        """Add a node with several outputs. Returns their names."""
        results = [f"n{len(self._nodes)}.{place}" for place in range(outputs)]
        self._nodes.append(helper.make_node(operator, [self._name(each) for each in operands], results, **attributes))
        return results

    def bind(self, number: int, name: str) -> None:
        """Make a name of the graph the value of this number."""
        self._names[number] = name

    def like(self, value: Value, scalar: float) -> np.ndarray[Any, Any]:
        """A number in the precision of a value."""
        return torch.tensor(scalar, dtype=self.dtype(value)).numpy()

    def pair(self, one: Value, two: Any) -> tuple[Operand, Operand]:
        """Two operands of one type, the second of which may be a number. Raises UnfitError for two types."""
        if not isinstance(two, Value):
            if isinstance(two, float) and not self.dtype(one).is_floating_point:
                raise UnfitError("tensors of several types")
            return one, self.like(one, two)
        if self.dtype(one) != self.dtype(two):
            raise UnfitError("tensors of several types")
        return one, two

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[int]) -> bytes:
        """The file of the model."""
        results = []
        for number in outputs:
            name = f"out{number}"
            self._nodes.append(helper.make_node("Identity", [self._name(Value(number))], [name]))
            kind = self._kinds[number]
            free = [f"{name}.{dim}" for dim in range(len(kind.shape))]
            results.append(helper.make_tensor_value_info(name, _type(kind.dtype), free))
        graph = helper.make_graph(self._nodes, "piece", list(inputs), results, self._arrays)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, str):
            return operand
        if isinstance(operand, Value):
            if operand.number not in self._names and operand.number not in self._constants:
                raise UnfitError("an output that ONNX does not give")
            if operand.number not in self._names:
                self._names[operand.number] = self._array(_as_array(self._constants[operand.number]))
            return self._names[operand.number]
        return self._array(np.asarray(operand))

    def _array(self, array: np.ndarray[Any, Any]) -> str:
        name = f"a{len(self._arrays)}"
        self._arrays.append(numpy_helper.from_array(array, name))
        return name


def _as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    _type(tensor.dtype)
    return tensor.detach().contiguous().numpy()


def _type(dtype: torch.dtype) -> int:
    if dtype not in _TYPES:
        raise UnfitError(f"numbers of type {str(dtype).removeprefix('torch.')}")
    return int(_TYPES[dtype])
