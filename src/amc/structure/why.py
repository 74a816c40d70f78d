"""How the channels of a layer came to be tied to others, or locked: operator by operator, as the forward runs."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from amc.errors import ModelError
from amc.structure.analysis import layer_names, walked
from amc.structure.channels import Ids, Lock
from amc.structure.propagate import Propagation
from amc.structure.source import line_of_node
from amc.structure.trace import Trace, module_path

Union = dict[int, set[int]]  # id -> the ids that are tied to it so far, itself among them


@dataclass(frozen=True, slots=True)
class Step:
    """An operator that ties channels to those of other layers."""

    operator: str  # such as aten.add.Tensor; empty for an attribute that counts both
    module: str
    source: str  # file and line, if known
    joined: tuple[str, ...]  # "outputs of conv1", "inputs of conv2", "norm1"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happens to channels of one layer that share a fate."""

    name: str
    channels: tuple[int, ...]  # of the outputs of the layer, from 0
    steps: tuple[Step, ...]  # up to the lock, if there is one
    lock: Lock | None  # None: they can be pruned, together with all that the steps name


def explain(model: nn.Module, example_input: Any, name: str) -> tuple[Explanation, ...]:
    """How the outputs of the layer or module `name` came to be tied or locked; one entry for each fate.

    Channels that are tied to the same layers have the same steps: those of the first of them are told. Raises
    ModelError as `amc.inspect`, or if nothing of that name has channels.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    >>> first, = explain(net, torch.zeros(1, 1, 6, 6), "0")
    >>> [step.joined for step in first.steps], first.lock
    ([('1',), ('inputs of 2',)], None)
    """
    walk, traced = walked(model, example_input)
    labels = _labels(walk, traced)
    outputs = _outputs(walk, labels, name, type(model).__name__)
    fates: dict[Any, list[int]] = {}
    for place, channel in enumerate(walk.resolution.channel[outputs].tolist()):
        lock = walk.resolution.locks.get(channel)
        tied = np.flatnonzero(walk.resolution.channel == channel).tolist()
        reached = tuple(sorted({labels[each] for each in tied if each in labels}))
        fates.setdefault(lock or reached, []).append(place)
    return tuple(_explanation(walk, labels, name, outputs, places) for places in fates.values())


def _labels(walk: Propagation, traced: Trace) -> dict[int, str]:
    """What an id stands for, in words. The ids of activations have none of their own."""
    labels: dict[int, str] = {}
    names = layer_names(walk.layers)
    for use, layer in zip(walk.layers, names, strict=True):
        weight = walk.tensors.get(use.weight, ())
        read = [dim for place, dim in enumerate(weight) if place in use.input_dims]
        for role, entries in (("outputs", use.output_ids), ("inputs", read)):
            for each in _numbers(entries):
                labels.setdefault(each, f"{role} of {layer}")
    for parameter in traced.parameters:
        owner = parameter.rpartition(".")[0] or parameter
        if owner not in names and parameter not in names:
            for each in _numbers(walk.tensors.get(parameter, ())):
                labels.setdefault(each, owner)
    return labels


def _numbers(entries: Iterable[Ids | None]) -> list[int]:
    return [each for ids in entries if ids is not None for each in ids.ravel().tolist()]


def _outputs(walk: Propagation, labels: Mapping[int, str], name: str, kind: str) -> Ids:
    """The ids of the output channels of a layer, or of a module's own parameter such as a batch norm's."""
    for use, layer in zip(walk.layers, layer_names(walk.layers), strict=True):
        if use.output_ids and name in (layer, use.weight):
            return use.output_ids[0].ravel()
    found = [number for number, label in labels.items() if label == name]
    if not found:
        known = dict.fromkeys(label.rpartition(" of ")[2] for label in labels.values())
        near = difflib.get_close_matches(name, known, n=3) or [*known][:3]
        raise ModelError(f"{kind} has no layer '{name}' with channels; the nearest are {', '.join(near) or 'none'}")
    return np.array(_first_parameter(walk, name, found), dtype=np.int64)


def _first_parameter(walk: Propagation, name: str, ids: list[int]) -> list[int]:
    """Those of the ids that belong to one dimension of one parameter."""
    wanted = set(ids)
    entries = (_numbers([dim]) for dims in walk.tensors.values() for dim in dims)
    return next((entry for entry in entries if entry and wanted.issuperset(entry)), ids)


def _explanation(
    walk: Propagation, labels: Mapping[int, str], name: str, outputs: Ids, places: list[int]
) -> Explanation:
    seed = int(outputs[places[0]])
    channel = int(walk.resolution.channel[seed])
    lock = walk.resolution.locks.get(channel)
    return Explanation(name, tuple(places), tuple(_steps(walk, labels, seed, channel)), lock)


def _steps(walk: Propagation, labels: Mapping[int, str], seed: int, channel: int) -> Iterator[Step]:
    """The ties that join something with a name to the channel of `seed`, until its lock has reached it."""
    parts: Union = {}
    told = {labels.get(seed, "")}
    locked, moment = _locked(walk, channel)
    for number, place, pairs in _ties(walk, channel):
        if number >= moment and not locked.isdisjoint(parts.get(seed, {seed})):
            return
        for a, b in pairs:
            _join_(parts, a, b)
        joined = dict.fromkeys(labels[each] for each in sorted(parts.get(seed, {seed})) if each in labels)
        new = tuple(label for label in joined if label not in told)
        if new:
            told.update(new)
            yield _step(place, new)


def _locked(walk: Propagation, channel: int) -> tuple[set[int], int]:
    """The ids of a channel that its lock was put on, and how many ties there were before; none without a lock."""
    lock = walk.resolution.locks.get(channel)
    for ids, other, moment in walk.table.locks:
        mine = ids[walk.resolution.channel[ids] == channel]
        if other is lock and mine.size:
            return set(mine.tolist()), moment
    return set(), 0


def _step(place: Node | None, joined: tuple[str, ...]) -> Step:
    if place is None:
        return Step("", "", "", joined)
    return Step(str(place.target), module_path(place), line_of_node(place), joined)


def _ties(walk: Propagation, channel: int) -> Iterator[tuple[int, Node | None, list[tuple[int, int]]]]:
    """The ties among the ids of one channel, operator by operator, each with its number among all ties."""
    mine = walk.resolution.channel == channel
    ties = ((number, tie) for number, tie in enumerate(walk.table.ties) if mine[tie[0]].any())
    for _, same in itertools.groupby(ties, key=lambda each: id(each[1][2])):
        found = list(same)
        pairs = [pair for _, (a, b, _) in found for pair in zip(a[mine[a]].tolist(), b[mine[a]].tolist(), strict=True)]
        number, (_, _, place) = found[0]
        yield number, place, pairs


def _join_(parts: Union, a: int, b: int) -> None:
    first, second = parts.setdefault(a, {a}), parts.setdefault(b, {b})
    if first is not second:
        first |= second
        for each in second:
            parts[each] = first
