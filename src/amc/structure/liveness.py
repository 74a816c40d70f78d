"""Which activations are alive at once: the memory that a network needs beside its weights.

Reads the operators of the traced graph in the order of execution; returns the buffers they write, and for every moment
the buffers that are alive. A view shares the buffer of what it views, as in torch. An elementwise operator writes over
an input that nothing reads later, as runtimes do; a batch norm counts as one, as runtimes fold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from amc.structure.context import Operation, Tracked

IN_PLACE = frozenset({"batch_norm", "dropout", "feature_dropout", "alpha_dropout"})  # elementwise when evaluated
END = 1 << 62  # later than every operator


@dataclass(frozen=True, slots=True)
class Buffer:
    """What one operator writes, or one of the network's inputs."""

    tensor: Tracked
    itemsize: int  # bytes of an element


@dataclass(frozen=True, slots=True)
class Liveness:
    """The buffers, and for every moment of a pass the ones that are alive; moments that others cover are left out."""

    buffers: tuple[Buffer, ...]
    moments: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Life:
    """When a buffer is written, and when it is read last: numbers of operators."""

    buffer: Buffer
    born: int
    last: int
    given: bool  # an input of the network, which belongs to the caller


def liveness(operations: Sequence[Operation], inputs: Iterable[Buffer], outputs: Iterable[Tracked]) -> Liveness:
    """The buffers of one pass. Weights have none: only what `inputs` and `operations` write is counted."""
    lives, place = _lives(operations, inputs, outputs)
    home = _written_over(operations, lives, place)
    kept = sorted(set(home))
    number = {life: index for index, life in enumerate(kept)}
    times = range(len(operations)) if operations else range(1)
    moments = [
        frozenset(number[life] for life in kept if lives[life].born <= time <= lives[life].last) for time in times
    ]
    return Liveness(tuple(lives[life].buffer for life in kept), _largest(moments))


def is_elementwise(node: Node, name: str) -> bool:
    """Whether every element of the result needs only the elements at its place. `name`: of the operator."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in IN_PLACE


def _lives(
    operations: Sequence[Operation], inputs: Iterable[Buffer], outputs: Iterable[Tracked]
) -> tuple[list[_Life], dict[int, int]]:
    """Every buffer that is ever written, and which one a tensor lies in, by the tensor's identity."""
    lives = [_Life(buffer, 0, 0, True) for buffer in inputs]
    place = {id(life.buffer.tensor): index for index, life in enumerate(lives)}
    for time, operation in enumerate(operations):
        for tensor in operation.inputs:
            if id(tensor) in place:
                lives[place[id(tensor)]].last = time
        for result in operation.results:
            if result.viewed is None:
                place[id(result.tensor)] = len(lives)
                lives.append(_Life(Buffer(result.tensor, result.itemsize), time, time, False))
            elif id(result.viewed) in place:  # otherwise a view of a weight
                place[id(result.tensor)] = place[id(result.viewed)]
    for tensor in outputs:
        if id(tensor) in place:
            lives[place[id(tensor)]].last = END
    return lives, place


def _written_over(operations: Sequence[Operation], lives: list[_Life], place: dict[int, int]) -> list[int]:
    """For every buffer the one whose memory it takes; its own number if none. The lives grow with what they hold."""
    home = list(range(len(lives)))
    for time, operation in enumerate(operations):
        if not operation.elementwise:
            continue
        for result in operation.results:
            mine = place.get(id(result.tensor))
            if mine is None or result.viewed is not None:
                continue
            for tensor in operation.inputs:
                other = home[place[id(tensor)]] if id(tensor) in place else mine
                if other != mine and _fits(lives[other], lives[mine], time):
                    home[mine] = other
                    lives[other].last = lives[mine].last
                    break
    return home


def _fits(old: _Life, new: _Life, time: int) -> bool:
    """Whether the new buffer may take the memory of the old one, which this operator reads."""
    same = (old.buffer.tensor.shape, old.buffer.itemsize) == (new.buffer.tensor.shape, new.buffer.itemsize)
    return same and not old.given and old.last == time


def _largest(moments: list[frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """The sets that are no part of another one, in order."""
    distinct = list(dict.fromkeys(moments))
    return tuple(tuple(sorted(one)) for one in distinct if not any(one < other for other in distinct))
