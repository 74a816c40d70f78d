"""The statistics of batch norms from a network in pieces, shared between networks that begin alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.compression.scoring.engine.memory import Memory
from amc.compression.scoring.engine.pieces import Piece, bytes_of, digest, in_pieces, settled_tensors
from amc.compression.scoring.engine.program import Program, UnfitError, tensors_of
from amc.compression.scoring.engine.torch_piece import TorchPiece, norm_of
from amc.structure.trace import Example

_RUNNING = (3, 4)  # arguments of the operator: the running mean and variance


class Estimation:
    """Runs a network on batches for the statistics of its batch norms: all that is in training mode.

    The statistics are those of a forward pass, to the last bit. If the first piece has been run before on the same
    batch, with the same weights and statistics, its output and its statistics afterwards are taken from memory.
    """

    def __init__(self, program: Program, place: int | None, module: nn.Module, memory: Memory) -> None:
        """Raises UnfitError if a batch norm, or what reads its statistics, is not of the usual kind."""
        norms, tensors = _norms(program, module), settled_tensors(program)
        head, tail = in_pieces(program, place)
        self._head = None if head is None else _Part(head, program, tensors, norms)
        self._tail = _Part(tail, program, tensors, norms)
        self._memory = memory

    def __call__(self, inputs: Example) -> None:
        images = tensors_of(inputs)
        self._tail.run(images if self._head is None else self._begun(self._head, images))

    def _begun(self, head: _Part, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inputs of the tail. The head's statistics are then those after the batch."""
        key = (head.state(), *images)
        known = self._memory.get(key)
        if known is None:
            tensors = head.run(images)
            self._memory.put(key, (*tensors, *(tensor.clone() for tensor in head.statistics())))
            return tensors
        given = len(known) - len(head.statistics())
        head.take_(known[given:])
        return known[:given]


class _Part:
    """A piece and the batch norms in it."""

    def __init__(
        self, piece: Piece, program: Program, tensors: dict[int, Tensor], norms: dict[int, _BatchNorm]
    ) -> None:
        self._norms = [norm for op in piece.ops if (norm := norm_of(op, norms)) is not None]
        running = {op.args[place].number for op in piece.ops if norm_of(op, norms) for place in _RUNNING}
        self._fixed = digest(piece, tensors, without=running)
        self.run = TorchPiece(piece, program.kinds, tensors, norms)

    def state(self) -> bytes:
        """A digest of all that the piece computes with, besides its inputs."""
        state = hashlib.blake2b(self._fixed, digest_size=16)
        for norm in self._norms:
            state.update(repr(norm.momentum).encode())
        for tensor in self.statistics():
            state.update(bytes_of(tensor))
        return state.digest()

    def statistics(self) -> list[Tensor]:
        """The running means and variances."""
        both = ((norm.running_mean, norm.running_var) for norm in self._norms)
        return [tensor for pair in both for tensor in pair if tensor is not None]

    def take_(self, statistics: Sequence[Tensor]) -> None:
        """Set the statistics after a batch that was not run."""
        for tensor, value in zip(self.statistics(), statistics, strict=True):
            tensor.copy_(value)
        for norm in self._norms:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1


def _norms(program: Program, module: nn.Module) -> dict[int, _BatchNorm]:
    """The batch norms in training mode, by the number of their running mean. Raises UnfitError."""
    found: dict[int, _BatchNorm] = {}
    numbers = {id(tensor): number for number, tensor in program.constants.items()}
    for norm in module.modules():
        if not isinstance(norm, _BatchNorm) or not norm.training:
            continue
        if type(norm).forward is not _BatchNorm.forward or norm.running_mean is None:
            raise UnfitError("a batch norm of another kind")
        number = numbers.get(id(norm.running_mean))
        if number in found:
            raise UnfitError("two batch norms with the same statistics")
        if number is not None:
            found[number] = norm
    running = {id(tensor) for norm in found.values() for tensor in (norm.running_mean, norm.running_var)}
    for op in program.ops:
        own = [op.args[place].number for place in _RUNNING] if norm_of(op, found) is not None else []
        if any(id(program.constants.get(number)) in running for number in op.reads if number not in own):
            raise UnfitError("an operator reads the statistics of a batch norm")
    return found
