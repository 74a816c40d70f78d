"""The result of `inspect`: prunable groups, layers, costs, and the locked channels with the reason of each lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amc.errors import ModelError, brief
from amc.structure.channels import Lock
from amc.structure.cost import CostModel
from amc.structure.grouping import FIXED
from amc.structure.patterns import kept_whole

Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WeightUse:
    """How a weight is contracted with an activation: the fields that `Layer` and `LayerUse` share."""

    kind: str  # "conv" | "conv_transpose" | "linear" | "recurrent"
    weight: str  # the parameter's name; empty if the weight is not a parameter
    bias: str | None
    input_dims: tuple[int, ...]  # dimensions of the weight that run over the input
    order: tuple[int, ...]  # the weight's dimensions as (stack, outputs, inputs, kernel): how `filters` is laid out
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int  # of a convolution, or matrices in a stack, each with its own inputs
    tied_across: bool  # every group loses the same places; otherwise whole groups are removed
    input_size: tuple[int, ...]  # spatial

    def shared(self) -> dict[str, Any]:
        """The fields of a `WeightUse` by name, for the `Layer` that is made from it."""
        return {item.name: getattr(self, item.name) for item in fields(WeightUse)}


@dataclass(frozen=True, slots=True)
class Layer(WeightUse):
    """One use of a weight: a convolution, a linear layer however it is written, or a matrix of a recurrent layer.

    `input` and `output` give, for each input and output channel, the number of its prunable channel, or -1. The
    channels of several groups follow one another.

    >>> amc.inspect(net, x).layers[0]
    Layer(0: conv 8x1x3x3, 1,152 MACs)
    """

    name: str
    input: Slots
    output: Slots
    macs: int  # dense, on the example input
    obstacle: str = ""  # why the weight cannot be refitted after its inputs were pruned; empty if it can

    @property
    def filters(self) -> tuple[int, ...]:
        """Shape of the weight: [outputs, inputs / groups, kernel...], with both swapped if transposed."""
        rows, columns = self.output.size, self.input.size
        if self.kind == "conv_transpose":
            rows, columns = columns, rows
        return (rows, columns // self.groups, *self.kernel)

    def __repr__(self) -> str:
        return brief(f"Layer({self.name}: {self.kind} {'x'.join(map(str, self.filters))}, {self.macs:,} MACs)")


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that every layer treats alike: a policy decides how many of them to keep.

    >>> amc.inspect(net, x).group("0")
    Group(0: 8 channels)
    """

    name: str
    size: int
    offset: int  # number of its first channel
    producers: tuple[int, ...]  # layers whose output contains it
    consumers: tuple[int, ...]  # layers whose input contains it
    averaged: Lock | None = None  # what averages over its channels; then slicing it is approximate. None: it is exact

    def __repr__(self) -> str:
        approximate = ", approximate" if self.averaged else ""
        return brief(f"Group({self.name}: {self.size} channels{approximate})")


