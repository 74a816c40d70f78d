"""Stores networks with many zero weights in TFLite's sparse tensor format.

The input is a dense `.tflite`; the output computes the same. A weight tensor with many zeros is stored as its nonzero
values and their positions, followed by a DENSIFY operator. Interpreters unpack it once, when they load the file. On
Arm, XNNPACK considers its sparse kernels only for such tensors (`sparse_kernels.py` predicts whether it uses them). On
x86 these kernels are switched off, so the file is smaller but not faster.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from amc.deploy.formats.sparse_kernels import judge
from amc.deploy.formats.tflite_graph import (
    Array,
    append_tensor,
    constant,
    consumers,
    fold_transposed_means_,
    load_schema,
    name_of,
    operator_code,
    producers,
    read_model,
    shape_of,
    write_model,
)
from amc.errors import AmcError

_WEIGHT = 1  # index of the weights among the inputs of a convolution or linear layer
_OVERHEAD = 320  # approximate bytes for the tables of one more tensor, its sparsity and its DENSIFY operator
_INDICES = ((np.uint8, "Uint8Vector"), (np.uint16, "Uint16Vector"), (np.int32, "Int32Vector"))  # smallest first


@dataclass(frozen=True, slots=True)
class Compressed:
    """Nonzero entries of a tensor, row by row (compressed sparse rows; a row runs along the last dimension)."""

    values: Array  # [kept]
    segments: Array  # [rows + 1]: values[segments[r]:segments[r + 1]] belong to row r
    indices: Array  # [kept]: positions in the row, ascending

    @property
    def bytes(self) -> int:
        """Bytes of values and positions."""
        return int(self.values.nbytes + self.segments.nbytes + self.indices.nbytes)


def sparsify_tflite(data: bytes, min_sparsity: float = 0.5) -> bytes:
    """Convert `data`, a dense `.tflite`: weights with many zeros are stored sparse; the outputs stay the same.

    The weights (float32, float16) of a convolution or linear layer are stored sparse if at least a share
    `min_sparsity`, in [0, 1), is zero, and if that saves bytes. A spatial mean over a transposed tensor is replaced by
    a mean over the tensor itself, because XNNPACK must recognise where its sparse kernels end; this changes the order
    of the sums. Raises RunError if `data` is not a TFLite file. Raises AmcError if no weight is sparse enough, or if
    XNNPACK may compute wrong results for this network on Arm (`sparse_kernels.py`).
    """
    if not 0 <= min_sparsity < 1:
        raise AmcError(f"min_sparsity is {min_sparsity}; give a share of zeros in [0, 1), such as 0.5")
    schema, model = load_schema(), read_model(data)
    shares: list[tuple[float, str]] = []  # share of zeros, name of the weight
    chosen: list[tuple[Any, int, Compressed]] = []
    for graph in model.subgraphs:
        fold_transposed_means_(schema, model, graph)
        for index in sorted(set(weight_tensors(schema, model, graph))):
            weight = constant(schema, model, graph.tensors[index])
            shares.append((1 - np.count_nonzero(weight) / weight.size, name_of(graph.tensors[index])))
            packed = compress(weight)
            if shares[-1][0] >= min_sparsity and packed.bytes + _OVERHEAD < weight.nbytes:
                chosen.append((graph, index, packed))
    if not chosen:
        _refuse(model, shares, min_sparsity)
    for graph in model.subgraphs:
        verdict = judge(schema, model, graph)
        if verdict.wrong:
            raise AmcError(
                "stored sparse, this network may give wrong results on Arm, where XNNPACK can run a part of it in a "
                f"layout that the rest does not expect: {verdict.reason}; leave sparse out"
            )
    for graph, index, packed in chosen:
        _store_sparse_(schema, model, graph, index, packed)
    return write_model(schema, model)


def compress(weight: Array) -> Compressed:
    """Nonzero entries of `weight` [..., n]; +0 and -0 are both dropped. One entry is kept if all are zero."""
    rows = weight.reshape(-1, weight.shape[-1])
    mask = rows != 0
    if not mask.any():
        mask[0, 0] = True  # an empty buffer would mean that the tensor is not a constant
    indices = np.nonzero(mask)[1]
    segments = np.concatenate([[0], np.cumsum(mask.sum(1))])
    return Compressed(rows[mask], _narrowest(segments), _narrowest(indices))


def weight_tensors(schema: Any, model: Any, graph: Any) -> Iterator[int]:
    """Constant weights of convolutions and linear layers; for 16-bit weights, the tensor before DEQUANTIZE."""
    codes = schema.BuiltinOperator
    layers = (codes.CONV_2D, codes.DEPTHWISE_CONV_2D, codes.FULLY_CONNECTED)
    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    makers = producers(graph)
    kept = {int(index) for index in (*graph.inputs, *graph.outputs)}
    for operator in graph.operators:
        if operator_code(model, operator) not in layers:
            continue
        index = int(operator.inputs[_WEIGHT])
        maker = makers.get(index)
        if maker is not None and operator_code(model, maker) == codes.DEQUANTIZE:
            index = int(maker.inputs[0])
        tensor = graph.tensors[index]
        if index not in kept and tensor.type in floats and constant(schema, model, tensor).size:
            yield index


def _store_sparse_(schema: Any, model: Any, graph: Any, index: int, packed: Compressed) -> None:
    """Store tensor `index` sparse, with a DENSIFY operator before its first reader; the readers do not change."""
    dense = graph.tensors[index]
    assert not len(model.buffers[0].data if model.buffers[0].data is not None else ())  # the schema's "no contents"
    name = (dense.name or b"") + b"/sparse"
    sparse = append_tensor(model, graph, dense.type, shape_of(dense), name, packed.values)
    graph.tensors[sparse].sparsity = _sparsity(schema, shape_of(dense), packed)
    _drop_contents_(model, graph, index)
    operator = schema.OperatorT()
    operator.opcodeIndex = _densify_code(schema, model)
    operator.inputs, operator.outputs = np.array([sparse], np.int32), np.array([index], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = schema.DensifyOptionsT()
    graph.operators.insert(graph.operators.index(consumers(graph, index)[0]), operator)


def _sparsity(schema: Any, shape: Sequence[int], packed: Compressed) -> Any:
    """Only the last dimension is sparse, as in the files of TFLite's own converter."""
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = np.arange(len(shape), dtype=np.int32)
    sparsity.dimMetadata = []
    for size in shape[:-1]:
        dense = schema.DimensionMetadataT()
        dense.format, dense.denseSize = schema.DimensionType.DENSE, size
        sparsity.dimMetadata.append(dense)
    last = schema.DimensionMetadataT()
    last.format = schema.DimensionType.SPARSE_CSR
    last.arraySegmentsType, last.arraySegments = _index_vector(schema, packed.segments)
    last.arrayIndicesType, last.arrayIndices = _index_vector(schema, packed.indices)
    sparsity.dimMetadata.append(last)
    return sparsity


