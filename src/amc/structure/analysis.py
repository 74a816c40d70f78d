"""`inspect`: from a model to its structure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from amc.structure.advice import explained
from amc.structure.channels import Ids, Lock, Resolution
from amc.structure.context import Dims, LayerUse
from amc.structure.copying import copy_model, undisturbed
from amc.structure.cost import CostModel, Term
from amc.structure.grouping import FIXED, Grouping, group_channels
from amc.structure.liveness import Buffer
from amc.structure.part import Part
from amc.structure.propagate import Propagation, propagate
from amc.structure.structure import Group, Layer, Locked, Slots, Structure, lock_groups, restrict
from amc.structure.trace import Example, Trace, dry_run, trace

INSEPARABLE = Lock("its channels are all tied together, so none can go without the rest")

SEVERAL = "its inputs are pruned along several dimensions at once"


def inspect(
    model: nn.Module,
    example_input: Any,
    *,
    part: str | None = None,
    lock: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    approximate: bool = False,
) -> Structure:
    """Find the prunable groups of `model`, their ties, costs and locks. Copies of `model` are run, never itself.

    `example_input` is a tensor, a tuple of positional or a dict of keyword arguments; costs are for this input
    as a whole, so give one example (batch 1) for costs per example. `lock` keeps groups whose name or producing
    layer matches one of these patterns (`layer3.*`); `only` keeps all groups that match none of its patterns. `part` is
    the name of a submodule: the structure is that of this part alone, for what the whole network calls it with.
    `approximate`: channels that a layer norm or another average runs over may go, too. What is left is then averaged
    alone, so the slice is not exactly the masked network; such groups say so in `averaged`.

    Raises ModelError if the model does not take the example, or torch.export cannot trace it, or the part.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    >>> structure = amc.inspect(net, torch.zeros(1, 1, 6, 6))
    >>> structure.groups
    (Group(0: 8 channels),)
    >>> structure.locked
    (Locked(3: 3 channels, network output),)
    """
    if part is not None:
        found = Part.of(model, example_input, part)
        return inspect(found.module, found.example, lock=lock, only=only, approximate=approximate)
    structure = _assemble(*walked(model, example_input, approximate=approximate))
    if structure.bound:
        from amc.structure.probe import with_needed  # it loads torch's compiler

        structure = with_needed(model, example_input, structure)
    structure = replace(structure, locked=explained(structure.locked, model))
    structure = lock_groups(structure, {group.name: INSEPARABLE for group in structure.groups if group.size == 1})
    return restrict(structure, lock=lock, only=only)


def walked(model: nn.Module, example_input: Any, *, approximate: bool = False) -> tuple[Propagation, Trace]:
    """The walk over the graph of a network, and the graph. Raises ModelError as `inspect`."""
    example = Example.of(example_input)
    with undisturbed(model):
        dry_run(copy_model(model), example.cloned())
        traced = trace(copy_model(model), example.cloned())
    return propagate(traced, approximate=approximate), traced


def _assemble(walk: Propagation, traced: Trace) -> Structure:
    channel, shapes = walk.resolution.channel, traced.shapes
    locked = np.zeros(channel.max(initial=-1) + 1, dtype=bool)
    locked[list(walk.resolution.locks)] = True
    dims = _DimensionTable(channel)
    for ids in (entry for layer in walk.layers for entry in layer.output_ids):
        dims.add(ids)  # first, so that groups are numbered in execution order
    for ids in (entry for layer in walk.layers for entry in layer.input_ids):
        dims.add(ids)
    macs_terms = tuple(dims.term(term.factor, term.dims, term.vanishing) for term in walk.terms)
    params_terms = tuple(_params_term(dims, shapes[name], walk.tensors.get(name)) for name in traced.parameters)
    grouping = group_channels(dims.arrays, locked)
    memory_terms = tuple(_buffer_term(dims, buffer) for buffer in walk.liveness.buffers)  # does not shape the groups
    cost = replace(
        _cost_model(dims.arrays, grouping, macs_terms, params_terms, tuple(term.layer for term in walk.terms)),
        macs_places=tuple((term.module, term.operator) for term in walk.terms),
        vanishing=tuple(dims.vanishing),
        memory_terms=memory_terms,
        memory_moments=walk.liveness.moments,
    )
    slot = grouping.slot

    def slots(ids: Ids) -> Slots:
        return slot[channel[ids]]

    dense = cost.layer_macs(grouping.sizes, len(walk.layers))
    names = layer_names(walk.layers)
    layers = tuple(
        _layer(use, name, int(macs), slots, walk.used.get(use.weight, ""))
        for use, name, macs in zip(walk.layers, names, dense, strict=True)
    )
    tensors = {
        name: tuple(None if ids is None else slots(ids) for ids in entry) for name, entry in walk.tensors.items()
    }
    return Structure(
        groups=_groups(grouping, layers, walk.layers, slots, walk.resolution),
        locked=_locked(walk, channel, traced.parameters),
        layers=layers,
        tensors=tensors,
        shapes=shapes,
        attributes=tuple(replace(each, counted=slots(each.counted)) for each in walk.attributes),
        bound=tuple(each.renumbered(slots) for each in walk.bound),
        cost=cost,
    )


def layer_names(uses: Sequence[LayerUse]) -> list[str]:
    """The name of each layer: the module of its weight, or the weight itself if the module holds several.

    A weight named `weight` is the module's main weight and always takes the module's name.
    """
    names = [use.weight.rpartition(".")[0] or use.module or use.weight or use.kind for use in uses]
    weights: dict[str, set[str]] = {}
    for name, use in zip(names, uses, strict=True):
        weights.setdefault(name, set()).add(use.weight)
    return [
        use.weight if len(weights[name] - {""}) > 1 and use.weight and not _is_main(use.weight) else name
        for name, use in zip(names, uses, strict=True)
    ]


def _is_main(weight: str) -> bool:
    return weight.rpartition(".")[2] == "weight"


def _layer(use: LayerUse, name: str, macs: int, slots: Callable[[Ids], Slots], other: str) -> Layer:
    obstacle = f"{other} uses its weight, too" if other else ""
    inputs = [prunable for ids in use.input_ids if ((prunable := slots(ids)) != FIXED).any()]
    outputs = [prunable for ids in use.output_ids if ((prunable := slots(ids)) != FIXED).any()]
    return Layer(
        **use.shared(),
        name=name,
        input=inputs[0] if inputs else np.full(use.inputs, FIXED, dtype=np.int64),
        output=outputs[0] if outputs else np.full(use.outputs, FIXED, dtype=np.int64),
        macs=macs,
        obstacle=SEVERAL if len(inputs) > 1 else obstacle,
    )


class _DimensionTable:
    """Distinct dimensions that sizes depend on, each as the channel of every position."""

    def __init__(self, channel: Ids) -> None:
        self.channel = channel
        self.arrays: list[Ids] = []
        self.vanishing: list[int] = []
        self._index: dict[tuple[bytes, bool], int] = {}

    def add(self, ids: Ids | None, vanishing: bool = False) -> int | None:
        if ids is None:
            return None
        array = self.channel[ids]
        key = (array.tobytes(), vanishing)
        if key not in self._index:
            self._index[key] = len(self.arrays)
            self.vanishing += [len(self.arrays)] if vanishing else []
            self.arrays.append(array)
        return self._index[key]

    def term(self, factor: int, dims: tuple[Ids, ...], vanishing: tuple[bool, ...] | None = None) -> Term:
        flags = vanishing or (False,) * len(dims)
        indices = (self.add(ids, flag) for ids, flag in zip(dims, flags, strict=True))
        return factor, tuple(index for index in indices if index is not None)


def _params_term(dims: _DimensionTable, shape: tuple[int, ...], ids: Dims | None) -> Term:
    """A parameter has as many elements as the product of its dimensions."""
    entries = ids or (None,) * len(shape)
    fixed = math.prod(size for size, entry in zip(shape, entries, strict=True) if entry is None)
    return dims.term(fixed, tuple(entry for entry in entries if entry is not None))


def _buffer_term(dims: _DimensionTable, buffer: Buffer) -> Term:
    """A buffer has as many bytes as the product of its dimensions, times those of an element."""
    factor, entries = _params_term(dims, buffer.tensor.shape, buffer.tensor.ids)
    return factor * buffer.itemsize, entries


def _cost_model(
    arrays: list[Ids],
    grouping: Grouping,
    macs_terms: tuple[Term, ...],
    params_terms: tuple[Term, ...],
    macs_layers: tuple[int | None, ...],
) -> CostModel:
    """Read every dimension as an affine function of keep counts: all channels of a group count the same in it.

    Only a dimension of activations may hold some channels of a group and not others; then this is an upper bound.
    """
    offsets = grouping.offsets
    fixed = np.zeros(len(arrays))
    per_channel = np.zeros((len(arrays), grouping.sizes.size))
    for row, array in enumerate(arrays):
        slots = grouping.slot[array]
        fixed[row] = np.count_nonzero(slots == FIXED)
        if grouping.sizes.size:
            times = np.bincount(slots[slots != FIXED], minlength=int(offsets[-1]))
            per_channel[row] = np.maximum.reduceat(times, offsets[:-1])
    most = np.array([array.size for array in arrays], dtype=np.float64)
    return CostModel(fixed, per_channel, most, macs_terms, params_terms, macs_layers)


def _groups(
    grouping: Grouping,
    layers: tuple[Layer, ...],
    uses: list[LayerUse],
    slots: Callable[[Ids], Slots],
    resolution: Resolution,
) -> tuple[Group, ...]:
    averaged: dict[int, Lock] = {}  # by slot
    for channel, lock in resolution.averages.items():
        averaged.setdefault(int(grouping.slot[channel]), lock)
    group_of = np.repeat(np.arange(grouping.sizes.size), grouping.sizes)
    producers: list[list[int]] = [[] for _ in grouping.sizes]
    consumers: list[list[int]] = [[] for _ in grouping.sizes]
    for index, use in enumerate(uses):
        for entries, layers_of in ((use.output_ids, producers), (use.input_ids, consumers)):
            numbers = [slots(ids) for ids in entries]
            for group in np.unique([each for part in numbers for each in group_of[part[part != FIXED]]]).tolist():
                layers_of[int(group)].append(index)
    groups: list[Group] = []
    used: dict[str, int] = {}
    for index, size in enumerate(grouping.sizes.tolist()):
        first = [*producers[index], *consumers[index]]
        name = layers[first[0]].name if first else f"channels{index}"
        used[name] = used.get(name, 0) + 1
        unique = name if used[name] == 1 else f"{name}:{used[name]}"
        offset = int(grouping.offsets[index])
        why = next((averaged[slot] for slot in range(offset, offset + size) if slot in averaged), None)
        groups.append(Group(unique, size, offset, tuple(producers[index]), tuple(consumers[index]), why))
    return tuple(groups)


def _locked(walk: Propagation, channel: Ids, parameters: Iterable[str]) -> tuple[Locked, ...]:
    """Locked channels by the layer that makes them and by reason, each channel once; then those of no layer."""
    seen = np.zeros(channel.max(initial=-1) + 1, dtype=bool)
    locked: list[Locked] = []
    for use in walk.layers:
        if not use.output_ids:
            continue
        mine = np.unique(channel[np.concatenate(use.output_ids)])
        locked += _by_reason(use.module or use.weight, mine[~seen[mine]], walk)
        seen[mine] = True
    return (*locked, *_locked_apart(walk, channel, parameters, seen, {item.name for item in locked}))


def _locked_apart(
    walk: Propagation, channel: Ids, parameters: Iterable[str], seen: npt.NDArray[np.bool_], listed: set[str]
) -> list[Locked]:
    """Locked channels of parameters outside every layer: recurrent, computed or unused ones.

    One entry for each module that is not `listed`: the widest dimension of its first parameter that is wholly locked.
    """
    by_owner: dict[str, list[Locked]] = {}
    for name in parameters:
        owner = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        mine = [np.unique(channel[ids]) for ids in walk.tensors.get(name, ()) if ids is not None]
        locked = [ids for ids in mine if all(each in walk.resolution.locks for each in ids.tolist())]
        whole = len(locked) == len(mine) > 0 and not any(seen[ids].any() for ids in mine)
        if whole and owner not in listed:
            by_owner.setdefault(owner or name, _by_reason(owner or name, max(locked, key=len), walk))
    return [item for items in by_owner.values() for item in items]


def _by_reason(name: str, channels: Ids, walk: Propagation) -> list[Locked]:
    locks = [lock for each in channels.tolist() if (lock := walk.resolution.locks.get(each)) is not None]
    return [Locked(name, count, lock) for lock, count in Counter(locks).items()]
