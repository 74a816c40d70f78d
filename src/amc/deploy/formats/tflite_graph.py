"""Reads TFLite's file format into objects, queries them, and writes them back to bytes.

The objects belong to classes that ai-edge-litert generates from the format's schema. The classes have no type
annotations, hence `Any`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from amc.deploy.extras import require
from amc.errors import RunError

IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # bytes; the schema's alignment for the contents of buffers
_DAMAGED = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

Array = npt.NDArray[Any]


def load_schema() -> Any:
    """The module with the format's classes; MissingExtraError if ai-edge-litert is not installed."""
    return require("ai_edge_litert.schema_py_generated", "litert")


def read_model(data: bytes) -> Any:
    """The file as objects, including the contents of all buffers; RunError if it is not a TFLite file."""
    schema = load_schema()
    if data[4:8] != IDENTIFIER:
        raise RunError(f"this is no TFLite file ({len(data)} bytes without the mark TFL3); export it with litert first")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        for buffer in model.buffers:
            _bring_inside(buffer, data)
        operators = [operator for graph in model.subgraphs for operator in graph.operators]
        outside = any(operator.largeCustomOptionsOffset > 1 for operator in operators)
    except _DAMAGED as error:
        raise RunError(f"this TFLite file ({len(data)} bytes) is damaged ({error}); export it again") from error
    if not operators:
        raise RunError(f"this TFLite file ({len(data)} bytes) has no operators; export it again")
    if outside:
        raise RunError("this TFLite file keeps options of custom operators behind its tables; leave it dense")
    return model


def write_model(schema: Any, model: Any) -> bytes:
    """The file's bytes. Aligns the contents of buffers, because the generated classes do not."""
    buffers = model.buffers
    model.buffers = [SimpleNamespace(Pack=partial(_pack_buffer, schema, buffer)) for buffer in buffers]
    builder = require("flatbuffers", "litert").Builder(1 << 20)
    try:
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    finally:
        model.buffers = buffers
    return bytes(builder.Output())


def operator_code(model: Any, operator: Any) -> int:
    """The operator's code in the schema's BuiltinOperator; old files only use the deprecated field."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def constant(schema: Any, model: Any, tensor: Any) -> Array:
    """A constant tensor's entries, in its shape; an empty array [0] if it is not constant or has another type.

    Raises RunError if the tensor has no buffer, or one that does not fit its shape.
    """
    types = schema.TensorType
    dtypes = {types.FLOAT32: np.float32, types.FLOAT16: np.float16, types.INT32: np.int32, types.INT64: np.int64}
    try:
        data = model.buffers[tensor.buffer].data
        if data is None or not len(data) or tensor.type not in dtypes or tensor.sparsity is not None:
            return np.zeros(0)
        return np.asarray(data, np.uint8).view(dtypes[tensor.type]).reshape(shape_of(tensor))
    except _DAMAGED as error:
        name = name_of(tensor)
        raise RunError(f"tensor {name!r} of this TFLite file is damaged ({error}); export it again") from error


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The tensor's sizes; () for a scalar."""
    return tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()


def name_of(tensor: Any) -> str:
    """The tensor's name in the file."""
    return str((tensor.name or b"").decode(errors="replace"))


def producers(graph: Any) -> dict[int, Any]:
    """Index of a tensor -> the operator that computes it."""
    return {int(output): operator for operator in graph.operators for output in operator.outputs}


def consumers(graph: Any, tensor: int) -> list[Any]:
    """Operators that read a tensor."""
    return [operator for operator in graph.operators if tensor in operator.inputs]


def append_tensor(model: Any, graph: Any, kind: int, shape: Sequence[int], name: bytes, data: Array) -> int:
    """Add a constant tensor; returns its index."""
    buffer, tensor = type(model.buffers[0])(), type(graph.tensors[0])()
    buffer.data = data.reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    tensor.type, tensor.shape, tensor.name = kind, np.array(shape, np.int32), name
    tensor.buffer, tensor.hasRank = len(model.buffers) - 1, True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def fold_transposed_means_(schema: Any, model: Any, graph: Any) -> None:
    """Replace TRANSPOSE and MEAN by a MEAN over the original axes, if the remaining axes keep their order."""
    codes = schema.BuiltinOperator
    makers = producers(graph)
    for mean in [operator for operator in graph.operators if operator_code(model, operator) == codes.MEAN]:
        transpose = makers.get(int(mean.inputs[0]))
        if transpose is None or operator_code(model, transpose) != codes.TRANSPOSE or mean.builtinOptions.keepDims:
            continue
        order = constant(schema, model, graph.tensors[transpose.inputs[1]]).tolist()
        axes_tensor = graph.tensors[mean.inputs[1]]
        axes = {int(axis) % len(order) for axis in constant(schema, model, axes_tensor).reshape(-1)} if order else set()
        rest = [source for target, source in enumerate(order) if target not in axes]
        if not axes or rest != sorted(rest):
            continue
        moved = np.array(sorted(order[axis] for axis in axes), np.int32)
        tensor = append_tensor(model, graph, schema.TensorType.INT32, moved.shape, axes_tensor.name, moved)
        mean.inputs = np.array([transpose.inputs[0], tensor], np.int32)
        output = int(transpose.outputs[0])
        if not consumers(graph, output) and output not in graph.outputs:
            graph.operators.remove(transpose)


def _bring_inside(buffer: Any, data: bytes) -> None:
    """Move a buffer's contents into the tables; some writers store them after the tables (offset above 1)."""
    if buffer.offset <= 1:
        return
    end = buffer.offset + buffer.size
    if end > len(data):
        raise ValueError(f"contents up to byte {end}")
    buffer.data = np.frombuffer(data, np.uint8)[buffer.offset : end]
    buffer.offset = buffer.size = 0


def _pack_buffer(schema: Any, buffer: Any, builder: Any) -> int:
    vector = None
    if buffer.data is not None and len(buffer.data):
        contents = np.asarray(buffer.data, np.uint8).tobytes()
        builder.Prep(_ALIGNMENT, len(contents))
        vector = builder.CreateByteVector(contents)
    schema.BufferStart(builder)
    if vector is not None:
        schema.BufferAddData(builder, vector)
    return int(schema.BufferEnd(builder))
