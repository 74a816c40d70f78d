"""The engine that runs a network in two pieces and remembers what the first one gives.

A network is always run in both pieces, also if nothing is remembered: its output never depends on what is remembered.
The key of a remembered tensor is the images and a digest of everything that the first piece computes with. So equal
keys mean equal tensors, for any network and any way of pruning.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from amc.compression.scoring.engine.base import Estimate, Run, TorchEngine
from amc.compression.scoring.engine.estimation import Estimation
from amc.compression.scoring.engine.memory import LIMIT, Memory
from amc.compression.scoring.engine.pieces import Piece, digest, in_pieces, place_to_cut, settled_tensors
from amc.compression.scoring.engine.program import (
    FEW,
    MORE,
    Kind,
    Program,
    UnfitError,
    record,
    record_like,
    tensors_of,
)
from amc.structure.batches import picked
from amc.structure.modes import evaluating
from amc.structure.trace import Example

Runner = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
MakeRunner = Callable[[Piece, Mapping[int, Kind], Mapping[int, Tensor]], Runner]

LEAST_SHARED = 8  # beginnings of dense size that must fit into memory; otherwise most are dropped before their use
AGREEMENT = 1e-4  # of the largest output: the difference between two engines that is rounding


class PiecewiseEngine:
    """Runs networks that compute the same operators as one pattern with other sizes, on the CPU.

    A network that cannot be run so, or whose outputs differ from torch's, is called; `warnings` has the reason.
    """

    def __init__(
        self, name: str, make: MakeRunner, pattern: nn.Module, inputs: Example, *, images: int, limit: int = LIMIT
    ) -> None:
        """`pattern`: the dense network. `inputs`: a batch of it; `images`: how many will be held.

        `limit`: bytes to remember at most. Raises UnfitError if the pattern cannot be run so.
        """
        self.name = name
        self.warnings: list[str] = []
        self.memory = Memory(limit)
        self._again = partial(type(self), name, make, pattern, inputs, images=images, limit=limit)
        self._make = make
        self._few, self._more = (picked(inputs, slice(count)).cloned() for count in (FEW, MORE))
        self._pattern = record(pattern, self._more)
        self._place = place_to_cut(self._pattern, limit // (LEAST_SHARED * max(images, 1)))
        self._plain = TorchEngine()
        self._latest: tuple[weakref.ref[nn.Module], list[int], Program] | None = None
        self._checked(pattern)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process the engine begins anew, with nothing remembered."""
        return self._again, ()

    @contextmanager
    def running(self, module: nn.Module, *, held: bool = False) -> Iterator[Run]:
        """See `Engine`."""
        try:
            network = self._checked(module)
        except UnfitError as error:
            self._warn(error)
            with self._plain.running(module) as called:
                yield called
            return

        def run(inputs: Example) -> Any:
            try:
                return network(inputs, held=held)
            except UnfitError as error:
                self._warn(error)
                given = inputs.cloned()
                return module(*given.args, **given.kwargs)

        with evaluating(module), torch.no_grad():
            yield run

    def estimation(self, module: nn.Module) -> Estimate:
        """See `Engine`."""
        try:
            return Estimation(self._program(module), self._place, module, self.memory)
        except UnfitError:
            return self._plain.estimation(module)

    def forget(self) -> None:
        """See `Engine`."""
        self.memory.clear()

    def _checked(self, module: nn.Module) -> Network:
        """The network in pieces. Raises UnfitError if it gives other outputs than torch on a few images."""
        network = Network(self._program(module), self._place, self._make, self.memory)
        with self._plain.running(module) as run:
            wanted = run(self._few)
        if not agree(network(self._few), wanted):
            raise UnfitError("its outputs differ from torch's")
        return network

    def _program(self, module: nn.Module) -> Program:
        """The program of a network, recorded once as long as it has the same tensors."""
        tensors = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
        if self._latest is not None and self._latest[0]() is module and self._latest[1] == tensors:
            return self._latest[2]
        program = record_like(module, self._more, self._pattern)
        self._latest = (weakref.ref(module), tensors, program)
        return program

    def _warn(self, error: UnfitError) -> None:
        text = f"some networks are scored with torch instead of {self.name}: {error}"
        if text not in self.warnings:
            self.warnings.append(text)


class Network:
    """A network in two pieces, or in one: inputs -> output."""

    def __init__(self, program: Program, place: int | None, make: MakeRunner, memory: Memory) -> None:
        self._program, self._make, self._memory = program, make, memory
        self._head, self._tail = in_pieces(program, place)
        self._tensors = settled_tensors(program)
        self._runners: dict[Piece, Runner] = {}
        self._key = b"" if self._head is None else digest(self._head, self._tensors)

    def __call__(self, inputs: Example, *, held: bool = False) -> Any:
        """The output for a batch. `held`: see `Engine.running`."""
        tensors = self._run(self._tail, self._begun(tensors_of(inputs), held))
        return self._program.output(dict(zip(self._tail.outputs, tensors, strict=True)))

    def _begun(self, images: Sequence[Tensor], held: bool) -> Sequence[Tensor]:
        """The inputs of the tail."""
        if self._head is None:
            return images
        if not held:
            return self._run(self._head, images)
        key = (self._key, *images)
        known = self._memory.get(key)
        if known is None:
            known = self._run(self._head, images)
            self._memory.put(key, known)
        return known

    def _run(self, piece: Piece, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if piece not in self._runners:
            self._runners[piece] = self._make(piece, self._program.kinds, self._tensors)
        return self._runners[piece](tensors)


def agree(one: Any, other: Any) -> bool:
    """Whether two outputs are equal but for rounding: the same structure, shapes and types, and close values."""
    (ones, one_spec), (others, other_spec) = tree_flatten(one), tree_flatten(other)
    return one_spec == other_spec and all(_close(*pair) for pair in zip(ones, others, strict=True))


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    finite = other[other.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=0.0, atol=AGREEMENT * scale, equal_nan=True))