def _index_vector(schema: Any, values: Array) -> tuple[int, Any]:
    name = next(name for dtype, name in _INDICES if dtype == values.dtype)
    vector = getattr(schema, f"{name}T")()
    vector.values = values
    return getattr(schema.SparseIndexVector, name), vector


def _narrowest(values: Array) -> Array:
    dtype = next(dtype for dtype, _ in _INDICES if values.max() <= np.iinfo(dtype).max)
    return values.astype(dtype)


def _drop_contents_(model: Any, graph: Any, index: int) -> None:
    """Remove a constant tensor's contents; its buffer is kept if another tensor uses it."""
    buffer = graph.tensors[index].buffer
    graph.tensors[index].buffer = 0
    if not any(tensor.buffer == buffer for other in model.subgraphs for tensor in other.tensors):
        model.buffers[buffer].data = None


def _densify_code(schema: Any, model: Any) -> int:
    densify = schema.BuiltinOperator.DENSIFY
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == densify:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = densify
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _refuse(model: Any, shares: Sequence[tuple[float, str]], min_sparsity: float) -> NoReturn:
    if any(tensor.sparsity is not None for graph in model.subgraphs for tensor in graph.tensors):
        raise AmcError("this TFLite file stores its weights sparse already; give the dense one")
    if not shares:
        raise AmcError("this TFLite file has no float weights of convolutions or linear layers; leave sparse out")
    most, name = max(shares)
    raise AmcError(
        f"no weight has {min_sparsity:.0%} zeros and enough of them to save bytes (most has '{name}' with {most:.0%}); "
        "prune with method fine-grained, or leave sparse out"
    )
