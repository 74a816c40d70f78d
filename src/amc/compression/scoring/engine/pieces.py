"""A program in two pieces, cut where one tensor is all that goes on: networks that begin alike can share it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.compression.scoring.engine.program import FEW, Batch, Op, Program, Value

PER_ELEMENT = 128  # multiplications that take as long as making one element: most layers wait for memory
KEPT = 2 * PER_ELEMENT  # multiplications that take as long as remembering an element, and reading it again later
SHARED = 0.7  # of the networks that share a beginning, those that still do with one more weight


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Operators that run without interruption."""

    ops: tuple[Op, ...]
    inputs: tuple[int, ...]  # the network's inputs, or the tensor at the cut before
    outputs: tuple[int, ...]  # the tensor at the cut behind, or the values in the network's output
    constants: tuple[int, ...]  # values that depend on no image, in the order of their first use


def in_pieces(program: Program, place: int | None = None) -> tuple[Piece | None, Piece]:
    """The program, cut behind so many operators; without a first piece for None, or where it cannot be cut."""
    settled, tensor_at = _settled(program), dict(_cuts(program))
    bounds = [place] if place in tensor_at else []
    pieces = []
    inputs = program.inputs
    for begin, end in zip([0, *bounds], [*bounds, len(program.ops)], strict=True):
        ops = tuple(op for op in program.ops[begin:end] if not settled.issuperset(op.made))
        outputs = (tensor_at[end],) if end in bounds else program.wanted
        read = [number for op in ops for number in op.reads]
        constants = dict.fromkeys(number for number in [*read, *outputs] if number in settled)
        pieces.append(Piece(ops, inputs, outputs, tuple(constants)))
        inputs = outputs
    return (pieces[0] if bounds else None), pieces[-1]


def place_to_cut(program: Program, most: int) -> int | None:
    """Where sharing saves most work, as a number of operators; None if no tensor has at most `most` bytes an image.

    Guesses how many networks share a beginning from the number of weights in it. No clock is involved.
    """
    work = [_work(op, program) for op in program.ops]
    weights = [_weights(op, program) for op in program.ops]
    saved = {
        place: sum(work[:place]) * SHARED ** sum(weights[:place]) - KEPT * _elements(program, number)
        for place, number in _cuts(program)
        if _elements(program, number) * program.kinds[number].dtype.itemsize <= most * FEW
    }
    return max(saved, key=saved.__getitem__, default=None)


def settled_tensors(program: Program) -> dict[int, Tensor]:
    """The values that depend on no image, by number, from what the constants hold now."""
    settled = _settled(program)
    values: dict[int, Tensor] = dict(program.constants)
    with torch.no_grad():
        for op in program.ops:
            if settled.issuperset(op.made):
                call_(op, values, FEW)
    return values


def call_(op: Op, values: dict[int, Any], images: int) -> None:
    """Run an operator on a batch of so many images, and add its outputs to `values`."""
    kwargs = {name: filled(part, values, images) for name, part in op.kwargs.items()} if op.kwargs else {}
    result = op.target(*[filled(part, values, images) for part in op.args], **kwargs)
    results = result if isinstance(result, tuple | list) else (result,)
    values.update((number, each) for number, each in zip(op.outputs, results, strict=True) if number is not None)


def filled(part: Any, values: Mapping[int, Any], images: int) -> Any:
    """An argument with its tensors and the batch size."""
    kind = type(part)
    if kind is Value:
        return values[part.number]
    if kind is Batch:
        return part.times * images
    return [filled(each, values, images) for each in part] if kind is list or kind is tuple else part


def digest(piece: Piece, tensors: Mapping[int, Tensor], *, without: Iterable[int] = ()) -> bytes:
    """A digest of all that a piece computes with, besides its inputs and the constants `without`."""
    left_out = set(without)
    whole = hashlib.blake2b(digest_size=16)
    for op in piece.ops:
        whole.update(f"{op.target}{op.args}{op.kwargs}".encode())
    for number in piece.constants:
        if number not in left_out:
            whole.update(f"{number}{tensors[number].shape}{tensors[number].dtype}".encode())
            whole.update(bytes_of(tensors[number]))
    return whole.digest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor on the CPU, as bytes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _settled(program: Program) -> set[int]:
    """Numbers of the values that depend neither on an image nor on the number of images."""
    settled = set(program.constants)
    for op in program.ops:
        if not op.sized and settled.issuperset(op.reads):
            settled.update(op.made)
    return settled


def _cuts(program: Program) -> Iterator[tuple[int, int]]:
    """Where one tensor is all that the rest needs, in order: the number of operators before, and the tensor's number.

    Some operator makes the tensor, no later one overwrites it, and only its first dimension grows with the batch.
    """
    settled = _settled(program)
    last = {number: place for place, op in enumerate(program.ops) for number in op.reads if number not in settled}
    last |= dict.fromkeys((number for number in program.wanted if number not in settled), len(program.ops))
    overwritten = {number for op in program.ops for number in op.writes}
    live = {number for number in program.inputs if number in last}
    for place, op in enumerate(program.ops[:-1]):
        live = {number for number in (*live, *op.made) if last.get(number, -1) > place}
        if len(live) == 1 and live.isdisjoint(overwritten) and live.isdisjoint(program.inputs):
            (number,) = live
            if program.kinds[number].batched:
                yield place + 1, number


def _work(op: Op, program: Program) -> float:
    """How long an operator takes, in multiplications, roughly."""
    made = _elements(program, op.made[0]) if op.made else 0
    name = op.target._schema.name
    shapes = [program.kinds[number].shape for number in op.reads]
    inner = 0
    if name == "aten::convolution":
        inner = math.prod(shapes[1][1:])
    elif name in ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"):
        inner = shapes[-1][-2]
    return float(made * (inner + PER_ELEMENT))


def _weights(op: Op, program: Program) -> int:
    """How many weights the operator brings in; those of a depthwise convolution follow others and do not count."""
    shapes = [program.kinds[number].shape for number in op.reads if number in program.constants]
    return sum(len(shape) > 1 and shape[1] > 1 for shape in shapes)


def _elements(program: Program, number: int) -> int:
    return math.prod(program.kinds[number].shape)
