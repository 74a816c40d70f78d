"""A piece of a program in ONNX Runtime."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from amc.compression.scoring.engine.onnx_graph import Graph
from amc.compression.scoring.engine.onnx_operators import CONVERTERS, Converter
from amc.compression.scoring.engine.pieces import Piece
from amc.compression.scoring.engine.program import FEW, Kind, Op, UnfitError

CACHE = 1 << 20  # bytes of the largest activation: with larger ones the processor waits for memory
_FATAL_ONLY = 4

onnxruntime.disable_telemetry_events()


class OnnxPiece:
    """Runs a piece: tensors of its inputs -> tensors of its outputs, on the CPU. Raises UnfitError if it fails."""

    def __init__(self, piece: Piece, kinds: Mapping[int, Kind], constants: Mapping[int, Tensor]) -> None:
        """Builds the model with the constants' present values; ONNX Runtime folds batch norms. Raises UnfitError."""
        self._images = _images_at_once(piece, kinds)
        self._session = _session(model_of(piece, kinds, constants))
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._images is None or len(tensors[0]) <= self._images:
            return self._run(tensors)
        parts = [
            self._run(part) for part in zip(*(torch.split(tensor, self._images) for tensor in tensors), strict=True)
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        feed = {name: tensor.contiguous().numpy() for name, tensor in zip(self._names, tensors, strict=True)}
        try:
            arrays = self._session.run(None, feed)
        except Exception as error:  # ONNX Runtime has kinds of its own, one for each status
            raise UnfitError("ONNX Runtime fails on a batch") from error
        return tuple(torch.from_numpy(array) for array in arrays)


def _images_at_once(piece: Piece, kinds: Mapping[int, Kind]) -> int | None:
    """How many images of a batch run together, so that the largest activation stays in the cache; None: all of them.

    Images that do not lie in the first dimension, one by one, are not divided.
    """
    if any(not kinds[number].batched or kinds[number].shape[0] != FEW for number in (*piece.inputs, *piece.outputs)):
        return None
    made = (kinds[number] for op in piece.ops for number in op.made)
    largest = max(math.prod(kind.shape) * kind.dtype.itemsize for kind in made)
    return max(1, CACHE * FEW // max(1, largest))


def model_of(piece: Piece, kinds: Mapping[int, Kind], constants: Mapping[int, Tensor]) -> bytes:
    """The piece as an ONNX file. Raises UnfitError for what ONNX or a converter does not have."""
    graph = Graph(kinds, constants)
    inputs = [graph.input(number) for number in piece.inputs]
    for op in piece.ops:
        _convert(graph, op, kinds)
    return graph.model(inputs, piece.outputs)


def _convert(graph: Graph, op: Op, kinds: Mapping[int, Kind]) -> None:
    name = op.target._schema.name.removeprefix("aten::").rstrip("_")
    if name not in CONVERTERS:
        raise UnfitError(f"operator {op.target}")
    first = next(number for number in op.outputs if number is not None)
    graph.result = kinds[first]
    try:
        results = _called(CONVERTERS[name], graph, op)
    except UnfitError as error:
        raise UnfitError(f"{op.target}, {error}") from None
    except Exception as error:  # a form of the operator that the converter was not written for
        raise UnfitError(f"operator {op.target} in this form") from error
    names = [results] if isinstance(results, str) else list(results)
    for number, result in zip(op.outputs, names, strict=False):
        if number is not None:
            graph.bind(number, result)


def _called(converter: Converter, graph: Graph, op: Op) -> str | Sequence[str]:
    """The converter with the arguments that it names, the operator's defaults included."""
    arguments = op.target._schema.arguments
    given = dict(zip((each.name for each in arguments), op.args, strict=False)) | dict(op.kwargs)
    named = _named(converter)
    return converter(
        graph, **{each.name: given.get(each.name, each.default_value) for each in arguments if each.name in named}
    )


@functools.cache
def _named(converter: Converter) -> frozenset[str]:
    return frozenset(inspect.signature(converter).parameters)


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would take processor time
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise UnfitError("ONNX Runtime does not load its model") from error
