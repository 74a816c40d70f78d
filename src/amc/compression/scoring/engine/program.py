"""A network as the list of ATen operators that it runs, for any batch size.

The network runs once on two and once on three images, and every operator is recorded with its arguments. A number that
differs between the two runs is a multiple of the batch size. A recording shows a network as it is, with its hooks, its
computed weights and the sizes in its reshapes. It is refused where it cannot stand for every batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tag, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from amc.errors import reason_of
from amc.structure.batches import picked, size_of
from amc.structure.modes import evaluating
from amc.structure.trace import Example

FEW, MORE = 2, 3  # images of the two recordings
_BY_VALUE = {Tag.data_dependent_output, Tag.dynamic_output_shape}


class UnfitError(Exception):
    """A network that cannot be run in another way than by calling it; the message is the reason, in a few words."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the program: an input, a constant, or an output of an operator."""

    number: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A number in an operator's arguments: `times` the batch size."""

    times: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value is, on `FEW` images."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batched: bool = False  # its first dimension, and no other, grows with the batch


@dataclass(frozen=True)
class Op:
    """A call of an operator. Tensors among the arguments are `Value`s."""

    target: Any  # torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]  # numbers of the outputs; None for an output that is no tensor
    writes: frozenset[int]  # values in whose memory it writes

    @functools.cached_property
    def made(self) -> tuple[int, ...]:
        """Numbers of the outputs that are tensors."""
        return tuple(number for number in self.outputs if number is not None)

    @functools.cached_property
    def reads(self) -> tuple[int, ...]:
        """Numbers of its arguments."""
        return tuple(leaf.number for leaf in _leaves((self.args, self.kwargs)) if type(leaf) is Value)

    @functools.cached_property
    def sized(self) -> bool:
        """Whether its arguments depend on the batch size."""
        return any(type(leaf) is Batch for leaf in _leaves((self.args, self.kwargs)))


@dataclass(frozen=True)
class Program:
    """What a network computes in eval mode.

    `constants` are the network's own tensors, not copies: they follow what is written into the network later.
    """

    inputs: tuple[int, ...]  # the tensors among the network's arguments, in order
    constants: Mapping[int, Tensor]
    kinds: Mapping[int, Kind]
    ops: tuple[Op, ...]
    results: tuple[Any, ...]  # leaves of the network's output: `Value`, or what is no tensor
    spec: TreeSpec

    @functools.cached_property
    def wanted(self) -> tuple[int, ...]:
        """Numbers of the values in the output, each once."""
        return tuple(dict.fromkeys(leaf.number for leaf in self.results if isinstance(leaf, Value)))

    def output(self, values: Mapping[int, Tensor]) -> Any:
        """The network's output from the values of `wanted`."""
        leaves = [values[leaf.number] if isinstance(leaf, Value) else leaf for leaf in self.results]
        return tree_unflatten(leaves, self.spec)


def tensors_of(inputs: Example) -> list[Tensor]:
    """The tensors among the arguments, in the order of `Program.inputs`."""
    return [leaf for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]


def record(module: nn.Module, inputs: Example) -> Program:
    """The program of `module` in eval mode. Runs it on copies of the first images of `inputs`.

    Raises UnfitError if a recording cannot stand for every batch: too few images, operators that depend on chance or
    on values, writes into a part of a tensor or into the network, or sizes that are no multiple of the batch size.
    """
    if size_of(inputs) < MORE:
        raise UnfitError(f"a batch has fewer than {MORE} images")
    few, more = (_recorded(module, inputs, count) for count in (FEW, MORE))
    return _pruned(_merged(few, more))


def record_like(module: nn.Module, inputs: Example, pattern: Program) -> Program:
    """The program of a network that runs the operators of `pattern` with other sizes, for half of the cost.

    Raises UnfitError as `record` does.
    """
    program = _pruned(_recorded(module, inputs, FEW))
    if [op.target for op in program.ops] != [op.target for op in pattern.ops]:
        return record(module, inputs)
    pairs = list(zip(program.ops, pattern.ops, strict=True))
    alike = dict(zip(program.inputs, pattern.inputs, strict=True))
    alike |= {number: other for op, like in pairs for number, other in zip(op.made, like.made, strict=True)}
    batched = {number for number, other in alike.items() if pattern.kinds[other].batched}
    kinds = {number: replace(kind, batched=number in batched) for number, kind in program.kinds.items()}
    return replace(program, kinds=kinds, ops=tuple(_marked(*pair) for pair in pairs))


