"""Which numbers a slice has to bind in its calls: those that the forward of a slice would compute wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amc.structure.bound import Call, Place, Watch, watch_
from amc.structure.calls import Calls
from amc.structure.copying import copy_model, plain, undisturbed
from amc.structure.grouping import FIXED
from amc.structure.slicing import bound_calls, slice_model
from amc.structure.structure import Bound, Mask, Slots, Structure
from amc.structure.trace import Example, inference

TRIES = 2  # slices that are run


def with_needed(model: nn.Module, example_input: Any, structure: Structure) -> Structure:
    """The structure with those of its bound sizes that the forward would get wrong, and numbers that follow from them.

    They are found by running slices. A scale such as `(C // self.num_heads) ** -0.5` then differs from the dense
    network's, where it was right.
    """
    model = plain(model)
    first = {id(module): path for path, module in reversed([*model.named_modules(remove_duplicate=False)])}
    names = {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
    candidates = tuple(_once(replace(each, module=names[each.module]) for each in structure.bound))
    if not candidates or not structure.groups:
        return replace(structure, bound=())
    example, rng = Example.of(example_input), np.random.default_rng(0)
    structure = replace(structure, bound=candidates)
    with undisturbed(model):
        tries = [_tried(model, example, structure, rng) for _ in range(TRIES)]
        wrong = set().union(*(places for places, _ in tries))
        modules = {path for path, *_ in wrong}
        if not modules:
            return replace(structure, bound=())
        dense = Watch()
        for inputs in (example, _other(example)):
            for call, times in _watched(copy_model(model), inputs, {path: {} for path in modules})[0].given.items():
                dense.given.setdefault(call, []).extend(times)
    sizes = [each for each in candidates if (each.module, each.call, each.place) in wrong]
    return replace(structure, bound=(*sizes, *_changed(dense, [watch for _, watch in tries])))


def _tried(
    model: nn.Module, example: Example, structure: Structure, rng: np.random.Generator
) -> tuple[set[Place], Watch]:
    """The sizes that slices get wrong, and what they gave in their calls.

    All groups lose channels at once. If that slice does not run, for a literal size that cannot be bound, the modules
    that it did not reach are tried one by one, with their groups alone; a size counts as wrong if that fails, too.
    """
    mask = _random(structure, np.arange(structure.channels), rng)
    calls = bound_calls(structure, mask)
    watch, runs = _watched(_sliced(model, structure, mask), example, calls)
    wrong = watch.wrong(calls)
    for path, mine in calls.items() if not runs else ():
        if all((path, call) in watch.given for call in mine):
            continue
        counted = [each.counted for each in structure.bound if each.module == path and each.counted is not None]
        mask = _random(structure, np.unique(np.concatenate(counted)), rng)
        alone = {path: bound_calls(structure, mask).get(path, {})}
        other, runs = _watched(_sliced(model, structure, mask), example, alone)
        wrong |= other.wrong(alone)
        if not runs:
            missed = ((call, place) for call, sizes in mine.items() for place in sizes)
            wrong |= {(path, call, place) for call, place in missed if (path, call) not in other.given}
        watch.given |= other.given
    return wrong, watch


def _sliced(model: nn.Module, structure: Structure, mask: Mask) -> nn.Module:
    return slice_model(model, replace(structure, bound=()), mask)


def _watched(network: nn.Module, example: Example, calls: Mapping[str, Calls]) -> tuple[Watch, bool]:
    """What the network gives in its calls, and whether it runs."""
    watch, example = watch_(network, calls), example.cloned()
    try:
        with inference(network):
            network(*example.args, **example.kwargs)
    except Exception:  # the user's forward may raise anything on a size that it did not expect
        return watch, False
    return watch, True


def _changed(dense: Watch, sliced: Iterable[Watch]) -> Iterator[Bound]:
    """Numbers, other than sizes and indices, that differ between the calls of the dense network and of slices.

    Those that differ between the dense network's own calls depend on the data, and stay.
    """
    for (path, call), times in dense.given.items():
        others = [each for watch in sliced for each in watch.given.get((path, call), [])]
        if any(each != times[0] for each in times) or any(len(each) != len(times[0]) for each in others):
            continue
        for place in range(-len(times[0]), 0):
            value = times[0][place]
            if isinstance(value, float) and any(each[place] != value for each in others):
                yield Bound(path, call, place, None, value)


def _other(example: Example) -> Example:
    """Other inputs of the same kind."""

    def other(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return torch.randn_like(leaf, memory_format=torch.preserve_format) if floating else leaf

    return Example(tree_map(other, example.args), tree_map(other, dict(example.kwargs)))


def _random(structure: Structure, slots: Slots, rng: np.random.Generator) -> Mask:
    """Some of each group that has one of these channels, and all of the others.

    Their numbers are random: a size may be right for halves by chance, as the quotient of two.
    """
    mask = np.ones(structure.channels, dtype=bool)
    for group in structure.groups:
        if group.size > 1 and ((slots >= group.offset) & (slots < group.offset + group.size)).any():
            mask[group.offset + int(rng.integers(1, group.size)) : group.offset + group.size] = False
    return mask


def _once(bound: Iterable[Bound]) -> Iterator[Bound]:
    """Each size once, of the calls that can lose channels, without those that run several times with different ones."""
    found: dict[Place, Bound] = {}
    clashing: set[Call] = set()
    losing: set[Call] = set()
    for each in bound:
        call = each.module, each.call
        first = found.setdefault((*call, each.place), each)
        if first.value != each.value or not np.array_equal(first.counted, each.counted):  # type: ignore[arg-type]
            clashing.add(call)
        if each.counted is not None and (each.counted != FIXED).any():
            losing.add(call)
    return (each for each in found.values() if (each.module, each.call) in losing - clashing)
