"""A piece of a program in torch: the operators that the network itself runs, with the same results to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from amc.compression.scoring.engine.pieces import Piece, call_
from amc.compression.scoring.engine.program import FEW, Kind, Op, Value

Step = Callable[[dict[int, Any], int], None]


class TorchPiece:
    """Runs a piece: tensors of its inputs -> tensors of its outputs. Every tensor is freed after its last use."""

    def __init__(
        self,
        piece: Piece,
        kinds: Mapping[int, Kind],
        constants: Mapping[int, Tensor],
        norms: Mapping[int, _BatchNorm] | None = None,
    ) -> None:
        """`norms`: batch norms that compute with the statistics of the batch, by the number of their running mean."""
        self._piece = piece
        self._constants = {number: constants[number] for number in piece.constants}
        self._overwrites = any(not op.writes.isdisjoint(piece.inputs) for op in piece.ops)
        self._length = kinds[piece.inputs[0]].shape[0]
        last = {number: place for place, op in enumerate(piece.ops) for number in op.reads}
        done: list[list[int]] = [[] for _ in piece.ops]
        for number, place in last.items():
            if number not in piece.outputs:
                done[place].append(number)
        self._steps = [(_step(op, norms or {}), numbers) for op, numbers in zip(piece.ops, done, strict=True)]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        images = len(tensors[0]) * FEW // self._length
        if self._overwrites:
            tensors = [tensor.clone() for tensor in tensors]
        values: dict[int, Any] = {**self._constants, **dict(zip(self._piece.inputs, tensors, strict=True))}
        with torch.no_grad():
            for step, done in self._steps:
                step(values, images)
                for number in done:
                    values.pop(number, None)
        return tuple(values[number] for number in self._piece.outputs)


def norm_of(op: Op, norms: Mapping[int, _BatchNorm]) -> _BatchNorm | None:
    """The batch norm among `norms` that the operator belongs to."""
    if op.target is not torch.ops.aten.native_batch_norm.default or not isinstance(op.args[3], Value):
        return None
    return norms.get(op.args[3].number)


def _step(op: Op, norms: Mapping[int, _BatchNorm]) -> Step:
    norm = norm_of(op, norms)
    if norm is None:
        return lambda values, images: call_(op, values, images)
    return lambda values, images: _normalise_(op, norm, values)


def _normalise_(op: Op, norm: _BatchNorm, values: dict[int, Any]) -> None:
    """What a batch norm does in training mode: normalise by the batch, and average its statistics."""
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    assert op.outputs[0] is not None
    norm.num_batches_tracked += 1
    values[op.outputs[0]] = F.batch_norm(
        values[op.args[0].number], norm.running_mean, norm.running_var, norm.weight, norm.bias, True,
        norm.momentum, norm.eps,
    )  # fmt: skip