def _recorded(module: nn.Module, inputs: Example, images: int) -> Program:
    given = picked(inputs, slice(images)).cloned()
    recorder = _Recorder(tensors_of(given))
    try:
        with evaluating(module), torch.no_grad(), recorder:
            output = module(*given.args, **given.kwargs)
    except Exception as error:  # a user's network may raise anything; where it is called, its error is reported
        raise UnfitError(f"it fails on {images} images ({reason_of(error)})") from error
    leaves, spec = tree_flatten(output)
    results = tuple(recorder.noted(leaf) for leaf in leaves)
    if recorder.reason:
        raise UnfitError(recorder.reason)
    return Program(recorder.inputs, recorder.constants, recorder.kinds(), tuple(recorder.ops), results, spec)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that run inside the block. `reason` says why the recording is of no use, if so.

    An operator that overwrites a tensor makes a new value. Views of the old one that are read later refuse the
    recording: a list of values cannot express them.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.constants: dict[int, Tensor] = {}
        self.reason = ""
        self._alive: list[Tensor] = []  # by number; held, so that no id is used twice
        self._numbers: dict[int, int] = {}  # of the tensor with this id
        self._in_memory: dict[int, set[int]] = {}  # values by their memory
        self._stale: set[int] = set()
        self.inputs = tuple(self._number(tensor) for tensor in inputs)
        self._derived = set(self.inputs)  # values that are computed from an input

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and record it."""
        kwargs = kwargs or {}
        traits = _traits(func)
        given, named = self.noted(tuple(args)), self.noted(kwargs)
        derived = any(type(leaf) is Value and leaf.number in self._derived for leaf in _leaves((given, named)))
        if (traits.random and _may_drop(func, args, kwargs)) or (traits.reads_values and derived):
            self._refuse(f"operator {func} depends on chance or on the values of a tensor")
        written = [given[place] if place < len(given) else named.get(name) for place, name in traits.written]
        numbers_written = [leaf.number for leaf in _leaves(written) if type(leaf) is Value]
        writes = frozenset(each for number in numbers_written for each in self._sharing(number))
        if not writes.isdisjoint(self.constants):
            self._refuse("the network changes its own tensors")
        self._stale |= writes
        out = func(*args, **kwargs)
        leaves = out if isinstance(out, tuple | list) else (out,)
        numbers = tuple(self._number(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)
        if derived:
            self._derived.update(number for number in numbers if number is not None)
        self.ops.append(Op(func, given, named, numbers, writes))
        return out

    def noted(self, part: Any) -> Any:
        """An argument with a `Value` for every tensor. A tensor that nothing here has made is a constant."""
        if isinstance(part, Tensor):
            return self._value(part)
        if isinstance(part, tuple | list):
            return type(part)([self.noted(each) for each in part])
        return {name: self.noted(each) for name, each in part.items()} if isinstance(part, dict) else part

    def kinds(self) -> dict[int, Kind]:
        """The shapes and types of all values."""
        return {number: Kind(tuple(tensor.shape), tensor.dtype) for number, tensor in enumerate(self._alive)}

    def _value(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._numbers:
            self.constants[self._number(tensor)] = tensor
        number = self._numbers[id(tensor)]
        if number in self._stale:
            self._refuse("a part of a tensor is overwritten")
        return Value(number)

    def _number(self, tensor: Tensor) -> int:
        number = len(self._alive)
        self._alive.append(tensor)
        self._numbers[id(tensor)] = number
        self._in_memory.setdefault(_memory(tensor), set()).add(number)
        return number

    def _sharing(self, number: int) -> set[int]:
        return self._in_memory[_memory(self._alive[number])]

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason


@dataclass(frozen=True, slots=True)
class _Traits:
    random: bool
    reads_values: bool  # the shape or the value of its output in Python depends on the values of a tensor
    written: tuple[tuple[int, str], ...]  # arguments that the operator overwrites: position and name


@functools.cache
def _traits(func: Any) -> _Traits:
    arguments = enumerate(func._schema.arguments)
    written = tuple((place, each.name) for place, each in arguments if each.alias_info and each.alias_info.is_write)
    return _Traits(Tag.nondeterministic_seeded in func.tags, not _BY_VALUE.isdisjoint(func.tags), written)


def _may_drop(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a random operator uses chance: attention does so only with dropout."""
    names = [each.name for each in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return bool(given.get("dropout_p", "dropout_p" not in names))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _leaves(part: Any) -> list[Any]:
    """All that lies in nested arguments."""
    if isinstance(part, dict):
        part = list(part.values())
    if not isinstance(part, list | tuple):
        return [part]
    return [leaf for each in part for leaf in (_leaves(each) if isinstance(each, list | tuple | dict) else (each,))]


def _merged(few: Program, more: Program) -> Program:
    """One program from the recordings on `FEW` and on `MORE` images."""
    if [op.target for op in few.ops] != [op.target for op in more.ops] or few.spec != more.spec:
        raise UnfitError("its operators depend on the number of images")
    if _both(few.results, more.results) != few.results or few.constants.keys() != more.constants.keys():
        raise UnfitError("its output depends on the number of images in a way of its own")
    for number, constant in few.constants.items():
        if constant.data_ptr() != more.constants[number].data_ptr() and not _equal(constant, more.constants[number]):
            raise UnfitError("it computes with tensors that no operator makes")
    ops = tuple(
        replace(op, args=_both(op.args, other.args), kwargs=_both(op.kwargs, other.kwargs))
        for op, other in zip(few.ops, more.ops, strict=True)
    )
    kinds = {number: replace(kind, batched=_batched(kind, more.kinds[number])) for number, kind in few.kinds.items()}
    return replace(few, ops=ops, kinds=kinds)


def _batched(few: Kind, more: Kind) -> bool:
    grown = [size * MORE for size in few.shape[:1]] == [size * FEW for size in more.shape[:1]]
    return bool(few.shape) and few.shape[0] > 0 and grown and few.shape[1:] == more.shape[1:]


def _both(few: Any, more: Any) -> Any:
    """An argument for every batch size, from those on `FEW` and on `MORE` images."""
    if isinstance(few, dict) and isinstance(more, dict) and few.keys() == more.keys():
        return {name: _both(value, more[name]) for name, value in few.items()}
    if isinstance(few, list | tuple) and isinstance(more, list | tuple) and len(few) == len(more):
        return type(few)([_both(*pair) for pair in zip(few, more, strict=True)])
    if type(few) is type(more) and (few == more or few != few):  # NaN differs from itself
        return few
    if type(few) is type(more) is int and few % FEW == 0 and few // FEW * MORE == more:
        return Batch(few // FEW)
    raise UnfitError("a number depends on the images")


def _marked(op: Op, like: Op) -> Op:
    """The operator, recorded on `FEW` images, with the multiples of the batch size that `like` has."""
    return replace(op, args=_mark(op.args, like.args), kwargs=_mark(op.kwargs, like.kwargs))


def _mark(given: Any, like: Any) -> Any:
    if isinstance(given, dict):
        return {name: _mark(value, like.get(name)) for name, value in given.items()}
    if isinstance(given, list | tuple) and isinstance(like, list | tuple) and len(given) == len(like):
        return type(given)([_mark(*pair) for pair in zip(given, like, strict=True)])
    if isinstance(like, Batch):
        if type(given) is not int or given % FEW:
            raise UnfitError("a number depends on the images")
        return Batch(given // FEW)
    return given


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))


def _pruned(program: Program) -> Program:
    """The program without operators whose outputs are never read, and without their constants."""
    read = set(program.wanted)
    kept: list[Op] = []
    for op in reversed(program.ops):
        if not read.isdisjoint(op.made):
            read.update(op.reads)
            kept.append(op)
    constants = {number: tensor for number, tensor in program.constants.items() if number in read}
    return replace(program, ops=tuple(reversed(kept)), constants=constants)