@dataclass(frozen=True, slots=True)
class Locked:
    """Channels of a layer that must stay, and why.

    >>> amc.inspect(net, x).locked[0].lock.reason
    'network output'
    """

    name: str
    size: int
    lock: Lock

    def __repr__(self) -> str:
        return brief(f"Locked({self.name}: {self.size} channels, {self.lock})")


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute of a module that counts channels: it shrinks in proportion to `counted`.

    `counted`: the ids of these channels during the walk over the graph; their slots in a `Structure`.
    """

    module: str
    name: str  # `splits[1]`: an entry of a list or tuple
    counted: npt.NDArray[np.int64]
    value: int  # of the dense network


@dataclass(frozen=True, slots=True)
class Bound:
    """A number in a call of a forward that no attribute holds, see `amc.structure.bound`.

    `counted`: as in `Attribute`; None for a number that stays, though the forward of a slice would compute another one.
    """

    module: str
    call: str
    place: int  # among the arguments of the call, flat, from the end
    counted: npt.NDArray[np.int64] | None
    value: int | float  # of the dense network

    def renumbered(self, number: Callable[[npt.NDArray[np.int64]], Slots]) -> Bound:
        """The same with other numbers of the channels that it counts."""
        return self if self.counted is None else replace(self, counted=number(self.counted))

    def __repr__(self) -> str:
        return brief(f"Bound({self.module}: {self.value} in {self.call})")


@dataclass(frozen=True)
class Structure:
    """The result of `inspect`. Holds numbers and names only, never the model's tensors.

    >>> structure = amc.inspect(net, x)
    >>> structure
    Structure(1 group of 8 channels, 1 locked; 1,536 MACs, 467 parameters)
    >>> structure.cost.macs([4])  # with 4 of the 8 channels kept
    768
    """

    groups: tuple[Group, ...]
    locked: tuple[Locked, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, tuple[Slots | None, ...]]  # per parameter and buffer: slots of each dimension
    shapes: Mapping[str, tuple[int, ...]]
    attributes: tuple[Attribute, ...]
    cost: CostModel
    bound: tuple[Bound, ...] = ()

    def __repr__(self) -> str:
        groups = f"{len(self.groups)} group{'s' * (len(self.groups) != 1)} of {self.channels:,} channels"
        return f"Structure({groups}, {len(self.locked)} locked; {self.macs:,} MACs, {self.params:,} parameters)"

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[G]: channels of each group, the dense keep counts."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense network on the example input."""
        return self.cost.macs(self.sizes)

    @property
    def params(self) -> int:
        """Parameters of the dense network."""
        return self.cost.params(self.sizes)

    @property
    def memory(self) -> int:
        """Bytes of the dense network's activations that are alive at once, at most, on the example input."""
        return self.cost.memory(self.sizes)

    @property
    def channels(self) -> int:
        """Prunable channels in all groups."""
        return int(self.sizes.sum())

    @property
    def approximate(self) -> bool:
        """Whether a slice of some group is not exactly the masked network."""
        return any(group.averaged is not None for group in self.groups)

    def group(self, name: str) -> Group:
        """The group of this name. Raises ModelError if no group has it."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ModelError(f"no prunable group is called {name!r}; `amc inspect` lists them")

    def prunable_macs(self) -> float:
        """Share of the dense MACs in layers and attention products that shrink with some prunable group."""
        return self.cost.shrinking(self.sizes, "macs")

    def prunable_params(self) -> float:
        """Share of the dense parameters in tensors that shrink with some prunable group."""
        return self.cost.shrinking(self.sizes, "params")

    def mask(self, keep: Mapping[str, npt.ArrayLike]) -> Mask:
        """[channels]: True where kept, from kept indices by group; groups not named keep everything."""
        mask = np.ones(self.channels, dtype=bool)
        for name, indices in keep.items():
            group = self.group(name)
            kept = np.asarray(indices, dtype=np.int64)
            if kept.size == 0 or np.unique(kept).size != kept.size or kept.min() < 0 or kept.max() >= group.size:
                raise ModelError(
                    f"group {name!r} keeps {kept.tolist()[:8]}…: give at least one of its channels "
                    f"0 to {group.size - 1}, each once"
                )
            mask[group.offset : group.offset + group.size] = False
            mask[group.offset + kept] = True
        return mask


def restrict(structure: Structure, *, lock: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Structure:
    """The same structure with groups locked by patterns of their names or of the layers that produce them.

    `amc.structure.patterns` says what a pattern matches. ModelError for a pattern that matches nothing.
    """
    names = {
        group.name: (group.name, *(structure.layers[index].name for index in group.producers))
        for group in structure.groups
    }
    reasons = kept_whole(names, lock=lock, only=only, kind="prunable group")
    return lock_groups(structure, {name: Lock(reason) for name, reason in reasons.items()}) if reasons else structure


def lock_groups(structure: Structure, reasons: Mapping[str, Lock]) -> Structure:
    """The same structure with these groups locked, for these reasons."""
    kept = [index for index, group in enumerate(structure.groups) if group.name not in reasons]
    gone = [group for group in structure.groups if group.name in reasons]
    offsets = np.cumsum([0, *(structure.groups[index].size for index in kept)])
    renumber = np.full(structure.channels + 1, FIXED, dtype=np.int64)  # the last entry serves FIXED itself
    groups = []
    for index, offset in zip(kept, offsets.tolist(), strict=False):
        group = structure.groups[index]
        renumber[group.offset : group.offset + group.size] = np.arange(offset, offset + group.size)
        groups.append(replace(group, offset=offset))
    cost = structure.cost
    removed = [index for index, group in enumerate(structure.groups) if group.name in reasons]
    fixed = cost.fixed + cost.per_channel[:, removed] @ structure.sizes[removed]
    return replace(
        structure,
        groups=tuple(groups),
        locked=(*structure.locked, *(Locked(group.name, group.size, reasons[group.name]) for group in gone)),
        layers=tuple(
            replace(layer, input=renumber[layer.input], output=renumber[layer.output]) for layer in structure.layers
        ),
        tensors={
            name: tuple(None if dim is None else renumber[dim] for dim in dims)
            for name, dims in structure.tensors.items()
        },
        attributes=tuple(replace(each, counted=renumber[each.counted]) for each in structure.attributes),
        bound=tuple(each.renumbered(renumber.__getitem__) for each in structure.bound),
        cost=replace(cost, fixed=fixed, per_channel=cost.per_channel[:, kept]),
    )
