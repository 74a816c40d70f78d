"""Which numbers a slice has to bind in its calls: those that the forward of a slice would compute wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from amc.structure.bound import Call, Place, Watch, watch_
from amc.structure.calls import Calls
from amc.structure.copying import copy_model, plain, undisturbed
from amc.structure.grouping import FIXED
from amc.structure.slicing import bound_calls, slice_model
from amc.structure.structure import Bound, Mask, Structure
from amc.structure.trace import Example, inference


def with_needed(model: nn.Module, example_input: Any, structure: Structure) -> Structure:
    """The structure with those of its bound sizes that the forward would get wrong, and numbers that follow from them.

    They are found by a run with half of every group. A scale such as `(C // self.num_heads) ** -0.5` then differs from
    the dense network's, where it was right.
    """
    model = plain(model)
    first = {id(module): path for path, module in reversed([*model.named_modules(remove_duplicate=False)])}
    names = {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
    candidates = tuple(_once(replace(each, module=names[each.module]) for each in structure.bound))
    if not candidates or not structure.groups:
        return replace(structure, bound=())
    example = Example.of(example_input)
    structure, mask = replace(structure, bound=candidates), _half(structure)
    calls = bound_calls(structure, mask)
    with undisturbed(model):
        sliced, runs = _watched(slice_model(model, replace(structure, bound=()), mask), example, calls)
        wrong = sliced.wrong(calls)
        if not runs:  # what it did not reach counts as wrong: to bind a number that is right changes nothing
            wrong |= {
                (path, call, place)
                for path, mine in calls.items()
                for call, numbers in mine.items()
                for place in numbers
                if (path, call) not in sliced.given
            }
        modules = {path for path, *_ in wrong}
        if not modules:
            return replace(structure, bound=())
        dense, _ = _watched(copy_model(model), example, {path: {} for path in modules})
    sizes = [each for each in candidates if (each.module, each.call, each.place) in wrong]
    return replace(structure, bound=(*sizes, *_changed(dense, sliced)))


def _watched(network: nn.Module, example: Example, calls: Mapping[str, Calls]) -> tuple[Watch, bool]:
    """What the network gives in its calls, and whether it runs."""
    watch, example = watch_(network, calls), example.cloned()
    try:
        with inference(network):
            network(*example.args, **example.kwargs)
    except Exception:  # the user's forward may raise anything on a size that it did not expect
        return watch, False
    return watch, True


def _changed(dense: Watch, sliced: Watch) -> Iterator[Bound]:
    """Numbers, other than sizes and indices, that differ between both networks' calls."""
    for (path, call), times in dense.given.items():
        others = sliced.given.get((path, call), [])
        if len(times) != len(others) or any(each != times[0] for each in times):
            continue
        for place in range(-len(times[0]), 0):
            value = times[0][place]
            if isinstance(value, float) and any(len(each) != len(times[0]) or each[place] != value for each in others):
                yield Bound(path, call, place, None, value)


def _half(structure: Structure) -> Mask:
    mask = np.ones(structure.channels, dtype=bool)
    for group in structure.groups:
        mask[group.offset + (group.size + 1) // 2 : group.offset + group.size] = False
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
